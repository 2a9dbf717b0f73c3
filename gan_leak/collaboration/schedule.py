"""The participants of a round and their order: the parameter exchange protocols of Shokri and Shmatikov 2015."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gan_leak.types import Array

_IN_ORDER = ("round_robin", "random_order", "asynchronous")
SCHEDULES = (*_IN_ORDER, "synchronous")
DELAYS = ("fixed", "drawn")


def draw_cohort(key: Array, participants: int, cohort: int) -> Array:
    """A uniformly random cohort for a round: numbers from 0 to ``participants`` - 1, sorted, int32 [cohort].

    Drawn without replacement, as in federated averaging (McMahan et al. 2017, Algorithm 1). Raises ValueError for a
    cohort that is empty or larger than ``participants``.
    """
    if not 1 <= cohort <= participants:
        raise ValueError(f"cohort={cohort}: expected 1 to {participants}, the number of participants")
    return jnp.sort(jax.random.permutation(key, participants)[:cohort].astype(jnp.int32))


def turn_order(key: Array, schedule: str, participants: int) -> Array:
    """The order of the turns of one sequential round, int32 [P].

    ``round_robin`` and ``asynchronous`` are 0, 1, ..., P-1 in every round; ``random_order`` is a new permutation each
    time. In a schedule that is not asynchronous, a turn reads and writes the server before the next one begins. Raises
    ValueError for a schedule without an order.
    """
    if schedule in ("round_robin", "asynchronous"):
        return jnp.arange(participants, dtype=jnp.int32)
    if schedule == "random_order":
        return jax.random.permutation(key, participants).astype(jnp.int32)
    raise ValueError(f"schedule={schedule!r}: allowed are {', '.join(map(repr, _IN_ORDER))}")


def turn_delays(key: Array, delays: str, most: int, participants: int) -> Array:
    """The number of turns, int32 [P], between the download and the upload of each turn of an asynchronous round.

    ``fixed`` is ``most`` in every turn; ``drawn`` is uniform from 0 to ``most``.
    """
    if delays == "fixed":
        return jnp.full(participants, most, jnp.int32)
    return jax.random.randint(key, (participants,), 0, most + 1, jnp.int32)
