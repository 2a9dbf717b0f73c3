"""The states of participants outside the cohort: one file each, so that only the disk bounds their number.

A table, int32 [P], holds the round at whose end a participant's file was written; -1 marks one that never took part.
Checkpoints hold the table. A file is never changed, so that an older checkpoint stays usable. It holds the digest of
its content and name.
"""

from __future__ import annotations

import os
import pathlib
import re
import uuid
from collections.abc import Sequence

import jax
import numpy as np

from gan_leak import trees
from gan_leak.runs.storage.directory import npz_bytes, sync_directory
from gan_leak.runs.storage.disk import name_in_errors
from gan_leak.runs.storage.integrity import DamagedError, read_npz, sealed_npz
from gan_leak.types import ParticipantState

_NAME = re.compile(r"participant_(\d+)_round_(\d+)\.npz")


def fresh_table(participants: int) -> np.ndarray:
    """The table before the first round."""
    return np.full(participants, -1, np.int32)


def read_states(
    directory: pathlib.Path, table: np.ndarray, cohort: np.ndarray, initial: ParticipantState
) -> ParticipantState:
    """The states of a cohort, with a leading axis. A participant without a file has the state ``initial``.

    Raises ``DamagedError`` if a file is missing, damaged or holds a state of other shapes or types than ``initial``.
    """
    return stack_states(
        [
            initial if table[participant] < 0 else _read(_path(directory, participant, table[participant]), initial)
            for participant in cohort
        ]
    )


def check_states(directory: pathlib.Path, table: np.ndarray, initial: ParticipantState) -> None:
    """Raise ``DamagedError`` if a file of the table is missing, damaged or of another structure than ``initial``."""
    for participant in np.flatnonzero(table >= 0).tolist():
        _read(_path(directory, participant, table[participant]), initial)


def stack_states(states: list[ParticipantState]) -> ParticipantState:
    """One state of NumPy arrays with a leading axis of states."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def write_states(
    directory: pathlib.Path, table: np.ndarray, cohort: np.ndarray, states: ParticipantState, round: int
) -> np.ndarray:
    """Write a cohort's states at the end of a round. Returns the new table. ``sync_states`` makes them durable."""
    directory.mkdir(exist_ok=True)
    for position, participant in enumerate(cohort):
        path = _path(directory, participant, round)
        leaves = map(np.asarray, jax.tree.leaves(trees.take(states, position)))
        archive = npz_bytes(**{f"arr_{place}": leaf for place, leaf in enumerate(leaves)})
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        with name_in_errors(path):
            temporary.write_bytes(sealed_npz(path.name, archive))
        os.replace(temporary, path)
    return advance_table(table, cohort, round)


def advance_table(table: np.ndarray, cohort: np.ndarray, round: int) -> np.ndarray:
    """The table after the write of a cohort's files at the end of a round."""
    table = table.copy()
    table[list(cohort)] = round
    return table


def sync_states(directory: pathlib.Path, table: np.ndarray, since: int) -> None:
    """Make durable the files of the table that were written after round ``since``."""
    for participant in np.flatnonzero(table > since).tolist():
        descriptor = os.open(_path(directory, participant, table[participant]), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if directory.exists():
        sync_directory(directory)


def delete_unnamed(directory: pathlib.Path, tables: Sequence[np.ndarray]) -> None:
    """Delete all files that are in none of the tables."""
    for path in directory.iterdir() if directory.exists() else ():
        match = _NAME.fullmatch(path.name)
        if match is None or not any(table[int(match[1])] == int(match[2]) for table in tables):
            # After an interruption, the second thread may still change files of its round.
            path.unlink(missing_ok=True)


def _path(directory: pathlib.Path, participant: int, round: int) -> pathlib.Path:
    return directory / f"participant_{participant:06d}_round_{round:06d}.npz"


def _read(path: pathlib.Path, initial: ParticipantState) -> ParticipantState:
    expected, structure = jax.tree.flatten(initial)
    arrays, _ = read_npz(path)
    leaves = list(arrays.values())
    if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(leaf.shape, leaf.dtype) for leaf in expected]:
        raise DamagedError(f"{path}: holds a state of another structure")
    return jax.tree.unflatten(structure, leaves)
