"""Rounds in which participants take turns, each with the server's latest parameters."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.collaboration.participant import join
from gan_leak.collaboration.round_parts import (
    Progress,
    RoundFunction,
    RoundInfo,
    RoundParts,
    StartedRound,
    begin_round,
    end_round,
)
from gan_leak.collaboration.schedule import turn_delays, turn_order
from gan_leak.collaboration.server_seat import Exchange, broadcast
from gan_leak.collaboration.turns import Insider, begin_turn, local_data, position_of
from gan_leak.types import (
    Array,
    FederationData,
    FederationState,
    FlatServer,
    InsiderView,
    PyTree,
    RoundHyperParameters,
)


class Turn(NamedTuple):
    """A turn: the position of its participant, its number in the whole run, and its delay; each int32 []."""

    position: Array
    number: Array
    delay: Array


def sequential_round(parts: RoundParts, schedule: str, *, delay: int = 0, delays: str = "fixed") -> RoundFunction:
    """Build a round that scans over the turns in the order of ``schedule``.

    delay, delays: see ``turn_delays``; without an asynchronous schedule there are none.
    """

    def round_fn(
        key: Array, state: FederationState, data: FederationData, hyperparameters: RoundHyperParameters
    ) -> tuple[FederationState, RoundInfo]:
        key_order, key_turns = jax.random.split(key)
        start, progress = begin_round(parts, key_turns, state, data, hyperparameters)
        participants = data.sizes.shape[0]
        order = turn_order(key_order, schedule, participants)
        late = jnp.zeros(participants, jnp.int32)
        if schedule == "asynchronous":
            late = turn_delays(key_order, delays, delay, participants)
        in_order = Turn(order, state.round * participants + jnp.arange(participants), late)
        progress, turns = jax.lax.scan(functools.partial(_turn, parts, start), progress, in_order)
        infos, attack_infos, aggregation_infos, exchange = trees.take(turns, jnp.argsort(order))
        attack_info: PyTree = ()
        if parts.insider is not None:
            attack_info = trees.take(attack_infos, position_of(data, parts.insider.participant))
        state, server_info = end_round(parts, start, progress, exchange)
        return state, RoundInfo(infos, attack_info, aggregation_infos, server_info)

    return round_fn


def _turn(parts: RoundParts, start: StartedRound, progress: Progress, turn: Turn) -> tuple[Progress, PyTree]:
    """One participant downloads, trains and uploads, and the server merges its upload."""
    server, participants, attack_state, aggregation, past = progress
    hyperparameters, position = start.hyperparameters, turn.position
    participant = start.identities[position]
    own = trees.take(participants, position)
    past, read = _read_server(past, server, turn)
    sent, merged = read.params, None
    if parts.server_attack is not None:
        sent, merged = broadcast(
            parts.server_attack,
            start.server_keys.broadcast,
            start.before,
            start.unravel(read.params),
            participant,
            hyperparameters,
        )
    begun = begin_turn(
        start.key,
        read._replace(params=sent),
        participant,
        own,
        hyperparameters,
        parts.download_criterion,
        parts.insider,
    )
    samples = local_data(start.data, position)
    attack_info: PyTree = ()
    if parts.insider is not None:
        attack_state, contribution, attack_info = _insider_step(
            parts.insider,
            begun.key_attack,
            participant,
            attack_state,
            InsiderView(begun.params, begun.downloaded, samples),
            hyperparameters.attack,
        )
        samples = join(samples, contribution)
    own, upload, info = parts.train(begun.key_train, own, begun.params, samples, hyperparameters)
    server, aggregation, visible, aggregation_info = parts.aggregator.apply(
        jax.random.fold_in(start.server_keys.aggregation, position),
        server,
        trees.expand(upload),
        trees.expand(info.samples),
        aggregation,
        hyperparameters=hyperparameters,
        merged=trees.expand(merged),
    )
    exchange = None if parts.server_attack is None else Exchange(sent, begun.downloaded, trees.take(visible, 0))
    progress = Progress(server, trees.put(participants, position, own), attack_state, aggregation, past)
    return progress, (info, attack_info, aggregation_info, exchange)


def _read_server(past: PyTree, server: FlatServer, turn: Turn) -> tuple[PyTree, FlatServer]:
    """The past states with the present one, and the state that the turn's participant has read."""
    if not past:
        return past, server
    places = past.params.shape[0]
    past = trees.put(past, turn.number % places, server)
    return past, trees.take(past, (turn.number - turn.delay) % places)


def _insider_step(
    insider: Insider, key: Array, participant: Array, attack_state: PyTree, view: InsiderView, hyperparameters: PyTree
) -> tuple:
    """The attack's step in the adversary's turn; in any other turn an empty contribution."""
    step = insider.attack.step

    def skip() -> tuple:
        _, contribution, info = trees.zeros(jax.eval_shape(step, key, attack_state, view, hyperparameters))
        return attack_state, contribution, info

    return jax.lax.cond(
        participant == insider.participant, lambda: step(key, attack_state, view, hyperparameters), skip
    )
