"""Checkpoints: the bits that were saved, or an earlier checkpoint, never something else."""

import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.runs.storage import checkpoints
from gan_leak.runs.storage.integrity import RefusedError


class Inner(NamedTuple):
    weights: Any
    nothing: Any
    key: Any


class Outer(NamedTuple):
    inner: Inner
    keys: Any
    counter: Any
    odd: Any


def make_state(seed):
    normal_key, half_key, inner_key, keys_key = jax.random.split(jax.random.key(seed), 4)
    weights = {
        "w": jax.random.normal(normal_key, (7, 5)),
        "half": jax.random.normal(half_key, (3,)).astype(jnp.bfloat16),
        "mask": jnp.array([True, False]),
        "special": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
    }
    inner = Inner(weights, (), inner_key)
    return Outer(inner, jax.random.split(keys_key, 3), jnp.int32(seed), (jnp.zeros((0, 4)), {}, [jnp.uint8(seed)]))


def bits(state):
    def leaf_bits(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return str(leaf.dtype), leaf.shape, data.tobytes()

    return jax.tree.structure(state), [leaf_bits(leaf) for leaf in jax.tree.leaves(state)]


def assert_restores(restored, round, seed, skipped=()):
    assert restored is not None
    assert (restored.round, restored.skipped) == (round, skipped)
    assert bits(restored.state) == bits(make_state(seed))


class Later(NamedTuple):
    inner: Inner
    keys: Any
    counter: Any
    odd: Any
    added: Any = ()
    also_added: Any = ()


def test_a_state_of_an_earlier_version_lacks_fields_that_are_empty(tmp_path):
    """It is restored; where the new field holds something, the checkpoint is refused with the name of the field."""
    checkpoints.save(tmp_path, 5, make_state(3))
    restored = checkpoints.restore_latest(tmp_path, Later(*make_state(0)))
    assert bits(restored.state) == bits(Later(*make_state(3)))
    with pytest.raises(RefusedError, match=r"saved nothing there, expected .also_added"):
        checkpoints.restore_latest(tmp_path, Later(*make_state(0), also_added=jnp.zeros(2)))


def test_round_trip_is_bit_exact(tmp_path):
    checkpoints.save(tmp_path / "new" / "checkpoints", 5, make_state(3))
    restored = checkpoints.restore_latest(tmp_path / "new" / "checkpoints", make_state(0))
    assert_restores(restored, 5, 3)
    for leaf, fresh in zip(jax.tree.leaves(restored.state), jax.tree.leaves(make_state(0)), strict=True):
        assert isinstance(leaf, jax.Array)
        assert leaf.committed == fresh.committed
    assert jax.random.key_impl(restored.state.keys) == jax.random.key_impl(make_state(0).keys)


def test_device_of_the_template_is_kept(tmp_path):
    pinned = jax.device_put(make_state(1), jax.devices()[0])
    checkpoints.save(tmp_path, 1, pinned)
    restored = checkpoints.restore_latest(tmp_path, pinned)
    assert bits(restored.state) == bits(pinned)
    assert all(leaf.committed for leaf in jax.tree.leaves(restored.state.inner.weights))


@pytest.mark.parametrize(
    "state", [(), {"none": ()}, jnp.float32(2.5), {"count": 3, "array": np.arange(3, dtype=np.int32)}]
)
def test_small_states_come_back(tmp_path, state):
    checkpoints.save(tmp_path, 0, state)
    restored = checkpoints.restore_latest(tmp_path, jax.tree.map(jnp.zeros_like, state))
    assert bits(restored.state) == bits(jax.tree.map(jnp.asarray, state))


def test_nothing_saved_is_nothing_restored(tmp_path):
    assert checkpoints.restore_latest(tmp_path, make_state(0)) is None
    assert checkpoints.restore_latest(tmp_path / "absent", make_state(0)) is None


def test_newest_are_kept_and_the_newest_restored(tmp_path):
    for round in (1, 2, 1_000_000):
        checkpoints.save(tmp_path, round, {"x": jnp.float32(round)}, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["round_000002", "round_000002.sha256", "round_1000000", "round_1000000.sha256"]
    assert checkpoints.restore_latest(tmp_path, {"x": jnp.float32(0)}).round == 1_000_000


def test_saving_an_earlier_round_drops_the_abandoned_later_ones(tmp_path):
    for round in (5, 10, 6):
        checkpoints.save(tmp_path, round, make_state(round), keep=2)
    assert sorted(path.name for path in tmp_path.glob("round_??????")) == ["round_000005", "round_000006"]
    assert_restores(checkpoints.restore_latest(tmp_path, make_state(0)), 6, 6)


def test_saving_a_round_again_replaces_it(tmp_path):
    checkpoints.save(tmp_path, 5, make_state(1))
    checkpoints.save(tmp_path, 5, make_state(2))
    assert_restores(checkpoints.restore_latest(tmp_path, make_state(0)), 5, 2)


def test_a_flipped_bit_in_any_file_is_noticed(tmp_path):
    checkpoints.save(tmp_path, 1, make_state(1))
    path = checkpoints.save(tmp_path, 2, make_state(2))
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) > 5
    for file in [*files, tmp_path / "round_000002.sha256"]:
        intact = file.read_bytes()
        middle = len(intact) // 2
        file.write_bytes(intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :])
        assert_restores(checkpoints.restore_latest(tmp_path, make_state(0)), 1, 1, ("round_000002",))
        file.write_bytes(intact)
    assert_restores(checkpoints.restore_latest(tmp_path, make_state(0)), 2, 2)


def test_missing_extra_or_shortened_files_are_noticed(tmp_path):
    checkpoints.save(tmp_path, 1, make_state(1))
    path = checkpoints.save(tmp_path, 2, make_state(2))
    victim = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    intact = victim.read_bytes()

    def noticed():
        restored = checkpoints.restore_latest(tmp_path, make_state(0))
        return (restored.round, restored.skipped) == (1, ("round_000002",))

    victim.unlink()
    assert noticed()
    victim.write_bytes(intact[:-1])
    assert noticed()
    victim.write_bytes(intact)
    assert not noticed()
    (path / "stranger").touch()
    assert noticed()


def test_all_damaged_is_an_error_and_not_a_silent_new_start(tmp_path):
    path = checkpoints.save(tmp_path, 1, make_state(1))
    (path / "stranger").touch()
    with pytest.raises(ValueError, match=r"every checkpoint is damaged \(round_000001\)"):
        checkpoints.restore_latest(tmp_path, make_state(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state._replace(counter=()),
        lambda state: state._replace(counter={"more": state.counter}),
        lambda state: state._replace(counter=jnp.float32(0)),
        lambda state: state._replace(counter=jnp.zeros((2,), jnp.int32)),
        lambda state: state._replace(keys=jax.random.split(jax.random.key(0, impl="rbg"), 3)),
        lambda state: state._replace(keys=jax.random.key_data(state.keys)),
        lambda state: tuple(state),
    ],
)
def test_another_structure_is_refused(tmp_path, change):
    checkpoints.save(tmp_path, 1, make_state(1))
    with pytest.raises(ValueError, match="another structure; first difference"):
        checkpoints.restore_latest(tmp_path, change(make_state(0)))


@pytest.mark.parametrize(("round", "keep"), [(-1, 2), (1, 0)])
def test_senseless_numbers_are_refused(tmp_path, round, keep):
    with pytest.raises(ValueError, match="expected round >= 0 and keep >= 1"):
        checkpoints.save(tmp_path, round, make_state(0), keep=keep)


KILLED_SAVE = """
import os, pathlib, signal, sys, threading
import jax.numpy as jnp
from gan_leak.runs.storage import checkpoints

directory, moment = pathlib.Path(sys.argv[1]), sys.argv[2]
checkpoints.save(directory, 1, {"x": jnp.arange(1_000_000.0)})

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_when_orbax_is_writing():
    while not any("round_000002" in path.name for path in directory.iterdir()):
        pass
    die()

if moment == "orbax":
    threading.Thread(target=die_when_orbax_is_writing).start()
elif moment == "manifest":
    checkpoints.write_atomic = die
elif moment == "prune":
    checkpoints.shutil.rmtree = die
checkpoints.save(directory, 2, {"x": 2 * jnp.arange(1_000_000.0)}, keep=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "round", "noted"), [("orbax", 1, True), ("manifest", 1, True), ("prune", 2, False)])
def test_kill_in_the_middle_of_a_save_loses_no_finished_checkpoint(tmp_path, moment, round, noted):
    killed = subprocess.run([sys.executable, "-c", KILLED_SAVE, tmp_path, moment], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    template = {"x": jnp.zeros(1_000_000)}
    restored = checkpoints.restore_latest(tmp_path, template)
    assert restored.round == round
    assert bool(restored.skipped) == noted
    np.testing.assert_array_equal(restored.state["x"], round * jnp.arange(1_000_000.0))
    checkpoints.save(tmp_path, 2, template)
    assert all(path.name.startswith(("round_000001", "round_000002")) for path in tmp_path.iterdir())
    assert not any("tmp" in path.name for path in tmp_path.iterdir())
    assert checkpoints.restore_latest(tmp_path, template).round == 2


def test_package_imports_without_orbax():
    code = (
        "import sys, gan_leak.runs.storage.checkpoints; sys.exit(any(name.startswith('orbax') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
