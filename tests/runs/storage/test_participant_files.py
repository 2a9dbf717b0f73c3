"""States in files: what was written is read back, what a table names stays, and damage is told."""

import numpy as np
import pytest

from gan_leak.runs.storage import participant_files as files
from gan_leak.runs.storage.integrity import DamagedError
from gan_leak.types import ParticipantState
from reference.small import largest_difference, same_bits

INITIAL = ParticipantState({"weights": np.zeros((2, 3), np.float32)}, np.int32(0), ())


def state(value):
    return ParticipantState({"weights": np.full((2, 3), value, np.float32)}, np.int32(value), ())


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def written(tmp_path):
    """Participants 1 and 3 of four after round 5, and 3 again after round 6: the directory and both tables."""
    directory = tmp_path / "participants"
    first = files.write_states(directory, files.fresh_table(4), [1, 3], files.stack_states([state(7), state(9)]), 5)
    second = files.write_states(directory, first, [3], files.stack_states([state(11)]), 6)
    return directory, first, second


def test_what_was_written_is_read_back_and_who_never_took_part_is_initial(written):
    directory, first, second = written
    assert first.tolist() == [-1, 5, -1, 5]
    assert second.tolist() == [-1, 5, -1, 6]
    read = files.read_states(directory, second, [0, 1, 3], INITIAL)
    assert same_bits(read, files.stack_states([INITIAL, state(7), state(11)]))
    # The table of an earlier round still finds what belonged to it.
    assert largest_difference(files.read_states(directory, first, [3], INITIAL), files.stack_states([state(9)])) == 0


def test_only_what_a_table_names_is_kept(written):
    directory, first, second = written
    (directory / "participant_000001_round_000004.tmp").write_bytes(b"torn")
    files.sync_states(directory, second, -1)
    files.delete_unnamed(directory, [first, second])
    assert len(names(directory)) == 3
    files.delete_unnamed(directory, [second])
    assert names(directory) == ["participant_000001_round_000005.npz", "participant_000003_round_000006.npz"]


def test_files_are_made_durable_before_a_checkpoint_may_name_them(written, monkeypatch):
    directory, _, second = written
    synced = []
    monkeypatch.setattr(files.os, "fsync", synced.append)
    files.sync_states(directory, second, 5)
    assert len(synced) == 2  # participant 3's file of round 6, and the names in the directory
    files.sync_states(directory, second, -1)
    assert len(synced) == 5


@pytest.mark.parametrize("damage", ["missing", "cut short", "one bit", "another state", "another round"])
def test_damage_is_told(written, damage):
    directory, first, second = written
    path = directory / "participant_000003_round_000006.npz"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "one bit":
        where = data.index(np.float32(11).tobytes())
        data[where] ^= 1
        path.write_bytes(data)
    elif damage == "another round":
        path.write_bytes((directory / "participant_000003_round_000005.npz").read_bytes())
    else:
        np.savez(path, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=f"{path.name}: (missing|damaged|holds a state of another structure)"):
        files.read_states(directory, second, [3], INITIAL)
    # Whoever will be drawn.
    with pytest.raises(DamagedError, match=path.name):
        files.check_states(directory, second, INITIAL)
    files.check_states(directory, first, INITIAL)
    assert files.read_states(directory, second, [1], INITIAL).optimizer_steps.tolist() == [7]
