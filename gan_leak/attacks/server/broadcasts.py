"""Broadcasts of an adversary at the server: parts of a ``ServerAttack``."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gan_leak.types import Array, PyTree, Sent


def send_shared(key: Array, state: PyTree, params: PyTree, participant: Array, hyperparameters: PyTree) -> Sent:
    """Send every participant the shared parameters: the ``broadcast`` of a passive server."""
    return Sent(params)


def isolate(params: PyTree, own_params: PyTree, participant: Array, victim: Array | int) -> Sent:
    """Send the victim ``own_params`` and every other participant the shared ``params``.

    The victim's upload does not join the shared parameters, so the others train as if it were absent.
    """
    is_victim = participant == victim
    sent = jax.tree.map(lambda own, shared: jnp.where(is_victim, own, shared), own_params, params)
    return Sent(sent, ~is_victim)
