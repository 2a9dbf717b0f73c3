"""One round of collaborative learning as a pure function. Only here do participants get an axis."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.collaboration.aggregation import add
from gan_leak.collaboration.participant import TurnInfo, init_participant, join, local_sgd, train_and_upload
from gan_leak.collaboration.schedule import SCHEDULES, turn_order
from gan_leak.collaboration.server import flatten, init_server
from gan_leak.collaboration.server_seat import Exchange, broadcast, fold_in_server, server_keys
from gan_leak.collaboration.sharding import over_devices
from gan_leak.collaboration.turns import Insider, begin_turn, check_insider, identities_of, local_data, position_of
from gan_leak.types import (
    Aggregator,
    Array,
    FederationData,
    FederationState,
    FlatServer,
    InsiderView,
    LocalData,
    LocalTraining,
    Model,
    ParticipantState,
    PyTree,
    RoundAttack,
    RoundHyperParameters,
    ServerAttack,
    ServerState,
    ServerView,
    Upload,
    UploadTransform,
)

PARTICIPANT_MAPPINGS = ("auto", "vmap", "map", "loop")


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
RoundsFunction = Callable[
    [Array, FederationState, FederationData, RoundHyperParameters, Array | int], tuple[FederationState, RoundInfo]
]
_Train = Callable[
    [Array, ParticipantState, PyTree, LocalData, RoundHyperParameters], tuple[ParticipantState, Upload, TurnInfo]
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
) -> FederationState:
    """The federation before its first round: server and participants have the same initial parameters.

    ``attack``, ``aggregator`` and ``server_attack`` must be those of ``make_round``.
    """
    key_server = fold_in_server(key)
    key_model, key_attack = jax.random.split(key)
    params = model.init(key_model)
    states = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (participants, *leaf.shape)), init_participant(params, transform)
    )
    return FederationState(
        init_server(params),
        states,
        attack.init(key_attack) if attack else (),
        jnp.zeros((), jnp.int32),
        (aggregator or add()).init(params),
        server_attack.init(key_server, params) if server_attack else (),
    )


def _map_participants(fun: Callable[..., PyTree], mapping: str, *arguments: PyTree) -> PyTree:
    if mapping == "auto":
        mapping = "map" if jax.default_backend() == "cpu" else "vmap"
    if mapping == "vmap":
        return jax.vmap(fun)(*arguments)
    if mapping == "map":
        return jax.lax.map(lambda entry: fun(*entry), arguments)
    count = jax.tree.leaves(arguments)[0].shape[0]
    return trees.stack([fun(*trees.take(arguments, index)) for index in range(count)])


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


class _Progress(NamedTuple):
    """The parts of the state that turns change: server, participants, states of the insider and the aggregator."""

    server: FlatServer
    participants: ParticipantState
    attack: PyTree
    aggregation: PyTree


def _finish(
    server_attack: ServerAttack | None,
    key: Array,
    before: FederationState,
    progress: _Progress,
    unravel: Callable[[Array], PyTree],
    identities: Array,
    exchange: Exchange | None,
    hyperparameters: RoundHyperParameters,
) -> tuple[FederationState, PyTree]:
    """Let an adversary at the server take its step -> (the state after the round, its info)."""
    params = unravel(progress.server.params)
    attack_state, info = before.server_attack, ()
    if server_attack is not None and exchange is not None:
        sent = jax.vmap(unravel)(exchange.sent)
        view = ServerView(before.round, identities, sent, exchange.downloaded, exchange.visible, params)
        attack_state, info = server_attack.step(key, attack_state, view, hyperparameters.server_attack)
    state = FederationState(
        ServerState(params, progress.server.update_counts),
        progress.participants,
        progress.attack,
        before.round + 1,
        progress.aggregation,
        attack_state,
    )
    return state, info


def _as_sent(server: FlatServer, sent: Array | None) -> FlatServer:
    return server if sent is None else FlatServer(sent, server.update_counts)


def make_round(
    model: Model,
    transform: UploadTransform,
    *,
    schedule: str,
    aggregator: Aggregator | None = None,
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

    schedule: sequential schedules scan over turns. ``synchronous`` runs all participants from the same server state.
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
    if schedule == "synchronous":
        return _synchronous_round(train, aggregator, insider, server_attack, participant_mapping, mesh)
    return _sequential_round(train, schedule, aggregator, insider, server_attack)


def _sequential_round(
    train: _Train,
    schedule: str,
    aggregator: Aggregator,
    insider: Insider | None,
    server_attack: ServerAttack | None,
) -> RoundFunction:
    def insider_step(
        key: Array, participant: Array, attack_state: PyTree, view: InsiderView, hyperparameters: PyTree
    ) -> tuple:
        assert insider is not None
        step = insider.attack.step

        def skip() -> tuple:
            _, contribution, info = _zeros(jax.eval_shape(step, key, attack_state, view, hyperparameters))
            return attack_state, contribution, info

        return jax.lax.cond(
            participant == insider.participant, lambda: step(key, attack_state, view, hyperparameters), skip
        )

    def round_fn(
        key: Array, state: FederationState, data: FederationData, hyperparameters: RoundHyperParameters
    ) -> tuple[FederationState, RoundInfo]:
        check_insider(insider, data)
        key_order, key_turns = jax.random.split(key)
        order = turn_order(key_order, schedule, data.sizes.shape[0])
        identities, keys = identities_of(data), server_keys(key_turns)
        server, unravel = flatten(state.server)

        def turn(progress: _Progress, position: Array) -> tuple[_Progress, PyTree]:
            server, participants, attack_state, aggregation = progress
            participant = identities[position]
            own = trees.take(participants, position)
            sent, merged = server.params, None
            if server_attack is not None:
                sent, merged = broadcast(
                    server_attack, keys.broadcast, state, unravel(server.params), participant, hyperparameters
                )
            begun = begin_turn(key_turns, server._replace(params=sent), participant, own, hyperparameters)
            samples = local_data(data, position)
            attack_info: PyTree = ()
            if insider is not None:
                attack_state, contribution, attack_info = insider_step(
                    begun.key_attack, participant, attack_state, InsiderView(begun.params), hyperparameters.attack
                )
                samples = join(samples, contribution)
            own, upload, info = train(begun.key_train, own, begun.params, samples, hyperparameters)
            server, aggregation, visible, aggregation_info = aggregator.apply(
                jax.random.fold_in(keys.aggregation, position),
                server,
                trees.expand(upload),
                trees.expand(info.samples),
                aggregation,
                hyperparameters=hyperparameters,
                merged=trees.expand(merged),
            )
            exchange = None if server_attack is None else Exchange(sent, begun.downloaded, trees.take(visible, 0))
            progress = _Progress(server, trees.put(participants, position, own), attack_state, aggregation)
            return progress, (info, attack_info, aggregation_info, exchange)

        progress, turns = jax.lax.scan(
            turn, _Progress(server, state.participants, state.attack, state.aggregation), order
        )
        infos, attack_infos, aggregation_infos, exchange = trees.take(turns, jnp.argsort(order))
        attack_info = () if insider is None else trees.take(attack_infos, position_of(data, insider.participant))
        state, server_info = _finish(
            server_attack, keys.attack, state, progress, unravel, identities, exchange, hyperparameters
        )
        return state, RoundInfo(infos, attack_info, aggregation_infos, server_info)

    return round_fn


def _synchronous_round(
    train: _Train,
    aggregator: Aggregator,
    insider: Insider | None,
    server_attack: ServerAttack | None,
    mapping: str,
    mesh: jax.sharding.Mesh | None,
) -> RoundFunction:
    def turn(
        key: Array,
        server: FlatServer,
        hyperparameters: RoundHyperParameters,
        participant: Array,
        own: ParticipantState,
        samples: LocalData,
        sent: Array | None,
    ) -> tuple:
        begun = begin_turn(key, _as_sent(server, sent), participant, own, hyperparameters)
        result = train(begun.key_train, own, begun.params, samples, hyperparameters)
        return *result, None if server_attack is None else begun.downloaded

    def honest_turns(shared: tuple, each: tuple) -> tuple:
        return _map_participants(functools.partial(turn, *shared), mapping, *each)

    if mesh is not None:
        honest_turns = over_devices(honest_turns, mesh)

    def round_fn(
        key: Array, state: FederationState, data: FederationData, hyperparameters: RoundHyperParameters
    ) -> tuple[FederationState, RoundInfo]:
        check_insider(insider, data)
        # A sequential round draws the order from the first half.
        _, key_turns = jax.random.split(key)
        identities, keys = identities_of(data), server_keys(key_turns)
        server, unravel = flatten(state.server)
        sent: Array | None = None
        merged = None
        if server_attack is not None:
            sent, merged = jax.vmap(
                lambda participant: broadcast(
                    server_attack, keys.broadcast, state, state.server.params, participant, hyperparameters
                )
            )(identities)
        # In the turns of all participants the adversary has no data; its own turn follows.
        sizes = data.sizes if insider is None else jnp.where(identities == insider.participant, 0, data.sizes)
        samples = LocalData(data.inputs, data.labels, jnp.arange(data.labels.shape[1])[None] < sizes[:, None])
        shared = (key_turns, server, hyperparameters)
        results = honest_turns(shared, (identities, state.participants, samples, sent))
        attack_state, attack_info = state.attack, ()
        if insider is not None:
            attack_state, attack_info, results = _insider_turn(train, insider, shared, state, data, sent, results)
        states, uploads, turns, downloaded = results
        server, aggregation, visible, aggregation_info = aggregator.apply(
            keys.aggregation,
            server,
            uploads,
            turns.samples,
            state.aggregation,
            hyperparameters=hyperparameters,
            merged=merged,
        )
        exchange = None if sent is None else Exchange(sent, downloaded, visible)
        progress = _Progress(server, states, attack_state, aggregation)
        state, server_info = _finish(
            server_attack, keys.attack, state, progress, unravel, identities, exchange, hyperparameters
        )
        return state, RoundInfo(turns, attack_info, aggregation_info, server_info)

    return round_fn


def _insider_turn(
    train: _Train,
    insider: Insider,
    shared: tuple,
    state: FederationState,
    data: FederationData,
    sent: Array | None,
    results: tuple,
) -> tuple[PyTree, PyTree, tuple]:
    """The attack's state and info, and the results of all turns, including the adversary's if it takes part."""
    key, server, hyperparameters = shared
    attack, adversary = insider
    position = position_of(data, adversary)

    def turn(results: tuple) -> tuple:
        own = trees.take(state.participants, position)
        own_server = _as_sent(server, trees.take(sent, position))
        begun = begin_turn(key, own_server, adversary, own, hyperparameters)
        attack_state, contribution, info = attack.step(
            begun.key_attack, state.attack, InsiderView(begun.params), hyperparameters.attack
        )
        samples = join(local_data(data, position), contribution)
        *others, downloaded = results
        result = train(begun.key_train, own, begun.params, samples, hyperparameters)
        # The download does not depend on the data, so that of the turn without data is right.
        return attack_state, info, (*trees.put(tuple(others), position, result), downloaded)

    if data.participants is None:
        return turn(results)

    def absent(results: tuple) -> tuple:
        return state.attack, _zeros(jax.eval_shape(turn, results)[1]), results

    return jax.lax.cond(jnp.any(data.participants == adversary), turn, absent, results)


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
