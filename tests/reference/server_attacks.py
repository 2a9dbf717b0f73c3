"""Attacks by the server that are small enough to know what they must find."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.attacks.server.broadcasts import isolate, send_shared
from gan_leak.types import Sent, ServerAttack


def recording_attack(broadcast=send_shared):
    """Keeps the view of the last round as its state."""

    def step(key, state, view, hyperparameters):
        return view, ()

    return ServerAttack(lambda key, params: (), broadcast, step, lambda key, state, count: jnp.zeros((count, 1)))


def read_inputs(view):
    """The input [P, F] behind each upload of a linear model that took one step on one sample; 0 where there is none.

    The gradient of class k is e_k in its bias and e_k x in its weights, so that their ratio is x.
    """
    _, unravel = trees.ravel(trees.take(view.sent, 0))
    updates = jax.vmap(unravel)(view.visible.uploads.values)
    best = jnp.argmax(jnp.abs(updates["bias"]), axis=1)
    bias = jnp.take_along_axis(updates["bias"], best[:, None], axis=1)
    weights = jnp.take_along_axis(updates["kernel"], best[:, None, None], axis=2)[:, :, 0]
    return jnp.where(bias == 0, 0.0, weights / jnp.where(bias == 0, 1.0, bias))


class Found(NamedTuple):
    """By participant: the input read last [M, F], and in how many rounds there was one [M]."""

    inputs: jax.Array
    rounds: jax.Array


class ReaderInfo(NamedTuple):
    """Of how many participants an input was read in the round."""

    read: jax.Array


def read_into(found, view):
    """What was found, with the inputs of this round put in, and how many these were."""
    inputs = read_inputs(view)
    sent = jnp.any(view.visible.uploads.mask, axis=1) & (view.participants >= 0)
    places = jnp.where(sent, view.participants, len(found.rounds))
    found = Found(found.inputs.at[places].set(inputs, mode="drop"), found.rounds.at[places].add(1, mode="drop"))
    return found, ReaderInfo(jnp.sum(sent).astype(jnp.int32))


def nothing_found(participants, params):
    """The state of a reader before the first round."""
    return Found(jnp.zeros((participants, params["kernel"].shape[0])), jnp.zeros(participants, jnp.int32))


def reading_attack(participants):
    """A passive server that reads the input of every participant out of its upload."""

    def step(key, state, view, hyperparameters):
        return read_into(state, view)

    def reconstruct(key, state, count):
        return state.inputs[:count]

    return ServerAttack(lambda key, params: nothing_found(participants, params), send_shared, step, reconstruct)


class Isolated(NamedTuple):
    """What an isolating reader has found, and the model that it trains with its victim alone."""

    found: Found
    params: dict


class Victim(NamedTuple):
    """The traced number of an isolating reader."""

    victim: jax.Array | int


def isolating_attack(participants):
    """An active server: the victim trains a model of its own with it, and is read like all others."""

    def init(key, params):
        return Isolated(nothing_found(participants, params), params)

    def broadcast(key, state, params, participant, hyperparameters):
        return isolate(params, state.params, participant, hyperparameters.victim)

    def step(key, state, view, hyperparameters):
        found, info = read_into(state.found, view)
        flat, unravel = trees.ravel(state.params)
        own = view.participants == hyperparameters.victim
        update = jnp.sum(jnp.where(own[:, None], view.visible.uploads.values, 0.0), axis=0)
        return Isolated(found, unravel(flat + update)), info

    def reconstruct(key, state, count):
        return state.found.inputs[:count]

    return ServerAttack(init, broadcast, step, reconstruct)


def numbered_broadcast(key, state, params, participant, hyperparameters):
    """Every participant is sent its number, plus noise below one half, in the place of each parameter."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [0.5 * jax.random.uniform(one, leaf.shape) for one, leaf in zip(keys, leaves, strict=True)]
    return Sent(jax.tree.map(lambda leaf: leaf + participant, jax.tree.unflatten(structure, noise)))
