"""The binary for attacks on one gradient: every attack runs, resumes, and refuses what cannot be."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import gradient_inversion
from experiments.common import gradient_rows
from experiments.common.flags import config_from_arguments
from gan_leak.attacks.gradient.observation import gradient_of
from gan_leak.models.gradient_networks import dlg_lenet, with_uniform_init
from gan_leak.runs.inversion.gradient import accuracy_of
from gan_leak.runs.storage.directory import close_run
from reference.quick import write_stripes

ROOT = pathlib.Path(__file__).parents[2]


SEVERAL = ("--attack=inverting_gradients", "--batch_sizes=4", "--local_steps=3", "--local_batch_size=2")


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


def run(stripes, workdir, *flags):
    command = [sys.executable, "-m", "experiments.gradient_inversion", f"--workdir={workdir}"]
    command += [f"--dataset=npz:{stripes}", "--channels=1", "--images=2", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--attack=dlg", "--network=dlg_lenet_batchnorm", "--iterations=40", "--batch_sizes=2"),
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
    """In this process, as the binary runs it."""
    arguments = [f"--dataset=npz:{stripes}", "--channels=1", "--images=2", *flags]
    config = config_from_arguments(gradient_inversion.GradientConfig, arguments)
    assert gradient_inversion.execute(gradient_inversion.prepare(config, tmp_path / "run", False)) == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(rows) == (2 if "--defenses=none,gaussian:0.1" in flags else 1)
    for row in rows:
        assert -1 <= row["metrics"]["ssim"]["mean"] <= 1
        assert len(row["metrics"]["control_ssim"]["values"]) == len(row["metrics"]["ssim"]["values"]) >= 2
    saved = np.load(tmp_path / "run" / "rows" / "000.npz", allow_pickle=False)
    assert saved["images"].shape[-3:] == (32, 32, 1)
    assert 0 <= saved["images"].min() <= saved["images"].max() <= 1
    assert not list((tmp_path / "run" / "rows").glob("*.part.npz"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    given = "--attack=inverting_gradients" in flags and "--labels=inferred" not in flags
    assert all(("label_right" in row["metrics"]) is not given for row in rows)
    if "--attack=idlg" in flags:
        assert rows[0]["metrics"]["label_right"]["mean"] == 1
        # What is there is not computed again.
        before = (tmp_path / "run" / "rows" / "000.npz").stat().st_mtime_ns
        assert gradient_inversion.execute(gradient_inversion.prepare(config, tmp_path / "run", True)) == 0
        assert (tmp_path / "run" / "rows" / "000.npz").stat().st_mtime_ns == before


@pytest.mark.slow
def test_participants_start_from_the_network_that_training_ended_with(stripes, tmp_path):
    flags = ("--attack=inverting_gradients", "--iterations=2", "--initialisation=torch", "--training_steps=100")
    arguments = [f"--dataset=npz:{stripes}", "--channels=1", "--images=3", "--dirichlet_concentration=0.1", *flags]
    config = config_from_arguments(gradient_inversion.GradientConfig, arguments)
    prepared = gradient_inversion.prepare(config, tmp_path / "run", False)
    trained = gradient_rows.trained_model(config, prepared.dataset, prepared.model)
    for leaf in jax.tree.leaves(gradient_rows._views(config, trained, prepared.settings[0]).params):
        assert (leaf[1:] == leaf[:1]).all()
    assert gradient_inversion.execute(prepared) == 0
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())
    untrained = dlg_lenet(4, image_size=32, channels=1)
    before = accuracy_of(untrained, untrained.init(jax.random.key(1)), prepared.dataset, channels=1)
    assert row["metrics"]["attacked_accuracy"]["mean"] > before + 0.3


def own_gradient(path, change=lambda arrays: None):
    """A file with what a participant sent, and the image it was computed from."""
    model = dlg_lenet(4, image_size=32, channels=1)
    params = with_uniform_init(model).init(jax.random.key(0))
    image = np.zeros((1, 32, 32, 1), np.float32)
    image[0, 8:16, 4:28] = 0.9
    gradient = gradient_of(model, params, image, np.eye(4, dtype=np.float32)[[2]])
    arrays = {
        "/".join((part, *(entry.key for entry in place))): np.array(leaf)
        for part, tree in (("params", params), ("gradient", gradient))
        for place, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    change(arrays)
    np.savez(path, **arrays)
    return image


@pytest.mark.slow
def test_a_gradient_of_one_s_own(stripes, tmp_path):
    image = own_gradient(tmp_path / "mine.npz")
    done = run(stripes, tmp_path / "run", "--attack=idlg", f"--gradient={tmp_path / 'mine.npz'}", "--iterations=400")
    assert done.returncode == 0, done.stderr
    saved = np.load(tmp_path / "run" / "rows" / "000.npz", allow_pickle=False)
    assert saved["labels"].tolist() == [[2]]
    assert float(saved["distance"][0]) < 1.0
    assert np.corrcoef(saved["images"].ravel(), image.ravel())[0, 1] > 0.8
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(row["metrics"]) == ["distance"]
    assert row["name"].endswith("predicted labels: 2")
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/png;base64,") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (lambda arrays: arrays.pop("params/layer0/bias"), [], "lacks params/layer0/bias, expected"),
        (lambda arrays: arrays.update({"params/more": np.zeros(1)}), [], "holds params/more, expected the arrays"),
        (
            lambda arrays: arrays.update({"gradient/layer7/Dense_0/bias": np.zeros(3)}),
            [],
            "gradient/layer7/Dense_0/bias of shape (3,), expected (4,)",
        ),
        (
            lambda arrays: arrays["gradient/layer7/Dense_0/bias"].fill(np.nan),
            [],
            "gradient: not finite, expected numbers",
        ),
        (lambda arrays: arrays["params/layer7/Dense_0/bias"].fill(np.nan), [], "params: not finite, expected numbers"),
        (
            lambda arrays: [arrays[name].fill(0) for name in arrays if name.startswith("gradient")],
            [],
            "gradient: zero everywhere, expected a value other than zero",
        ),
        (lambda arrays: None, ["--network=grnn_lenet"], "expected the arrays of the network"),
        (lambda arrays: None, ["--attack=inverting_gradients"], "labels=known: expected an array 'labels' in"),
        (
            lambda arrays: arrays.update(labels=np.array([4])),
            ["--attack=inverting_gradients"],
            "labels hold 4, expected 0 to 3",
        ),
        (lambda arrays: None, ["--local_shuffle"], "local_shuffle=True: expected several local steps and no"),
        (lambda arrays: None, ["--batch_sizes=1,2"], "batch_sizes=1,2: expected one with --gradient"),
        (lambda arrays: None, ["--defenses=pruning:0.1"], "defenses=pruning:0.1: expected none"),
        (lambda arrays: None, ["--training_steps=5"], "training_steps=5: expected 0 with --gradient"),
        (
            lambda arrays: None,
            ["--dirichlet_concentration=0.1"],
            "dirichlet_concentration=0.1: expected 0 with --gradient",
        ),
    ],
)
def test_a_gradient_of_another_model_is_refused(stripes, tmp_path, change, flags, message):
    """In this process, which is how the binary refuses it, at a fraction of the time."""
    own_gradient(tmp_path / "mine.npz", change)
    arguments = [f"--dataset=npz:{stripes}", "--channels=1", f"--gradient={tmp_path / 'mine.npz'}", *flags]
    config = config_from_arguments(gradient_inversion.GradientConfig, arguments)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        gradient_inversion.prepare(config, tmp_path / "run", False)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["gradient", "dataset"])
def test_a_run_on_files_that_have_changed_since_is_not_continued(tmp_path, changed):
    data, mine = write_stripes(tmp_path / "stripes.npz"), tmp_path / "mine.npz"
    own_gradient(mine)
    flags = [f"--dataset=npz:{data}", "--channels=1", f"--gradient={mine}"]
    config = config_from_arguments(gradient_inversion.GradientConfig, flags)
    close_run(gradient_inversion.prepare(config, tmp_path / "run", False).directory)
    close_run(gradient_inversion.prepare(config, tmp_path / "run", True).directory)
    if changed == "gradient":
        own_gradient(mine, lambda arrays: arrays["gradient/layer7/Dense_0/bias"].fill(0.5))
    else:
        with np.load(data) as arrays:
            other = {**arrays, "images": 255 - arrays["images"]}
        np.savez(data, **other)
    with pytest.raises(ValueError, match=f"holds a run on another {changed} .SHA-256 was "):
        gradient_inversion.prepare(config, tmp_path / "run", True)


@pytest.mark.parametrize("damage", ["missing", "cut", "a single array", "words"])
def test_a_file_that_cannot_be_read_is_refused(stripes, tmp_path, damage):
    path = tmp_path / "mine.npz"
    own_gradient(path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "a single array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        own_gradient(path, lambda arrays: arrays.update({"gradient/layer0/bias": np.array(["a"])}))
    config = config_from_arguments(
        gradient_inversion.GradientConfig, [f"--dataset=npz:{stripes}", "--channels=1", f"--gradient={path}"]
    )
    with pytest.raises(ValueError, match=re.escape(f"gradient={path}: ")) as raised:
        gradient_inversion.prepare(config, tmp_path / "run", False)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("expected an npz of numbers")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gradient_scale=-1"], "gradient_scale=-1.0: expected a finite number from 0"),
        (["--gradient_scale=nan"], "gradient_scale=nan: expected a finite number from 0"),
        (["--gradient_scale=8"], "gradient_scale=8.0: expected 1, or 0 to fit it, without --gradient"),
        (["--flatten_order=torch"], "flatten_order='torch': expected one of auto, hwc, chw"),
        (["--matching=best"], "matching=best: expected one of ordered, known_order, epoch_mean"),
        (["--matching=epoch_mean"], "matching=epoch_mean: expected ordered with one local step"),
        ([*SEVERAL, "--matching=ordered,ordered"], "matching=ordered,ordered: expected each once"),
        ([*SEVERAL, "--matching=known_order"], "matching=known_order: expected together with --local_shuffle"),
        (
            [*SEVERAL, "--matching=epoch_mean"],
            "matching=epoch_mean: expected two or more whole epochs, but 3 local steps use 6 images of 4",
        ),
        (["--local_shuffle"], "local_shuffle=True: expected several local steps"),
        (["--seed=-1"], "seed=-1: expected 0 to 9223372036854775807"),
        (["--attack=magic"], "attack='magic': expected one of dlg, idlg, inverting_gradients, grnn"),
        (["--network=vgg"], "network=vgg: expected one of dlg_lenet, dlg_lenet_batchnorm"),
        (["--initialisation=zero"], "initialisation=zero: expected one of wide, torch"),
        (["--batch_sizes=4,0"], "batch_sizes=4,0: expected whole numbers from 1"),
        (["--images=1000"], "batch_size=1, images=1000: expected fewer than 192 images in all"),
        (["--attack=idlg", "--batch_sizes=2"], "batch_sizes=2: expected at most 1 with idlg"),
        (["--attack=dlg", "--batch_sizes=65"], "batch_sizes=65: expected at most 64 with dlg"),
        (["--image_size=28"], "image_size=28: expected a power of two"),
        (
            ["--batch_sizes=4", "--local_batch_size=2"],
            "local_batch_size=2: expected a size with which 1 local steps use all 4 images",
        ),
        (["--attack=dlg", "--total_variation=0.1"], "total_variation=0.1: expected -1 with dlg, which has none"),
        (["--total_variation=-0.5"], "total_variation=-0.5: expected -1 or a finite number from 0"),
        (["--local_steps=2"], "local_steps=2: expected 1 with grnn"),
        (["--batch_sizes=4", "--local_batch_size=3"], "local_batch_size=3: expected a divisor of 4"),
        (["--defenses=prayer:1"], "defenses=prayer:1: expected none, or gaussian"),
        (["--defenses=none,pruning:1.0"], "defenses=pruning:1.0: expected as strength a number in [0, 1)"),
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
def test_bad_input_is_refused_in_one_line(stripes, tmp_path, flags, message):
    config = config_from_arguments(
        gradient_inversion.GradientConfig, [f"--dataset=npz:{stripes}", "--channels=1", "--images=2", *flags]
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)) as raised:
        gradient_inversion.prepare(config, tmp_path / "run", False)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_line_and_status_2(stripes, tmp_path):
    done = run(stripes, tmp_path / "run", "--batch_sizes=0")
    assert done.returncode == 2
    assert done.stderr == "error: batch_sizes=0: expected whole numbers from 1 to 999999999, with commas between\n"
    assert not (tmp_path / "run").exists()
