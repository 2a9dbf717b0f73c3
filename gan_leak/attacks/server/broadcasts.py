"""What an adversary at the server sends to the participants: parts of a ``ServerAttack``."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gan_leak.types import Array, PyTree, Sent


def send_shared(key: Array, state: PyTree, params: PyTree, participant: Array, hyperparameters: PyTree) -> Sent:
    """The ``broadcast`` of a passive server: every participant is sent the shared parameters."""
    return Sent(params)


def isolate(params: PyTree, own_params: PyTree, participant: Array, victim: Array | int) -> Sent:
    """Sends the victim ``own_params`` and every other participant the shared ``params``.

    The upload of the victim does not join the shared parameters, so that the others train as if it were absent.
    """
    is_victim = participant == victim
    sent = jax.tree.map(lambda own, shared: jnp.where(is_victim, own, shared), own_params, params)
    return Sent(sent, ~is_victim)
