"""The parts of a round, its beginning before the first turn, and its end after the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from gan_leak.collaboration.participant import TurnInfo
from gan_leak.collaboration.server import flatten
from gan_leak.collaboration.server_seat import Exchange, ServerKeys, server_keys
from gan_leak.collaboration.turns import Insider, check_insider, identities_of
from gan_leak.types import (
    Aggregator,
    Array,
    FederationData,
    FederationState,
    FlatServer,
    LocalData,
    ParticipantState,
    PyTree,
    RoundHyperParameters,
    ServerAttack,
    ServerState,
    ServerView,
    Upload,
)


class RoundInfo(NamedTuple):
    """The log of a round: ``turns`` with a leading P axis, in participant order, and the info of each attack.

    aggregation: the info of the aggregator, with a leading P axis in a sequential schedule.
    """

    turns: TurnInfo
    attack: PyTree
    aggregation: PyTree = ()
    server_attack: PyTree = ()


RoundFunction = Callable[
    [Array, FederationState, FederationData, RoundHyperParameters], tuple[FederationState, RoundInfo]
]
TrainAndUpload = Callable[
    [Array, ParticipantState, PyTree, LocalData, RoundHyperParameters], tuple[ParticipantState, Upload, TurnInfo]
]


class RoundParts(NamedTuple):
    """The functions that a round composes. Without an adversary at a seat, its part is None.

    download_criterion: see ``gan_leak.collaboration.server.download``.
    """

    train: TrainAndUpload
    aggregator: Aggregator
    insider: Insider | None
    server_attack: ServerAttack | None
    download_criterion: str


class StartedRound(NamedTuple):
    """The constants of a round: arguments, keys of its turns and of its server, numbers of its participants [P]."""

    key: Array
    server_keys: ServerKeys
    identities: Array
    before: FederationState
    data: FederationData
    hyperparameters: RoundHyperParameters
    unravel: Callable[[Array], PyTree]


class Progress(NamedTuple):
    """The parts of the state that turns change: server, participants, states of the insider and the aggregator.

    past: earlier states of the server, as in ``FederationState``.
    """

    server: FlatServer
    participants: ParticipantState
    attack: PyTree
    aggregation: PyTree
    past: PyTree = ()


def begin_round(
    parts: RoundParts,
    key: Array,
    state: FederationState,
    data: FederationData,
    hyperparameters: RoundHyperParameters,
) -> tuple[StartedRound, Progress]:
    """Start a round with the key of its turns; raise ValueError for an insider that is not a participant."""
    check_insider(parts.insider, data)
    server, unravel = flatten(state.server)
    start = StartedRound(key, server_keys(key), identities_of(data), state, data, hyperparameters, unravel)
    return start, Progress(server, state.participants, state.attack, state.aggregation, state.past)


def end_round(
    parts: RoundParts, start: StartedRound, progress: Progress, exchange: Exchange | None
) -> tuple[FederationState, PyTree]:
    """Let an adversary at the server take its step -> (the state after the round, its info)."""
    before = start.before
    params = start.unravel(progress.server.params)
    attack_state, info = before.server_attack, ()
    if parts.server_attack is not None and exchange is not None:
        sent = jax.vmap(start.unravel)(exchange.sent)
        view = ServerView(before.round, start.identities, sent, exchange.downloaded, exchange.visible, params)
        attack_state, info = parts.server_attack.step(
            start.server_keys.attack, attack_state, view, start.hyperparameters.server_attack
        )
    state = FederationState(
        ServerState(params, progress.server.update_counts),
        progress.participants,
        progress.attack,
        before.round + 1,
        progress.aggregation,
        attack_state,
        progress.past,
    )
    return state, info
