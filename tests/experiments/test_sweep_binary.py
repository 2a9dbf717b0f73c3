"""The sweep binary: comma lists make a grid, finished cells are kept, bad input is one line and exit status 2."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from experiments import sweep
from experiments.sweep import SweepConfig
from gan_leak.runs.federated.privacy import plan_privacy, promise_of
from gan_leak.runs.federated.setup import prepare_data
from gan_leak.runs.hosts import workers
from reference.quick import use_linear_networks, write_stripes

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


def config_for(stripes, **changes):
    settings = {
        "dataset": f"npz:{stripes}",
        "participant_classes": "0,1;2,3",
        "target_class": "0",
        "judge_samples": "80",
        "samples_per_participant": "40",
        "batch_size": "16",
        "rounds": "2",
        "generator_steps": "1",
        "generator_batch_size": "8",
        "fakes_per_round": "16",
        "evaluation_interval": "2",
        "evaluation_samples": "12",
        "learning_rate": "0.01, 0.1",
        "upload_fraction": "0.1,1",
        "num_seeds": 2,
        "workers": 1,
    }
    return SweepConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def finished_sweep(stripes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_linear_networks(patch)
        assert sweep.execute(sweep.prepare(config_for(stripes), workdir, False)) == 0
    return workdir


@pytest.mark.slow
def test_the_grid_is_one_table_in_its_order(finished_sweep):
    lines = list(csv.DictReader((finished_sweep / "results.csv").read_text().splitlines()))
    cells = [(float(line["learning_rate"]), float(line["upload_fraction"])) for line in lines]
    assert cells == [(0.01, 0.1), (0.01, 1.0), (0.1, 0.1), (0.1, 1.0)]
    assert {line["seeds"] for line in lines} == {"2"}
    rows = [json.loads(line) for line in (finished_sweep / "results.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == [{"learning_rate": a, "upload_fraction": b} for a, b in cells]
    for row, line in zip(rows, lines, strict=True):
        assert float(line["model_accuracy_mean"]) == row["metrics"]["model_accuracy"]["mean"]
        assert len(row["metrics"]["leakage_score"]["values"]) == 2
    # A higher rate and a larger part of the update teach a linear network more in two rounds.
    assert rows[3]["metrics"]["model_accuracy"]["mean"] > rows[0]["metrics"]["model_accuracy"]["mean"]


def test_the_report_shows_the_map_and_every_cell(finished_sweep):
    page = (finished_sweep / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    for text in ("learning_rate=0.01, upload_fraction=0.1", "learning_rate=0.1, upload_fraction=1.0"):
        assert text in page
    assert (finished_sweep / "surface.png").read_bytes().startswith(b"\x89PNG")


def test_finished_cells_are_read_back_and_missing_ones_run(finished_sweep, stripes, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(finished_sweep, workdir)
    lost = next((workdir / "batches").iterdir())
    shutil.rmtree(lost)
    use_linear_networks(monkeypatch)
    made, run = [], workers.run_batch
    monkeypatch.setattr(workers, "run_batch", lambda *arguments: (made.append(arguments[1].name), run(*arguments)))
    sweep.execute(sweep.prepare(config_for(stripes), workdir, True))
    assert made == [lost.name]
    assert (workdir / "results.csv").read_text() == (finished_sweep / "results.csv").read_text()


@pytest.mark.slow
def test_a_damaged_batch_is_told_and_run_again(finished_sweep, stripes, tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(finished_sweep, workdir)
    damaged = next((workdir / "batches").iterdir())
    data = bytearray((damaged / "result.json").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "result.json").write_bytes(data)
    (workdir / "results.csv").write_text("nonsense")
    use_linear_networks(monkeypatch)
    sweep.execute(sweep.prepare(config_for(stripes), workdir, True))
    assert f"{damaged / 'result.json'}: damaged" in "".join(capfd.readouterr())
    assert (damaged / "result.json.damaged").read_bytes() == data
    assert (workdir / "results.csv").read_text() == (finished_sweep / "results.csv").read_text()


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"config": {}, "versions": 1}'])
def test_a_malformed_config_is_refused(finished_sweep, stripes, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: damaged .*choose another --workdir"):
        sweep.prepare(config_for(stripes), tmp_path, True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.slow
def test_a_target_of_privacy_is_swept(stripes, tmp_path, monkeypatch):
    """Each cell has the noise for its target, by the data that each seed deals out, and tells what that promises."""
    use_linear_networks(monkeypatch)
    changes = {
        **{"defense": "dp_sgd", "target_epsilon": "1,8", "learning_rate": "0.1", "upload_fraction": "1"},
        **{"partition": "dirichlet", "dirichlet_concentration": "5", "batch_size": "8"},
    }
    prepared = sweep.prepare(config_for(stripes, **changes), tmp_path / "run", False)
    small, large = prepared.cells
    assert [cell.swept for cell in prepared.cells] == [{"target_epsilon": 1.0}, {"target_epsilon": 8.0}]
    for cell in prepared.cells:
        spent = [promise_of(plan_privacy(lane, prepare_data(lane))).loss.epsilon for lane in cell.lanes]
        target = cell.swept["target_epsilon"]
        assert all(0.98 * target < epsilon <= target for epsilon in spent)
        assert cell.privacy["epsilon"] == max(spent)
        assert {lane.defense.target_epsilon for lane in cell.lanes} == {0.0}
        assert [lane.seed for lane in cell.lanes] == [0, 1]
    assert (
        small.lanes[0].defense.hyperparameters.noise_multiplier
        > 2 * large.lanes[0].defense.hyperparameters.noise_multiplier
    )
    assert sweep.execute(prepared) == 0
    lines = list(csv.DictReader((tmp_path / "run" / "results.csv").read_text().splitlines()))
    assert [(line["target_epsilon"], line["delta"]) for line in lines] == [("1.0", "1e-05"), ("8.0", "1e-05")]
    assert [float(line["epsilon"]) for line in lines] == [cell.privacy["epsilon"] for cell in prepared.cells]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["privacy"]
    assert stored["target_epsilon=1.0"]["epsilon"] == small.privacy["epsilon"]
    assert "What the defense promises" in (tmp_path / "run" / "report.html").read_text()


def test_without_a_defense_the_table_promises_nothing(finished_sweep):
    lines = list(csv.DictReader((finished_sweep / "results.csv").read_text().splitlines()))
    assert {(line["epsilon"], line["delta"]) for line in lines} == {("", "")}
    assert "What the defense promises" not in (finished_sweep / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target_epsilon": "1,3"}, "target_epsilon=1.0: expected with defense"),
        ({"target_epsilon": "1,-3", "defense": "dp_sgd"}, "target_epsilon=-3.0"),
        ({"target_epsilon": "1", "defense": "dp_sgd", "noise_multiplier": "1,2"}, "expected noise_multiplier left"),
        ({"learning_rate": "0.1,fast"}, "learning_rate=fast"),
        ({"learning_rate": ""}, "learning_rate="),
        ({"rounds": "2,2.5"}, "rounds=2.5"),
        ({"upload_fraction": "0.1,2"}, "upload_fraction=2"),
        ({"upload_fraction": "0.1,0.1"}, "upload_fraction=0.1,0.1"),
        ({"attack": "active,none"}, "attack=none"),
        ({"attack": "active,sleepy"}, "attack='sleepy'"),
        ({"target_class": "0,9"}, "target_class=9"),
        ({"num_seeds": 0}, "num_seeds=0"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(stripes, tmp_path, changes, named):
    with pytest.raises(ValueError, match=named) as raised:
        sweep.prepare(config_for(stripes, **changes), tmp_path / "run", False)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_the_binary_takes_presets_and_comma_lists(tmp_path):
    command = [sys.executable, "-m", "experiments.sweep", f"--workdir={tmp_path / 'run'}", "--preset=figure14a"]
    done = subprocess.run(
        [*command, "--epsilon_per_release=1,0"], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: epsilon_per_release=0")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
