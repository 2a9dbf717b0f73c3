"""The binary that attacks the leakage score: its files, its errors, and the same results from the same command."""

import json

import numpy as np
import pytest

from experiments import score_attacks
from experiments.common.flags import config_from_arguments
from gan_leak.evaluation import impostors, measurability
from gan_leak.evaluation.impostors import DEGRADATIONS, IMPOSTORS
from gan_leak.runs.federated import score_attacks as attacks
from gan_leak.runs.storage.directory import close_run
from gan_leak.runs.storage.integrity import RefusedError
from reference.quick import use_linear_networks, write_stripes


@pytest.fixture
def stripes(tmp_path, monkeypatch):
    """Flags for four classes of striped pictures; descents are short, and the other data set is noise."""
    use_linear_networks(monkeypatch)
    monkeypatch.setattr(impostors, "_DESCENTS", ((0.05, (2,)),))
    monkeypatch.setattr(impostors, "_SMOOTH_DESCENTS", ((0.05, (2,)),))
    noise = np.random.default_rng(0).uniform(-1, 1, (20, 32, 32, 1)).astype(np.float32)
    monkeypatch.setattr(attacks, "other_data_sets", lambda dataset, shape: {"noise": noise})
    monkeypatch.setattr(score_attacks, "other_data_sets", attacks.other_data_sets)
    path = write_stripes(tmp_path / "stripes.npz", per_class=120)
    return [f"--dataset=npz:{path}", "--judge_samples=160", "--samples_per_participant=60", "--pictures=4"]


def _prepared(arguments, workdir, resume=False):
    config = config_from_arguments(score_attacks.ScoreAttacksConfig, arguments)
    return score_attacks.prepare(config, workdir, resume)


@pytest.mark.slow
def test_a_run_writes_its_scores_its_pictures_and_a_page(stripes, tmp_path):
    workdir = tmp_path / "run"
    written = []
    for resume in (False, True):
        assert score_attacks.execute(_prepared([*stripes, "--target_classes=0, 3"], workdir, resume)) == 0
        written.append((workdir / "results.json").read_bytes())
    assert written[0] == written[1]
    results = json.loads(written[0])
    assert [(row["class"], row["kind"]) for row in results["impostors"]] == [(c, k) for c in "03" for k in IMPOSTORS]
    assert all(0 <= row["score"] <= row["smallest_view"] <= 1 for row in results["impostors"])
    assert [(row["class"], row["kind"]) for row in results["degradations"]] == [
        (c, k) for c in "03" for k in DEGRADATIONS
    ]
    assert all(len(row["scores"]) == len(row["strengths"]) for row in results["degradations"])
    assert [row["score"] for row in results["references"] if row["kind"] == "copies"] == [1.0, 1.0]
    with np.load(workdir / "impostors.npz", allow_pickle=False) as pictures:
        assert pictures["3, mirrored"].shape == (4, 32, 32, 1)
    page = (workdir / "report.html").read_text()
    assert page.count("<img") == 4
    assert "class 3, low-pass noise" in page
    names = {path.name for path in (workdir / "figures").iterdir()}
    assert names == {"impostor_scores.png", "degradations.png", "impostors_0.png", "impostors_3.png"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--target_classes=9"], "target_class=9: "),
        (["--target_classes="], "target_classes='': expected at least one class"),
        (["--target_classes=0,0"], "target_classes='0,0': expected each class once"),
        (["--pictures=1"], "pictures=1: "),
        (["--dataset=nothing"], "dataset='nothing'"),
        (["--samples_per_participant=4"], "target_class=0: 2 private images"),
    ],
)
def test_bad_input_is_refused_in_one_line(stripes, tmp_path, arguments, line):
    with pytest.raises(ValueError, match=r"expected|dataset|target_class") as refused:
        close_run(_prepared([*stripes, "--target_classes=0", *arguments], tmp_path / "run").directory)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_class_that_is_not_measurable_is_refused(stripes, tmp_path, monkeypatch):
    """With the reason, instead of scores that mean nothing."""
    monkeypatch.setattr(measurability, "LEAST_HELD_OUT_SCORE", 1.5)
    with pytest.raises(RefusedError, match="class 0 is not measurable: real images"):
        score_attacks.execute(_prepared([*stripes, "--target_classes=0"], tmp_path / "run"))
