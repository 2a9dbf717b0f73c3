"""The place of an adversary at the server: its keys, what it sends, and what passes before its eyes in a round."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from gan_leak import trees
from gan_leak.types import Array, FederationState, PyTree, RoundHyperParameters, ServerAttack

# The number under which the server draws; no participant has it, and -1 marks padding.
_SERVER = np.uint32(2**32 - 2)


class ServerKeys(NamedTuple):
    """The keys of the server in one round, by what they are for."""

    broadcast: Array
    aggregation: Array
    attack: Array


class Exchange(NamedTuple):
    """What went to the participants and came back in a round.

    sent: float32 [P, D]; downloaded: bool [P, D], the coordinates that each participant took; visible: what the
    aggregator shows of the uploads.
    """

    sent: Array
    downloaded: Array
    visible: PyTree


def fold_in_server(key: Array) -> Array:
    """The server's key among the keys that are folded by participant."""
    return jax.random.fold_in(key, _SERVER)


def server_keys(key: Array) -> ServerKeys:
    """The server's keys, from the key that each participant folds its number into."""
    return ServerKeys(*jax.random.split(fold_in_server(key), 3))


def broadcast(
    server_attack: ServerAttack,
    key: Array,
    state: FederationState,
    params: PyTree,
    participant: Array,
    hyperparameters: RoundHyperParameters,
) -> tuple[Array, Array | None]:
    """What the adversary sends to one participant, flat [D], and whether what comes back is merged (None: it is).

    Raises ValueError, while tracing, for parameters that are not shaped as the shared ones.
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
