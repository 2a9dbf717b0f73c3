"""Long computations in parts: the same in any parts, kept on the way, and nothing of another kind is taken up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.runs.storage import resumable as parts
from gan_leak.runs.storage.resumable import Course, in_parts, read_tree, write_tree


def begin():
    return {"value": jnp.float32(0.0), "steps": jnp.zeros((), jnp.int32)}


@jax.jit
def go_on(state, done, steps):
    """Adds the numbers of the steps, so that a step left out, taken twice or numbered wrongly shows."""

    def step(number, state):
        return {"value": 0.5 * state["value"] + number, "steps": state["steps"] + 1}

    return jax.lax.fori_loop(done, done + steps, step, state)


def expected(total):
    return functools.reduce(lambda value, number: 0.5 * value + number, range(total), 0.0)


@pytest.fixture
def always_kept(monkeypatch):
    """Every part counts as long enough to be kept."""
    monkeypatch.setattr(parts, "_SECONDS_OF_A_PART", 1e-9)


@pytest.mark.parametrize("total", [1, 2, 11, 12, 40])
def test_parts_are_the_whole(tmp_path, total):
    lines = []
    state = in_parts(begin, go_on, total=total, unit="step", course=Course(tmp_path / "kept.npz", lines.append))
    assert int(state["steps"]) == total
    assert float(state["value"]) == pytest.approx(expected(total))
    assert not (tmp_path / "kept.npz").exists()
    assert all(line.startswith("  step ") for line in lines)


def test_whoever_is_interrupted_goes_on_from_what_was_kept(tmp_path, always_kept):
    path, numbers = tmp_path / "kept.npz", []

    def dies_after(count, state, done, steps):
        numbers.append(int(done))
        if len(numbers) > count:
            raise KeyboardInterrupt
        return go_on(state, done, steps)

    course = Course(path, lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        in_parts(begin, functools.partial(dies_after, 3), total=40, unit="step", course=course)
    reached = numbers[-1]
    assert 0 < reached < 40
    numbers.clear()
    state = in_parts(begin, functools.partial(dies_after, 100), total=40, unit="step", course=course)
    assert numbers[0] == reached
    assert float(state["value"]) == pytest.approx(expected(40))
    # What is finished is only read.
    numbers.clear()
    again = in_parts(begin, functools.partial(dies_after, 0), total=40, unit="step", course=course)
    assert float(again["value"]) == float(state["value"])
    assert not numbers


def test_an_interruption_loses_one_part_at_most_however_short_they_are(tmp_path):
    numbers = []

    def interrupt(state, done, steps):
        numbers.append(int(done))
        if len(numbers) == 3:
            raise KeyboardInterrupt
        return go_on(state, done, steps)

    course = Course(tmp_path / "kept.npz", lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        in_parts(begin, interrupt, total=400, unit="step", course=course)
    assert int(np.load(course.keep)["leaf_0"]) == numbers[-1] > 0


def test_nothing_is_kept_where_no_file_is_named(tmp_path, always_kept, monkeypatch):
    monkeypatch.setattr(parts, "write_tree", lambda *_: pytest.fail("written"))
    state = in_parts(begin, go_on, total=20, unit="step", course=Course(None, lambda line: None))
    assert int(state["steps"]) == 20


@pytest.mark.parametrize(
    "other",
    [
        {"done": np.int64(7), "state": {"steps": np.int32(7)}},
        {"done": np.int64(7), "state": {"steps": np.int32(7), "value": np.zeros(2, np.float32)}},
        {"done": np.int64(7), "state": {"steps": np.int32(7), "value": np.float64(0)}},
    ],
    ids=["fewer", "another shape", "another type"],
)
def test_what_another_program_kept_is_not_taken_up(tmp_path, other):
    path = tmp_path / "kept.npz"
    write_tree(path, other)
    state = in_parts(begin, go_on, total=12, unit="step", course=Course(path, lambda line: None))
    assert float(state["value"]) == pytest.approx(expected(12))


def test_a_tree_survives_its_file(tmp_path):
    tree = {"b": np.arange(3, dtype=np.int32), "a": (np.float32(0.1), np.ones((2, 2), bool))}
    write_tree(tmp_path / "tree.npz", tree)
    back = read_tree(tmp_path / "tree.npz", tree, print)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert read_tree(tmp_path / "none.npz", tree, print) is None


@pytest.mark.parametrize("damage", ["one bit", "cut short", "a folder"])
def test_a_damaged_file_is_renamed_and_its_part_computed_again(tmp_path, always_kept, damage):
    path, lines = tmp_path / "kept.npz", []

    def dies_late(state, done, steps):
        if done > 3:
            raise KeyboardInterrupt
        return go_on(state, done, steps)

    with pytest.raises(KeyboardInterrupt):
        in_parts(begin, dies_late, total=40, unit="step", course=Course(path, lines.append))
    data = bytearray(path.read_bytes())
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "one bit" else data[:-20])
    state = in_parts(begin, go_on, total=40, unit="step", course=Course(path, lines.append))
    assert float(state["value"]) == pytest.approx(expected(40))
    assert any("kept.npz: " in line and "renamed to kept.npz.damaged and computed again" in line for line in lines)
    assert (tmp_path / "kept.npz.damaged").exists()
