"""Dealing participants out over devices changes where they run, and nothing else."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

from gan_leak.collaboration import make_round, selective_upload
from gan_leak.collaboration.sharding import device_mesh, pad_participants
from reference.small import federation_data, linear_classifier

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    """Of a process that sees eight devices."""
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **settings, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "reference.sharded_rounds"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_rounds_on_many_devices_equal_rounds_on_one(results):
    """Participants that do not come out even, with and without an attack, added and averaged; and whole runs."""
    *compared, _ = results
    assert len(compared) == 5
    for what, difference, moved in compared:
        assert difference < 1e-5, what
        assert moved > 1e-2, what


def test_participants_that_cannot_be_dealt_out_evenly_are_refused(results):
    assert results[-1][0] == "entries=5: expected a multiple of 2, the number of devices"


def test_who_is_added_has_no_data():
    data = federation_data((3, 5))
    padded = pad_participants(data, 4)
    assert padded.sizes.tolist() == [3, 5, 0, 0]
    assert padded.images.shape == (4, *data.images.shape[1:])
    assert (padded.images[:2] == data.images).all()
    assert pad_participants(data, 2).images.shape == data.images.shape
    assert pad_participants(jnp.ones(3, bool), 2).tolist() == [True, True, True, False]


def test_turns_in_order_cannot_be_dealt_out():
    with pytest.raises(ValueError, match="with schedule='round_robin': dealing turns out needs"):
        make_round(linear_classifier(), selective_upload("largest"), schedule="round_robin", mesh=device_mesh())
