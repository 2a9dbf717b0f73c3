"""The labels of each batch of several local epochs, which an attack without the order of the images needs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.gradient.observation import cosine_distance
from gan_leak.types import Array, PyTree

_STARTS = 24
_MOST_MOVES = 200
# Swaps that are simulated together.
_SWAPS_TOGETHER = 32


def infer_label_order(
    key: Array,
    simulate: Callable[[Array], PyTree],
    seen: PyTree,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
) -> tuple[np.ndarray, float]:
    """An order [epochs * B] of the labels [B] whose simulated update is near the observed one, and its distance [].

    simulate: ``simulate(labels [epochs * B]) -> update`` with placeholder images, for instance gray. In an untrained
    network the update of the last layer hardly depends on the images.

    The search starts from several random orders. It applies the best swap of two labels of an epoch in different
    batches, until no swap reduces the distance. The distance is one minus the cosine, over the leaves of ``seen``. The
    order within a batch, and images of equal labels, cannot be distinguished.
    """
    count = len(labels)
    pairs = np.array(
        [
            (epoch * count + first, epoch * count + second)
            for epoch in range(epochs)
            for first in range(count)
            for second in range(first + 1, count)
            if first // batch_size != second // batch_size
        ],
        np.int32,
    ).reshape(-1, 2)

    @jax.jit
    def distances(order: Array) -> Array:
        """The distances of the order itself and of the order after each swap."""

        def after(pair: Array) -> Array:
            swapped = order.at[pair].set(order[pair[::-1]])
            return cosine_distance(simulate(swapped), seen)

        still = jnp.zeros((1, 2), jnp.int32)
        return jax.lax.map(after, jnp.concatenate([still, pairs]), batch_size=_SWAPS_TOGETHER)

    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    found: list[tuple[float, np.ndarray]] = []
    for _ in range(_STARTS):
        order = np.concatenate([rng.permutation(labels) for _ in range(epochs)])
        found.append(_improve_by_swaps(order, distances, pairs))
    least, order = min(found, key=lambda entry: entry[0])
    return order, least


def _improve_by_swaps(
    order: np.ndarray, distances: Callable[[np.ndarray], Array], pairs: np.ndarray
) -> tuple[float, np.ndarray]:
    for _ in range(_MOST_MOVES):
        values = np.asarray(distances(order))
        best = int(np.argmin(values))
        if best == 0 or not values[best] < values[0]:
            break
        first, second = pairs[best - 1]
        order[[first, second]] = order[[second, first]]
    return float(values[0]), order
