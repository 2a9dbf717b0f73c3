"""The rounds of a federation with an adversary at the server, and a server that only records them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak import trees
from gan_leak.attacks.procedure import Procedure
from gan_leak.attacks.server.broadcasts import send_shared
from gan_leak.attacks.server.local_models import LocalModels, change_params
from gan_leak.attacks.server.observed_updates import seen_updates
from gan_leak.attacks.server.settings import ServerFederationConfig
from gan_leak.collaboration import average, init_federation, make_round, selective_upload
from gan_leak.defenses.composition import aggregator_of, upload_of
from gan_leak.runs.server.federation import OwnedFederation, Variant
from gan_leak.runs.storage.resumable import Keys, SavedProgress, run_in_parts
from gan_leak.types import (
    Array,
    FederationData,
    FederationState,
    PyTree,
    RoundHyperParameters,
    ServerAttack,
    ServerView,
)

# The upload of all coordinates; defenses change it before.
_EVERYTHING = "largest"


class Rounds(NamedTuple):
    """The state of a federation in progress: the federation, and the log of all its rounds, filled so far."""

    federation: FederationState
    accuracy: Array
    losses: Array


class RoundsInput(NamedTuple):
    """The input of ``rounds_procedure``: data, held-out images [N, ...] with labels [N], and the traced numbers."""

    data: FederationData
    held_out: Array
    held_out_labels: Array
    hyperparameters: RoundHyperParameters


def rounds_procedure(federation: OwnedFederation, variant: Variant, attack: ServerAttack, rounds: int) -> Procedure:
    """The rounds of a federation as a ``Procedure``; a step is a round, and the result is ``Rounds``."""
    aggregator = aggregator_of(variant.defenses, average())
    transform = upload_of(variant.defenses, selective_upload(_EVERYTHING))
    most = int(np.max(federation.data.sizes))
    round_fn = make_round(
        federation.model,
        transform,
        schedule="synchronous",
        aggregator=aggregator,
        local_epochs=variant.local_epochs,
        batch_size=variant.batch_size or most,
        server_attack=attack,
    )

    def init(key: Array, given: RoundsInput) -> Rounds:
        state = init_federation(
            key, federation.model, transform, federation.clients, aggregator=aggregator, server_attack=attack
        )
        return Rounds(state, jnp.zeros(rounds), jnp.zeros(rounds))

    def step(key: Array, progress: Rounds, given: RoundsInput) -> tuple[Rounds, PyTree]:
        number = progress.federation.round
        state, info = round_fn(key, progress.federation, given.data, given.hyperparameters)
        logits = federation.model.apply(state.server.params, given.held_out)
        accuracy = jnp.mean(jnp.argmax(logits, axis=1) == given.held_out_labels)
        loss = jnp.mean(info.turns.loss)
        return Rounds(
            state, progress.accuracy.at[number].set(accuracy), progress.losses.at[number].set(loss)
        ), info.server_attack

    return Procedure(init, step, lambda progress, given: progress)


def run_rounds(
    key: Array,
    federation: OwnedFederation,
    variant: Variant,
    attack: ServerAttack,
    attack_hyperparameters: PyTree,
    options: ServerFederationConfig,
    progress: SavedProgress,
) -> Rounds:
    """Run all rounds in parts; ``key`` also determines the initial parameters, so attacks meet the same federation."""
    held_out = federation.held_out.reshape(-1, *federation.image_shape)
    given = RoundsInput(
        FederationData(*(jnp.asarray(array) for array in federation.data[:3])),
        jnp.asarray(held_out),
        jnp.asarray(federation.held_out_labels.reshape(-1)),
        RoundHyperParameters(options.learning_rate, defense=variant.strengths, server_attack=attack_hyperparameters),
    )
    procedure = rounds_procedure(federation, variant, attack, options.rounds)
    keys = Keys(*jax.random.split(key))
    return run_in_parts(keys, procedure, given, steps=options.rounds, unit="round", progress=progress)


class Recorded(NamedTuple):
    """A round that a passive server recorded: what it sent [K, ...], changes [K, D], and who took part [K]."""

    sent: PyTree
    changes: Array
    present: Array


class RoundPair(NamedTuple):
    """The messages of all K clients in the first attacked round and in the last one."""

    first: Recorded
    last: Recorded


def recording(clients: int, first_round: int = 0) -> ServerAttack:
    """A passive server that keeps the messages of two rounds and draws nothing; its state is ``RoundPair``."""

    def init(key: Array, params: PyTree) -> RoundPair:
        sent = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (clients, *leaf.shape)), params)
        size = trees.ravel(params)[0].size
        empty = Recorded(sent, jnp.zeros((clients, size)), jnp.zeros(clients, bool))
        return RoundPair(empty, empty)

    def step(key: Array, state: RoundPair, view: ServerView, hyperparameters: PyTree) -> tuple[RoundPair, tuple[()]]:
        now = Recorded(view.sent, *seen_updates(view))
        is_first = view.round == first_round
        return RoundPair(jax.tree.map(lambda old, new: jnp.where(is_first, new, old), state.first, now), now), ()

    def reconstruct(key: Array, state: RoundPair, count: int) -> Array:
        raise ValueError("recording: expected no reconstruction of a server that only records")

    return ServerAttack(init, send_shared, step, reconstruct)


def record_rounds(
    key: Array,
    federation: OwnedFederation,
    variant: Variant,
    first_round: int,
    options: ServerFederationConfig,
    progress: SavedProgress,
) -> RoundPair:
    """The messages of the federation that ``run_attack`` with this key attacks."""
    key_rounds, _ = jax.random.split(key)
    attack = recording(federation.clients, first_round)
    return run_rounds(key_rounds, federation, variant, attack, (), options, progress).federation.server_attack


def local_models_of(recorded: Recorded) -> LocalModels:
    """The local models of the recorded round."""
    return LocalModels(change_params(recorded.sent, recorded.changes), recorded.present)
