"""Identification of clients: which of K clients do the reconstructions of a victim show?

Each client has a gallery: images of its owners that were not used for training. The distance of a picture to a client
is the mean distance to the client's gallery images of the picture's class. A mean, unlike the distance to the nearest
image, does not favor a larger gallery. The pictures identify their victim if they are nearest to the victim's gallery.

The measure compares clients, not pictures with images. So pictures that are the same for every victim have exactly
the numbers of chance, whatever they show: a black picture, the mean image of a class, an image of an outsider.
Distances are taken in a space: pixels, or the embedding of ``gan_leak.evaluation.owner_embedding``.

The score of an attack puts its rate of identified pictures on a scale. The floor (0) is the rate of pictures that are
the same for every victim. The ceiling (1) is the rate of the victim's own held-out images. It is measured before any
attack, by ``build_identification_references``. If it is not above chance, nothing can be measured, and the score is
None. An average over a victim's images shows its habits more clearly than one image, so an attack may score above 1.

A client is identified here by its brightness:

>>> from gan_leak.evaluation.client_distances import pixel_space
>>> def gallery(brightness, count=4):
...     noise = np.random.default_rng(int(10 * brightness) + 50).normal(0, 0.05, (count, 4, 4, 1))
...     return (brightness + noise).astype(np.float32)
>>> galleries = Galleries(np.stack([gallery(b) for b in (-0.8, -0.4, 0.0, 0.4, 0.8)]), np.zeros((5, 4), int))
>>> references = build_identification_references(galleries, pixel_space())
>>> pictures = np.stack([gallery(b + 0.05, count=2) for b in (-0.8, -0.4, 0.0, 0.4, 0.8)])
>>> found = measure_identification(references, pictures, np.zeros((5, 2), int))
>>> found.score.mean, found.numbers.identified.mean, found.chance
(1.0, 1.0, 0.2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gan_leak.evaluation.client_distances import (
    Galleries,
    SentImages,
    Space,
    checked_galleries,
    checked_pictures,
    checked_sent,
    distances_between_halves,
    distances_to_clients,
    distances_to_sent,
    held_out_distances,
)
from gan_leak.evaluation.criteria import Interval
from gan_leak.evaluation.fidelity import class_means, euclidean_distances, flatten, uniform_similarity
from gan_leak.evaluation.intervals import (
    TIE_TOLERANCE,
    bootstrap_interval,
    bootstrap_score,
    permutation_p_value,
)

MOST_P_VALUE = 0.01


@dataclass(frozen=True)
class IdentificationNumbers:
    """How well pictures identify their victims among K clients; each interval is over victims.

    identified: share of single pictures that are nearest to the gallery of their victim (chance 1 / K). If n clients
    are equally near, the victim among them, the picture counts 1 / n. identified_pooled: the same for the mean
    distances over a victim's pictures. mean_rank: place of the victim among the clients by distance, 1 to K (chance
    (K + 1) / 2). auc: probability that a picture of the victim is relatively nearer to the victim's gallery than a
    picture of the same class of another victim (chance 0.5); NaN without such pictures. user_gap: mean distance to the
    other clients' galleries less that to the victim's, in units of the space (chance 0). p_value: of the pooled
    distances, see ``permutation_p_value``.
    """

    identified: Interval
    identified_pooled: Interval
    mean_rank: Interval
    auc: Interval
    user_gap: Interval
    p_value: float


class IdentificationReferences(NamedTuple):
    """The scale of a measurement, from real images only, built by ``build_identification_references``.

    held_out: distances [K, G, K] of each gallery image to the clients; an image is not its own neighbor. ceiling: their
    numbers, with the p-value of ``distances_between_halves``. floor_images: what defines the floor. floor: their
    distances [K, A, K], the same for every victim. reason: why nothing can be measured, or None. seed: of bootstrap and
    permutations.
    """

    space: Space
    galleries: Galleries
    held_out: np.ndarray
    ceiling: IdentificationNumbers
    floor_images: str
    floor: np.ndarray
    reason: str | None
    seed: int


@dataclass(frozen=True)
class Identification:
    """Leakage of the clients' identity by reconstructions in one space; each interval is over victims.

    score: the rate of identified pictures between floor (0) and ceiling (1); None if it cannot be measured, with the
    ``reason``. The other numbers are reported even then, but a low rate is no sign of safety. record_gap: mean distance
    to the victim's held-out images less that to its sent images; above 0 the pictures show records rather than a
    person. category_accuracy: share of pictures that a judge assigns to their class. similarity: SSIM with the sent
    image of the class that is nearest on pixels; control_similarity: with that of the next client. None of these three
    tells anything about identity. None where the images or the judge for a number were not given.
    """

    space: str
    chance: float
    numbers: IdentificationNumbers
    score: Interval | None
    reason: str | None
    record_gap: Interval | None
    category_accuracy: Interval | None
    similarity: Interval | None
    control_similarity: Interval | None


def build_identification_references(
    galleries: Galleries, space: Space, *, auxiliary: SentImages | None = None, seed: int = 0
) -> IdentificationReferences:
    """Measure ceiling and floor, before any attack.

    auxiliary: images of people outside of the federation, which define the floor. Without them the mean images of each
    class over all galleries do. Either is the same for every victim, so the rate of identified pictures is 1 / K.

    The measure is refused if the held-out images do not identify their client. Two conditions must hold. The p-value of
    one half of the galleries against the other is at most 0.01, so at most 1% of federations of people who are alike
    pass; fewer than 5 clients cannot reach it. The lower end of the interval of the ceiling is above chance, or the
    scale might have no length.

    Raises ValueError if galleries have no common shape, differ in the number of images of a class, have fewer than 2,
    or hold values that are not finite.
    """
    galleries = checked_galleries(galleries)
    held_out = held_out_distances(space, galleries)
    p_value = permutation_p_value(distances_between_halves(space, galleries, seed=seed), seed=seed)
    ceiling = replace(identification_numbers(held_out, galleries.labels, seed=seed), p_value=p_value)
    floor_images, images, labels = _floor_images(galleries, auxiliary)
    clients = len(galleries.images)
    floor = distances_to_clients(space, images[None], labels[None], galleries)
    floor = np.broadcast_to(floor, (clients, *floor.shape[1:]))
    reason = _reason(ceiling, clients)
    return IdentificationReferences(space, galleries, held_out, ceiling, floor_images, floor, reason, seed)


def measure_identification(
    references: IdentificationReferences,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    victims: np.ndarray | None = None,
    sent: Sequence[SentImages] | None = None,
    predict: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Identification:
    """Measure reconstructions float32 [V, M, H, W, C] in [-1, 1], M for each of V victims.

    labels int [V, M]: the class that each reconstruction is meant to show. victims: their clients, int [V]; None: every
    client is the victim once, and V = K. sent: for each client the images that it
    trained on, in any number; pictures of a class that the victim did not send do not count in the record gap and the
    similarity. predict: a judge, images [N, H, W, C] -> classes [N].

    Raises ValueError for victims that are no clients, if the number of victims or the shape of images does not fit, if
    a class has no gallery images, if a client sent nothing, or if a value is not finite.
    """
    clients, seed = len(references.galleries.images), references.seed
    victims = checked_victims(victims, clients)
    images, labels = checked_pictures(images, labels, references.galleries)
    if len(images) != len(victims):
        raise ValueError(f"images of shape {images.shape}: expected those of {len(victims)} victims")
    table = distances_to_clients(references.space, images, labels, references.galleries)
    record_gap = similarity = control_similarity = category_accuracy = None
    if sent is not None:
        sent = checked_sent(sent, references.galleries)
        of_own, of_next = ([sent[(victim + step) % clients] for victim in victims] for step in (0, 1))
        to_own = table[np.arange(len(victims)), :, victims]
        to_sent = distances_to_sent(references.space, images, labels, of_own)
        record_gap = bootstrap_interval(_known_mean(to_own - to_sent), seed=seed)
        similarity, control_similarity = (
            bootstrap_interval(_known_mean(_similarity_to_sent(images, labels, of)), seed=seed)
            for of in (of_own, of_next)
        )
    if predict is not None:
        predicted = np.asarray(predict(images.reshape(-1, *images.shape[2:]))).reshape(labels.shape)
        category_accuracy = bootstrap_interval(np.mean(predicted == labels, axis=1), seed=seed)
    return Identification(
        space=references.space.name,
        chance=1.0 / clients,
        numbers=identification_numbers(table, labels, victims=victims, seed=seed),
        score=identification_score(references, table, victims),
        reason=references.reason,
        record_gap=record_gap,
        category_accuracy=category_accuracy,
        similarity=similarity,
        control_similarity=control_similarity,
    )


def checked_victims(victims: np.ndarray | None, clients: int) -> np.ndarray:
    """The victims int [V], all clients for None; raises ValueError for others than 0 to K - 1, and for one twice."""
    if victims is None:
        return np.arange(clients)
    victims = np.asarray(victims)
    if victims.ndim != 1 or not len(victims) or not set(victims.tolist()) <= set(range(clients)):
        raise ValueError(f"victims={victims.tolist()}: expected clients from 0 to {clients - 1}")
    if len(np.unique(victims)) < len(victims):
        raise ValueError(f"victims={victims.tolist()}: expected each once")
    return victims


def shares(table: np.ndarray) -> np.ndarray:
    """To which client each picture is assigned: distances [..., K] -> shares [..., K] that sum to 1.

    Clients that are equally near, up to rounding, share the picture.
    """
    tolerance = TIE_TOLERANCE * np.abs(table).max(axis=-1, keepdims=True)
    nearest = table <= table.min(axis=-1, keepdims=True) + tolerance
    return nearest / nearest.sum(axis=-1, keepdims=True)


def identification_numbers(
    table: np.ndarray, labels: np.ndarray, *, victims: np.ndarray | None = None, seed: int
) -> IdentificationNumbers:
    """The numbers of distances [V, M, K]: row i holds the pictures that are claimed to show victim i.

    labels int [V, M]: their classes. victims: as in ``measure_identification``. seed: of bootstrap and permutations.
    """
    victims = checked_victims(victims, table.shape[2])
    rows = np.arange(len(victims))
    pooled = table.mean(axis=1)
    own = table[rows, :, victims]
    others = (table.sum(axis=2) - own) / (table.shape[2] - 1)
    per_victim = {
        "identified": shares(table)[rows, :, victims].mean(axis=1),
        "identified_pooled": shares(pooled)[rows, victims],
        "mean_rank": _ranks(table, own).mean(axis=1),
        "auc": _areas(table, labels, victims),
        "user_gap": (others - own).mean(axis=1),
    }
    intervals = {name: bootstrap_interval(values, seed=seed) for name, values in per_victim.items()}
    return IdentificationNumbers(**intervals, p_value=permutation_p_value(pooled, victims=victims, seed=seed))


def identification_score(
    references: IdentificationReferences, table: np.ndarray, victims: np.ndarray | None = None
) -> Interval | None:
    """The score of distances [V, M, K], see ``Identification``; None if it cannot be measured.

    Ceiling and floor are those of the same victims.
    """
    if references.reason is not None:
        return None
    victims = checked_victims(victims, table.shape[2])
    values, ceiling, floor = (
        shares(distances)[np.arange(len(victims)), :, victims].mean(axis=1)
        for distances in (table, references.held_out[victims], references.floor[victims])
    )
    if not ceiling.mean() > floor.mean():
        return None
    return bootstrap_score(values, ceiling, float(floor.mean()), seed=references.seed)


def _reason(ceiling: IdentificationNumbers, clients: int) -> str | None:
    if not ceiling.identified.low > 1.0 / clients:
        return (
            f"held-out images identify their client in {ceiling.identified.mean:.2f} of cases, 95% interval from "
            f"{ceiling.identified.low:.2f}, expected above chance, {1.0 / clients:.2f}"
        )
    if not ceiling.p_value <= MOST_P_VALUE:
        few = "; fewer than 5 clients cannot reach it" if clients < 5 else ""
        return f"the p-value of held-out images is {ceiling.p_value:.2g}, expected at most {MOST_P_VALUE}{few}"
    return None


def _floor_images(galleries: Galleries, auxiliary: SentImages | None) -> tuple[str, np.ndarray, np.ndarray]:
    """The name, images [A, H, W, C] and classes [A] of the pictures that are the same for every victim."""
    classes = np.unique(galleries.labels)
    if auxiliary is not None and np.any(known := np.isin(auxiliary.labels, classes)):
        return "auxiliary images", auxiliary.images[known], auxiliary.labels[known]
    images, labels = galleries.images.reshape(-1, *galleries.images.shape[2:]), galleries.labels.ravel()
    return "mean image of each class over all galleries", class_means(classes, images, labels), classes


def _ranks(table: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The place [V, M] of the victim among the clients, from 1; equal distances share their places."""
    tolerance = TIE_TOLERANCE * np.abs(table).max(axis=-1)
    nearer = np.sum(table < (own - tolerance)[..., None], axis=-1)
    at_most = np.sum(table <= (own + tolerance)[..., None], axis=-1)
    return (nearer + at_most + 1) / 2.0


def _areas(table: np.ndarray, labels: np.ndarray, victims: np.ndarray) -> np.ndarray:
    """For each victim [V] the area under the ROC curve of its pictures against those of the others, within classes.

    Distances count relative to their mean over clients. Otherwise pale pictures, which are near to all images, would
    win.
    """
    relative = table - table.mean(axis=2, keepdims=True)
    tolerance = TIE_TOLERANCE * float(np.abs(table).max())
    areas = np.full(len(table), np.nan)
    for row, victim in enumerate(victims):
        others = np.arange(len(table)) != row
        difference = relative[others, :, victim].ravel()[None] - relative[row, :, victim][:, None]
        wins = np.where(np.abs(difference) <= tolerance, 0.5, difference > 0.0)
        alike = labels[others].ravel()[None] == labels[row][:, None]
        if np.any(alike):
            areas[row] = wins[alike].mean()
    return areas


def _similarity_to_sent(images: np.ndarray, labels: np.ndarray, sent: Sequence[SentImages]) -> np.ndarray:
    """SSIM [V, M] with the victim's sent image of the class that is nearest on pixels; NaN where there is none."""
    found = np.full(labels.shape, np.nan)
    for victim, (members, classes) in enumerate(sent):
        for label in np.intersect1d(labels[victim], classes):
            rows, alike = labels[victim] == label, members[classes == label]
            pictures = images[victim][rows]
            nearest = np.argmin(euclidean_distances(flatten(pictures), flatten(alike)), axis=1)
            found[victim, rows] = uniform_similarity(pictures, alike[nearest])
    return found


def _known_mean(values: np.ndarray) -> np.ndarray:
    """The mean [K] of each row [K, M] without its NaNs; NaN where there is no number."""
    known = ~np.isnan(values)
    return np.where(
        known.any(axis=1), np.where(known, values, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1), np.nan
    )
