"""Which labels were in which batch of several local epochs: what an order-free attack must know first."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.gradient.observation import cosine_distance
from gan_leak.types import Array, PyTree

_STARTS = 24
_MOST_MOVES = 200
# Swaps that are simulated at a time.
_AT_A_TIME = 32


def infer_label_order(
    key: Array,
    simulate: Callable[[Array], PyTree],
    seen: PyTree,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
) -> tuple[np.ndarray, float]:
    """An order [epochs * B] of the labels [B] whose simulated update is like the one seen, and how far it is from it.

    ``simulate(labels [epochs * B]) -> update``, of a participant whose images are unknown, for instance gray: in an
    untrained network an update of the last layer hardly depends on them. From several random orders, the best swap of
    two labels in an epoch, in different batches, is taken until none comes nearer. Distances are one minus the cosine,
    over the leaves of ``seen``. The order within a batch and images of equal labels are not told apart.
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
        """Of the order itself and of each swap."""

        def after(pair: Array) -> Array:
            swapped = order.at[pair].set(order[pair[::-1]])
            return cosine_distance(simulate(swapped), seen)

        still = jnp.zeros((1, 2), jnp.int32)
        return jax.lax.map(after, jnp.concatenate([still, pairs]), batch_size=_AT_A_TIME)

    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    found: list[tuple[float, np.ndarray]] = []
    for _ in range(_STARTS):
        order = np.concatenate([rng.permutation(labels) for _ in range(epochs)])
        found.append(_descended(order, distances, pairs))
    least, order = min(found, key=lambda entry: entry[0])
    return order, least


def _descended(
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
