"""Procedures in parts: the same in any parts, saved on the way, and nothing of another kind is continued."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.attacks.procedure import Procedure, run_procedure
from gan_leak.runs.storage import resumable as parts
from gan_leak.runs.storage.resumable import (
    UNSAVED,
    Keys,
    Lanes,
    SavedProgress,
    lane_keys,
    read_tree,
    run_in_parts,
    write_tree,
)

KEYS = Keys(jax.random.key(1), jax.random.key(2))


def init(key, evidence):
    return {"value": jnp.float32(0.0), "steps": jnp.zeros((), jnp.int32)}


def step(key, state, evidence):
    """Adds a number that depends on the step's key, so that a step left out, taken twice or out of place shows."""
    value = 0.5 * state["value"] + jax.random.uniform(key) * evidence
    return {"value": value, "steps": state["steps"] + 1}, value


PROCEDURE = Procedure(init, step, lambda state, evidence: state)
# Ends by itself after seven steps.
SEVEN = PROCEDURE._replace(finished=lambda state: state["steps"] >= 7)


def expected(steps, key=KEYS.steps, evidence=1.0):
    value = 0.0
    for number in range(steps):
        value = 0.5 * value + float(jax.random.uniform(jax.random.fold_in(key, number))) * evidence
    return value


def run(path, *, steps=40, procedure=PROCEDURE, tell=lambda line: None):
    progress = SavedProgress(path, tell)
    return run_in_parts(KEYS, procedure, jnp.float32(1.0), steps=steps, unit="step", progress=progress)


@pytest.fixture
def always_saved(monkeypatch):
    """Every part counts as long enough to be saved."""
    monkeypatch.setattr(parts, "_SECONDS_OF_A_PART", 1e-9)


@pytest.fixture
def dies(monkeypatch):
    """``dies(count)``: the run is interrupted in the part after so many -> the numbers of the first steps of parts."""
    compile_procedure, numbers = parts.compile_procedure, []

    def make(count):
        numbers.clear()

        def compiled(procedure, lanes):
            programs = compile_procedure(procedure, lanes)

            def advance(seed, state, evidence, first, steps):
                numbers.append(int(first))
                if len(numbers) > count:
                    raise KeyboardInterrupt
                return programs.advance(seed, state, evidence, first, steps)

            return programs._replace(advance=advance)

        monkeypatch.setattr(parts, "compile_procedure", compiled)
        return numbers

    return make


@pytest.mark.parametrize("steps", [0, 1, 2, 11, 12, 40])
def test_parts_are_the_whole(tmp_path, steps):
    lines = []
    state = run(tmp_path / "saved.npz", steps=steps, tell=lines.append)
    assert int(state["steps"]) == steps
    assert float(state["value"]) == pytest.approx(expected(steps))
    assert not (tmp_path / "saved.npz").exists()
    assert all(line.startswith("  step ") for line in lines)


@pytest.mark.parametrize("lanes", [Lanes(), Lanes(at_a_time=2), Lanes(evidence=None)])
def test_each_lane_is_what_it_is_alone(lanes):
    """In one program, two at a time, and with evidence in common."""
    evidence = jnp.float32(3.0) if lanes.evidence is None else jnp.arange(5.0)
    keys = lane_keys(jax.random.key(3), 5)
    found = run_in_parts(keys, PROCEDURE, evidence, steps=12, unit="step", progress=UNSAVED, lanes=lanes)
    assert found["value"].shape == (5,)
    assert float(found["value"][3]) == pytest.approx(expected(12, lane_keys(jax.random.key(3), 5).steps[3], 3.0))


@pytest.mark.parametrize("lanes", [None, Lanes(), Lanes(at_a_time=2)])
def test_a_finished_procedure_takes_no_step(lanes, dies):
    keys, evidence = (KEYS, jnp.float32(1.0)) if lanes is None else (lane_keys(jax.random.key(5), 3), jnp.ones(3))
    numbers = dies(100)
    found = run_in_parts(keys, SEVEN, evidence, steps=10**6, unit="step", progress=UNSAVED, lanes=lanes)
    assert np.all(np.asarray(found["steps"]) == 7)
    assert numbers == [0, 1]
    assert int(run_procedure(jax.random.key(0), SEVEN, 1.0, 5)["steps"]) == 5
    assert int(run_procedure(jax.random.key(0), SEVEN, 1.0, 50)["steps"]) == 7


def test_an_interrupted_run_continues_from_what_was_saved(tmp_path, always_saved, dies):
    path = tmp_path / "saved.npz"
    numbers = dies(3)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    reached = numbers[-1]
    assert 0 < reached < 40
    numbers = dies(100)
    state = run(path)
    assert numbers[0] == reached
    assert float(state["value"]) == pytest.approx(expected(40))
    # What is finished is only read.
    numbers = dies(0)
    assert float(run(path)["value"]) == float(state["value"])
    assert not numbers


def test_an_interruption_loses_one_part_at_most_however_short_they_are(tmp_path, dies):
    numbers = dies(2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "saved.npz", steps=400)
    assert int(np.load(tmp_path / "saved.npz")["leaf_0"]) == numbers[-1] > 0


def test_nothing_is_saved_where_no_file_is_named(always_saved, monkeypatch):
    monkeypatch.setattr(parts, "write_tree", lambda *_: pytest.fail("written"))
    assert int(run(None, steps=20)["steps"]) == 20


@pytest.mark.parametrize(
    "other",
    [
        {"done": np.int64(7), "state": {"steps": np.int32(7)}},
        {"done": np.int64(7), "state": {"steps": np.int32(7), "value": np.zeros(2, np.float32)}},
        {"done": np.int64(7), "state": {"steps": np.int32(7), "value": np.float64(0)}},
    ],
    ids=["fewer", "another shape", "another type"],
)
def test_the_file_of_another_procedure_is_not_continued(tmp_path, other):
    path = tmp_path / "saved.npz"
    write_tree(path, other)
    assert float(run(path, steps=12)["value"]) == pytest.approx(expected(12))


def test_a_tree_survives_its_file(tmp_path):
    tree = {"b": np.arange(3, dtype=np.int32), "a": (np.float32(0.1), np.ones((2, 2), bool))}
    write_tree(tmp_path / "tree.npz", tree)
    back = read_tree(tmp_path / "tree.npz", tree, print)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert read_tree(tmp_path / "none.npz", tree, print) is None


@pytest.mark.parametrize("damage", ["one bit", "cut short", "a folder"])
def test_a_damaged_file_is_renamed_and_its_part_computed_again(tmp_path, always_saved, dies, damage):
    path, lines = tmp_path / "saved.npz", []
    dies(4)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    data = bytearray(path.read_bytes())
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "one bit" else data[:-20])
    dies(100)
    assert float(run(path, tell=lines.append)["value"]) == pytest.approx(expected(40))
    assert any("saved.npz: " in line and "renamed to saved.npz.damaged and computed again" in line for line in lines)
    assert (tmp_path / "saved.npz.damaged").exists()
