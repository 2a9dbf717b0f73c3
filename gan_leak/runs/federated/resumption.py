"""The checkpoint from which an interrupted run continues: the newest with complete metrics and evaluations.

The manifest of a checkpoint holds the SHA-256 of the metrics up to its round. The metrics hold the SHA-256 of the
evaluations. The folder of the checkpoints holds a second copy of the metrics. Damage is repaired from the copy, or by
computing again from an older checkpoint. If neither is possible, the run is refused before anything is changed.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gan_leak.config import RunConfig
from gan_leak.evaluation.leakage import has_this_score
from gan_leak.runs.hosts.processes import run_outside_collective
from gan_leak.runs.storage import checkpoints
from gan_leak.runs.storage.directory import METRICS_NAME, metrics_records, write_atomic
from gan_leak.runs.storage.integrity import DamagedError, RefusedError, expect_kinds, read_file, read_npz, sha256
from gan_leak.types import PyTree

IMAGES_DIGEST = "images_sha256"
_CHECKPOINTS = "checkpoints"
_FOLDERS = (_CHECKPOINTS, "evaluations", "figures", "participants")
_FILES = (METRICS_NAME, "reconstructions.npz", "report.html")
_SHOWN_REASONS = 3


class Resumption(NamedTuple):
    """The point from which a run continues.

    checkpoint: None if the run starts from its first round. metrics: the lines of metrics.jsonl up to the checkpoint's
    round. notices: a line for each damaged file, with its repair.
    """

    checkpoint: checkpoints.Found | None
    metrics: bytes
    notices: tuple[str, ...]


def evaluation_path(run: pathlib.Path, round: int) -> pathlib.Path:
    """The path of the reconstructions of an evaluation."""
    return run / "evaluations" / f"round_{round:06d}.npz"


def save_checkpoint(run: pathlib.Path, round: int, state: PyTree) -> None:
    """Save the state after ``round``, with the digest and the second copy of the metrics up to that round.

    Raises ``DamagedError`` if metrics.jsonl holds fewer than ``round`` records.
    """
    path, directory = run / METRICS_NAME, run / _CHECKPOINTS
    metrics = _first_lines(read_file(path), round)
    if metrics is None:
        raise DamagedError(f"{path}: holds fewer than the {round} records that were written")
    directory.mkdir(exist_ok=True)
    _copy_metrics(directory / METRICS_NAME, metrics)
    metadata = {"metrics": {"bytes": len(metrics), "sha256": sha256(metrics)}}
    checkpoints.save(directory, round, state, metadata=metadata)


def plan(run: pathlib.Path, config: RunConfig, unusable: Mapping[str, str] | None = None) -> Resumption:
    """Find the newest checkpoint with complete metrics and evaluations. Changes nothing.

    unusable: the reason for each checkpoint that cannot be used, by name. Raises ``RefusedError`` if no finished
    checkpoint can be used, or if all checkpoints are missing although the run was past the first.
    """
    expect_kinds(run, _FOLDERS, _FILES)
    sources = [_read(run / METRICS_NAME), _read(run / _CHECKPOINTS / METRICS_NAME)]
    found = checkpoints.find(run / _CHECKPOINTS)
    reasons: dict[str, str] = {}
    for one in found:
        reason = one.problem or (unusable or {}).get(one.path.name, "")
        metrics = None if reason else _metrics_at(run, one, sources)
        if metrics is None:
            reasons[one.path.name] = reason or f"{METRICS_NAME} is damaged before line {one.round + 1}"
        elif reason := _damaged_evaluation(run, metrics):
            reasons[one.path.name] = reason
        else:
            _check_scores(run, metrics)
            return Resumption(one, metrics, (*_skipped(reasons), *_repairs(one, metrics, sources)))
    if any(one.finished for one in found):
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:_SHOWN_REASONS])
        raise RefusedError(
            f"workdir={run}: every checkpoint is damaged or incomplete ({shown}); nothing was changed; restore what is "
            "damaged from a copy, or choose another --workdir to begin anew"
        )
    _check_no_checkpoint_is_missing(run, config, sources)
    return Resumption(None, b"", _skipped(reasons))


def restore(
    run: pathlib.Path, config: RunConfig, template: PyTree, check_state: Callable[[PyTree], object]
) -> tuple[PyTree | None, tuple[str, ...]]:
    """Return the state to continue from (None: the initial state) and notices. Cuts the metrics to its round.

    check_state: raises ``DamagedError`` if a file that belongs to the state is damaged.

    Raises ``RefusedError`` if the run cannot be continued.
    """
    unusable: dict[str, str] = {}
    while True:
        found = plan(run, config, unusable)
        if found.checkpoint is None:
            state = None
            break
        try:
            state = run_outside_collective(checkpoints.load, found.checkpoint, template)
            check_state(state)
            break
        except DamagedError as error:
            unusable[found.checkpoint.path.name] = str(error)
    for path in (run / METRICS_NAME, run / _CHECKPOINTS / METRICS_NAME):
        if (_read(path) or b"") != found.metrics:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, found.metrics)
    return state, found.notices


def _read(path: pathlib.Path) -> bytes | None:
    return read_file(path) if os.path.lexists(path) else None


def _first_lines(data: bytes, count: int) -> bytes | None:
    """The first ``count`` lines with their line ends, None if there are fewer complete lines."""
    lines = data.split(b"\n")[:-1][:count]
    return b"".join(line + b"\n" for line in lines) if len(lines) == count else None


def _copy_metrics(path: pathlib.Path, metrics: bytes) -> None:
    there = path.read_bytes() if path.is_file() else None
    if there is None or not metrics.startswith(there):
        write_atomic(path, metrics)
    elif len(there) < len(metrics):
        # After a crash in this block, the next call completes the file.
        with path.open("ab") as file:
            file.write(metrics[len(there) :])
            file.flush()
            os.fsync(file.fileno())


def _metrics_at(run: pathlib.Path, found: checkpoints.Found, sources: list[bytes | None]) -> bytes | None:
    """The metrics up to a checkpoint, from the first source in which they are intact."""
    for data in filter(None, sources):
        if found.metadata is None:
            metrics = _first_lines(data, found.round)
            if metrics is not None and _is_complete(run, metrics, found.round):
                return metrics
        else:
            metrics = data[: found.metadata["metrics"]["bytes"]]
            if sha256(metrics) == found.metadata["metrics"]["sha256"]:
                return metrics
    return None


def _is_complete(run: pathlib.Path, metrics: bytes, rounds: int) -> bool:
    try:
        records = metrics_records(run / METRICS_NAME, metrics)
    except DamagedError:
        return False
    return [record["round"] for record in records] == list(range(1, rounds + 1))


def _damaged_evaluation(run: pathlib.Path, metrics: bytes) -> str:
    """The first problem of the evaluations of these records, empty if there is none."""
    for record in metrics_records(run / METRICS_NAME, metrics):
        path = evaluation_path(run, record["round"])
        try:
            if IMAGES_DIGEST in record:
                if sha256(read_file(path)) != record[IMAGES_DIGEST]:
                    return f"evaluations/{path.name} is damaged"
            elif "leakage" in record and "images" not in read_npz(path)[0]:
                return f"evaluations/{path.name} is damaged"
        except DamagedError:
            return f"evaluations/{path.name} is {'damaged' if os.path.lexists(path) else 'missing'}"
    return ""


def _check_scores(run: pathlib.Path, metrics: bytes) -> None:
    """Raise ``RefusedError`` for scores of another definition: those of the coming rounds could not be compared."""
    records = metrics_records(run / METRICS_NAME, metrics)
    if not all(has_this_score(record["leakage"]) for record in records if record.get("leakage")):
        raise RefusedError(
            f"workdir={run}: its leakage scores are those of an earlier version, the smallest view instead of the "
            "product; choose another --workdir to begin anew"
        )


def _skipped(reasons: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"checkpoint {name} is skipped: {reason}" for name, reason in reasons.items())


def _repairs(found: checkpoints.Found, metrics: bytes, sources: list[bytes | None]) -> tuple[str, ...]:
    if found.metadata is None:
        return (
            f"checkpoint {found.path.name} is of a version without digests: metrics and evaluations are complete, but "
            "an altered number in them would not be noticed",
        )
    names = (METRICS_NAME, f"{_CHECKPOINTS}/{METRICS_NAME}")
    return tuple(
        f"{name} is damaged or missing: its first {found.round} lines are restored from {other}"
        for name, other, data in zip(names, reversed(names), sources, strict=True)
        if data is None or not data.startswith(metrics)
    )


def _check_no_checkpoint_is_missing(run: pathlib.Path, config: RunConfig, sources: list[bytes | None]) -> None:
    """Raise ``RefusedError`` if the run went past its first checkpoint."""
    first, last = config.checkpoint_interval, config.federation.rounds
    rounds = max(0 if data is None else data.count(b"\n") for data in sources)
    if rounds > first or any(evaluation_path(run, round).exists() for round in range(first + 1, last + 1)):
        raise RefusedError(
            f"workdir={run}: the checkpoints are missing, of a run that was beyond round {first}; nothing was changed; "
            "restore them from a copy, or choose another --workdir to begin anew"
        )
