"""The training loop on the host: jitted chunks of rounds, with metrics, progress and checkpoints between them."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gan_leak.collaboration import RoundInfo
from gan_leak.collaboration.sharding import device_mesh
from gan_leak.config import RunConfig, validate
from gan_leak.defenses import claim_of
from gan_leak.evaluation.leakage import References, measure_leakage
from gan_leak.machine import usable_cores, use_cpu_devices
from gan_leak.runs.federated import resumption
from gan_leak.runs.federated.measurement import (
    RunKeys,
    build_comparison,
    make_instrument_source,
    model_accuracy,
    reconstruct,
    run_keys,
)
from gan_leak.runs.federated.placement import Placement, initial_state, place_all, place_cohorts
from gan_leak.runs.federated.privacy import (
    PrivacyMeter,
    PrivacyPlan,
    participations,
    plan_privacy,
    privacy_fields,
    privacy_meter,
    promise_of,
)
from gan_leak.runs.federated.result import RunResult
from gan_leak.runs.federated.setup import AttackData, Experiment, build_experiment, class_number, prepare_data
from gan_leak.runs.federated.sounds import sounds_of
from gan_leak.runs.hosts.interruption import on_interruption, uninterrupted
from gan_leak.runs.hosts.processes import broadcast_from_lead, is_lead, raise_together
from gan_leak.runs.memory import check_run
from gan_leak.runs.progress import Progress, progress
from gan_leak.runs.storage import checkpoints, participant_files
from gan_leak.runs.storage.directory import (
    RunDirectory,
    append_metrics,
    close_run,
    npz_bytes,
    open_run,
    read_config_file,
    read_metrics,
    write_atomic,
)
from gan_leak.runs.storage.integrity import RefusedError, sha256
from gan_leak.settings import replace
from gan_leak.types import FederationState, ParticipantState, PyTree

_KEPT_PER_EVALUATION = 60


class PreparedRun(NamedTuple):
    """A run with checked input. The lead process holds its open and locked directory; others have None.

    privacy: the defense with its noise, None without a defense.
    """

    config: RunConfig
    data: AttackData
    experiment: Experiment
    directory: RunDirectory | None
    mesh: Mesh | None = None
    privacy: PrivacyPlan | None = None


class _Comparison(NamedTuple):
    """The references for leakage, the measures of images that score one or zero, and the judge's accuracy."""

    references: References | None
    measures: dict[str, dict[str, Any]]
    judge_test_accuracy: float


# Built at the first use: the judge may need training, and the first rounds do not need it.
_LazyComparison = Callable[[], _Comparison]


def prepare(config: RunConfig, workdir: pathlib.Path, resume: bool, *, target_class: str | None = None) -> PreparedRun:
    """Check the configuration and the data and open the run directory. Raises ValueError for bad input.

    target_class: number or name of the class (``gan_leak.data.find_class``); it replaces that of the configuration.
    """
    validate(config)
    _choose_devices(config)
    with raise_together():
        if config.federation.schedule != "synchronous" and jax.process_count() > 1:
            raise ValueError(f"schedule={config.federation.schedule!r}: expected 'synchronous' with several processes")
        mesh = device_mesh() if config.federation.schedule == "synchronous" and jax.device_count() > 1 else None
        if target_class is not None:
            config = replace(config, target_class=class_number(config.data.dataset, target_class))
        data = prepare_data(config, mesh)
        plan = plan_privacy(config, data)
        experiment = build_experiment(plan.config, data, mesh)
        check_run(config, data, experiment)
    with raise_together():
        inputs = {"dataset": data.fingerprint}
        kept = {"inputs": inputs, "privacy": privacy_fields(plan)}
        check = functools.partial(resumption.plan, config=config)
        directory = open_run(workdir, config, resume=resume, check=check, **kept) if is_lead() else None
    return PreparedRun(config, data, experiment, directory, mesh, None if config.defense.kind == "none" else plan)


def _choose_devices(config: RunConfig) -> None:
    # An attack runs on one device, and is faster if that device has all cores.
    side_by_side = config.federation.schedule == "synchronous" and config.attack.kind == "none"
    wanted = config.performance.cpu_devices or (len(usable_cores()) if side_by_side else 1)
    if wanted > 1:
        try:
            use_cpu_devices("performance.cpu_devices", wanted)
        except ValueError:
            # JAX is already in use in this process. Its devices stay, unless the option asks for another number.
            if config.performance.cpu_devices:
                raise


def train(prepared: PreparedRun) -> RunResult:
    """Train and measure, and write metrics, checkpoints, evaluations and reconstructions.npz.

    The directory stays locked until ``close``, since reports are written there.

    If the leakage score cannot be measured, a line on standard error gives the reason. With ``fail_if_not_measurable``
    the run ends before it trains.

    An interruption leaves a checkpoint of the last chunk whose metrics are written; see
    ``gan_leak.runs.hosts.interruption``. Raises ``RefusedError`` before training if the directory holds a state that
    cannot be continued.
    """
    with (
        open(os.devnull, "w") as nowhere,
        progress(prepared.config.federation.rounds, initial=0, stream=None if is_lead() else nowhere) as display,
    ):
        return _run(prepared, display)


def close(prepared: PreparedRun) -> None:
    """Release the run directory, if this process holds it."""
    if prepared.directory is not None:
        close_run(prepared.directory)


def _run(prepared: PreparedRun, display: Progress) -> RunResult:
    config, data, experiment, directory, *_ = prepared
    keys = run_keys(config.seed)
    participants = len(data.federation.sizes)
    by_cohorts = config.federation.participants_per_round > 0
    state, initial = initial_state(experiment, keys.init, participants, by_cohorts=by_cohorts)
    comparison = functools.cache(functools.partial(_compare, prepared, keys, state.attack, display))
    try:
        with raise_together():
            if directory is not None:
                state = _restore(prepared, directory, state, initial, display)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    result = RunResult(config, data.class_names, data.fingerprint, data.private, data.target_is_owned)
    if config.evaluation.fail_if_not_measurable and experiment.attack is not None:
        references = comparison().references
        if references is not None and references.measurability.reason is not None:
            return result._replace(is_trained=False)
    placement = _place(prepared, keys, broadcast_from_lead(state), initial)
    result = result._replace(divergence=_train_rounds(prepared, keys, placement, comparison, display))
    return result if directory is None else _collect(prepared, directory, result, comparison())


def _place(prepared: PreparedRun, keys: RunKeys, state: FederationState, initial: ParticipantState | None) -> Placement:
    config, data, experiment, directory, mesh, _ = prepared
    path = None if directory is None else directory.path
    if initial is not None:
        size = config.federation.participants_per_round
        return place_cohorts(
            experiment, keys, state, data.federation, initial, cohort_size=size, mesh=mesh, run_directory=path
        )
    most = config.performance.rounds_per_chunk
    return place_all(experiment, keys, state, data.federation, most=most, mesh=mesh, run_directory=path)


def _compare(prepared: PreparedRun, keys: RunKeys, untrained_attack: PyTree, display: Progress) -> _Comparison:
    config, data, experiment, *_ = prepared
    if experiment.attack is None:
        return _Comparison(None, {}, math.nan)
    instruments = make_instrument_source(display.message)(data)
    untrained = reconstruct(experiment.attack, keys.prior, untrained_attack, config.evaluation.samples)
    references, measures = build_comparison(config, data, instruments, untrained)
    for note in references.measurability.notes():
        display.message(note)
    return _Comparison(references, measures, instruments.judge.test_accuracy)


def _measured(references: References, images: np.ndarray) -> dict[str, Any]:
    return measure_leakage(references, images)._asdict()


def _restore(
    prepared: PreparedRun,
    directory: RunDirectory,
    state: FederationState,
    initial: ParticipantState | None,
    display: Progress,
) -> FederationState:
    for difference in directory.differences:
        display.message(f"not the machine or versions this run began with, so not bit-identical: {difference}")
    if not directory.resumed:
        return state
    template = state if jax.process_count() == 1 else jax.device_get(state)

    def check(state: FederationState) -> None:
        if initial is not None:
            participant_files.check_states(directory.path / "participants", np.asarray(state.participants), initial)

    restored, notices = resumption.restore(directory.path, prepared.config, template, check)
    for notice in notices:
        display.message(notice)
    state = state if restored is None else restored
    display.message(f"continuing after round {int(state.round)}")
    return state


def _train_rounds(
    prepared: PreparedRun, keys: RunKeys, placement: Placement, comparison: _LazyComparison, display: Progress
) -> str | None:
    """Run the remaining rounds. Returns the reason if training diverged, else None."""
    config, directory = prepared.config, prepared.directory
    # The last state of which metrics.jsonl holds all records.
    state = placement.state
    saved = int(state.round)
    spend = _meter(prepared, keys, saved)
    # All processes must save at once, and an interruption may reach only one of them.
    alone = jax.process_count() == 1
    unbroken = uninterrupted() if alone else contextlib.nullcontext()

    def keep(records: list[dict[str, Any]]) -> None:
        if directory is not None:
            for record in records:
                append_metrics(directory, record)

    def save() -> None:
        nonlocal saved
        if int(state.round) > saved:
            placement.save(state)
            saved = int(state.round)

    def leave() -> str | None:
        if alone:
            save()
        if directory is None:
            return None
        return f"interrupted; --workdir={directory.path} --resume continues after round {saved}"

    checkpoints.load_library()
    with on_interruption(leave):
        while (done := int(state.round)) < config.federation.rounds:
            count = min(placement.most, _next_stop(done, config) - done)
            began = time.perf_counter()
            new_state, infos, cohort = placement.advance(state, count)
            seconds = (time.perf_counter() - began) / count
            records = _records(done, count, infos, seconds, cohort, config.attack.adversary)
            if spend is not None:
                for record in records:
                    record["privacy"] = spend(cohort)
            diverged = [record["round"] for record in records if not is_finite(record)]
            if diverged:
                with unbroken:
                    keep(records[: diverged[0] - done - 1])
                    save()
                return _divergence(diverged[0], config)
            done += count
            if directory is not None and (done % config.evaluation.interval == 0 or done == config.federation.rounds):
                records[-1].update(evaluate_round(prepared, directory, keys, new_state, comparison))
            with unbroken:
                keep(records)
                state = new_state
            show_record(display, records[-1])
            if done % config.checkpoint_interval == 0 or done == config.federation.rounds:
                with unbroken:
                    save()
    return None


def _meter(prepared: PreparedRun, keys: RunKeys, done: int) -> PrivacyMeter | None:
    if prepared.privacy is None or prepared.directory is None or promise_of(prepared.privacy) is None:
        return None
    taken = participations(prepared.config, keys.cohorts, len(prepared.privacy.sizes), done)
    return privacy_meter(prepared.privacy, taken)


def _next_stop(done: int, config: RunConfig) -> int:
    """The next round after which a run is evaluated, saved or finished."""
    intervals = (config.evaluation.interval, config.checkpoint_interval)
    return min(config.federation.rounds, *((done // interval + 1) * interval for interval in intervals))


def _records(
    done: int, count: int, infos: RoundInfo, seconds: float, cohort: np.ndarray | None, adversary: int
) -> list[dict[str, Any]]:
    took_part = cohort is None or adversary in cohort
    attack = infos.attack._asdict() if infos.attack != () and took_part else None
    who = {} if cohort is None else {"participants": cohort.tolist()}
    return [
        {
            "round": done + index + 1,
            **who,
            "model_accuracy": None,
            "losses": infos.turns.loss[index].tolist(),
            "uploaded": infos.turns.uploaded[index].tolist(),
            "update_norms": infos.turns.update_norm[index].tolist(),
            "attack": None if attack is None else {name: float(values[index]) for name, values in attack.items()},
            "seconds": seconds,
        }
        for index in range(count)
    ]


def is_finite(record: Mapping[str, Any]) -> bool:
    """Whether training and attack of a round gave finite numbers."""
    attack = record["attack"] or {}
    return bool(np.all(np.isfinite([*record["losses"], *record["update_norms"], *attack.values()])))


def _divergence(round: int, config: RunConfig) -> str:
    return (
        f"Training diverged in round {round}: a loss or an update is not finite. Likely cause: too high a learning "
        f"rate (learning_rate={config.federation.learning_rate}, "
        f"generator_learning_rate={config.attack.generator_learning_rate}); results up to the round before are kept."
    ) + ("" if claim_of(config.defense.kind) is None else " No promise of privacy covers that round.")


def evaluate_round(
    prepared: PreparedRun, directory: RunDirectory, keys: RunKeys, state: FederationState, comparison: _LazyComparison
) -> dict[str, Any]:
    """Measure a round, save its reconstructions, and return further fields of its line in metrics.jsonl."""
    config, data, experiment, _, mesh, _ = prepared
    if mesh is not None:
        # Arrays on all devices would be computed on all of them, but only this process evaluates.
        state = state._replace(server=jax.device_get(state.server), attack=jax.device_get(state.attack))
    accuracy = model_accuracy(experiment.classifier, state.server.params, *data.test)
    measured: dict[str, Any] = {"model_accuracy": accuracy}
    if experiment.attack is not None and (references := comparison().references) is not None:
        # The same latents in every round, so that the pictures of two rounds can be compared.
        key = jax.random.clone(keys.latents)
        images = reconstruct(experiment.attack, key, state.attack, config.evaluation.samples)
        measured["leakage"] = _measured(references, images)
        path = resumption.evaluation_path(directory.path, int(state.round))
        path.parent.mkdir(exist_ok=True)
        archive = npz_bytes(images=images)
        write_atomic(path, archive)
        measured[resumption.IMAGES_DIGEST] = sha256(archive)
    return measured


def show_record(display: Progress, record: Mapping[str, Any]) -> None:
    """Show the last finished round, from its line of metrics.jsonl."""
    leakage = record.get("leakage")
    display.update(
        record["round"],
        accuracy=record["model_accuracy"],
        loss=float(np.mean(record["losses"])),
        leakage=None if leakage is None else leakage["leakage_score"],
    )


def _collect(prepared: PreparedRun, directory: RunDirectory, result: RunResult, compared: _Comparison) -> RunResult:
    """Write reconstructions.npz, and complete the result from the files of the run."""
    records = read_metrics(directory)
    evaluated = [record["round"] for record in records if "leakage" in record]
    paths = {round: resumption.evaluation_path(directory.path, round) for round in evaluated}
    images_by_round = {round: np.load(path)["images"] for round, path in paths.items()}
    comparison, sounds = compared.measures, {}
    if evaluated:
        archive = _reconstructions(images_by_round, prepared.config.attack.target_class)
        write_atomic(directory.path / "reconstructions.npz", archive)
        last = next(record["leakage"] for record in reversed(records) if "leakage" in record)
        comparison = {"reconstructions": last, **comparison}
        if (spectrogram := prepared.data.spectrogram) is not None:
            sounds = sounds_of(images_by_round[evaluated[-1]], result.private, spectrogram)
    environment = read_config_file(directory.path)
    return result._replace(
        environment={name: value for name, value in environment.items() if name not in ("config", "privacy")},
        records=records,
        images_by_round=images_by_round,
        comparison=comparison,
        judge_test_accuracy=compared.judge_test_accuracy,
        limits=() if compared.references is None else compared.references.measurability.notes(),
        privacy={} if prepared.privacy is None else privacy_fields(prepared.privacy),
        sounds=sounds,
    )


def _reconstructions(images_by_round: Mapping[int, np.ndarray], target_class: int) -> bytes:
    """The bytes of reconstructions.npz: some images of each evaluation, and all images of the last."""
    rounds = list(images_by_round)
    images = [images_by_round[round][:_KEPT_PER_EVALUATION] for round in rounds[:-1]] + [images_by_round[rounds[-1]]]
    counted = [np.full(len(kept), round) for kept, round in zip(images, rounds, strict=True)]
    labels = np.full(sum(map(len, images)), target_class, np.int32)
    return npz_bytes(images=np.concatenate(images), labels=labels, rounds=np.concatenate(counted).astype(np.int32))
