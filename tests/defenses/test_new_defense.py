"""The guide's defense, one new file and one line of the registry, works in every binary that has one of its stages."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from reference.quick import write_stripes

ROOT = pathlib.Path(__file__).parents[2]
GUIDE = ROOT / "experiments" / "guides" / "add_a_defense.md"
SCRIPT = """
import json, pathlib, sys

import jax
import numpy as np
import pytest

jax.config.update("jax_disable_most_optimizations", True)
from experiments import gan_attack, gradient_inversion, sweep
from experiments.common import gradient_rows
from experiments.common.flags import config_from_arguments
from reference.quick import use_linear_networks

stripes, folder = sys.argv[1], pathlib.Path(sys.argv[2])
small = [f"--dataset=npz:{stripes}", "--participant_classes=0,1;2,3", "--target_class=0", "--judge_samples=80",
         "--batch_size=16", "--rounds=2", "--generator_steps=1", "--generator_batch_size=8", "--fakes_per_round=16",
         "--evaluation_interval=2", "--evaluation_samples=12", "--samples_per_participant=40"]

def norms(name, *flags):
    config = config_from_arguments(gan_attack.AttackFlags, [*small, *flags])
    assert gan_attack.execute(gan_attack.prepare(config, folder / name, False)) == 0
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [[json.loads(line)[field] for line in lines] for field in ("losses", "update_norms")]

with pytest.MonkeyPatch.context() as patch:
    use_linear_networks(patch)
    plain, neutral = norms("plain"), norms("neutral", "--defense=shrinking", "--shrinking_factor=1")
    shrunk = norms("shrunk", "--defense=clipping,shrinking", "--update_clipping_norm=0.1")
    grid = config_from_arguments(
        sweep.SweepConfig, [*small, "--defense=none,clipping+shrinking", "--shrinking_factor=0,1", "--num_seeds=1",
                            "--workers=1"])
    assert sweep.execute(sweep.prepare(grid, folder / "sweep", False)) == 0
single = [f"--dataset=npz:{stripes}", "--attack=dlg", "--channels=1", "--images=1",
          "--defenses=none,shrinking:0.25"]
config = config_from_arguments(gradient_inversion.GradientConfig, single)
prepared = gradient_inversion.prepare(config, folder / "gradient", False)
views = [gradient_rows._views(config, prepared.model, setting) for setting in prepared.settings]
lengths = [float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(view.gradient)))) for view in views]
print(json.dumps({
    "equal": plain == neutral, "differs": plain != shrunk,
    "cells": [json.loads(line)["cell"] for line in (folder / "sweep" / "results.jsonl").read_text().splitlines()],
    "summary": "shrinking" in (folder / "shrunk" / "report.html").read_text(),
    "lengths": lengths, "defenses": [str(setting.defense) for setting in prepared.settings],
}))
"""


@pytest.mark.slow
def test_a_new_defense_is_one_file_and_one_line(tmp_path):
    """Its number is a flag, is swept and is a strength of single gradients; neutral, it changes no bit."""
    for package in ("gan_leak", "experiments"):
        ignored = shutil.ignore_patterns("__pycache__", "pictures", "results")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "gan_leak" / "defenses" / "shrinking.py").write_text(code)
    registry = tmp_path / "gan_leak" / "defenses" / "registry.py"
    registry.write_text(registry.read_text().replace('    "clipping",\n', '    "clipping",\n    "shrinking",\n'))
    stripes = write_stripes(tmp_path / "stripes.npz")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(stripes), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'tests'}"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["equal"]
    assert told["differs"]
    assert told["summary"]
    assert told["cells"] == [
        {"defense": kind, "shrinking_factor": factor}
        for kind in ("none", "clipping+shrinking")
        for factor in (0.0, 1.0)
    ]
    assert told["lengths"][1] == pytest.approx(told["lengths"][0] / 4, rel=1e-5)
    assert told["defenses"] == ["none", "shrinking 0.25"]
