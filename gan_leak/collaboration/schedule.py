"""In which order participants take their turns (Shokri and Shmatikov 2015, parameter exchange protocols)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gan_leak.types import Array


def turn_order(key: Array, schedule: str, participants: int) -> Array:
    """The order of the turns of one sequential round, int32 [P].

    ``round_robin`` is 0, 1, ..., P-1 in every round; ``random_order`` a fresh permutation. In both, a turn reads and
    writes the server before the next one begins. Raises ValueError for a schedule without an order.
    """
    if schedule == "round_robin":
        return jnp.arange(participants, dtype=jnp.int32)
    if schedule == "random_order":
        return jax.random.permutation(key, participants).astype(jnp.int32)
    raise ValueError(f"schedule={schedule!r}: allowed are 'round_robin' and 'random_order'")
