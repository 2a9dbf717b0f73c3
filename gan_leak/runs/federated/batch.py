"""Several runs of one shape in one compiled program: the seeds of a setting, or its target classes.

Each lane computes what ``experiments.gan_attack`` computes with its configuration: the same keys, the same rounds.
Lanes may differ in every traced number of a round, in the seed, and in the partition of the images. Their shapes must
agree.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gan_leak import trees
from gan_leak.collaboration import RoundHyperParameters, RoundInfo, make_rounds
from gan_leak.collaboration.round import RoundsFunction
from gan_leak.collaboration.round_parts import RoundFunction
from gan_leak.collaboration.sharding import device_mesh, over_devices
from gan_leak.config import RunConfig
from gan_leak.evaluation.fidelity import nearest_by_l1
from gan_leak.evaluation.leakage import References, measure_leakage
from gan_leak.evaluation.measurability import score_text
from gan_leak.runs.federated.batch_files import (
    BatchResult,
    check_lanes,
    finished_result,
    keep,
    make_folder,
    resume,
    write_result,
)
from gan_leak.runs.federated.measurement import (
    InstrumentSource,
    RunKeys,
    build_comparison,
    model_accuracy,
    reconstruct,
    run_keys,
)
from gan_leak.runs.federated.setup import AttackData, Experiment, build_experiment, prepare_data, start_federation
from gan_leak.runs.hosts.interruption import on_interruption, uninterrupted
from gan_leak.runs.storage import checkpoints
from gan_leak.settings import encoded_values, settings_of, value_of
from gan_leak.types import Array, FederationData, FederationState

_MOST_ROUNDS_PER_CALL = 5
_KEPT_PICTURES = 12
_MOST_SECONDS_TO_LOSE = 60.0


class Lane(NamedTuple):
    """One run of a batch: its configuration, its data and the references for its leakage."""

    config: RunConfig
    data: AttackData
    keys: RunKeys
    references: References
    comparison: dict[str, dict[str, Any]]


def check_batch(configs: Sequence[RunConfig]) -> None:
    """Raise ValueError for no lanes, and for lanes that differ in settings that may not vary in a batch."""
    if not configs:
        raise ValueError("configs: empty, expected at least one configuration")
    if configs[0].attack.kind == "none":
        raise ValueError("attack='none': expected 'active' or 'passive', since a batch measures leakage")
    for config in configs:
        if target := config.defense.target_epsilon:
            raise ValueError(f"target_epsilon={target}: expected 0 in a batch; solve for the noise before")
    if configs[0].federation.participants_per_round:
        drawn = configs[0].federation.participants_per_round
        raise ValueError(f"participants_per_round={drawn}: expected 0, since a batch holds all states in memory")
    for config in configs[1:]:
        for name, setting in settings_of(RunConfig).items():
            first, other = value_of(configs[0], setting), value_of(config, setting)
            if not setting.varies_in_batch and first != other:
                raise ValueError(f"{name}={other!r} in one lane, {first!r} in another: expected the same")


def run_batch(
    configs: Sequence[RunConfig],
    directory: pathlib.Path,
    instrument_source: InstrumentSource,
    show: Callable[[int, str], None] = lambda round, text: None,
    notify: Callable[[str], None] = lambda text: None,
) -> BatchResult:
    """Run all lanes and keep the result in ``directory``. Reads a finished result, continues an interrupted batch.

    show: called with the number of finished rounds and a line of their measurements. The line is empty before the first
    round and where nothing was measured. notify: called with a line for each damaged file. The file is renamed and
    computed again.

    Raises ValueError for incompatible lanes, lanes without an attack, bad data, and a directory that holds another
    batch.
    """
    check_batch(configs)
    make_folder(directory, notify)
    named = directory == batch_directory(directory.parent, configs)
    check_lanes(directory, [_deciding(config) for config in configs], notify, named=named)
    if (result := finished_result(directory, notify)) is not None:
        return result
    lanes, experiment, state = _prepare(configs, instrument_source)
    return _train(lanes, experiment, state, directory, instrument_source, show, notify)


def batch_directory(root: pathlib.Path, configs: Sequence[RunConfig]) -> pathlib.Path:
    """The directory of a batch below ``root``, named by a digest of all settings that decide its result."""
    text = json.dumps([_deciding(config) for config in configs], sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:16]


def _deciding(config: RunConfig) -> dict[str, object]:
    """The settings that decide the result of a lane, without those marked ``later`` that have their default.

    So a batch of an earlier version keeps its directory.
    """
    encoded = encoded_values(config)
    return {
        name: encoded[name]
        for name, setting in settings_of(RunConfig).items()
        if setting.decides_result and not (setting.later and value_of(config, setting) == setting.default)
    }


def take_lanes(result: BatchResult, lanes: slice) -> BatchResult:
    """The result of some of the lanes. The seconds remain those of all lanes."""
    return result._replace(
        records=result.records[lanes],
        comparison=result.comparison[lanes],
        measurability=result.measurability[lanes],
        pictures=result.pictures[lanes],
        private=result.private[lanes],
    )


def _prepare(
    configs: Sequence[RunConfig], instrument_source: InstrumentSource
) -> tuple[list[Lane], Experiment, FederationState]:
    lanes, states = [], []
    experiment = None
    for config in configs:
        data = prepare_data(config)
        # Lanes share the program, so the first lane provides all but the numbers.
        experiment = experiment or build_experiment(config, data)
        assert experiment.attack is not None
        keys = run_keys(config.seed)
        participants = data.federation.sizes.shape[0]
        state = start_federation(experiment, keys.init, participants)
        untrained = reconstruct(experiment.attack, keys.prior, state.attack, config.evaluation.samples)
        references, comparison = build_comparison(config, data, instrument_source(data), untrained)
        lanes.append(Lane(config, data, keys, references, comparison))
        states.append(state)
    assert experiment is not None
    return lanes, experiment, trees.stack(states)


def stack_federations(federations: Sequence[FederationData]) -> FederationData:
    """Federations [P, N, ...] of different N, padded to the longest, with a leading axis of lanes."""
    longest = max(federation.labels.shape[1] for federation in federations)

    def padded(values: Array) -> np.ndarray:
        array = np.asarray(values)
        return np.pad(array, [(0, 0), (0, longest - array.shape[1]), *[(0, 0)] * (array.ndim - 2)])

    return FederationData(
        jnp.asarray(np.stack([padded(federation.inputs) for federation in federations])),
        jnp.asarray(np.stack([padded(federation.labels) for federation in federations])),
        jnp.asarray(np.stack([np.asarray(federation.sizes) for federation in federations])),
    )


def make_lanes(round_fn: RoundFunction, mapping: str, mesh: Mesh | None = None) -> RoundsFunction:
    """Build ``lanes(keys, states, data, hyperparameters, count)``: ``count`` rounds of every lane in one program.

    All arguments but the count have a leading axis of lanes. mapping: 'vmap', 'map' or 'auto'. mesh: devices over which
    the lanes are sharded equally. Neither changes a result beyond float tolerance.
    """
    rounds = make_rounds(round_fn, _MOST_ROUNDS_PER_CALL)
    by_map = mapping == "map" or (mapping == "auto" and jax.default_backend() == "cpu")

    def of_device(count: Array | int, entries: tuple) -> tuple:
        def lane(
            entry: tuple[Array, FederationState, FederationData, RoundHyperParameters],
        ) -> tuple[FederationState, RoundInfo]:
            return rounds(*entry, count)

        return jax.lax.map(lane, entries) if by_map else jax.vmap(lane)(entries)

    over_lanes = of_device if mesh is None else over_devices(of_device, mesh)

    def lanes(
        keys: Array,
        states: FederationState,
        data: FederationData,
        hyperparameters: RoundHyperParameters,
        count: Array | int,
    ) -> tuple[FederationState, RoundInfo]:
        return over_lanes(count, (keys, states, data, hyperparameters))

    return lanes


@functools.lru_cache(maxsize=16)
def _jitted_lanes(round_fn: RoundFunction, mapping: str, mesh: Mesh | None) -> RoundsFunction:
    # Batches of one shape share a program. Without the cache each batch would trace and compile it again.
    return jax.jit(make_lanes(round_fn, mapping, mesh))


def _train(
    lanes: list[Lane],
    experiment: Experiment,
    state: FederationState,
    directory: pathlib.Path,
    instrument_source: InstrumentSource,
    show: Callable[[int, str], None],
    notify: Callable[[str], None],
) -> BatchResult:
    config = lanes[0].config
    mesh = device_mesh() if jax.device_count() > 1 and len(lanes) > 1 else None
    run = _jitted_lanes(experiment.round, config.performance.seed_mapping, mesh)
    state, records, pictures, seconds = resume(directory, state, len(lanes), notify)
    # Devices without a lane repeat the last lane.
    filled = [*lanes, *lanes[-1:] * (-len(lanes) % mesh.size if mesh else 0)]
    keys = jnp.stack([lane.keys.rounds for lane in filled])
    data = stack_federations([lane.data.federation for lane in filled])
    hyperparameters = _stack_hyperparameters(
        [build_experiment(lane.config, lane.data).hyperparameters for lane in filled]
    )
    if len(filled) > len(lanes):
        state = trees.take(state, np.minimum(np.arange(len(filled)), len(lanes) - 1))
    done = written = int(state.round[0])
    kept = time.perf_counter()

    def keep_all() -> None:
        nonlocal written, kept
        if done > written:
            # Slice on the host: a device would first finish the program that runs there.
            own = trees.take(jax.device_get(state), slice(len(lanes)))
            keep(directory, done, own, records, pictures, seconds)
            written, kept = done, time.perf_counter()

    checkpoints.load_library()
    show(done, "")
    with on_interruption(keep_all):
        while done < config.federation.rounds:
            began = time.perf_counter()
            end = min(config.federation.rounds, (done // config.evaluation.interval + 1) * config.evaluation.interval)
            count = min(_MOST_ROUNDS_PER_CALL, end - done)
            new_state, infos = jax.block_until_ready(run(keys, state, data, hyperparameters, count))
            measured: list[dict[str, Any]] = []
            if done + count == end:
                measured, drawn = _evaluate(lanes, experiment, new_state, infos, count)
            with uninterrupted():
                state, done = new_state, done + count
                seconds += time.perf_counter() - began
                if measured:
                    for lane_records, record in zip(records, measured, strict=True):
                        lane_records.append({"round": done, **record})
                    pictures = np.concatenate([pictures, drawn[:, None]], axis=1) if pictures.size else drawn[:, None]
                if measured or time.perf_counter() - kept > _MOST_SECONDS_TO_LOSE:
                    keep_all()
            show(done, _line(measured) if measured else "")
    return _finish(lanes, records, pictures, directory, instrument_source, experiment, seconds)


def _stack_hyperparameters(lanes: Sequence[RoundHyperParameters]) -> RoundHyperParameters:
    def stacked(*values: float) -> Array:
        dtype = jnp.int32 if isinstance(values[0], int) else jnp.float32
        return jnp.asarray(values, dtype)

    return jax.tree.map(stacked, *lanes)


def _evaluate(
    lanes: Sequence[Lane], experiment: Experiment, state: FederationState, infos: RoundInfo, count: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    assert experiment.attack is not None
    measured, drawn = [], []
    for index, lane in enumerate(lanes):
        own = trees.take(state, index)
        key = jax.random.clone(lane.keys.latents)
        images = reconstruct(experiment.attack, key, own.attack, lane.config.evaluation.samples)
        turns = trees.take(trees.take(infos.turns, index), count - 1)
        # A single run stops on the same condition: a weight may be finite while the norm of its update is not.
        finite = bool(np.all(np.isfinite(images))) and bool(
            trees.all_finite((own.server.params, turns.loss, turns.update_norm))
        )
        # The argmax of NaN is class 0, so a model of NaN would be right on all images of class 0.
        accuracy = model_accuracy(experiment.classifier, own.server.params, *lane.data.test) if finite else None
        leakage = measure_leakage(lane.references, images)._asdict() if finite else None
        measured.append(
            {
                "model_accuracy": accuracy,
                "leakage": leakage,
                "uploaded": turns.uploaded.tolist(),
                "diverged": not finite,
            }
        )
        drawn.append(images[:_KEPT_PICTURES])
    return measured, np.stack(drawn)


def _line(measured: Sequence[dict[str, Any]]) -> str:
    known = [record for record in measured if record["leakage"]]
    if not known:
        return "all diverged"
    accuracy = np.mean([record["model_accuracy"] for record in known])
    scores = ", ".join(score_text(record["leakage"]["leakage_score"]) for record in known)
    return f"accuracy {accuracy:.3f}, leakage {scores}"


def _finish(
    lanes: Sequence[Lane],
    records: list[list[dict[str, Any]]],
    pictures: np.ndarray,
    directory: pathlib.Path,
    instrument_source: InstrumentSource,
    experiment: Experiment,
    seconds: float,
) -> BatchResult:
    private = np.stack(
        [
            lane.data.private[nearest_by_l1(np.nan_to_num(drawn[-1]), lane.data.private)[0]]
            for lane, drawn in zip(lanes, pictures, strict=True)
        ]
    )
    first = lanes[0]
    params = jax.eval_shape(experiment.classifier.init, first.keys.init)
    fields = {
        "rounds": [record["round"] for record in records[0]],
        "records": records,
        "comparison": [lane.comparison for lane in lanes],
        "measurability": [lane.references.measurability._asdict() for lane in lanes],
        "judge": {
            "test_accuracy": instrument_source(first.data).judge.test_accuracy,
            "test_images": len(first.data.judge_test.labels),
        },
        "samples": np.asarray(first.data.federation.sizes).tolist(),
        "coordinates": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "seconds": seconds,
    }
    return write_result(directory, fields, pictures, private)
