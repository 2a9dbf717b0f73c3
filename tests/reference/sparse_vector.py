"""The private upload of Shokri and Shmatikov 2015 (Figure 12) as written: one coordinate after the other."""

from typing import NamedTuple

import numpy as np

from reference.selection import truncated


class Chance(NamedTuple):
    """Everything random. order: the coordinates as they are asked; the rest draws when called.

    threshold_noise: of how many coordinates were asked before; query_noise and release_noise: of the coordinate.
    """

    order: list
    threshold_noise: object
    query_noise: object
    release_noise: object


def released(values, most_releases, threshold, bound, chance):
    """A dictionary from coordinate to released value."""
    result, asked = {}, 0
    while asked < len(chance.order) and len(result) < most_releases:
        noisy_threshold = threshold + chance.threshold_noise(asked)
        passed = False
        while asked < len(chance.order) and not passed:
            coordinate = chance.order[asked]
            asked += 1
            query = abs(truncated(values[coordinate], bound)) + chance.query_noise(coordinate)
            passed = query >= noisy_threshold
            if passed:
                result[coordinate] = truncated(values[coordinate] + chance.release_noise(coordinate), bound)
    return result


def draw_chance(generator, size, most_releases, sensitivity, epsilon):
    """The order and the noises of a call with the budget ``epsilon``, by the published split."""

    def sigma(budget):
        return 2 * most_releases * sensitivity / budget

    return Chance(
        list(generator.permutation(size)),
        lambda asked: generator.laplace(scale=sigma(8 / 9 * epsilon)),
        lambda coordinate: generator.laplace(scale=2 * sigma(8 / 9 * epsilon)),
        lambda coordinate: generator.laplace(scale=sigma(2 / 9 * epsilon)),
    )


def given_chance(order, allowed, threshold_noise, query_noise, release_noise):
    """Chance from arrays [D]: the first and the second by position in the order, the others by coordinate.

    Only allowed coordinates are asked; a threshold is the one of the position behind the last release.
    """
    positions = [position for position, coordinate in enumerate(order) if allowed[coordinate]]
    return Chance(
        [order[position] for position in positions],
        lambda asked: threshold_noise[positions[asked - 1] + 1 if asked else 0],
        lambda coordinate: query_noise[coordinate],
        lambda coordinate: release_noise[coordinate],
    )


def as_arrays(result, size):
    """Released values [D], zero elsewhere, and the mask [D]."""
    values, mask = np.zeros(size, np.float32), np.zeros(size, bool)
    for coordinate, value in result.items():
        values[coordinate], mask[coordinate] = value, True
    return values, mask
