"""A new attack on a gradient is one file and one line of the registry: the binary takes it from flags to report."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from reference.quick import write_stripes

ROOT = pathlib.Path(__file__).parents[2]
TOY = '''
"""A toy attack: the image of a linear layer, by descent on the squared distance from grey."""

import jax
import jax.numpy as jnp

from gan_leak.attacks.gradient.contract import GradientAttack, GradientInversion
from gan_leak.attacks.gradient.observation import gradient_of, squared_distance
from gan_leak.attacks.procedure import Procedure


def build(task):
    def distance(images, evidence):
        view, labels = evidence
        return squared_distance(gradient_of(task.model, view.params, images, labels), view.gradient)

    def init(key, evidence):
        return jnp.full(task.shape, 0.5)

    def step(key, images, evidence):
        value, slope = jax.value_and_grad(distance)(images, evidence)
        return images - 0.01 * jnp.sign(slope), value

    def extract(images, evidence):
        return GradientInversion(images, evidence.labels, distance(images, evidence))

    return Procedure(init, step, extract)


TOY = GradientAttack(
    name="toy", citation="none", build=build, iterations=7, labels="inferred", largest_batch=1
)
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the packages with one new file, one new line, and its import."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("gan_leak", "experiments"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    attacks = folder / "gan_leak" / "attacks" / "gradient"
    (attacks / "toy.py").write_text(TOY)
    registry = attacks / "registry.py"
    text = registry.read_text()
    changed = text.replace("        GRNN,\n", "        GRNN,\n        TOY,\n").replace(
        "\nGRADIENT_ATTACKS", "from gan_leak.attacks.gradient.toy import TOY\n\nGRADIENT_ATTACKS", 1
    )
    assert changed.count("TOY") == 2
    registry.write_text(changed)
    return folder


def run(checkout, *flags):
    command = [sys.executable, "-m", "experiments.gradient_inversion", *flags]
    return subprocess.run(
        command, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, capture_output=True, text=True
    )


def test_a_new_attack_is_one_file_and_one_line(checkout, tmp_path):
    data = write_stripes(tmp_path / "stripes.npz")
    flags = ("--attack=toy", f"--dataset=npz:{data}", "--channels=1", "--images=2", f"--workdir={tmp_path / 'run'}")
    done = run(checkout, *flags, "--network=grnn_lenet", "--defenses=none,gaussian:0.01")
    assert done.returncode == 0, done.stderr
    assert "iteration 7/7" in done.stderr
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["name"] for row in rows] == ["toy, grnn_lenet, batch 1", "toy, grnn_lenet, batch 1, gaussian 0.01"]
    assert rows[0]["metrics"]["label_right"]["mean"] == 1
    # Its needs are checked, and the binary's help names it.
    for flag, message in (
        ("--batch_sizes=2", "batch_sizes=2: expected at most 1 with toy"),
        ("--local_steps=2", "local_steps=2: expected 1 with toy, which imitates a gradient"),
        ("--total_variation=0.1", "total_variation=0.1: expected -1 with toy, which has none"),
        ("--attack=doll", "doll"),
    ):
        refused = run(checkout, *flags, flag)
        assert refused.returncode == 2, refused.stderr
        assert message in refused.stderr
        assert flag != "--attack=doll" or "toy" in refused.stderr
    assert "toy 7" in " ".join(run(checkout, "--help").stdout.split())
