"""The updates of clients as a server sees them in a round, in units of a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from gan_leak import trees
from gan_leak.types import Array, MaskedSum, PyTree, Received, ServerView


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


def seen_updates(view: ServerView) -> Observed:
    """The change of parameters by each participant, as far as the server sees it.

    Of a ``Received``, the uploads. Through a ``MaskedSum`` the server knows the average only, and the same average is
    its best guess for each participant, so nothing that is computed from it tells them apart. Raises ValueError for
    another type.
    """
    visible = view.visible
    if isinstance(visible, Received):
        return Observed(visible.uploads.values, jnp.any(visible.uploads.mask, axis=1))
    if isinstance(visible, MaskedSum):
        return Observed(jnp.broadcast_to(visible.average[None], visible.words.shape), visible.present)
    raise ValueError(f"visible={type(visible).__name__}: expected Received or MaskedSum")


def updates_of_clients(view: ServerView, observed: Observed, clients: int) -> ClientUpdates:
    """Sort what was observed by the number of the client; padding and participants from ``clients`` on are left out."""
    own = (view.participants[None] == jnp.arange(clients)[:, None]) & observed.sent[None]
    present, position = jnp.any(own, axis=1), jnp.argmax(own, axis=1)
    updates = jnp.where(present[:, None], observed.updates[position], 0.0)
    return ClientUpdates(trees.take(view.sent, position), updates, present)


def as_gradients(updates: Array, learning_rate: Array | float, steps: Array | float) -> Array:
    """Updates [K, D] of local SGD in units of a gradient: exact for one step, the mean gradient of several."""
    return -updates / (learning_rate * steps)
