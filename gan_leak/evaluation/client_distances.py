"""Distances of pictures to the galleries of clients, in the space of pixels or of an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gan_leak.evaluation.fidelity import flatten

LEAST_PER_CLASS = 2


class Space(NamedTuple):
    """A space of distances between images.

    name: as reports show it. represent: images [N, H, W, C] -> vectors [N, F]. distances: vectors [M, F] and [N, F] ->
    [M, N].
    """

    name: str
    represent: Callable[[np.ndarray], np.ndarray]
    distances: Callable[[np.ndarray, np.ndarray], np.ndarray]


class Galleries(NamedTuple):
    """Held-out images float32 [K, G, H, W, C] in [-1, 1] of K clients, and their classes int [K, G]."""

    images: np.ndarray
    labels: np.ndarray


class SentImages(NamedTuple):
    """The images float32 [n, H, W, C] in [-1, 1] that one client trained on, and their classes int [n]."""

    images: np.ndarray
    labels: np.ndarray


def pixel_space() -> Space:
    """The Euclidean distance between the pixels of images."""
    return Space("pixels", lambda images: flatten(images).astype(np.float64), _euclidean)


def cosine_space(name: str, represent: Callable[[np.ndarray], np.ndarray]) -> Space:
    """The cosine distance between vectors of length 1 that represent images, see ``Space``."""
    return Space(name, lambda images: np.asarray(represent(images), np.float64), lambda a, b: 1.0 - a @ b.T)


def distances_to_clients(space: Space, images: np.ndarray, labels: np.ndarray, galleries: Galleries) -> np.ndarray:
    """Mean distances [V, M, K] of pictures [V, M, H, W, C] of classes [V, M] to each client's gallery of their class.

    Raises ValueError as ``measure_identification``.
    """
    galleries = checked_galleries(galleries)
    return _mean_distances(space, *checked_pictures(images, labels, galleries), galleries)


def distances_between_halves(space: Space, galleries: Galleries, *, seed: int = 0) -> np.ndarray:
    """Mean distances [K, K] of one half of each client's gallery (rows) to the other half of each (columns).

    The halves of a class are drawn at random. If the clients are alike, so are all entries, as a permutation test
    requires. Every other image of a sorted gallery would not do: both halves would have the client's own mixture of
    people. The table of ``held_out_distances`` is symmetric, and its diagonal has fewer pairs.

    Raises ValueError as ``build_identification_references``.
    """
    galleries = checked_galleries(galleries)
    rng = np.random.default_rng(seed)
    columns = [rng.permuted(_columns(galleries, label), axis=1) for label in np.unique(galleries.labels)]
    images, labels = galleries.images.reshape(-1, *galleries.images.shape[2:]), galleries.labels.ravel()
    first, second = (np.concatenate([part[:, start::2] for part in columns], axis=1) for start in (0, 1))
    others = Galleries(images[second], labels[second])
    return _mean_distances(space, images[first], labels[first], others).mean(axis=1)


def _mean_distances(space: Space, images: np.ndarray, labels: np.ndarray, galleries: Galleries) -> np.ndarray:
    vectors = space.represent(images.reshape(-1, *images.shape[2:]))
    members = space.represent(galleries.images.reshape(-1, *images.shape[2:]))
    table = np.zeros((labels.size, len(galleries.images)))
    for label in np.unique(labels):
        rows, columns = np.flatnonzero(labels == label), _columns(galleries, label)
        found = space.distances(vectors[rows], members[columns.ravel()])
        table[rows] = found.reshape(len(rows), *columns.shape).mean(axis=2)
    return _finite(table.reshape(*labels.shape, -1))


def held_out_distances(space: Space, galleries: Galleries) -> np.ndarray:
    """Mean distances [K, G, K] of each gallery image to the clients; to its own client without the image itself.

    Raises ValueError as ``build_identification_references``.
    """
    galleries = checked_galleries(galleries)
    clients, size = galleries.labels.shape
    vectors = space.represent(galleries.images.reshape(-1, *galleries.images.shape[2:]))
    table = np.zeros((clients * size, clients))
    for label in np.unique(galleries.labels):
        columns = _columns(galleries, label)
        places, count = columns.ravel(), columns.shape[1]
        found = space.distances(vectors[places], vectors[places])
        np.fill_diagonal(found, 0.0)
        divisors = np.full((clients, 1, clients), float(count))
        divisors[np.arange(clients), :, np.arange(clients)] -= 1.0
        sums = found.reshape(clients, count, clients, count).sum(axis=3)
        table[places] = (sums / divisors).reshape(-1, clients)
    return _finite(table.reshape(clients, size, clients))


def distances_to_sent(space: Space, images: np.ndarray, labels: np.ndarray, sent: Sequence[SentImages]) -> np.ndarray:
    """Mean distances [K, M] of pictures to their victim's sent images of their class; NaN where there are none."""
    found = np.full(labels.shape, np.nan)
    for victim, (members, classes) in enumerate(sent):
        distances = space.distances(space.represent(images[victim]), space.represent(members))
        for label in np.intersect1d(labels[victim], classes):
            rows = labels[victim] == label
            found[victim, rows] = distances[np.ix_(rows, classes == label)].mean(axis=1)
    return found


def _columns(galleries: Galleries, label: int) -> np.ndarray:
    """Flat positions [K, n] of the gallery images of a class."""
    return np.flatnonzero(galleries.labels == label).reshape(len(galleries.labels), -1)


def _euclidean(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distances [M, N] from differences: exact for equal vectors, unlike those from a matrix product."""
    from scipy.spatial.distance import cdist

    return cdist(left, right)


def _finite(table: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(table)):
        raise ValueError("distances: not finite, expected finite vectors from the space")
    return table


def checked_galleries(galleries: Galleries) -> Galleries:
    images, labels = np.asarray(galleries.images, np.float32), np.asarray(galleries.labels)
    if images.ndim != 5 or labels.shape != images.shape[:2] or len(images) < 2:
        raise ValueError(
            f"galleries of shapes {images.shape} and {labels.shape}: expected [K, G, H, W, C] and [K, G], K at least 2"
        )
    if not np.all(np.isfinite(images)):
        raise ValueError("galleries: not finite, expected images in [-1, 1]")
    for label in np.unique(labels):
        counts = np.sum(labels == label, axis=1)
        if counts.min() != counts.max() or counts.min() < LEAST_PER_CLASS:
            raise ValueError(
                f"galleries: {counts.min()} to {counts.max()} images of class {label} at a client, expected the same "
                f"number at each, at least {LEAST_PER_CLASS}"
            )
    return Galleries(images, labels)


def checked_pictures(images: np.ndarray, labels: np.ndarray, galleries: Galleries) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    shape = galleries.images.shape[2:]
    if images.ndim != 5 or images.shape[2:] != shape or labels.shape != images.shape[:2] or not images.shape[1]:
        raise ValueError(
            f"images of shape {images.shape} with labels of shape {labels.shape}: expected [K, M, *{shape}] and [K, M]"
        )
    if not np.all(np.isfinite(images)):
        raise ValueError("images: not finite, expected values in [-1, 1]")
    unknown = np.setdiff1d(labels, galleries.labels)
    if len(unknown):
        raise ValueError(f"labels={unknown.tolist()}: expected classes of the galleries")
    return images, labels


def checked_sent(sent: Sequence[SentImages], galleries: Galleries) -> list[SentImages]:
    """The sent images as arrays, one entry for each client of the galleries; raises ValueError if they do not fit."""
    if len(sent) != len(galleries.images):
        raise ValueError(f"sent of {len(sent)} clients: expected {len(galleries.images)}")
    found = [SentImages(np.asarray(images, np.float32), np.asarray(labels)) for images, labels in sent]
    shape = galleries.images.shape[2:]
    for client, (images, labels) in enumerate(found):
        if images.shape != (len(labels), *shape) or not len(labels) or not np.all(np.isfinite(images)):
            raise ValueError(
                f"sent[{client}] of shape {images.shape}: expected finite images [n, *{shape}], n at least 1"
            )
    return found
