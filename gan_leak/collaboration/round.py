"""One round of collaborative learning as a pure function; the only place where participants get an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.collaboration.participant import TurnInfo, init_participant, join, local_sgd, train_and_upload
from gan_leak.collaboration.schedule import SCHEDULES, turn_order
from gan_leak.collaboration.server import AGGREGATIONS, add_upload, download, init_server, merge_uploads
from gan_leak.collaboration.sharding import over_devices
from gan_leak.types import (
    Array,
    FederationData,
    FederationState,
    InsiderView,
    LocalData,
    LocalTraining,
    Model,
    ParticipantState,
    PyTree,
    RoundAttack,
    ServerState,
    UploadTransform,
)

PARTICIPANT_MAPPINGS = ("auto", "vmap", "map", "loop")


class RoundHyperParameters(NamedTuple):
    """The traced numbers of a round: a sweep over them shares one compilation and may be vmapped.

    upload_threshold and upload_bound are in units of parameters; clipping_norm and noise_multiplier are those of
    DP-SGD; sensitivity and epsilon_per_release those of the sparse vector technique: by how much one coordinate of an
    update may change, in units of parameters, and the budget of one released coordinate (inf: no noise). ``attack``
    holds the numbers of the attack, or ().
    """

    learning_rate: Array | float
    learning_rate_decay: Array | float = 0.0
    upload_fraction: Array | float = 1.0
    download_fraction: Array | float = 1.0
    upload_threshold: Array | float = 0.0
    upload_bound: Array | float = float("inf")
    update_count_decay: Array | float = 1.0
    clipping_norm: Array | float = 1.0
    noise_multiplier: Array | float = 0.0
    sensitivity: Array | float = 0.002
    epsilon_per_release: Array | float = float("inf")
    attack: Any = ()


class RoundInfo(NamedTuple):
    """What is logged of a round: ``turns`` with a leading P axis, in participant order, and the attack's own info."""

    turns: TurnInfo
    attack: PyTree


RoundFunction = Callable[
    [Array, FederationState, FederationData, RoundHyperParameters], tuple[FederationState, RoundInfo]
]


def init_federation(
    key: Array, model: Model, transform: UploadTransform, participants: int, attack: RoundAttack | None = None
) -> FederationState:
    """The federation before its first round: server and participants share one initialisation."""
    key_model, key_attack = jax.random.split(key)
    params = model.init(key_model)
    states = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (participants, *leaf.shape)), init_participant(params, transform)
    )
    attack_state = attack.init(key_attack) if attack else ()
    return FederationState(init_server(params), states, attack_state, jnp.zeros((), jnp.int32))


def local_data(data: FederationData, position: Array | int) -> LocalData:
    """The share of the participant at one position: images [N, H, W, C], labels [N], mask [N]."""
    images, labels, size, _ = trees.take(data, position)
    return LocalData(images, labels, jnp.arange(labels.shape[0]) < size)


def _identities(data: FederationData) -> Array:
    return jnp.arange(data.sizes.shape[0]) if data.participants is None else data.participants


def _position(data: FederationData, adversary: int) -> Array | int:
    """Where the adversary is; 0 if it is not among these participants."""
    return adversary if data.participants is None else jnp.argmax(data.participants == adversary)


def _map_participants(fun: Callable, mapping: str, *arguments: PyTree) -> PyTree:
    if mapping == "auto":
        mapping = "map" if jax.default_backend() == "cpu" else "vmap"
    if mapping == "vmap":
        return jax.vmap(fun)(*arguments)
    if mapping == "map":
        return jax.lax.map(lambda entry: fun(*entry), arguments)
    count = jax.tree.leaves(arguments)[0].shape[0]
    return trees.stack([fun(*trees.take(arguments, index)) for index in range(count)])


def _check_adversary(adversary: int | None, data: FederationData) -> None:
    participants = data.sizes.shape[0]
    # Of those drawn from a larger federation the adversary need not be one.
    if adversary is not None and data.participants is None and not 0 <= adversary < participants:
        raise ValueError(f"adversary={adversary}: expected 0 to {participants - 1}, one of the participants")


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _turn_keys(key: Array, participant: Array | int) -> tuple[Array, Array, Array]:
    # Keyed by participant, not by position, so that a schedule changes the order of turns and nothing else.
    key_download, key_attack, key_train = jax.random.split(jax.random.fold_in(key, participant), 3)
    return key_download, key_attack, key_train


def _begin_turn(
    key: Array, server: ServerState, participant: Array | int, own: ParticipantState, hyperparameters: Any
) -> tuple[PyTree, Array, Array]:
    """What the participant has downloaded, and its keys for an attack and for training."""
    key_download, key_attack, key_train = _turn_keys(key, participant)
    return download(key_download, server, own.params, hyperparameters.download_fraction), key_attack, key_train


def make_round(
    model: Model,
    transform: UploadTransform,
    *,
    schedule: str,
    aggregation: str = "add",
    local_epochs: int = 1,
    batch_size: int = 64,
    local_training: LocalTraining = local_sgd,
    attack: RoundAttack | None = None,
    adversary: int | None = None,
    participant_mapping: str = "auto",
    mesh: jax.sharding.Mesh | None = None,
) -> RoundFunction:
    """Builds ``round(key, state, data, hyperparameters) -> (state, RoundInfo)`` of Hitaj et al. 2017, Algorithm 1.

    In each turn a participant downloads, trains locally and uploads; the adversary first runs one attack step on the
    model it just downloaded and adds the contribution to its local data. Sequential schedules scan over turns;
    ``synchronous`` runs all participants from the same server state by ``participant_mapping`` ('vmap', 'map', 'loop',
    or 'auto'), which never changes a result beyond float tolerance; nor does a ``mesh``, over whose devices the
    participants of a synchronous round are dealt out (``gan_leak.collaboration.sharding``). ``local_training`` is plain
    SGD or another way to learn from local data, such as ``gan_leak.defenses.dp_sgd``.

    Raises ValueError for an unknown schedule, aggregation or mapping, for averaging or a mesh in a sequential schedule,
    for an attack without an adversary, and, when called, for an adversary that is none of the participants and for
    participants that cannot be dealt out evenly.

    Where the data are those of some participants of a larger federation, ``state`` holds theirs too, in the same order;
    a participant draws the same random numbers in a round whoever else takes part. Without the adversary among them the
    attack rests, and its info is zero.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: allowed are {', '.join(map(repr, SCHEDULES))}")
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation={aggregation!r}: allowed are {', '.join(map(repr, AGGREGATIONS))}")
    if aggregation == "average" and schedule != "synchronous":
        raise ValueError(f"aggregation='average' with schedule={schedule!r}: averaging needs schedule='synchronous'")
    if mesh is not None and schedule != "synchronous":
        raise ValueError(f"mesh={mesh} with schedule={schedule!r}: dealing turns out needs schedule='synchronous'")
    if participant_mapping not in PARTICIPANT_MAPPINGS:
        raise ValueError(f"participant_mapping={participant_mapping!r}: allowed are {PARTICIPANT_MAPPINGS}")
    if (attack is None) != (adversary is None):
        raise ValueError(f"adversary={adversary}: an attack and an adversary go together")

    def train(key: Array, state: PyTree, downloaded: PyTree, data: LocalData, hyperparameters: PyTree) -> tuple:
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

    if schedule == "synchronous":
        return _synchronous_round(train, aggregation, attack, adversary, participant_mapping, mesh)
    return _sequential_round(train, schedule, attack, adversary)


def _sequential_round(
    train: Callable, schedule: str, attack: RoundAttack | None, adversary: int | None
) -> RoundFunction:
    def attack_step(key: Array, participant: Array, attack_state: PyTree, view: InsiderView, numbers: PyTree) -> tuple:
        assert attack is not None

        def skip() -> tuple:
            _, contribution, info = _zeros(jax.eval_shape(attack.step, key, attack_state, view, numbers))
            return attack_state, contribution, info

        return jax.lax.cond(participant == adversary, lambda: attack.step(key, attack_state, view, numbers), skip)

    def round_fn(
        key: Array, state: FederationState, data: FederationData, hyperparameters: RoundHyperParameters
    ) -> tuple[FederationState, RoundInfo]:
        _check_adversary(adversary, data)
        key_order, key_turns = jax.random.split(key)
        order = turn_order(key_order, schedule, data.sizes.shape[0])
        identities = _identities(data)

        def turn(carry: tuple, position: Array) -> tuple[tuple, PyTree]:
            server, participants, attack_state = carry
            participant = identities[position]
            own = trees.take(participants, position)
            downloaded, key_attack, key_train = _begin_turn(key_turns, server, participant, own, hyperparameters)
            samples = local_data(data, position)
            attack_info: PyTree = ()
            if attack is not None:
                attack_state, contribution, attack_info = attack_step(
                    key_attack, participant, attack_state, InsiderView(downloaded), hyperparameters.attack
                )
                samples = join(samples, contribution)
            own, upload, info = train(key_train, own, downloaded, samples, hyperparameters)
            server = add_upload(server, upload, hyperparameters.update_count_decay)
            return (server, trees.put(participants, position, own), attack_state), (info, attack_info)

        carry = (state.server, state.participants, state.attack)
        (server, participants, attack_state), infos = jax.lax.scan(turn, carry, order)
        turns, attack_infos = trees.take(infos, jnp.argsort(order))
        attack_info = () if adversary is None else trees.take(attack_infos, _position(data, adversary))
        return (
            FederationState(server, participants, attack_state, state.round + 1),
            RoundInfo(turns, attack_info),
        )

    return round_fn


def _synchronous_round(
    train: Callable,
    aggregation: str,
    attack: RoundAttack | None,
    adversary: int | None,
    mapping: str,
    mesh: jax.sharding.Mesh | None,
) -> RoundFunction:
    def honest_turns(shared: tuple, each: tuple) -> tuple:
        key, server, hyperparameters = shared

        def turn(participant: Array, own: ParticipantState, samples: LocalData) -> tuple:
            downloaded, _, key_train = _begin_turn(key, server, participant, own, hyperparameters)
            return train(key_train, own, downloaded, samples, hyperparameters)

        return _map_participants(turn, mapping, *each)

    if mesh is not None:
        honest_turns = over_devices(honest_turns, mesh)

    def round_fn(
        key: Array, state: FederationState, data: FederationData, hyperparameters: RoundHyperParameters
    ) -> tuple[FederationState, RoundInfo]:
        _check_adversary(adversary, data)
        # As in a sequential round, whose first half draws the order.
        _, key_turns = jax.random.split(key)
        identities = _identities(data)
        # In the adversary's place among the others is somebody without data, who does nothing.
        sizes = data.sizes if adversary is None else jnp.where(identities == adversary, 0, data.sizes)
        samples = LocalData(data.images, data.labels, jnp.arange(data.labels.shape[1])[None] < sizes[:, None])
        shared = (key_turns, state.server, hyperparameters)
        results = honest_turns(shared, (identities, state.participants, samples))
        attack_state, attack_info = state.attack, ()
        if attack is not None and adversary is not None:
            attack_state, attack_info, results = _adversary_turn(
                train, attack, adversary, key_turns, state, data, hyperparameters, results
            )
        states, uploads, turns = results
        server = merge_uploads(
            state.server, uploads, turns.samples, hyperparameters.update_count_decay, aggregation=aggregation
        )
        return FederationState(server, states, attack_state, state.round + 1), RoundInfo(turns, attack_info)

    return round_fn


def _adversary_turn(
    train: Callable,
    attack: RoundAttack,
    adversary: int,
    key: Array,
    state: FederationState,
    data: FederationData,
    hyperparameters: Any,
    results: tuple,
) -> tuple[PyTree, PyTree, tuple]:
    """The attack's state and info, and the results of all turns, with the adversary's put in if it takes part."""
    position = _position(data, adversary)

    def turn(results: tuple) -> tuple:
        own = trees.take(state.participants, position)
        downloaded, key_attack, key_train = _begin_turn(key, state.server, adversary, own, hyperparameters)
        attack_state, contribution, info = attack.step(
            key_attack, state.attack, InsiderView(downloaded), hyperparameters.attack
        )
        samples = join(local_data(data, position), contribution)
        result = train(key_train, own, downloaded, samples, hyperparameters)
        return attack_state, info, trees.put(results, position, result)

    if data.participants is None:
        return turn(results)

    def absent(results: tuple) -> tuple:
        return state.attack, _zeros(jax.eval_shape(turn, results)[1]), results

    return jax.lax.cond(jnp.any(data.participants == adversary), turn, absent, results)


def make_rounds(round_fn: RoundFunction, most: int) -> Callable:
    """Builds ``rounds(key, state, data, hyperparameters, count)``: ``count`` <= ``most`` rounds in one traced loop.

    Returns the state and RoundInfo with a leading axis of length ``most``, filled up to ``count``. Round r always gets
    the key ``fold_in(key, r)``, so results do not depend on how rounds are cut into chunks. ``count`` may be traced.
    """

    def rounds(
        key: Array, state: FederationState, data: FederationData, hyperparameters: RoundHyperParameters, count: Array
    ) -> tuple[FederationState, RoundInfo]:
        def body(index: Array, carry: tuple) -> tuple:
            state, infos = carry
            state, info = round_fn(jax.random.fold_in(key, state.round), state, data, hyperparameters)
            return state, trees.put(infos, index, info)

        shapes = jax.eval_shape(round_fn, key, state, data, hyperparameters)[1]
        infos = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, infos))

    return rounds
