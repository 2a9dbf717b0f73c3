"""The binary for attacks on one gradient: every attack runs, resumes, and refuses what cannot be."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from reference.quick import write_stripes

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


def run(stripes, workdir, *flags):
    command = [sys.executable, "-m", "experiments.gradient_inversion", f"--workdir={workdir}"]
    command += [f"--dataset=npz:{stripes}", "--channels=1", "--images=2", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "flags",
    [
        ("--attack=dlg", "--network=dlg_lenet", "--iterations=40", "--batch_sizes=1,2", "--utility_steps=5"),
        ("--attack=idlg", "--network=grnn_lenet", "--iterations=20"),
        (
            "--attack=inverting_gradients",
            "--network=mnist_classifier",
            "--iterations=20",
            "--labels=inferred",
            "--initialisation=torch",
        ),
        (
            *("--attack=inverting_gradients", "--network=dlg_lenet", "--iterations=5", "--batch_sizes=4"),
            *("--local_steps=3", "--local_batch_size=2", "--restarts=2"),
        ),
        ("--attack=grnn", "--network=grnn_lenet", "--iterations=30", "--batch_sizes=3", "--defenses=none,gaussian:0.1"),
    ],
    ids=["dlg", "idlg", "cosine", "several steps", "grnn"],
)
def test_an_attack_from_flags_to_report(stripes, tmp_path, flags):
    done = run(stripes, tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(rows) == (2 if {"--defenses=none,gaussian:0.1", "--batch_sizes=1,2"} & set(flags) else 1)
    for row in rows:
        assert -1 <= row["metrics"]["ssim"]["mean"] <= 1
        assert len(row["metrics"]["control_ssim"]["values"]) == len(row["metrics"]["ssim"]["values"]) >= 2
    saved = np.load(tmp_path / "run" / "rows" / "000.npz", allow_pickle=False)
    assert saved["images"].shape[-3:] == (32, 32, 1)
    assert 0 <= saved["images"].min() <= saved["images"].max() <= 1
    assert not list((tmp_path / "run" / "rows").glob("*.part.npz"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    if "--attack=idlg" in flags:
        assert rows[0]["metrics"]["label_right"]["mean"] == 1
        # What is there is not computed again.
        before = (tmp_path / "run" / "rows" / "000.npz").stat().st_mtime_ns
        assert run(stripes, tmp_path / "run", *flags, "--resume").returncode == 0
        assert (tmp_path / "run" / "rows" / "000.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attack=magic"], "attack=magic: expected one of dlg, idlg, inverting_gradients, grnn"),
        (["--network=vgg"], "network=vgg: expected one of dlg_lenet, grnn_lenet"),
        (["--initialisation=zero"], "initialisation=zero: expected one of wide, torch"),
        (["--batch_sizes=4,0"], "batch_sizes=4,0: expected whole numbers from 1"),
        (["--images=1000"], "batch_size=1, images=1000: expected fewer than 192 images in all"),
        (["--attack=idlg", "--batch_sizes=2"], "batch_sizes=2: expected at most 1 with idlg"),
        (["--attack=dlg", "--batch_sizes=65"], "batch_sizes=65: expected at most 64 with dlg"),
        (["--local_steps=2"], "local_steps=2: expected 1 with grnn"),
        (["--batch_sizes=4", "--local_batch_size=3"], "local_batch_size=3: expected a divisor of 4"),
        (["--defenses=prayer:1"], "defenses=prayer:1: expected none, or gaussian"),
        (["--defenses=none,pruning:1.0"], "defenses=pruning:1.0: expected a strength from 0 to below 1"),
        (["--network=mnist_classifier", "--image_size=64"], "image_size=64: expected 32 with network"),
        (
            ["--attack=inverting_gradients", "--local_steps=3", "--local_learning_rate=1e38"],
            "gradient: not finite, expected numbers",
        ),
        (
            ["--attack=inverting_gradients", "--labels=inferred", "--batch_sizes=8"],
            "labels: ",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(stripes, tmp_path, flags, message):
    done = run(stripes, tmp_path / "run", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
