"""Rounds of collaborative learning as pure functions."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.collaboration.aggregation import add
from gan_leak.collaboration.participant import TurnInfo, init_participant, local_sgd, train_and_upload
from gan_leak.collaboration.round_parts import RoundFunction, RoundInfo, RoundParts
from gan_leak.collaboration.schedule import DELAYS, SCHEDULES
from gan_leak.collaboration.sequential import sequential_round
from gan_leak.collaboration.server import DOWNLOAD_CRITERIA, flatten, init_server
from gan_leak.collaboration.server_seat import fold_in_server
from gan_leak.collaboration.synchronous import PARTICIPANT_MAPPINGS, synchronous_round
from gan_leak.collaboration.turns import Insider
from gan_leak.types import (
    Aggregator,
    Array,
    FederationData,
    FederationState,
    LocalData,
    LocalTraining,
    Model,
    ParticipantState,
    PyTree,
    RoundAttack,
    RoundHyperParameters,
    ServerAttack,
    Upload,
    UploadTransform,
)

RoundsFunction = Callable[
    [Array, FederationState, FederationData, RoundHyperParameters, Array | int], tuple[FederationState, RoundInfo]
]


def init_federation(
    key: Array,
    model: Model,
    transform: UploadTransform,
    participants: int,
    attack: RoundAttack | None = None,
    *,
    aggregator: Aggregator | None = None,
    server_attack: ServerAttack | None = None,
    delay: int = 0,
) -> FederationState:
    """The federation before its first round: server and participants have the same initial parameters.

    ``attack``, ``aggregator``, ``server_attack`` and ``delay`` must be those of ``make_round``.
    """
    key_server = fold_in_server(key)
    key_model, key_attack = jax.random.split(key)
    params = model.init(key_model)
    states = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (participants, *leaf.shape)), init_participant(params, transform)
    )
    server = init_server(params)
    past: PyTree = ()
    if delay:
        past = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (delay + 1, *leaf.shape)), flatten(server)[0])
    return FederationState(
        server,
        states,
        attack.init(key_attack) if attack else (),
        jnp.zeros((), jnp.int32),
        (aggregator or add()).init(params),
        server_attack.init(key_server, params) if server_attack else (),
        past,
    )


def make_round(
    model: Model,
    transform: UploadTransform,
    *,
    schedule: str,
    delay: int = 0,
    delays: str = "fixed",
    aggregator: Aggregator | None = None,
    download_criterion: str = "most_updated",
    local_epochs: int = 1,
    batch_size: int = 64,
    local_training: LocalTraining = local_sgd,
    attack: RoundAttack | None = None,
    adversary: int | None = None,
    server_attack: ServerAttack | None = None,
    participant_mapping: str = "auto",
    mesh: jax.sharding.Mesh | None = None,
) -> RoundFunction:
    """Build ``round(key, state, data, hyperparameters) -> (state, RoundInfo)`` of Hitaj et al. 2017, Algorithm 1.

    In each turn a participant downloads, trains locally and uploads. The adversary first runs one attack step on the
    model it just downloaded, and adds the contribution to its local data.

    schedule: sequential schedules scan over turns. ``synchronous`` runs all participants from the same server state. In
    ``asynchronous``, what a participant downloads is ``delay`` turns old, or up to ``delay`` with ``delays="drawn"``:
    others upload while it trains (Shokri and Shmatikov 2015; Hitaj et al. 2017, Algorithm 1). A delay of 0 gives
    exactly ``round_robin``.
    download_criterion: a download takes the ``most_updated`` coordinates, or ``random`` ones.
    participant_mapping: 'vmap', 'map', 'loop' or 'auto' over the participants of a synchronous round.
    mesh: devices over which these participants are sharded (``gan_leak.collaboration.sharding``). Neither the mapping
    nor the mesh changes a result beyond float tolerance.
    local_training: plain SGD or another method, such as ``gan_leak.defenses.dp_sgd``.
    aggregator: merges the uploads, one by one in a sequential schedule and all at once in a synchronous one. None adds
    them.
    server_attack: an adversary at the server. It decides what each participant is sent, and takes one step after the
    round on what the aggregator shows. ``init_federation`` must be given the same aggregator and server_attack.

    Raises ValueError for an unknown schedule or mapping, for a mesh or an aggregator of whole rounds in a sequential
    schedule, and for an attack without an adversary. The round raises it for an adversary that is not a participant,
    and for participants that cannot be sharded evenly.

    If the data are those of some participants of a larger federation, ``state`` holds the same participants, in the
    same order. The random numbers of a participant do not depend on the others. If the adversary is not among them, the
    attack is skipped; its info is zeros.
    """
    aggregator = aggregator or add()
    _check_arguments(schedule, aggregator, attack, adversary, participant_mapping, mesh)
    _check_exchange(schedule, delay, delays, download_criterion)

    def train(
        key: Array, state: ParticipantState, downloaded: PyTree, data: LocalData, hyperparameters: RoundHyperParameters
    ) -> tuple[ParticipantState, Upload, TurnInfo]:
        return train_and_upload(
            key,
            model,
            transform,
            state,
            downloaded,
            data,
            hyperparameters,
            epochs=local_epochs,
            batch_size=batch_size,
            local_training=local_training,
        )

    insider = None if attack is None or adversary is None else Insider(attack, adversary)
    parts = RoundParts(train, aggregator, insider, server_attack, download_criterion)
    if schedule == "synchronous":
        return synchronous_round(parts, participant_mapping, mesh)
    return sequential_round(parts, schedule, delay=delay, delays=delays)


def _check_arguments(
    schedule: str,
    aggregator: Aggregator,
    attack: RoundAttack | None,
    adversary: int | None,
    participant_mapping: str,
    mesh: jax.sharding.Mesh | None,
) -> None:
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: allowed are {', '.join(map(repr, SCHEDULES))}")
    if not aggregator.sequential and schedule != "synchronous":
        raise ValueError(f"schedule={schedule!r}: an aggregator that merges whole rounds needs schedule='synchronous'")
    if mesh is not None and schedule != "synchronous":
        raise ValueError(f"mesh={mesh} with schedule={schedule!r}: sharding needs schedule='synchronous'")
    if participant_mapping not in PARTICIPANT_MAPPINGS:
        raise ValueError(f"participant_mapping={participant_mapping!r}: allowed are {PARTICIPANT_MAPPINGS}")
    if (attack is None) != (adversary is None):
        raise ValueError(f"adversary={adversary}: an attack and an adversary go together")


def _check_exchange(schedule: str, delay: int, delays: str, download_criterion: str) -> None:
    if delay < 0 or (delay and schedule != "asynchronous"):
        raise ValueError(f"delay={delay} with schedule={schedule!r}: expected 0, or more with 'asynchronous'")
    if delays not in DELAYS:
        raise ValueError(f"delays={delays!r}: allowed are {', '.join(map(repr, DELAYS))}")
    if download_criterion not in DOWNLOAD_CRITERIA:
        raise ValueError(
            f"download_criterion={download_criterion!r}: allowed are {', '.join(map(repr, DOWNLOAD_CRITERIA))}"
        )


def make_rounds(round_fn: RoundFunction, most: int) -> RoundsFunction:
    """Build ``rounds(key, state, data, hyperparameters, count)``: ``count`` <= ``most`` rounds in one traced loop.

    It returns the state and RoundInfo with a leading axis of length ``most``, filled up to ``count``. Round r always
    gets the key ``fold_in(key, r)``, so results do not depend on the division into chunks. ``count`` may be traced.
    """

    def rounds(
        key: Array,
        state: FederationState,
        data: FederationData,
        hyperparameters: RoundHyperParameters,
        count: Array | int,
    ) -> tuple[FederationState, RoundInfo]:
        def body(index: Array, carry: tuple) -> tuple:
            state, infos = carry
            state, info = round_fn(jax.random.fold_in(key, state.round), state, data, hyperparameters)
            return state, trees.put(infos, index, info)

        shapes = jax.eval_shape(round_fn, key, state, data, hyperparameters)[1]
        infos = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, infos))

    return rounds
