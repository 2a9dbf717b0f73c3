"""Views of pictures: each maps a picture to a number that grows with its nearness to the private images.

A view has a scale: its zero means no leakage, and its one means as near as fresh real images. If the two cannot be
distinguished, the view is blind and is ignored.

A view takes whatever its representation takes: images [M, H, W, C], or their description by
``gan_leak.evaluation.descriptions``, which all views share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gan_leak.evaluation.fidelity import euclidean_distances

# Images [M, H, W, C], or a description of them.
Images = Any
# Images -> [M, F].
Representation = Callable[[Images], np.ndarray]

PRINCIPAL_COMPONENTS = 50
# Smallest distance between zero and one, in standard errors of the one.
LEAST_STANDARD_ERRORS = 3.0
_EDGES_BATCH = 250
_RESAMPLES = 400


class View(NamedTuple):
    """One view of pictures and its scale.

    values: images -> numbers [M]. zero and one: the medians that score 0 and 1.
    standard_error: of ``one``, by bootstrap over the images that define it. of_judge: whether the judge alone decides
    it, against which pictures can be optimized.
    """

    values: Callable[[Images], np.ndarray]
    zero: float
    one: float
    standard_error: float
    of_judge: bool = False


def calibrated(
    values: Callable[[Images], np.ndarray],
    *,
    prior: Mapping[str, Images],
    fresh: Images,
    least_zero: float = -np.inf,
    of_judge: bool = False,
) -> View:
    """A view with the best median of ``prior``, at least ``least_zero``, as its zero, and that of ``fresh`` as its one.

    prior: sets of images by name; fresh: images. The bootstrap has a fixed seed.
    """
    measured = values(fresh)
    zero = max(least_zero, *(float(np.median(values(images))) for images in prior.values()))
    drawn = np.random.default_rng(0).integers(0, len(measured), (_RESAMPLES, len(measured)))
    standard_error = float(np.std(np.median(measured[drawn], axis=1)))
    return View(values, zero, float(np.median(measured)), standard_error, of_judge)


def is_blind(view: View) -> bool:
    """Whether the view cannot distinguish fresh real images from its zero, given the error of its scale."""
    gap = view.one - view.zero
    return not gap > LEAST_STANDARD_ERRORS * view.standard_error


def score(view: View, images: Images) -> float:
    """The median of the images on the view's scale, see ``on_scale``."""
    return on_scale(view, float(np.median(view.values(images))))


def on_scale(view: View, value: float) -> float:
    """A value on the linear scale from the view's zero to its one, clipped to [0, 1].

    Raises ValueError if the scale has no length.
    """
    if not view.one > view.zero:
        raise ValueError(f"one={view.one}: expected above zero={view.zero}")
    return float(np.clip((value - view.zero) / (view.one - view.zero), 0.0, 1.0))


def nearness(represent: Representation, private: Images) -> Callable[[Images], np.ndarray]:
    """Minus the distance to the nearest private image: images -> [M]."""
    features = represent(private)
    return lambda images: -euclidean_distances(represent(images), features).min(axis=1)


def contrast(
    represent: Representation, private: Images, gallery: Images, labels: np.ndarray, target_class: int
) -> Callable[[Images], np.ndarray]:
    """Whether a picture is nearer to the private images than to another class: images -> [M] in [-1, 1].

    (o - p) / max(o, p), with p the distance to the nearest of the N private images, and o that to the nearest image of
    another class. More images have a nearer nearest one, so each other class is split into groups of at most N images,
    and its distance is the mean over the groups. The nearest class counts. gallery and labels [M]: M real images of all
    classes; those of ``target_class`` are left out.
    """
    private_features, of_others = represent(private), labels != target_class
    other_features, other_labels = represent(gallery)[of_others], labels[of_others]
    each = len(private_features)
    groups = [_split_evenly(np.flatnonzero(other_labels == label), each) for label in np.unique(other_labels)]

    def values(images: Images) -> np.ndarray:
        features = represent(images)
        to_private = euclidean_distances(features, private_features).min(axis=1)
        distances = euclidean_distances(features, other_features)
        to_classes = [np.mean([distances[:, group].min(axis=1) for group in of_class], axis=0) for of_class in groups]
        to_others = np.min(to_classes, axis=0)
        return (to_others - to_private) / np.maximum(np.maximum(to_others, to_private), 1e-12)

    return values


def evidence(logits: Representation, target_class: int) -> Callable[[Images], np.ndarray]:
    """How much more a classifier believes in the target class than in any other output: images -> [M].

    logits: images -> [M, K + 1]; the last output is "none of the classes", and counts as another one.
    """

    def values(images: Images) -> np.ndarray:
        found = np.asarray(logits(images))
        return found[:, target_class] - np.delete(found, target_class, axis=1).max(axis=1)

    return values


def likeness(
    represent: Representation, private: Images, gallery: Images, labels: np.ndarray, target_class: int
) -> Callable[[Images], np.ndarray]:
    """Whether a picture is like the private images as a whole: images -> [M] in [-2, 2].

    The mean cosine similarity to the private images, minus the largest to the images of another class. gallery and
    labels [M]: as for ``contrast``.
    """

    def directions(images: Images) -> np.ndarray:
        features = represent(images)
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    own = directions(private).mean(axis=0)
    of_gallery = directions(gallery)
    others = np.stack([of_gallery[labels == label].mean(axis=0) for label in np.unique(labels[labels != target_class])])

    def values(images: Images) -> np.ndarray:
        found = directions(images)
        return found @ own - (found @ others.T).max(axis=1)

    return values


def _split_evenly(indices: np.ndarray, most: int) -> list[np.ndarray]:
    """The indices in groups of at most ``most``, each evenly spread over all indices."""
    count = max(1, len(indices) // most)
    return [indices[first::count][:most] for first in range(count)]


def edges(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients [M, F] of images [M, H, W, C] in 8x8 cells (Dalal and Triggs 2005).

    A slight blur comes first, and the normalization of a block is soft. The view compares strokes, and the hard
    normalization of libraries would give faint noise in a dark block the weight of a stroke.
    """
    batches = range(0, len(images), _EDGES_BATCH)
    return np.concatenate([_edges(np.asarray(images[start : start + _EDGES_BATCH], np.float32)) for start in batches])


def _edges(images: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    cells, orientations, softness = 8, 8, 2.0
    scale = images.shape[1] / 32.0
    grey = gaussian_filter(images.mean(axis=-1), (0, scale, scale))
    down, right = (np.gradient(grey, axis=axis) * 2.0 * scale for axis in (1, 2))
    magnitude = np.hypot(down, right) / scale**2
    angle = np.arctan2(down, right) % np.pi / np.pi * orientations
    side = grey.shape[1] // cells

    def histogram(orientation: int) -> np.ndarray:
        # Each gradient votes for the two orientations around its own.
        offset = np.abs(angle - np.float32(orientation))
        votes = magnitude * np.maximum(1.0 - np.minimum(offset, orientations - offset), 0.0)
        return votes.reshape(len(grey), cells, side, cells, side).sum(axis=(2, 4))

    histograms = np.stack([histogram(orientation) for orientation in range(orientations)], axis=-1)
    corners = [histograms[:, i : i + cells - 1, j : j + cells - 1] for i in (0, 1) for j in (0, 1)]
    blocks = np.concatenate(corners, axis=-1)
    normalised = blocks / np.sqrt(np.sum(blocks**2, axis=-1, keepdims=True) + softness**2)
    return normalised.reshape(len(grey), -1)


def principal_components(features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Vectors [M, F] -> [M, D] along the principal components of the given ones [N, F], at most 50."""
    mean = features.mean(axis=0)
    components = largest_components(features - mean)
    return lambda vectors: (vectors - mean) @ components


def largest_components(centred: np.ndarray) -> np.ndarray:
    """Principal directions [F, D] of centered vectors [M, F], the largest first, by the cheaper method for M and F."""
    from scipy.linalg import eigh

    if len(centred) < centred.shape[1]:
        return np.linalg.svd(centred, full_matrices=False)[2][:PRINCIPAL_COMPONENTS].T
    covariance = centred.T @ centred
    largest = (max(0, len(covariance) - PRINCIPAL_COMPONENTS), len(covariance) - 1)
    return eigh(covariance, subset_by_index=largest)[1][:, ::-1]
