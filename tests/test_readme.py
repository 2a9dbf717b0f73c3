"""What the README shows works as shown."""

import json
import pathlib
import re

import numpy as np

from experiments.benchmark import BenchmarkConfig
from experiments.common.flags import preset_text
from experiments.gradient_inversion import GradientConfig
from experiments.measurability import MeasurabilityConfig, as_table
from experiments.reproduce import ReproduceConfig
from experiments.split_inference import SplitConfig
from experiments.sweep import SweepConfig
from gan_leak.config import RunConfig
from gan_leak.settings import settings_of

SHARES = ("ssim", "recovered", "re_identified")
README = pathlib.Path("README.md").read_text()


def test_the_library_example_ends_in_a_leakage_score(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    (line,) = capsys.readouterr().out.splitlines()
    name, score = line.split(": ")
    assert name == "leakage score"
    assert 0.2 < float(score) <= 1


def test_every_flag_and_preset_that_it_names_exists():
    flags = {
        name.partition(".")[0]
        for config_class in (
            RunConfig,
            ReproduceConfig,
            SweepConfig,
            BenchmarkConfig,
            SplitConfig,
            GradientConfig,
            MeasurabilityConfig,
        )
        for name in settings_of(config_class)
    }
    common = {"workdir", "resume", "preset", "compilation_cache", "help"}
    of_processes = {"distributed", "coordinator_address", "num_processes", "process_id"}
    of_others = {"ntasks-per-node", "worker", "command", "dist"}
    assert set(re.findall(r"--([a-z][a-z0-9_-]*)", README)) <= flags | common | of_processes | of_others
    for preset in re.findall(r"--preset=([a-z0-9_/]+)", README):
        assert preset_text(preset)


def test_what_reshuffling_hides_is_told_as_it_was_measured():
    rows = json.loads(pathlib.Path("experiments/results/inverting_reshuffled.json").read_text())["rows"]
    names = {
        "known order": "the participant's order",
        "ordered": "a wrong order",
        "epoch mean": "no order (epoch means)",
    }
    for row in rows:
        numbers = row["metrics"]
        shown = [_interval(numbers["psnr"], 1, np.inf), *(_interval(numbers[name], 2, 1.0) for name in SHARES)]
        control = f"{numbers['control_re_identified']['mean']:.2f}"
        assert " | ".join([f"| {names[row['name'].rsplit(', ', 1)[1]]}", *shown, f"{control} |"]) in README


def _interval(numbers, digits, most):
    low, high = np.clip([numbers["low"], numbers["high"]], 0.0, most)
    return f"{numbers['mean']:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def test_what_is_measurable_is_told_as_it_was_measured():
    """The table is that of the results, which meet the bar or say that nothing can be measured."""
    rows = json.loads(pathlib.Path("experiments/results/measurability.json").read_text())["rows"]
    assert "\n".join(line for line in as_table(rows).splitlines() if line.startswith("|")) in README
    for row in rows:
        if row["not_measurable"] is None:
            assert row["copies"] >= 0.9
            assert row["held_out"] >= 0.7
            assert row["highest_control"] <= 0.1
            assert len(row["deciding"]) >= 2


def test_every_picture_that_it_shows_exists():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert all(pathlib.Path(picture).exists() for picture in pictures)
