"""How much of a private class reconstructions give away, between references that score one and that score nothing.

The leakage score asks of single pictures whether they are nearer to the private images than what the adversary had
before. A collapsed texture can fool any one way of looking at a picture, so the score is the worst over views that
fail differently: nearness in pixels (which a blank image passes), in edges (which a blur of another digit passes in
part) and in the judge's features (which a picture optimised against it passes), and contrast, whether a picture is
nearer to the private class than to other classes at all (which none of them passes). Spread over the class is a
separate question, answered by diversity and coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.ndimage import gaussian_filter

from gan_leak.evaluation.fidelity import euclidean_distances, flatten, nearest_by_l1, structural_similarity
from gan_leak.evaluation.judge import Judge, judge_accuracy, judge_features

Representation = Callable[[np.ndarray], np.ndarray]

PRINCIPAL_COMPONENTS = 50
# As many as a class allows: one with a handful of images, as a person's, has fewer.
NEIGHBOURS = 5
# The fewest private and fresh images: of two there is a single distance, and no median that one odd image cannot move.
LEAST_IMAGES = 3
# Below this many fresh images one draw of as many reconstructions is left to chance, so that many are averaged.
_FEW_FRESH = 20
_EDGES_BATCH = 250

DEFINITIONS: Mapping[str, str] = {
    "leakage_score": (
        "In [0, 1]: how near the reconstructions come to the private images of the target class. 0 = no nearer than "
        "the nearest of what the adversary had before (images of each of its own classes, an untrained generator; "
        "without own images, what anybody may know: other classes, and their average); 1 = as near as fresh real "
        "images of the class. The smallest of the four views below."
    ),
    "leakage_by_representation": (
        "Pixels (50 principal components), edges (histograms of oriented gradients after slight blur, 50 components) "
        "and judge (its features, 50 components): the median distance to the nearest private image, on a linear scale "
        "between what scores 0 and what scores 1, clipped. Contrast: (o - p) / max(o, p), with p the distance to the "
        "nearest private image and o that to the nearest real image of another class, on pixels; the median, on the "
        "same scale, where 0 is at least o = p."
    ),
    "judge_accuracy": (
        "Share of reconstructions in which a classifier that no participant trained sees the target class. It knows an "
        "answer 'none of them'. Alone it proves nothing: a picture can be optimised against any classifier."
    ),
    "nearest_neighbour_share": (
        "Share of reconstructions whose 5 nearest real images over all classes, on pixels, are mostly of the target "
        "class (3 or 1 nearest where there are fewer than 5 or 3 of that class)."
    ),
    "l1_to_nearest": "Mean absolute difference per pixel to the nearest private image (images span [-1, 1]).",
    "ssim_to_nearest": "Mean structural similarity to that image.",
    "coverage": (
        "Share of private images that have a reconstruction within the distance of their 5th nearest private image, on "
        "pixels (Naeem et al. 2020); of the furthest where there are fewer. Fresh real images do not reach 1 either."
    ),
    "diversity": (
        "How different the reconstructions are from each other, relative to as many real images: the smaller of the "
        "ratios of mean pairwise distance (one blurred picture scores 0) and of median distance to the nearest other "
        "(a few repeated pictures score 0), on pixels. It is meaningless where the leakage score is low."
    ),
}


class Leakage(NamedTuple):
    """The measures of one set of pictures; see ``DEFINITIONS``."""

    leakage_score: float
    leakage_by_representation: dict[str, float]
    judge_accuracy: float
    nearest_neighbour_share: float
    l1_to_nearest: float
    ssim_to_nearest: float
    coverage: float
    diversity: float


class _View(NamedTuple):
    """One way of looking at pictures: a number that grows with leakage, and its values that mean 0 and 1."""

    statistic: Callable[[np.ndarray], float]
    zero: float
    one: float


class References(NamedTuple):
    """All that leakage is measured against, made once a run by ``build_references``."""

    judge: Judge
    target_class: int
    private: np.ndarray
    gallery: np.ndarray
    gallery_labels: np.ndarray
    views: dict[str, _View]
    pixels: Representation
    fresh: np.ndarray


def gallery_representations(judge: Judge, gallery: np.ndarray) -> dict[str, Representation]:
    """How pictures are compared, by view: fixed by the judge and a gallery of real images [M, H, W, C] of all classes.

    Independent of who owns what and of the target class, so that runs on one data set can share it.
    """
    return {
        "pixels": _principal_components(flatten, gallery),
        "edges": _principal_components(edges, gallery),
        "judge": _principal_components(lambda images: np.asarray(judge_features(judge, images)), gallery),
    }


def build_references(
    judge: Judge,
    *,
    target_class: int,
    private: np.ndarray,
    fresh: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    prior: Mapping[str, np.ndarray],
    representations: Mapping[str, Representation] | None = None,
) -> References:
    """Fixes what 0 and 1 mean, from images float32 [-, H, W, C] in [-1, 1].

    private: the victims' images of the target class. fresh: real images of it that nobody in the federation has (what
    scores 1). gallery and gallery_labels: real images of all classes, apart from the private ones; of a class with a
    handful of images some fresh ones may be among them, which then find themselves in the nearest-neighbour share.
    prior: what the adversary had before, by name (what scores 0): images of each of its classes and of an untrained
    generator. representations: those of the judge and the gallery, if they are at hand.

    Raises ValueError if there are too few images for the neighbours and pairs that the measures need, or no prior.
    """
    needed = {"private": LEAST_IMAGES, "fresh": LEAST_IMAGES, "gallery": 1}
    counts = {"private": len(private), "fresh": len(fresh), "gallery": int(np.sum(gallery_labels == target_class))}
    for name, count in counts.items():
        if count < needed[name]:
            raise ValueError(f"{name} images of class {target_class}: {count}, at least {needed[name]} are needed")
    if not prior:
        raise ValueError("prior: empty, at least one set of images the adversary had before is needed")
    representations = representations or gallery_representations(judge, gallery)
    pixels = representations["pixels"]
    statistics = {name: _nearness(represent, private) for name, represent in representations.items()}
    statistics["contrast"] = _contrast(pixels, private, gallery[gallery_labels != target_class])
    least = {"contrast": 0.0}
    views = {
        name: _View(statistic, max(least.get(name, -np.inf), *map(statistic, prior.values())), statistic(fresh))
        for name, statistic in statistics.items()
    }
    return References(judge, target_class, private, gallery, gallery_labels, views, pixels, fresh)


def measure_leakage(references: References, images: np.ndarray) -> Leakage:
    """Measures a set of pictures float32 [M, H, W, C]; the order of the pictures does not matter.

    Raises ValueError if there are fewer than two pictures or one is not finite.
    """
    images = np.asarray(images, np.float32)
    if len(images) < 2 or not np.all(np.isfinite(images)):
        raise ValueError(f"images of shape {images.shape}: at least 2 finite images are needed")
    by_representation = {name: _score(view, images) for name, view in references.views.items()}
    nearest, l1 = nearest_by_l1(images, references.private)
    pixels, private = references.pixels(images), references.pixels(references.private)
    return Leakage(
        leakage_score=min(by_representation.values()),
        leakage_by_representation=by_representation,
        judge_accuracy=judge_accuracy(references.judge, images, references.target_class),
        nearest_neighbour_share=_nearest_neighbour_share(references, images),
        l1_to_nearest=float(np.mean(l1)),
        ssim_to_nearest=float(np.mean(structural_similarity(images, references.private[nearest]))),
        coverage=_coverage(private, pixels),
        diversity=_diversity(pixels, references.pixels(references.fresh)),
    )


def edges(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients [M, F] of images [M, H, W, C] in 8x8 cells (Dalal and Triggs 2005).

    A slight blur comes first, and the normalisation of a block is soft: the question is which strokes are drawn, and a
    library's hard normalisation would lift the faintest speckle of a dark block to the weight of a stroke.
    """
    batches = range(0, len(images), _EDGES_BATCH)
    return np.concatenate([_edges(np.asarray(images[start : start + _EDGES_BATCH], np.float32)) for start in batches])


def _edges(images: np.ndarray) -> np.ndarray:
    cells, orientations, softness = 8, 8, 2.0
    scale = images.shape[1] / 32.0
    grey = gaussian_filter(images.mean(axis=-1), (0, scale, scale))
    down, right = (np.gradient(grey, axis=axis) * 2.0 * scale for axis in (1, 2))
    magnitude = np.hypot(down, right) / scale**2
    angle = np.arctan2(down, right) % np.pi / np.pi * orientations
    # Each gradient votes for the two orientations around its own.
    offset = (angle[..., None] - np.arange(orientations, dtype=np.float32)) % orientations
    votes = magnitude[..., None] * np.maximum(1.0 - np.minimum(offset, orientations - offset), 0.0)
    side = grey.shape[1] // cells
    histograms = votes.reshape(len(grey), cells, side, cells, side, orientations).sum(axis=(2, 4))
    corners = [histograms[:, i : i + cells - 1, j : j + cells - 1] for i in (0, 1) for j in (0, 1)]
    blocks = np.concatenate(corners, axis=-1)
    normalised = blocks / np.sqrt(np.sum(blocks**2, axis=-1, keepdims=True) + softness**2)
    return normalised.reshape(len(grey), -1)


def _principal_components(represent: Representation, gallery: np.ndarray) -> Representation:
    features = represent(gallery)
    mean = features.mean(axis=0)
    components = _largest_components(features - mean)
    return lambda images: (represent(images) - mean) @ components


def _largest_components(centred: np.ndarray) -> np.ndarray:
    """Principal directions [F, D] of centred vectors [M, F], the largest first; the cheaper way for M and F."""
    if len(centred) < centred.shape[1]:
        return np.linalg.svd(centred, full_matrices=False)[2][:PRINCIPAL_COMPONENTS].T
    covariance = centred.T @ centred
    largest = (max(0, len(covariance) - PRINCIPAL_COMPONENTS), len(covariance) - 1)
    return eigh(covariance, subset_by_index=largest)[1][:, ::-1]


def _nearness(represent: Representation, private: np.ndarray) -> Callable[[np.ndarray], float]:
    features = represent(private)
    return lambda images: -float(np.median(euclidean_distances(represent(images), features).min(axis=1)))


def _contrast(represent: Representation, private: np.ndarray, others: np.ndarray) -> Callable[[np.ndarray], float]:
    private_features, other_features = represent(private), represent(others)

    def statistic(images: np.ndarray) -> float:
        features = represent(images)
        to_private = euclidean_distances(features, private_features).min(axis=1)
        to_others = euclidean_distances(features, other_features).min(axis=1)
        return float(np.median((to_others - to_private) / np.maximum(np.maximum(to_others, to_private), 1e-12)))

    return statistic


def _score(view: _View, images: np.ndarray) -> float:
    if view.one <= view.zero:
        # What the adversary had is as near as fresh real images: this view cannot tell leakage from none.
        return 0.0
    return float(np.clip((view.statistic(images) - view.zero) / (view.one - view.zero), 0.0, 1.0))


def _spread(features: np.ndarray) -> tuple[float, float]:
    """(mean distance of pairs, median distance to the nearest other)."""
    distances = euclidean_distances(features, features)
    apart = ~np.eye(len(features), dtype=bool)
    return float(distances[apart].mean()), float(np.median(np.where(apart, distances, np.inf).min(axis=1)))


def _diversity(features: np.ndarray, fresh: np.ndarray) -> float:
    # Distances to the nearest other shrink with the number of pictures: both sides get the same number.
    count = min(len(features), len(fresh))
    draw = _thin if len(fresh) >= _FEW_FRESH else _draws
    spreads = (np.mean([_spread(part) for part in draw(vectors, count)], axis=0) for vectors in (features, fresh))
    ratios = (ours / real for ours, real in zip(*spreads, strict=True))
    return float(min(ratios))


def _draws(features: np.ndarray, count: int) -> list[np.ndarray]:
    """The features dealt out at random into groups of ``count``, the same ones in whatever order they come."""
    shuffled = np.random.default_rng(0).permutation(features[np.lexsort(features.T[::-1])])
    return [shuffled[start : start + count] for start in range(0, len(features) - count + 1, count)]


def _thin(features: np.ndarray, count: int) -> list[np.ndarray]:
    """One group, evenly spaced in the order of their first component: no matter in which order they come."""
    chosen = np.linspace(0, len(features) - 1, count).round().astype(int)
    return [features[np.argsort(features[:, 0], kind="stable")[chosen]]]


def _coverage(private: np.ndarray, features: np.ndarray) -> float:
    own = np.sort(euclidean_distances(private, private), axis=1)[:, min(NEIGHBOURS, len(private) - 1)]
    nearest = euclidean_distances(private, features).min(axis=1)
    return float(np.mean(nearest <= own))


def _nearest_neighbour_share(references: References, images: np.ndarray) -> float:
    distances = euclidean_distances(flatten(images), flatten(references.gallery))
    of_target = int(np.sum(references.gallery_labels == references.target_class))
    # An odd number of which the class could be all.
    neighbours = min(NEIGHBOURS, of_target - (of_target + 1) % 2)
    nearest = np.argpartition(distances, neighbours, axis=1)[:, :neighbours]
    votes = references.gallery_labels[nearest] == references.target_class
    return float(np.mean(votes.sum(axis=1) > neighbours // 2))
