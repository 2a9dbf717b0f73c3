"""The binary for split inference: every attack runs, resumes, and refuses what cannot be."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments import split_inference
from experiments.common.flags import config_from_arguments
from gan_leak.runs.inversion import split
from gan_leak.runs.storage.directory import close_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """An npz data set of 28 pixels: class k has a bright square in its own place."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    images = rng.integers(0, 40, (120, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 10 * (label // 2) :][:8, 4 + 10 * (label % 2) :][:, :8] = rng.integers(150, 250)
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    np.savez(path, images=images, labels=labels)
    return path


def run(squares, workdir, *flags):
    command = [sys.executable, "-m", "experiments.split_inference", f"--workdir={workdir}"]
    command += [f"--dataset=npz:{squares}", "--epochs=2", "--attack_epochs=2", "--images=2", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_all_attacks_from_flags_to_report(squares, tmp_path, monkeypatch):
    """In this process, as the binary runs it, with a fifth of the iterations and three times the learning rate."""
    victim = split.victim_for("mnist")
    fewer = victim.white_box["conv1"]._replace(iterations=1000, learning_rate=0.03)
    monkeypatch.setattr(split, "victim_for", {"mnist": victim._replace(white_box={"conv1": fewer})}.get)
    few = ("--splits=conv1", "--epochs=2", "--attack_epochs=2", "--images=2")
    config = config_from_arguments(split_inference.SplitConfig, [f"--dataset=npz:{squares}", *few])
    assert split_inference.execute(split_inference.prepare(config, tmp_path / "run", False)) == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["name"].split(", ")[1] for row in rows] == [
        *["white box"],
        *["black box"] * 3,
        *["model reconstruction"] * 3,
        *["query free"] * 4,
    ]
    # Shallow features, known layers: nearly everything comes back, and nothing of another image.
    first = rows[0]["metrics"]
    assert first["psnr"]["mean"] > 25
    assert first["psnr"]["mean"] > rows[-1]["metrics"]["psnr"]["mean"]
    assert first["psnr"]["mean"] > first["control_psnr"]["mean"] + 10
    assert first["published_psnr"]["mean"] == 39.69
    assert len(first["psnr"]["values"]) == 4
    assert len(first["psnr_of_others"]["values"]) == 2
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/png;base64,") == 1
    before = (tmp_path / "run" / "rows" / "000.npz").stat().st_mtime_ns
    assert split_inference.execute(split_inference.prepare(config, tmp_path / "run", True)) == 0
    assert (tmp_path / "run" / "rows" / "000.npz").stat().st_mtime_ns == before


def test_a_victim_of_other_images_is_not_attacked(squares, tmp_path):
    data = tmp_path / "squares.npz"
    data.write_bytes(squares.read_bytes())
    config = config_from_arguments(split_inference.SplitConfig, [f"--dataset=npz:{data}"])
    close_run(split_inference.prepare(config, tmp_path / "run", False).directory)
    with np.load(squares) as arrays:
        np.savez(data, **{**arrays, "images": 255 - arrays["images"]})
    with pytest.raises(ValueError, match="holds a run on another dataset "):
        split_inference.prepare(config, tmp_path / "run", True)


@pytest.mark.slow
def test_a_defence_is_swept(squares, tmp_path):
    flags = ("--splits=conv1", "--attacks=white_box", "--defenses=dropout:0,dropout:0.9")
    done = run(squares, tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["name"].rsplit(" ", 1)[1] for row in rows] == ["0", "0.9"]
    assert rows[0]["metrics"]["psnr"]["mean"] > rows[1]["metrics"]["psnr"]["mean"] + 3
    assert all("published_psnr" not in row["metrics"] for row in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([f"--seed={2**63}"], "seed=9223372036854775808: expected 0 to 9223372036854775807"),
        (["--network=vgg"], "network='vgg': expected mnist or cifar10"),
        (["--splits=conv9"], "split='conv9': expected one of conv1, ReLU1, pool1"),
        (["--splits=pool1", "--attacks=black_box"], "split='pool1': expected one of conv1, ReLU2"),
        (["--attacks=white_box,magic"], "attacks=white_box,magic: expected some of white_box"),
        (["--defenses=prayer:1"], "defenses=prayer:1: expected none, or gaussian"),
        (["--defenses=dropout:1"], "defenses=dropout:1: expected as strength a number in [0, 1)"),
        (["--epochs=0"], "epochs=0: expected at least 1"),
        (["--total_variation=nan"], "total_variation=nan: expected -1 or a finite number from 0"),
        (["--network=cifar10"], "dataset=npz:"),
    ],
)
def test_bad_input_is_refused_in_one_line(squares, tmp_path, flags, message):
    config = config_from_arguments(split_inference.SplitConfig, [f"--dataset=npz:{squares}", *flags])
    with pytest.raises(ValueError, match="^" + re.escape(message)) as raised:
        split_inference.prepare(config, tmp_path / "run", False)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_line_and_status_2(squares, tmp_path):
    done = run(squares, tmp_path / "run", "--splits=conv9")
    assert done.returncode == 2
    assert done.stderr.startswith("error: split='conv9': expected one of conv1, ReLU1, pool1")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
