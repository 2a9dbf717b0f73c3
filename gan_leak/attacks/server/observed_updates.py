"""The updates of clients as a server sees them in a round, in units of a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from gan_leak import trees
from gan_leak.types import Array, PyTree, Received, ServerView


class Observed(NamedTuple):
    """What the server knows of the upload of each participant: updates [P, D], and bool [P], True where it sent one."""

    updates: Array
    sent: Array


class ClientUpdates(NamedTuple):
    """The updates of clients 0 to K - 1, whether they took part or not.

    params: the parameters that each was sent, with a leading K axis. updates: float32 [K, D], as they were uploaded;
    zero for a client that sent nothing, and at coordinates that were not sent. present: bool [K], True if it sent one.
    """

    params: PyTree
    updates: Array
    present: Array


ObserveUpdates = Callable[[ServerView], Observed]


def separate_updates(view: ServerView) -> Observed:
    """Each participant's own upload. Raises ValueError if the aggregator hides them, as a secure sum does."""
    if not isinstance(view.visible, Received):
        raise ValueError(
            f"visible={type(view.visible).__name__}: expected Received; under a secure sum, pass "
            "observe=common_update(...)"
        )
    uploads = view.visible.uploads
    return Observed(uploads.values, jnp.any(uploads.mask, axis=1))


def common_update(read: Callable[[PyTree], tuple[Array, Array]]) -> ObserveUpdates:
    """The observation under secure aggregation: one mean update, which is the evidence about every participant.

    ``read(visible) -> (mean update [D], bool [P], True for those who are in it)``. All participants get the same
    evidence, so nothing that is computed from it tells them apart.
    """

    def observe(view: ServerView) -> Observed:
        update, sent = read(view.visible)
        return Observed(jnp.broadcast_to(update[None], (len(sent), *update.shape)), sent)

    return observe


def updates_of_clients(view: ServerView, observed: Observed, clients: int) -> ClientUpdates:
    """Sort what was observed by the number of the client; padding and participants from ``clients`` on are left out."""
    own = (view.participants[None] == jnp.arange(clients)[:, None]) & observed.sent[None]
    present, position = jnp.any(own, axis=1), jnp.argmax(own, axis=1)
    updates = jnp.where(present[:, None], observed.updates[position], 0.0)
    return ClientUpdates(trees.take(view.sent, position), updates, present)


def as_gradients(updates: Array, learning_rate: Array | float, steps: Array | float) -> Array:
    """Updates [K, D] of local SGD in units of a gradient: exact for one step, the mean gradient of several."""
    return -updates / (learning_rate * steps)
