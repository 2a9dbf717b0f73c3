"""Runs with the networks of the papers: all that a run writes, and what only such networks show."""

import json

import numpy as np
import pytest
from PIL import Image

from gan_leak.config import RunConfig
from gan_leak.performance import PerformanceOptions
from gan_leak.runs.federated import measurement
from gan_leak.settings import from_json, replace
from reference.quick import small_run, untrained_judge
from reference.whole_run import measured, run

pytestmark = pytest.mark.slow

CLASSES = 4


@pytest.fixture(scope="module", autouse=True)
def _untrained_judge():
    """The quality of the judge is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "load_or_train_judge", untrained_judge)
        yield


@pytest.fixture
def config(stripes):
    return small_run(stripes, samples_per_participant=0, checkpoint_interval=2)


def sum_of_parameters(outputs):
    """Parameters of the paper's MNIST classifier with this many outputs, counted by hand."""
    return 832 + 51264 + 51400 + 201 * outputs


def test_a_run_writes_all_that_it_promises(config, tmp_path, capsys):
    assert run(config, tmp_path / "run") == 0
    run_path = tmp_path / "run"
    saved = json.loads((run_path / "config.json").read_text())
    assert from_json(RunConfig, saved["config"]) == config
    assert {"jax", "python", "gan_leak"} <= set(saved["versions"])
    archive = np.load(run_path / "reconstructions.npz", allow_pickle=False)
    assert archive["images"].dtype == np.float32
    assert archive["images"].shape == (2 * config.evaluation.samples, 32, 32, 1)
    assert -1.0 <= archive["images"].min() < archive["images"].max() <= 1.0
    assert sorted(set(archive["rounds"].tolist())) == [2, 4]
    assert set(archive["labels"].tolist()) == {config.attack.target_class}
    records = measured(run_path)
    assert [record["round"] for record in records] == [1, 2, 3, 4]
    assert [("leakage" in record) for record in records] == [False, True, False, True]
    assert 0.0 <= records[-1]["leakage"]["leakage_score"] <= 1.0
    assert records[-1]["uploaded"] == [sum_of_parameters(CLASSES + 1)] * 2
    for name in ("reconstructions", "evolution", "curves"):
        Image.open(run_path / "figures" / f"{name}.png").verify()
    page = (run_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert sorted(path.name for path in (run_path / "checkpoints").glob("round_*.sha256"))[-1] == "round_000004.sha256"
    shown = capsys.readouterr().err
    assert "leakage score" in shown
    assert str(run_path / "report.html") in shown


def test_chunks_of_rounds_do_not_change_the_results(config, tmp_path, compiled_as_for_users):
    run(config, tmp_path / "one")
    run(replace(config, performance=PerformanceOptions(rounds_per_chunk=3)), tmp_path / "three")
    pictures = [(tmp_path / name / "reconstructions.npz").read_bytes() for name in ("one", "three")]
    assert pictures[0] == pictures[1]
    assert measured(tmp_path / "three") == measured(tmp_path / "one")


def test_the_stock_convolution_gives_the_same_run_to_float_tolerance(config, tmp_path):
    config = replace(config, rounds=2)
    run(config, tmp_path / "matmul")
    run(replace(config, performance=PerformanceOptions(convolution="lax")), tmp_path / "lax")
    losses = [[record["losses"] for record in measured(tmp_path / name)] for name in ("matmul", "lax")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_batch_normalization_trains(config, tmp_path):
    changes = {
        "partition": "iid",
        "upload_fraction": 0.1,
        "download_fraction": 0.5,
        "normalization": "batch",
        "rounds": 2,
    }
    assert run(replace(config, **changes), tmp_path / "run") == 0
    assert np.isfinite(measured(tmp_path / "run")[-1]["losses"]).all()
