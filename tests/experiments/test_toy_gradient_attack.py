"""The guide's attack, one new file and one line of the registry, runs from flags to report."""

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
GUIDE = ROOT / "experiments" / "guides" / "add_an_attack.md"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the packages with the guide's file, one new line of the registry, and its import."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("gan_leak", "experiments"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    attacks = folder / "gan_leak" / "attacks" / "gradient"
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (attacks / "toy.py").write_text(code)
    registry = attacks / "registry.py"
    text = registry.read_text()
    changed = text.replace("        GRNN,\n", "        GRNN,\n        TOY,\n").replace(
        "\nGRADIENT_ATTACKS", "from gan_leak.attacks.gradient.toy import TOY\n\nGRADIENT_ATTACKS", 1
    )
    assert changed.count("TOY") == 2
    registry.write_text(changed)
    return folder


# In one process, since each spends seconds on its imports.
SCRIPT = """
import pathlib
import sys

from experiments import gradient_inversion as binary
from experiments.common.flags import config_from_arguments
from gan_leak.settings import settings_of

data, workdir = sys.argv[1:]
flags = ["--attack=toy", f"--dataset=npz:{data}", "--channels=1", "--images=2", "--network=grnn_lenet"]


def prepare(*more):
    config = config_from_arguments(binary.GradientConfig, [*flags, *more])
    return binary.prepare(config, pathlib.Path(workdir), False)


for more in ("--batch_sizes=2", "--local_steps=2", "--total_variation=0.1", "--attack=doll"):
    try:
        prepare(more)
    except ValueError as error:
        print(error)
print(settings_of(binary.GradientConfig)["iterations"].help)
binary.execute(prepare("--defenses=none,gaussian:0.01"))
"""


@pytest.mark.slow
def test_a_new_attack_is_one_file_and_one_line(checkout, tmp_path):
    data, workdir = write_stripes(tmp_path / "stripes.npz"), tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(data), str(workdir)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # What it needs is checked, and the flags' help and choices name it.
    *refused, attacks, iterations = done.stdout.splitlines()
    assert refused == [
        "batch_sizes=2: expected at most 1 with toy",
        "local_steps=2: expected 1 with toy, which imitates a gradient",
        "total_variation=0.1: expected -1 with toy, which has none",
    ]
    assert "doll" in attacks
    assert "toy" in attacks
    assert "toy 7" in iterations
    assert "iteration 7/7" in done.stderr
    rows = json.loads((workdir / "results.json").read_text())
    assert [row["name"] for row in rows] == ["toy, grnn_lenet, batch 1", "toy, grnn_lenet, batch 1, gaussian 0.01"]
    # Its labels are inferred, as its entry says, and it is measured like any other.
    assert rows[0]["metrics"]["label_right"]["mean"] == 1
    assert "re_identified" in rows[0]["metrics"]
