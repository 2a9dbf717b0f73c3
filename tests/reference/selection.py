"""Which coordinates travel, by sorting (Shokri and Shmatikov 2015, section 5: selective SGD)."""

import numpy as np


def count_of_fraction(fraction, size):
    """The whole number of coordinates nearest to the fraction, at least one."""
    return max(1, min(size, round(fraction * size)))


def indices_of_largest(scores, count):
    """The ``count`` largest scores, equal ones by lowest index, as a set of indices."""
    ranking = sorted(range(len(scores)), key=lambda index: (-float(scores[index]), index))
    return set(ranking[:count])


def mask_of_indices(indices, size):
    """A mask [size], True at the indices."""
    mask = np.zeros(size, bool)
    for index in indices:
        mask[index] = True
    return mask


def largest_mask(scores, count):
    """A mask [D], True at the ``count`` largest scores, equal ones by lowest index."""
    return mask_of_indices(indices_of_largest(scores, count), len(scores))


def is_some_largest(mask, scores, count):
    """Whether the mask marks ``count`` coordinates of which none is smaller than one left out, whatever the ties."""
    kept = [score for score, chosen in zip(scores, mask, strict=True) if chosen]
    left = [score for score, chosen in zip(scores, mask, strict=True) if not chosen]
    return len(kept) == count and (not kept or not left or min(kept) >= max(left))


def is_some_choice_above(mask, values, threshold, count):
    """Whether the mask marks only magnitudes above the threshold, and as many of them as there may be."""
    passing = {index for index, value in enumerate(values) if abs(value) > threshold}
    chosen = {index for index, kept in enumerate(mask) if kept}
    return chosen <= passing and len(chosen) == min(count, len(passing))


def truncated(value, bound):
    """bound(x, gamma) of the paper: x cut to [-gamma, gamma]."""
    if value > bound:
        return bound
    if value < -bound:
        return -bound
    return value
