"""A control of attacks by the server: uploads whose senders are exchanged at random in every round."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gan_leak.types import Array, PyTree, ServerAttack, ServerView


def shuffled_senders(attack: ServerAttack, clients: int) -> ServerAttack:
    """The attack of a passive server that receives the uploads of each round in random order.

    So a shuffler between clients and server would leave them (Bittau et al., SOSP 2017). Whatever the attack says of a
    client, it says of one drawn at random, so it identifies clients no better than a guess. The federation stays the
    same. ``clients``: their numbers are 0 to ``clients`` - 1; padding keeps its number.
    """

    def step(key: Array, state: PyTree, view: ServerView, hyperparameters: PyTree) -> tuple[PyTree, PyTree]:
        key_order, key_step = jax.random.split(key)
        return attack.step(key_step, state, _shuffled(key_order, view, clients), hyperparameters)

    return attack._replace(step=step)


def _shuffled(key: Array, view: ServerView, clients: int) -> ServerView:
    numbers = view.participants
    real = (numbers >= 0) & (numbers < clients)
    places = jnp.argsort(~real, stable=True)
    drawn = jnp.argsort(jnp.where(real, jax.random.uniform(key, numbers.shape), 2.0))
    return view._replace(participants=numbers.at[places].set(numbers[drawn]))
