"""Gradients as users have them, from the flags to the row: labels, layouts, sums, frozen layers and local epochs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gradient_inversion
from experiments.common.flags import config_from_arguments
from gan_leak.attacks.gradient.observation import gradient_of
from gan_leak.models.gradient_networks import dlg_lenet, with_uniform_init
from gan_leak.runs.storage.directory import close_run
from gan_leak.runs.storage.integrity import sealed_json

ROWS_OF_CHANNELS = np.arange(64 * 12).reshape(64, 12).T.ravel()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Ten classes of noise, which only tell that there are ten."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 10
    np.savez(path, images=rng.integers(0, 255, (100, 32, 32), dtype=np.uint8), labels=labels)
    return path


def save_gradient(path, labels, *, wide=False, factor=1.0, change=lambda arrays: None):
    """What a participant with these labels sent, and its images."""
    model = dlg_lenet(10, image_size=32, channels=1)
    params = (with_uniform_init(model) if wide else model).init(jax.random.key(0))
    images = np.zeros((len(labels), 32, 32, 1), np.float32)
    for place, image in enumerate(images):
        image[4 * place + 4 : 4 * place + 12, 4:28] = 0.9
    gradient = jax.jit(lambda: gradient_of(model, params, images, jnp.eye(10)[np.array(labels)]))()
    arrays = {
        "/".join((part, *(entry.key for entry in place))): np.array(leaf) * (factor if part == "gradient" else 1)
        for part, tree in (("params", params), ("gradient", gradient))
        for place, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    change(arrays)
    np.savez(path, **arrays)
    return images


def attack(digits, tmp_path, *flags, name="run"):
    arguments = [f"--dataset=npz:{digits}", "--channels=1", "--images=4", *flags]
    config = config_from_arguments(gradient_inversion.GradientConfig, arguments)
    workdir = tmp_path / name
    assert gradient_inversion.execute(gradient_inversion.prepare(config, workdir, False)) == 0
    rows = json.loads((workdir / "results.json").read_text())
    saved = [np.load(workdir / "rows" / f"{place:03d}.npz", allow_pickle=False) for place in range(len(rows))]
    return rows, saved, (workdir / "report.html").read_text()


@pytest.mark.parametrize("told", ["known", "inferred"])
def test_a_batch_with_repeated_labels_is_attacked(digits, tmp_path, told):
    def label(arrays):
        if told == "known":
            arrays["labels"] = np.array([3, 3, 7, 1])

    save_gradient(tmp_path / "mine.npz", [3, 3, 7, 1], change=label)
    flags = (f"--gradient={tmp_path / 'mine.npz'}", "--batch_sizes=4", "--iterations=3", f"--labels={told}")
    _, (saved,), _ = attack(digits, tmp_path, "--attack=inverting_gradients", *flags)
    assert sorted(saved["labels"].ravel().tolist()) == [1, 3, 3, 7]


def test_a_gradient_in_torch_s_flatten_order_is_put_in_ours_or_said_not_to_match(digits, tmp_path, capsys):
    def as_torch(arrays):
        for part in ("params", "gradient"):
            name = f"{part}/layer7/Dense_0/kernel"
            arrays[name] = arrays[name][ROWS_OF_CHANNELS]

    image = save_gradient(tmp_path / "mine.npz", [2], wide=True, change=as_torch)
    flags = ("--attack=idlg", f"--gradient={tmp_path / 'mine.npz'}", "--iterations=400")
    (row,), (saved,), page = attack(digits, tmp_path, *flags)
    assert np.corrcoef(saved["images"].ravel(), image.ravel())[0, 1] > 0.8
    assert row["gradient"]["matched"] is True
    assert "(C, H, W) of PyTorch, as inferred from the gradient" in page
    capsys.readouterr()
    (row,), (saved,), page = attack(digits, tmp_path, *flags, "--flatten_order=hwc", name="other")
    assert row["gradient"]["matched"] is False
    assert row["gradient"]["unexplained"] > 0.31
    for text in (*row["notes"], page, capsys.readouterr().err):
        assert "the gradient was NOT MATCHED" in text
        assert "--flatten_order" in text
        assert "several local steps" in text


@pytest.mark.parametrize("scale", [8, 0])
def test_the_scale_of_a_sum_may_be_given_or_left_to_the_gradient(digits, tmp_path, scale):
    image = save_gradient(tmp_path / "mine.npz", [2], wide=True, factor=8.0)
    flags = ("--attack=idlg", f"--gradient={tmp_path / 'mine.npz'}", "--iterations=400", f"--gradient_scale={scale}")
    (row,), (saved,), _ = attack(digits, tmp_path, *flags)
    assert np.corrcoef(saved["images"].ravel(), image.ravel())[0, 1] > 0.8
    assert row["gradient"].get("scale", 8) == pytest.approx(8.0, rel=1e-3)


def test_frozen_layers_are_not_matched_and_said_so(digits, tmp_path, compiled_as_for_users):
    def freeze(arrays):
        for name in [name for name in arrays if name.startswith("gradient/layer0")]:
            del arrays[name]

    image = save_gradient(tmp_path / "mine.npz", [2], wide=True, change=freeze)
    flags = ("--attack=idlg", f"--gradient={tmp_path / 'mine.npz'}", "--iterations=800", "--restarts=8")
    (row,), (saved,), page = attack(digits, tmp_path, *flags)
    assert np.corrcoef(saved["images"].ravel(), image.ravel())[0, 1] > 0.8
    assert (row["gradient"]["arrays"], row["gradient"]["of_arrays"]) == (6, 8)
    assert "6 of 8 arrays were matched" in page


@pytest.mark.parametrize("method", ["dlg", "inverting_gradients", "grnn"])
def test_every_attack_takes_a_gradient_of_the_last_two_arrays(digits, tmp_path, method):
    def freeze(arrays):
        for name in [name for name in arrays if name.startswith("gradient/") and "layer7" not in name]:
            del arrays[name]

    save_gradient(tmp_path / "mine.npz", [2], wide=True, change=freeze)
    flags = (f"--attack={method}", f"--gradient={tmp_path / 'mine.npz'}", "--iterations=2", "--labels=inferred")
    (row,), _, _ = attack(digits, tmp_path, *flags)
    assert row["gradient"]["parameters"] == 768 * 10 + 10


def test_ways_to_match_reshuffled_epochs_are_rows_of_one_table(digits, tmp_path):
    flags = ("--attack=inverting_gradients", "--batch_sizes=2", "--images=2", "--local_steps=4", "--local_batch_size=1")
    several = (*flags, "--local_shuffle", "--matching=known_order,ordered,epoch_mean", "--iterations=3")
    rows, saved, _ = attack(digits, tmp_path, *several, "--initialisation=torch")
    assert [row["name"].rpartition(", ")[2] for row in rows] == ["known order", "ordered", "epoch mean"]
    assert all(entry["images"].shape == (1, 2, 32, 32, 1) for entry in saved)


def test_a_directory_that_does_not_know_the_later_flags_is_continued(digits, tmp_path):
    config = config_from_arguments(
        gradient_inversion.GradientConfig, [f"--dataset=npz:{digits}", "--channels=1", "--images=2", "--attack=dlg"]
    )
    close_run(gradient_inversion.prepare(config, tmp_path / "run", False).directory)
    later = {"local_shuffle", "matching", "flatten_order", "gradient_scale"}
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["config"] = {name: value for name, value in stored["config"].items() if name not in later}
    del stored["sha256"]
    (tmp_path / "run" / "config.json").write_bytes(sealed_json("config.json", stored))
    close_run(gradient_inversion.prepare(config, tmp_path / "run", True).directory)
    changed = config_from_arguments(
        gradient_inversion.GradientConfig,
        [f"--dataset=npz:{digits}", "--channels=1", "--images=2", "--attack=dlg", "--gradient_scale=0"],
    )
    with pytest.raises(ValueError, match=r"gradient_scale was 1\.0, now 0\.0"):
        gradient_inversion.prepare(changed, tmp_path / "run", True)
