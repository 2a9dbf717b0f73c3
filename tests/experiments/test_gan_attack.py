"""The binary: every preset runs, help reads well, bad input is one line and status 2."""

import json
import pathlib
import subprocess
import sys

import pytest

PRESETS = sorted(path.stem for path in pathlib.Path("experiments/presets").glob("*.flags"))
SHORT = (
    "--rounds=1",
    "--samples_per_participant=128",
    "--generator_steps=1",
    "--fakes_per_round=64",
    "--evaluation_samples=64",
)


def run_binary(*arguments):
    command = [sys.executable, "-m", "experiments.gan_attack", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_presets_of_the_paper_are_there():
    assert {"default", "figure6a", "figure6b", "figure6c"} <= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_in_a_shortened_form(preset, tmp_path):
    done = run_binary(f"--preset={preset}", *SHORT, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "report.html").exists()
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert record["uploaded"] == [round(config["upload_fraction"] * 105707)] * 2
    assert record["leakage"]["leakage_score"] <= 0.1


def test_the_default_preset_spells_out_the_defaults():
    from gan_leak.config import AttackConfig, to_json

    defaults = to_json(AttackConfig())
    lines = pathlib.Path("experiments/presets/default.flags").read_text().splitlines()
    flags = dict(line[2:].split("=", 1) for line in lines if line.startswith("--"))
    assert flags
    for name, value in flags.items():
        assert type(defaults[name])(value) == defaults[name]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--target_class=7"], "target"),
        (["--rounds=none"], "rounds"),
        (["--no_such_flag"], "no_such_flag"),
        (["--preset=figure99"], "figure99"),
        (["--workdir=/proc/run"], "/proc/run"),
        (["extra"], "extra"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, named, tmp_path):
    done = run_binary(f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_names_every_flag_with_its_source():
    done = run_binary("--help")
    assert done.returncode == 0
    for text in ("--target_class", "--performance.convolution", "--workdir", "Hitaj et al. 2017, section 8.4"):
        assert text in done.stdout
