"""A run: what it writes, that it resumes to the same bits, that it stops in order, and what it refuses."""

import numpy as np
import pytest

from gan_leak.performance import PerformanceOptions
from gan_leak.reports.run import report_files
from gan_leak.runs.federated import train
from gan_leak.runs.federated.result import DIVERGED_STATUS
from gan_leak.settings import replace
from reference.quick import small_run
from reference.whole_run import measured, run

# What is promised around the networks does not depend on which they are.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("linear_networks")]


@pytest.fixture
def config(stripes):
    return small_run(stripes, samples_per_participant=0, checkpoint_interval=2)


def results(workdir):
    """What a run found: reconstructions and metrics, bit for bit."""
    return (workdir / "reconstructions.npz").read_bytes(), measured(workdir)


def test_a_run_returns_what_it_found_and_draws_nothing(config, tmp_path):
    prepared = train.prepare(config, tmp_path / "run", False)
    result = train.train(prepared)
    train.close(prepared)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert not written & {"report.html", "figures"}
    assert {"reconstructions.npz", "metrics.jsonl", "config.json"} <= written
    assert (result.config, result.divergence, result.is_trained) == (config, None, True)
    assert [{**record, "seconds": None} for record in result.records] == measured(tmp_path / "run")
    assert list(result.images_by_round) == [2, 4]
    archive = np.load(tmp_path / "run" / "reconstructions.npz")
    np.testing.assert_array_equal(np.concatenate(list(result.images_by_round.values())), archive["images"])
    assert next(iter(result.comparison)) == "reconstructions"
    assert result.comparison["reconstructions"] == result.records[-1]["leakage"]
    assert 0.0 <= result.judge_test_accuracy <= 1.0
    assert "versions" in result.environment
    assert not {"config", "privacy"} & set(result.environment)
    # The report is a function of the result, and written beside it.
    assert list(report_files(result)) == [
        *(f"figures/{name}.png" for name in ("reconstructions", "evolution", "curves")),
        "report.html",
    ]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_run_resumes_to_the_same_bits(config, tmp_path, monkeypatch, stop_after):
    run(config, tmp_path / "whole")
    show = train.show_record

    def interrupt(display, record):
        show(display, record)
        if record["round"] == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "show_record", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "parts")
    assert run(config, tmp_path / "parts", resume=True) == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_divergence_stops_the_run_and_keeps_what_was_computed(config, tmp_path, capsys):
    config = replace(config, learning_rate=1e30, rounds=50)
    assert run(config, tmp_path / "run") == DIVERGED_STATUS
    shown = capsys.readouterr().err
    assert "Training diverged in round" in shown
    assert "learning_rate=1e+30" in shown
    assert "Training diverged in round" in (tmp_path / "run" / "report.html").read_text()
    if (tmp_path / "run" / "metrics.jsonl").exists():
        assert all(np.isfinite(record["losses"]).all() for record in measured(tmp_path / "run"))


def test_without_the_attack_nothing_is_reconstructed(config, tmp_path):
    assert run(replace(config, attack="none"), tmp_path / "run") == 0
    assert not (tmp_path / "run" / "reconstructions.npz").exists()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": "passive"},
        {"schedule": "synchronous", "aggregation": "average", "local_epochs": 2},
        {"schedule": "random_order", "upload_criterion": "random", "upload_threshold": 1e-4, "upload_bound": 0.01},
        {"partition": "iid", "upload_fraction": 0.1, "download_fraction": 0.5},
        {"participant_classes": "0;1;2;3;", "adversary": 4, "generator_optimizer": "adam", "fake_memory_rounds": 3},
        {"participant_classes": "1;2,3", "target_class": 0},
    ],
    ids=["passive", "federated averaging", "random order", "iid", "adversary without data", "class nobody owns"],
)
def test_every_setting_runs(config, tmp_path, changes):
    assert run(replace(config, rounds=2, **changes), tmp_path / "run") == 0
    assert np.isfinite(measured(tmp_path / "run")[-1]["losses"]).all()


def test_another_configuration_does_not_get_the_directory(config, tmp_path):
    run(replace(config, rounds=2), tmp_path / "run")
    with pytest.raises(ValueError, match="seed"):
        train.prepare(replace(config, rounds=2, seed=5), tmp_path / "run", True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dataset": "minst"}, "minst"),
        ({"dataset": "npz:/nowhere.npz"}, "nowhere"),
        ({"target_class": 2}, "target"),
        ({"target_class": 4}, "target_class=4"),
        ({"adversary": 2}, "adversary=2"),
        ({"upload_fraction": 0.0}, "upload_fraction=0.0"),
        ({"download_fraction": 1.5}, "download_fraction=1.5"),
        ({"adversary_download_fraction": 1.5}, "adversary_download_fraction=1.5"),
        ({"normalization": "batch", "defense": "dp_sgd"}, "normalization='batch'"),
        ({"upload_fraction": float("nan")}, "upload_fraction=nan"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"generator_learning_rate": float("inf")}, "generator_learning_rate=inf"),
        ({"learning_rate_decay": -1e-7}, "learning_rate_decay"),
        ({"upload_bound": 0.0}, "upload_bound=0.0"),
        ({"upload_threshold": -0.1}, "upload_threshold=-0.1"),
        ({"batch_size": 1000}, "batch_size=1000"),
        ({"rounds": 0}, "rounds=0"),
        ({"image_size": 28}, "image_size=28"),
        ({"schedule": "parallel"}, "schedule='parallel'"),
        ({"aggregation": "average"}, "aggregation='average'"),
        ({"participant_classes": "0-3"}, "participant_classes"),
        ({"participant_classes": "0,9;1"}, "participant_classes"),
        ({"fakes_per_round": 0}, "fakes_per_round=0"),
        ({"generator_width": 0}, "generator_width=0"),
        ({"generator_averaging": 1.0}, "generator_averaging=1.0"),
        ({"generator_averaging": -0.1}, "generator_averaging=-0.1"),
        ({"defense": "hope"}, "defense='hope'"),
        ({"epsilon_per_release": 0.0}, "epsilon_per_release=0.0"),
        ({"epsilon_per_release": float("nan")}, "epsilon_per_release=nan"),
        ({"sensitivity": 0.0}, "sensitivity=0.0"),
        ({"sensitivity": float("inf")}, "sensitivity=inf"),
        ({"clipping_norm": 0.0}, "clipping_norm=0.0"),
        ({"clipping_norm": float("inf")}, "clipping_norm=inf"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
        ({"noise_multiplier": float("inf")}, "noise_multiplier=inf"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"defense": "sparse_vector"}, "upload_bound=inf"),
        ({"defense": "sparse_vector", "upload_bound": 0.1, "upload_fraction": 1.01}, "upload_fraction=1.01"),
        ({"judge_samples": 8}, "judge"),
        ({"performance": PerformanceOptions(convolution="fft")}, "performance.convolution='fft'"),
        ({"performance": PerformanceOptions(seed_mapping="loop")}, "performance.seed_mapping='loop'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(config, tmp_path, changes, named):
    with pytest.raises(ValueError, match=named.replace(".", r"\.")) as raised:
        train.prepare(replace(config, **changes), tmp_path / "run", False)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
