"""Leakage of a private class by reconstructions, on a scale between references that score 0 and 1.

The leakage score compares single pictures with the images that the adversary had before: are they nearer to the private
images? A collapsed texture can fool any single view of a picture. So the score is the product over views that fail
differently: one view without leakage makes it 0, and faults in several views add up. Nearness in pixels is fooled by a
blank image, and in edges partly by a blurred other digit. Nearness in the judge's features is fooled by a picture
optimized against the judge. Contrast compares the nearness to the private class and to other classes; none of these
pictures passes it. Diversity and coverage measure the spread over the class.

The score says what pictures show, and not where it comes from: pictures of the class that are made from another source
score too. ``gan_leak.evaluation.impostors`` has pictures without leakage.

In this example horizontal bars are the private class, and vertical bars are the class of the adversary:

>>> import jax
>>> from gan_leak.evaluation.judge import network
>>> rng = np.random.default_rng(0)
>>> def bars(count, *, vertical=False):
...     images = np.full((count, 32, 32), -1.0, np.float32)
...     for image in images:
...         start = rng.integers(4, 24)
...         (image.T if vertical else image)[start : start + 4] = rng.uniform(0.6, 1.0)
...     return images[..., None]
>>> private, own = bars(30), bars(30, vertical=True)
>>> untrained_judge = Judge(network(2, (32, 32, 1)).init(jax.random.key(0)), num_classes=2, test_accuracy=0.5)
>>> references = build_references(
...     untrained_judge,
...     target_class=0,
...     private=private,
...     fresh=bars(30),
...     held_out={"others": bars(30)},
...     gallery=np.concatenate([bars(30), bars(30, vertical=True)]),
...     gallery_labels=np.repeat([0, 1], 30),
...     prior={"own class": own},
... )
>>> measure_leakage(references, private).leakage_score, measure_leakage(references, own).leakage_score
(1.0, 0.0)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gan_leak.evaluation.descriptions import Describe, DescribedGallery, Description, describe_gallery, describe_sets
from gan_leak.evaluation.fidelity import euclidean_distances, flatten, nearest_by_l1, structural_similarity
from gan_leak.evaluation.judge import Judge
from gan_leak.evaluation.measurability import Measurability, combined, examine, plain_controls
from gan_leak.evaluation.views import (
    LEAST_STANDARD_ERRORS,
    View,
    calibrated,
    contrast,
    evidence,
    likeness,
    nearness,
    score,
)

# Fewer for a class of very few images, such as one person.
NEIGHBOURS = 5
# The fewest private and fresh images: two have a single distance, and one outlier would move their median.
LEAST_IMAGES = 3
# Photographs of one class differ more than the classes do, and in pixels and edges they are no nearer to each other. So
# color images have two further views, of the class as a whole.
_COLORS = 3
_OF_JUDGE = frozenset({"judge", "evidence", "likeness"})
# With fewer fresh images a single draw of as many reconstructions is too random, so many draws are averaged.
_FEW_FRESH = 20

DEFINITIONS: Mapping[str, str] = {
    "leakage_score": (
        "In [0, 1]: how close the reconstructions come to the private images of the target class. 0: no closer than "
        "the closest baseline. The baselines are what the adversary has without the attack: images of each of its own "
        "classes and an untrained generator; without own images, other classes and their average. 1: as close as fresh "
        "real images of the class. The score is the product over the views below that can tell the two apart, so it is "
        "at most the smallest of them (in version 0.2.0 it was the smallest). It is not measurable if fewer than two "
        "views can, if only views of the judge can, or if other real images of the class score below 0.6. A blank, "
        "noisy or averaged picture, or another class, joins the baselines if it would score above 0.05 in every view. "
        "The score says what pictures show, and not how they were made: pictures of the class from another source "
        "score too."
    ),
    "leakage_by_representation": (
        "The score of each view: the median over the reconstructions, on a linear scale from what scores 0 to what "
        "scores 1, clipped. Pixels (50 principal components), edges (histograms of oriented gradients after slight "
        "blur, 50 components) and judge (features of the judge, 50 components): the distance to the nearest private "
        "image. Contrast: (o - p) / max(o, p), where p is the distance to the nearest private image and o the distance "
        "to the nearest real image of another class, on pixels; there are as many images of each class as private "
        "ones, and the mean over several such groups is taken; 0 is at least o = p. Color images have two more views: "
        "evidence, the judge's logit of the class minus its largest other one, and likeness, the mean cosine "
        "similarity of the judge's features to the private images minus the largest to another class. A view is "
        f"left out (null) if its 0 and its 1 are less than {LEAST_STANDARD_ERRORS:g} standard errors apart."
    ),
    "judge_accuracy": (
        "Share of reconstructions that the judge assigns to the target class. The judge is a classifier trained on "
        "images that no participant owns; it can also answer 'none of the classes'. This share alone proves nothing: "
        "pictures can be optimized against any classifier."
    ),
    "nearest_neighbour_share": (
        "Share of reconstructions whose 5 nearest real images of all classes, on pixels, are mostly of the target "
        "class (3 or 1 nearest if there are fewer than 5 or 3 images of that class)."
    ),
    "l1_to_nearest": "Mean absolute difference per pixel to the nearest private image; images span [-1, 1].",
    "ssim_to_nearest": "Mean structural similarity to that image.",
    "coverage": (
        "Share of private images with a reconstruction within the distance of their 5th nearest private image, on "
        "pixels (Naeem et al. 2020); of the furthest if there are fewer. Fresh real images do not reach 1 either."
    ),
    "diversity": (
        "How different the reconstructions are from each other, relative to as many real images. It is the smaller of "
        "two ratios on pixels: of the mean pairwise distance (one blurred picture scores 0) and of the median distance "
        "to the nearest other picture (a few repeated pictures score 0). It means nothing if the leakage score is low."
    ),
}


class Leakage(NamedTuple):
    """The measures of one set of pictures, see ``DEFINITIONS``; None if it cannot be measured."""

    leakage_score: float | None
    leakage_by_representation: dict[str, float | None]
    judge_accuracy: float
    nearest_neighbour_share: float
    l1_to_nearest: float
    ssim_to_nearest: float
    coverage: float
    diversity: float


class References(NamedTuple):
    """All references for leakage, built once in a run by ``build_references``.

    private_pixels, fresh_pixels: the private and fresh images [-, D] along the principal components of pixels.
    """

    judge: Judge
    target_class: int
    private: np.ndarray
    gallery: np.ndarray
    gallery_labels: np.ndarray
    describe: Describe
    views: dict[str, View]
    private_pixels: np.ndarray
    fresh_pixels: np.ndarray
    measurability: Measurability


def build_references(
    judge: Judge,
    *,
    target_class: int,
    private: np.ndarray,
    fresh: np.ndarray,
    held_out: Mapping[str, np.ndarray],
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    prior: Mapping[str, np.ndarray],
    controls: Mapping[str, np.ndarray] | None = None,
    described_gallery: DescribedGallery | None = None,
) -> References:
    """Define the scores 0 and 1 from images float32 [-, H, W, C] in [-1, 1].

    private: the victims' images of the target class. fresh: real images of it that no participant has (these score 1);
    held_out: further sets, by name, to test the measure. gallery and gallery_labels: real images of all classes, apart
    from the private ones; of a class with very few images it may contain fresh images, which then count in the
    nearest-neighbor share. prior: images that the adversary had before, by name (these score 0): images of each of its
    classes and of an untrained generator. controls: further pictures that leak nothing, by name, beside those of
    ``plain_controls``. described_gallery: by ``describe_gallery`` from the judge and the gallery, if already built.

    Raises ValueError if there are too few images for the neighbors and pairs of the measures, or no prior.
    """
    needed = {"private": LEAST_IMAGES, "fresh": LEAST_IMAGES, "gallery": 1}
    counts = {"private": len(private), "fresh": len(fresh), "gallery": int(np.sum(gallery_labels == target_class))}
    for name, count in counts.items():
        if count < needed[name]:
            raise ValueError(f"{name} images of class {target_class}: {count}, at least {needed[name]} are needed")
    if not prior:
        raise ValueError("prior: empty, at least one set of images the adversary had before is needed")
    describe, of_gallery = described_gallery or describe_gallery(judge, gallery)
    real = describe_sets(describe, {"private": private, "fresh": fresh})
    without_leakage = describe_sets(describe, prior)
    all_controls = {**plain_controls(gallery, gallery_labels, target_class), **(controls or {})}
    others = of_gallery, gallery_labels, target_class
    pixels, features, logits = (operator.itemgetter(name) for name in ("pixels", "features", "logits"))
    own = real["private"]
    values = {name: nearness(operator.itemgetter(name), own) for name in ("pixels", "edges", "judge")}
    values["contrast"] = contrast(pixels, own, *others)
    if private.shape[-1] == _COLORS:
        values |= {"evidence": evidence(logits, target_class), "likeness": likeness(features, own, *others)}
    views = {
        name: calibrated(
            of_view,
            prior=without_leakage,
            fresh=real["fresh"],
            least_zero=0.0 if name == "contrast" else -np.inf,
            of_judge=name in _OF_JUDGE,
        )
        for name, of_view in values.items()
    }
    views, measurability = examine(
        views,
        private=own,
        held_out=describe_sets(describe, held_out),
        controls=describe_sets(describe, all_controls),
    )
    return References(
        judge,
        target_class,
        private,
        gallery,
        gallery_labels,
        describe,
        views,
        own["pixels"],
        real["fresh"]["pixels"],
        measurability,
    )


def scores_by_view(references: References, images: np.ndarray) -> dict[str, float | None]:
    """The score of pictures float32 [M, H, W, C] in each view, by name; None for a view that is left out."""
    return _scores_by_view(references, references.describe(images))


def _scores_by_view(references: References, description: Description) -> dict[str, float | None]:
    return {
        name: score(view, description) if name in references.measurability.deciding else None
        for name, view in references.views.items()
    }


def leakage_score(references: References, by_view: Mapping[str, float | None]) -> float | None:
    """The product of the scores of the views that decide, or None if leakage cannot be measured."""
    if references.measurability.reason is not None:
        return None
    return combined(value for value in by_view.values() if value is not None)


def has_this_score(recorded: Mapping[str, Any]) -> bool:
    """Whether recorded measures have the score as it is defined here, the product of the views."""
    score, views = recorded["leakage_score"], recorded["leakage_by_representation"].values()
    return score is None or math.isclose(score, combined(view for view in views if view is not None), abs_tol=1e-6)


def measure_leakage(references: References, images: np.ndarray) -> Leakage:
    """Measure a set of pictures float32 [M, H, W, C]; the order of the pictures does not matter.

    Raises ValueError if there are fewer than two pictures or one is not finite.
    """
    images = np.asarray(images, np.float32)
    if len(images) < 2 or not np.all(np.isfinite(images)):
        raise ValueError(f"images of shape {images.shape}: at least 2 finite images are needed")
    description = references.describe(images)
    by_view = _scores_by_view(references, description)
    nearest, l1 = nearest_by_l1(images, references.private)
    return Leakage(
        leakage_score=leakage_score(references, by_view),
        leakage_by_representation=by_view,
        judge_accuracy=float(np.mean(description["logits"].argmax(axis=1) == references.target_class)),
        nearest_neighbour_share=nearest_neighbour_share(references, images),
        l1_to_nearest=float(np.mean(l1)),
        ssim_to_nearest=float(np.mean(structural_similarity(images, references.private[nearest]))),
        coverage=coverage(references.private_pixels, description["pixels"]),
        diversity=diversity(description["pixels"], references.fresh_pixels),
    )


def _spread(features: np.ndarray) -> tuple[float, float]:
    """(mean distance of pairs, median distance to the nearest other)."""
    distances = euclidean_distances(features, features)
    apart = ~np.eye(len(features), dtype=bool)
    return float(distances[apart].mean()), float(np.median(np.where(apart, distances, np.inf).min(axis=1)))


def diversity(features: np.ndarray, fresh: np.ndarray) -> float:
    """Differences between vectors [M, F], relative to those between fresh ones [N, F]; see ``DEFINITIONS``."""
    # Distances to the nearest other shrink with the number of pictures: both sides get the same number.
    count = min(len(features), len(fresh))
    draw = _thin if len(fresh) >= _FEW_FRESH else _draws
    spreads = (np.mean([_spread(part) for part in draw(vectors, count)], axis=0) for vectors in (features, fresh))
    ratios = (ours / real for ours, real in zip(*spreads, strict=True))
    return float(min(ratios))


def _draws(features: np.ndarray, count: int) -> list[np.ndarray]:
    """Random groups of ``count`` features; the groups do not depend on the order of the features."""
    shuffled = np.random.default_rng(0).permutation(features[np.lexsort(features.T[::-1])])
    return [shuffled[start : start + count] for start in range(0, len(features) - count + 1, count)]


def _thin(features: np.ndarray, count: int) -> list[np.ndarray]:
    """One group, evenly spaced by the first component; it does not depend on the order of the features."""
    chosen = np.linspace(0, len(features) - 1, count).round().astype(int)
    return [features[np.argsort(features[:, 0], kind="stable")[chosen]]]


def coverage(private: np.ndarray, features: np.ndarray) -> float:
    """The fraction of private vectors [N, F] with a close vector in [M, F]; see ``DEFINITIONS``."""
    own = np.sort(euclidean_distances(private, private), axis=1)[:, min(NEIGHBOURS, len(private) - 1)]
    nearest = euclidean_distances(private, features).min(axis=1)
    return float(np.mean(nearest <= own))


def nearest_neighbour_share(references: References, images: np.ndarray) -> float:
    """The fraction of images [M, H, W, C] with mostly neighbors of the target class; see ``DEFINITIONS``."""
    distances = euclidean_distances(flatten(images), flatten(references.gallery))
    of_target = int(np.sum(references.gallery_labels == references.target_class))
    # An odd number of at most the size of the class.
    neighbours = min(NEIGHBOURS, of_target - (of_target + 1) % 2)
    nearest = np.argpartition(distances, neighbours, axis=1)[:, :neighbours]
    votes = references.gallery_labels[nearest] == references.target_class
    return float(np.mean(votes.sum(axis=1) > neighbours // 2))
