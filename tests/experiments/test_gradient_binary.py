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
    command += [f"--dataset=npz:{stripes}", "--channels=1", "--experiments=2", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "flags",
    [
        ("--attack=dlg", "--network=dlg_lenet", "--iterations=40", "--batch_size=2"),
        ("--attack=idlg", "--network=grnn_lenet", "--iterations=20"),
        ("--attack=inverting_gradients", "--network=mnist_classifier", "--iterations=20", "--labels=inferred"),
        (
            *("--attack=inverting_gradients", "--network=dlg_lenet", "--iterations=5", "--batch_size=4"),
            *("--local_steps=3", "--local_batch_size=2", "--restarts=2"),
        ),
        ("--attack=grnn", "--iterations=10", "--batch_size=3", "--defense=gaussian", "--strengths=0,0.1"),
    ],
    ids=["dlg", "idlg", "cosine", "several steps", "grnn"],
)
def test_an_attack_from_flags_to_report(stripes, tmp_path, flags):
    done = run(stripes, tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(rows) == (2 if "--defense=gaussian" in flags else 1)
    for row in rows:
        assert row["ssim"]["mean"] <= 1
        assert len(row["ssim"]["values"]) == 2
    saved = np.load(tmp_path / "run" / "rows" / "000.npz", allow_pickle=False)
    assert saved["images"].shape[-3:] == (32, 32, 1)
    assert 0 <= saved["images"].min() <= saved["images"].max() <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    if "--attack=idlg" in flags:
        assert rows[0]["label_accuracy"]["mean"] == 1
        # What is there is not computed again.
        before = (tmp_path / "run" / "rows" / "000.npz").stat().st_mtime_ns
        assert run(stripes, tmp_path / "run", *flags, "--resume").returncode == 0
        assert (tmp_path / "run" / "rows" / "000.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attack=magic"], "attack=magic: expected one of dlg, idlg, inverting_gradients, grnn"),
        (["--network=vgg"], "network=vgg: expected one of dlg_lenet, grnn_lenet"),
        (["--batch_size=0"], "batch_size=0: expected at least 1"),
        (["--experiments=1000"], "experiments=1000: expected at most 192 images in all"),
        (["--attack=idlg", "--batch_size=2"], "batch_size=2: expected 1 with idlg"),
        (["--local_steps=2"], "local_steps=2: expected 1 with grnn"),
        (["--batch_size=4", "--local_batch_size=3"], "local_batch_size=3: expected a divisor of 4"),
        (["--defense=prayer"], "defense=prayer: expected one of none, gaussian"),
        (["--defense=pruning", "--strengths=1.0"], "strengths=1.0: expected numbers that pruning can have"),
        (["--network=mnist_classifier", "--image_size=64"], "image_size=64: expected 32 with network"),
    ],
)
def test_bad_input_is_one_line_and_status_2(stripes, tmp_path, flags, message):
    done = run(stripes, tmp_path / "run", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
