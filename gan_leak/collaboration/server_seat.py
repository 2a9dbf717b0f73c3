"""The interface of an adversary at the server to a round: keys, broadcasts, and the exchange that it sees."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from gan_leak import trees
from gan_leak.types import Array, FederationState, PyTree, RoundHyperParameters, ServerAttack

# The number of the server in key derivation. No participant has it; -1 marks padding.
_SERVER = np.uint32(2**32 - 2)


class ServerKeys(NamedTuple):
    """The keys of the server in one round, by purpose."""

    broadcast: Array
    aggregation: Array
    attack: Array


class Exchange(NamedTuple):
    """The messages between the server and the participants in a round.

    sent: float32 [P, D]. downloaded: bool [P, D], the coordinates that each participant took. visible: the part of the
    uploads that the aggregator shows.
    """

    sent: Array
    downloaded: Array
    visible: PyTree


def fold_in_server(key: Array) -> Array:
    """The server's key, derived like those of the participants."""
    return jax.random.fold_in(key, _SERVER)


def server_keys(key: Array) -> ServerKeys:
    """The server's keys, from the key of the round's turns."""
    return ServerKeys(*jax.random.split(fold_in_server(key), 3))


def broadcast(
    server_attack: ServerAttack,
    key: Array,
    state: FederationState,
    params: PyTree,
    participant: Array,
    hyperparameters: RoundHyperParameters,
) -> tuple[Array, Array | None]:
    """The parameters [D] that the adversary sends to one participant, and whether its upload is merged (None: yes).

    Raises ValueError, while tracing, for parameters of other shapes than the shared ones.
    """
    sent = server_attack.broadcast(
        jax.random.fold_in(key, participant),
        state.server_attack,
        params,
        participant,
        hyperparameters.server_attack,
    )
    shapes = [
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree) for tree in (sent.params, params)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(f"broadcast: sent parameters {shapes[0]}, expected those of the model, {shapes[1]}")
    return trees.ravel(sent.params)[0], sent.merged
