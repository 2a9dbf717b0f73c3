"""The main job on several devices: the same results, and any number of devices continues what another began."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from reference.quick import write_stripes

ROOT = pathlib.Path(__file__).parents[2]


def losses_after(workdir, stripes, *, rounds, devices, resume=False):
    """Runs three participants, one of them the adversary, and returns their losses round by round."""
    command = [
        *(sys.executable, "-m", "experiments.gan_attack", f"--workdir={workdir}", f"--dataset=npz:{stripes}"),
        *("--participant_classes=0;1;2,3", "--adversary=2", "--target_class=0", "--judge_samples=80"),
        *("--samples_per_participant=40", "--batch_size=16", "--attack=none", "--schedule=synchronous"),
        *("--checkpoint_interval=2", "--evaluation_interval=2", f"--rounds={rounds}"),
        *(f"--performance.cpu_devices={devices}", f"--resume={str(resume).lower()}"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([record["losses"] for record in records])


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


@pytest.mark.slow
def test_two_devices_share_three_participants_and_one_goes_on(stripes, tmp_path):
    alone = losses_after(tmp_path / "one", stripes, rounds=4, devices=1)
    assert alone.shape == (4, 3)
    together = losses_after(tmp_path / "two", stripes, rounds=4, devices=2)
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert np.ptp(alone[:, 0]) > 1e-2
    part = tmp_path / "part"
    losses_after(part, stripes, rounds=4, devices=2)
    shutil.rmtree(part / "checkpoints" / "round_000004")
    continued = losses_after(part, stripes, rounds=4, devices=1, resume=True)
    np.testing.assert_allclose(continued, alone, rtol=1e-4)
