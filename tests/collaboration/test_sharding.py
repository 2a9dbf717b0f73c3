"""Sharding participants over devices changes where they run, and nothing else."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from gan_leak.collaboration import init_federation, make_round, selective_upload
from gan_leak.collaboration.sharding import device_mesh, own_positions, rows_between, shard, unshard
from reference.small import federation_data, largest_difference, linear_classifier

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results_on_eight_devices():
    """Of a process that sees eight devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **settings, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "reference.sharded_rounds"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_rounds_on_many_devices_equal_rounds_on_one(results_on_eight_devices):
    """Participants that do not come out even, with and without attacks, added and averaged; and whole runs."""
    *compared, _ = results_on_eight_devices
    assert len(compared) == 8
    for what, difference, moved in compared:
        assert difference < 1e-5, what
        assert moved > 1e-2, what


def test_participants_that_cannot_be_sharded_evenly_are_refused(results_on_eight_devices):
    assert results_on_eight_devices[-1][0] == "entries=5: expected a multiple of 2, the number of devices"


def test_rows_behind_the_end_are_filled():
    sizes = np.array([3, 5, 7], np.int32)
    assert rows_between(sizes, 0, 2).tolist() == [3, 5]
    assert rows_between(sizes, 2, 4).tolist() == [7, 0]
    assert rows_between(sizes, 4, 6, fill=-1).tolist() == [-1, -1]
    assert rows_between(np.ones((3, 2), bool), 2, 5).tolist() == [[True] * 2, [False] * 2, [False] * 2]


def test_on_one_device_everybody_belongs_to_this_process_and_comes_back():
    data, model, transform = federation_data((3, 5)), linear_classifier(), selective_upload("largest")
    state = init_federation(jax.random.key(0), model, transform, 2)
    mesh = device_mesh(jax.devices()[:1])
    assert own_positions(2, mesh) == [0, 1]
    placed, shares = shard(state, data._replace(participants=np.array([4, 9], np.int32)), mesh)
    assert shares.participants.tolist() == [4, 9]
    assert largest_difference(unshard(placed, 2), state) == 0


def test_turns_in_order_cannot_be_sharded():
    with pytest.raises(ValueError, match="with schedule='round_robin': sharding needs"):
        make_round(linear_classifier(), selective_upload("largest"), schedule="round_robin", mesh=device_mesh())
