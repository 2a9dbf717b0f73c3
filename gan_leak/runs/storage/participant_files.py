"""The states of participants who sit a round out: one file each, so that only the disk bounds how many there are.

A table, int32 [P], says by the end of which round a participant's file was written, -1 where it never took part; the
table goes into the checkpoints. A file is never changed: a checkpoint finds what it was made with, whatever came later.
It holds the digest of itself and of its name.
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
    """The states of a cohort, with a leading axis; that of a participant without a file is ``initial``.

    Raises ``DamagedError`` if a file is missing, damaged or holds a state of other shapes or types than ``initial``.
    """
    return stack_states(
        [
            initial if table[participant] < 0 else _read(_path(directory, participant, table[participant]), initial)
            for participant in cohort
        ]
    )


def check_states(directory: pathlib.Path, table: np.ndarray, initial: ParticipantState) -> None:
    """Raises ``DamagedError`` if a file that the table names is missing, damaged or unlike ``initial``."""
    for participant in np.flatnonzero(table >= 0).tolist():
        _read(_path(directory, participant, table[participant]), initial)


def stack_states(states: list[ParticipantState]) -> ParticipantState:
    """States as one, with a leading axis, as NumPy arrays."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def write_states(
    directory: pathlib.Path, table: np.ndarray, cohort: np.ndarray, states: ParticipantState, round: int
) -> np.ndarray:
    """Writes a cohort's states at the end of a round; returns the new table. ``sync_states`` makes them durable."""
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
    """The table after the cohort's files of a round were written."""
    table = table.copy()
    table[list(cohort)] = round
    return table


def sync_states(directory: pathlib.Path, table: np.ndarray, since: int) -> None:
    """Returns when the files that the table names and that were written after round ``since`` are on the disk."""
    for participant in np.flatnonzero(table > since).tolist():
        descriptor = os.open(_path(directory, participant, table[participant]), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if directory.exists():
        sync_directory(directory)


def delete_unnamed(directory: pathlib.Path, tables: Sequence[np.ndarray]) -> None:
    """Deletes the files that none of the tables names."""
    for path in directory.iterdir() if directory.exists() else ():
        match = _NAME.fullmatch(path.name)
        if match is None or not any(table[int(match[1])] == int(match[2]) for table in tables):
            # A round that an interruption cuts off may still be at its files.
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
