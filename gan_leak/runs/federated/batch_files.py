"""The files of a batch: its lanes, its checkpoints with the measurements so far, and its result.

A damaged file is renamed and computed again, so that one damaged batch does not stop a sweep or a reproduction.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gan_leak.evaluation.leakage import has_this_score
from gan_leak.runs.storage import checkpoints
from gan_leak.runs.storage.directory import npz_bytes, write_atomic
from gan_leak.runs.storage.integrity import (
    DamagedError,
    RefusedError,
    read_file,
    read_json,
    read_npz,
    sealed_json,
    set_aside,
    sha256,
)
from gan_leak.types import FederationState

RESULT_NAME = "result.json"
PICTURES_NAME = "pictures.npz"
RECORDS_NAME = "records.json"
_CHECKPOINTS = "checkpoints"
_PICTURES_DIGEST = "pictures_sha256"


class BatchResult(NamedTuple):
    """The measurements of a batch, in order of lanes.

    records: for each lane one dictionary an evaluation (round, model_accuracy, leakage, uploaded, diverged).
    comparison: for each lane the measures of its references, by name. pictures: float32
    [lanes, evaluations, M, H, W, C], the same latents at each evaluation. private: [lanes, M, H, W, C], the private
    image nearest to each last picture. samples: training images of each participant. coordinates: shared parameters.
    measurability: for each lane the fields of its ``Measurability``.
    """

    rounds: list[int]
    records: list[list[dict[str, Any]]]
    comparison: list[dict[str, dict[str, Any]]]
    pictures: np.ndarray
    private: np.ndarray
    judge: dict[str, Any]
    samples: list[int]
    coordinates: int
    measurability: list[dict[str, Any]]
    seconds: float


def finished_result(directory: pathlib.Path, notify: Callable[[str], None]) -> BatchResult | None:
    """The result of a batch if it is finished and undamaged. Renames a damaged one and calls ``notify``."""
    if not os.path.lexists(directory / RESULT_NAME):
        return None
    try:
        result = read_result(directory)
        # A killed process may have written the result without deleting the checkpoints.
        checkpoints.delete_all(directory / _CHECKPOINTS)
        return result
    except DamagedError as error:
        notify(f"{error}: the batch is computed again")
    for name in (PICTURES_NAME, RESULT_NAME):
        if os.path.lexists(directory / name):
            set_aside(directory / name)
    return None


def read_result(directory: pathlib.Path) -> BatchResult:
    """The result of a finished batch, as ``run_batch`` returned it. Raises ``DamagedError`` for anything else."""
    path = directory / RESULT_NAME
    fields, _ = read_json(path, BatchResult._fields)
    digest = fields.pop(_PICTURES_DIGEST, None)
    # Earlier versions wrote no digest.
    if digest is not None and sha256(read_file(directory / PICTURES_NAME)) != digest:
        raise DamagedError(f"{directory / PICTURES_NAME}: damaged (its SHA-256 is another)")
    arrays, _ = read_npz(directory / PICTURES_NAME)
    if set(arrays) != {"pictures", "private"} or set(fields) | set(arrays) != set(BatchResult._fields):
        raise DamagedError(f"{path}: damaged (its fields are not those of a result)")
    _check_scores(path, fields["records"])
    pictures, private = (arrays[name].astype(np.float32) for name in ("pictures", "private"))
    return BatchResult(**fields, pictures=pictures, private=private)


def _check_scores(path: pathlib.Path, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Raise ``DamagedError`` for scores of another definition, and for records of another form."""
    try:
        same = all(has_this_score(record["leakage"]) for lane in records for record in lane if record["leakage"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: damaged (its records cannot be read: {error!r})") from None
    if not same:
        raise DamagedError(f"{path}: its leakage scores are those of an earlier version")


def make_folder(path: pathlib.Path, notify: Callable[[str], None]) -> None:
    """Make a folder if there is none. Renames anything else of that name and calls ``notify``."""
    if os.path.lexists(path) and not path.is_dir():
        notify(f"{path}: not a folder, renamed to {set_aside(path).name}")
    path.mkdir(parents=True, exist_ok=True)


def check_lanes(
    directory: pathlib.Path, lanes: Sequence[object], notify: Callable[[str], None], *, named: bool
) -> None:
    """Write the lanes of a directory, or check that they are these.

    named: whether the directory's name is a digest of the lanes. Then a file that differs is damaged: it is renamed,
    written again, and ``notify`` is called. Otherwise raises ``RefusedError`` for a directory of other lanes.
    """
    path = directory / "lanes.json"
    data = (json.dumps(lanes, indent=1) + "\n").encode()
    if os.path.lexists(path):
        with contextlib.suppress(DamagedError, ValueError, RecursionError):
            # Earlier versions wrote the same settings in another order.
            if json.loads(read_file(path)) == json.loads(data):
                return
        if not named:
            raise RefusedError(f"{directory}: holds a batch of other configurations; choose another --workdir")
        notify(f"{path}: damaged, renamed to {set_aside(path).name} and written again")
    write_atomic(path, data)


def keep(
    directory: pathlib.Path,
    done: int,
    state: FederationState,
    records: list[list[dict[str, Any]]],
    pictures: np.ndarray,
    seconds: float,
) -> None:
    """Save a checkpoint with the measurements up to it."""
    files = {
        RECORDS_NAME: json.dumps({"records": records, "seconds": seconds}).encode(),
        PICTURES_NAME: npz_bytes(pictures=pictures.astype(np.float16)),
    }
    checkpoints.save(directory / _CHECKPOINTS, done, state, files=files)


def resume(
    directory: pathlib.Path, state: FederationState, lanes: int, notify: Callable[[str], None]
) -> tuple[FederationState, list[list[dict[str, Any]]], np.ndarray, float]:
    """The state, records, pictures and seconds to continue from. If all is damaged, those before the first round."""
    path = directory / _CHECKPOINTS
    make_folder(path, notify)
    try:
        restored = checkpoints.restore_latest(path, state)
        if restored is not None:
            return _restored(directory, restored, notify)
    except DamagedError as error:
        notify(f"{error}: renamed to {set_aside(path).name}, the batch is computed again")
    return state, [[] for _ in range(lanes)], np.zeros(0, np.float32), 0.0


def _restored(
    directory: pathlib.Path, restored: checkpoints.Restored, notify: Callable[[str], None]
) -> tuple[FederationState, list[list[dict[str, Any]]], np.ndarray, float]:
    for name in restored.skipped:
        notify(f"{directory / _CHECKPOINTS / name}: damaged or unfinished, skipped")
    folder = restored.path
    if not (folder / RECORDS_NAME).exists():
        notify(f"{folder}: of a version without digests; damage to its records would not be noticed")
        folder = directory
    kept, _ = read_json(folder / RECORDS_NAME, ("records", "seconds"))
    arrays, _ = read_npz(folder / PICTURES_NAME)
    try:
        records = [[record for record in lane if record["round"] <= restored.round] for lane in kept["records"]]
        # Before the first evaluation there are no pictures, and their shape is unknown.
        pictures = arrays["pictures"][:, : len(records[0])] if records[0] else np.zeros(0)
        found = restored.state, records, pictures.astype(np.float32), float(kept["seconds"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DamagedError(f"{folder / RECORDS_NAME}: damaged (its records cannot be read: {error!r})") from None
    _check_scores(folder / RECORDS_NAME, records)
    return found


def write_result(
    directory: pathlib.Path, fields: Mapping[str, object], pictures: np.ndarray, private: np.ndarray
) -> BatchResult:
    """Write a result and delete the checkpoints. fields: all of the result but the arrays."""
    archive = npz_bytes(pictures=pictures.astype(np.float16), private=private.astype(np.float16))
    write_atomic(directory / PICTURES_NAME, archive)
    # Written last: the batch counts as finished when this file exists.
    fields = {**fields, _PICTURES_DIGEST: sha256(archive)}
    write_atomic(directory / RESULT_NAME, sealed_json(RESULT_NAME, fields, allow_nan=True))
    checkpoints.delete_all(directory / _CHECKPOINTS)
    return read_result(directory)
