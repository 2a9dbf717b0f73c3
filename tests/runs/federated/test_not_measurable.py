"""Runs whose leakage cannot be measured: null and "not measurable" everywhere, never 0, and a status of its own."""

import json

import numpy as np
import pytest

from gan_leak.runs.federated.result import NOT_MEASURABLE_STATUS
from gan_leak.settings import replace
from reference.quick import small_run
from reference.whole_run import run

pytestmark = pytest.mark.usefixtures("linear_networks")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Classes that differ in nothing but their label: no view can tell them apart."""
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    pictures = np.random.default_rng(0).integers(0, 255, (240, 32, 32), np.uint8)
    np.savez(path, images=pictures, labels=np.arange(240) % 4)
    return small_run(path, rounds=2)


@pytest.mark.slow
def test_a_run_without_a_score_says_so_and_goes_on(config, tmp_path, capsys):
    assert run(config, tmp_path / "run") == 0
    shown = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("The leakage score is not measurable: ") for line in shown) == 1
    assert any(line.split() == ["leakage", "score", "not", "measurable"] for line in shown)
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["leakage"]["leakage_score"] is None
    assert record["leakage"]["leakage_by_representation"]["pixels"] is None
    assert 0.0 <= record["leakage"]["judge_accuracy"] <= 1.0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not measurable" in page
    assert "Left out: " in page
    assert (tmp_path / "run" / "reconstructions.npz").exists()


@pytest.mark.slow
def test_a_script_may_ask_to_fail_before_training(config, tmp_path, capsys):
    """And go on later without the flag, in the same directory."""
    asked = replace(config, fail_if_not_measurable=True)
    assert run(asked, tmp_path / "run") == NOT_MEASURABLE_STATUS == 3
    assert "The leakage score is not measurable: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert run(config, tmp_path / "run", resume=True) == 0
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_run_with_a_score_does_not_fail(stripes, tmp_path):
    asked = small_run(stripes, rounds=2, samples_per_participant=0, fail_if_not_measurable=True)
    status = run(asked, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["leakage"]["leakage_score"] is not None
    assert status == 0


@pytest.mark.slow
def test_without_an_attack_there_is_nothing_to_measure(config, tmp_path):
    assert run(replace(config, attack="none", fail_if_not_measurable=True), tmp_path / "run") == 0
