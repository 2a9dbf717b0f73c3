"""Rounds in which all participants work from the same server state. Only here do turns get an axis P."""

from __future__ import annotations

import functools
from collections.abc import Callable

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
from gan_leak.collaboration.server_seat import Exchange, broadcast
from gan_leak.collaboration.sharding import over_devices
from gan_leak.collaboration.turns import Insider, begin_turn, local_data, position_of
from gan_leak.types import (
    Array,
    FederationData,
    FederationState,
    FlatServer,
    InsiderView,
    LocalData,
    ParticipantState,
    PyTree,
    RoundHyperParameters,
)

PARTICIPANT_MAPPINGS = ("auto", "vmap", "map", "loop")


def synchronous_round(parts: RoundParts, mapping: str, mesh: jax.sharding.Mesh | None) -> RoundFunction:
    """Build a round whose participants are mapped by ``mapping`` and sharded over ``mesh``, if there is one."""

    def honest_turns(shared: tuple, each: tuple) -> tuple:
        return _map_participants(functools.partial(_turn, parts, *shared), mapping, *each)

    if mesh is not None:
        honest_turns = over_devices(honest_turns, mesh)

    def round_fn(
        key: Array, state: FederationState, data: FederationData, hyperparameters: RoundHyperParameters
    ) -> tuple[FederationState, RoundInfo]:
        # A sequential round draws the order from the first half.
        _, key_turns = jax.random.split(key)
        start, progress = begin_round(parts, key_turns, state, data, hyperparameters)
        sent, merged = _broadcasts(parts, start)
        shared = (key_turns, progress.server, hyperparameters)
        each = (start.identities, state.participants, _honest_data(parts.insider, start), sent)
        results = honest_turns(shared, each)
        attack_state, attack_info = state.attack, ()
        if parts.insider is not None:
            attack_state, attack_info, results = _insider_turn(
                parts, parts.insider, start, progress.server, sent, results
            )
        states, uploads, turns, downloaded = results
        server, aggregation, visible, aggregation_info = parts.aggregator.apply(
            start.server_keys.aggregation,
            progress.server,
            uploads,
            turns.samples,
            state.aggregation,
            hyperparameters=hyperparameters,
            merged=merged,
            sent=sent,
        )
        exchange = None if sent is None else Exchange(sent, downloaded, visible)
        progress = Progress(server, states, attack_state, aggregation)
        state, server_info = end_round(parts, start, progress, exchange)
        return state, RoundInfo(turns, attack_info, aggregation_info, server_info)

    return round_fn


def _map_participants(fun: Callable[..., PyTree], mapping: str, *arguments: PyTree) -> PyTree:
    if mapping == "auto":
        mapping = "map" if jax.default_backend() == "cpu" else "vmap"
    if mapping == "vmap":
        return jax.vmap(fun)(*arguments)
    if mapping == "map":
        return jax.lax.map(lambda entry: fun(*entry), arguments)
    count = jax.tree.leaves(arguments)[0].shape[0]
    return trees.stack([fun(*trees.take(arguments, index)) for index in range(count)])


def _broadcasts(parts: RoundParts, start: StartedRound) -> tuple[Array | None, Array | None]:
    """The parameters [P, D] that an adversary at the server sends, and whose uploads are merged, bool [P]."""
    server_attack, state = parts.server_attack, start.before
    if server_attack is None:
        return None, None
    return jax.vmap(
        lambda participant: broadcast(
            server_attack,
            start.server_keys.broadcast,
            state,
            state.server.params,
            participant,
            start.hyperparameters,
        )
    )(start.identities)


def _honest_data(insider: Insider | None, start: StartedRound) -> LocalData:
    """The data for the turns of all participants. There an adversary has none; its own turn follows."""
    inputs, labels, sizes, _ = start.data
    if insider is not None:
        sizes = jnp.where(start.identities == insider.participant, 0, sizes)
    return LocalData(inputs, labels, jnp.arange(labels.shape[1])[None] < sizes[:, None])


def _as_sent(server: FlatServer, sent: Array | None) -> FlatServer:
    return server if sent is None else FlatServer(sent, server.update_counts)


def _turn(
    parts: RoundParts,
    key: Array,
    server: FlatServer,
    hyperparameters: RoundHyperParameters,
    participant: Array,
    own: ParticipantState,
    samples: LocalData,
    sent: Array | None,
) -> tuple:
    begun = begin_turn(
        key, _as_sent(server, sent), participant, own, hyperparameters, parts.download_criterion, parts.insider
    )
    result = parts.train(begun.key_train, own, begun.params, samples, hyperparameters)
    return *result, None if parts.server_attack is None else begun.downloaded


def _insider_turn(
    parts: RoundParts,
    insider: Insider,
    start: StartedRound,
    server: FlatServer,
    sent: Array | None,
    results: tuple,
) -> tuple[PyTree, PyTree, tuple]:
    """The attack's state and info, and the results of all turns, including the adversary's if it takes part."""
    attack, adversary = insider
    state, data, hyperparameters = start.before, start.data, start.hyperparameters
    position = position_of(data, adversary)

    def turn(results: tuple) -> tuple:
        own = trees.take(state.participants, position)
        own_server = _as_sent(server, trees.take(sent, position))
        begun = begin_turn(start.key, own_server, adversary, own, hyperparameters, parts.download_criterion, insider)
        samples = local_data(data, position)
        view = InsiderView(begun.params, begun.downloaded, samples)
        attack_state, contribution, info = attack.step(begun.key_attack, state.attack, view, hyperparameters.attack)
        samples = join(samples, contribution)
        *others, downloaded = results
        result = parts.train(begun.key_train, own, begun.params, samples, hyperparameters)
        # The download does not depend on the data, so that of the turn without data is right.
        return attack_state, info, (*trees.put(tuple(others), position, result), downloaded)

    if data.participants is None:
        return turn(results)

    def absent(results: tuple) -> tuple:
        return state.attack, trees.zeros(jax.eval_shape(turn, results)[1]), results

    return jax.lax.cond(jnp.any(data.participants == adversary), turn, absent, results)
