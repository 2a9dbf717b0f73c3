"""Sweeps: every combination is a cell once, cells of one shape come together, and rows belong to their cells."""

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest

from gan_leak.config import RunConfig, make_config
from gan_leak.evaluation.leakage import Leakage
from gan_leak.runs.federated import sweep
from gan_leak.runs.federated.batch import batch_directory, check_batch
from gan_leak.runs.federated.batch_files import BatchResult
from gan_leak.runs.federated.privacy import PrivacyPlan, solve_for_noise
from gan_leak.runs.federated.sweep import Cell, as_csv, make_cells, make_jobs, rows_of, with_privacy
from gan_leak.settings import replace, settings_of, values_of, with_defaults

GRID = {"upload_fraction": [0.1, 1.0], "batch_size": [64], "generator_steps": [1, 2], "learning_rate": [0.01, 0.1, 1.0]}


@pytest.fixture(scope="module")
def cells():
    return make_cells(make_config(seed=5), GRID, 2)


def batch_of(scores):
    """A batch that measured these scores, one a lane; None diverged."""
    records = []
    for score in scores:
        leakage = None if score is None else Leakage(score, {}, 0.9, 0.8, 0.1, 0.7, 0.6, 0.5)._asdict()
        records.append([{"round": 4, "model_accuracy": 0.5, "leakage": leakage, "diverged": score is None}])
    pictures = np.arange(len(scores), dtype=np.float32).reshape(-1, 1, 1, 1, 1, 1)
    measurability = [{}] * len(scores)
    return BatchResult([4], records, [{}] * len(scores), pictures, pictures[:, 0], {}, [9, 9], 100, measurability, 1.0)


def test_every_combination_is_a_cell_with_its_seeds(cells):
    assert len(cells) == 2 * 2 * 3
    assert [tuple(cell.swept.values()) for cell in cells[:4]] == [
        (0.1, 1, 0.01),
        (0.1, 1, 0.1),
        (0.1, 1, 1.0),
        (0.1, 2, 0.01),
    ]
    for cell in cells:
        assert list(cell.swept) == ["upload_fraction", "generator_steps", "learning_rate"]
        assert [lane.seed for lane in cell.lanes] == [5, 6]
        for lane in cell.lanes:
            assert {name: values_of(lane)[name] for name in cell.swept} == cell.swept
            assert with_defaults(lane, lambda setting: setting.name in {"seed", *GRID}) == make_config()


@pytest.mark.parametrize("most_lanes", [1, 4, 5, 100])
def test_jobs_hold_every_cell_once_and_keep_shapes_together(cells, tmp_path, most_lanes, monkeypatch):
    monkeypatch.setattr(
        sweep, "batch_job", lambda lanes, directory, _: SimpleNamespace(lanes=lanes, directory=directory)
    )
    jobs = make_jobs(cells, tmp_path, most_lanes)
    assert sorted(index for _, part in jobs for index in part) == list(range(len(cells)))
    assert len({job.directory for job, _ in jobs}) == len(jobs)
    shapes = []
    for job, part in jobs:
        check_batch(job.lanes)
        assert list(job.lanes) == [lane for index in part for lane in cells[index].lanes]
        assert len(job.lanes) <= max(most_lanes, 2)
        shapes.append(job.lanes[0].attack.generator_steps)
    assert shapes == sorted(shapes)
    assert not settings_of(RunConfig)["generator_steps"].varies_in_batch
    if most_lanes == 100:
        assert len(jobs) == 2
    assert [job.directory for job, _ in make_jobs(cells, tmp_path, most_lanes)] == [job.directory for job, _ in jobs]


def test_rows_belong_to_their_cells(cells):
    """Two cells of one batch, the second in front in the grid; a seed that diverged has no number."""
    rows = rows_of(cells, [3, 1], batch_of([0.2, 0.4, 0.8, None]))
    assert set(rows) == {1, 3}
    assert rows[3]["cell"] == cells[3].swept
    assert rows[3]["metrics"]["leakage_score"]["values"] == [0.2, 0.4]
    assert rows[1]["metrics"]["leakage_score"]["values"] == [0.8, None]
    assert (rows[3]["diverged"], rows[1]["diverged"]) == (0, 1)


def test_the_table_is_csv_with_a_line_for_each_row(cells):
    rows = rows_of(cells, [0, 1], batch_of([0.2, 0.4, 0.8, None]))
    first, second = csv.DictReader(io.StringIO(as_csv([rows[0], rows[1]])))
    assert {name: first[name] for name in ("upload_fraction", "generator_steps", "learning_rate")} == {
        "upload_fraction": "0.1",
        "generator_steps": "1",
        "learning_rate": "0.01",
    }
    assert float(first["leakage_score_mean"]) == pytest.approx(0.3)
    assert float(first["leakage_score_low"]) < 0.3 < float(first["leakage_score_high"])
    assert (second["leakage_score_mean"], second["leakage_score_low"], second["diverged"]) == ("0.8", "", "1")
    assert (second["diverged"], second["not_measurable"]) == ("1", "0")
    assert as_csv([]) == ""


def test_rows_and_table_hold_what_a_cell_promises(cells):
    """An epsilon without a finite bound is left empty, as are those of cells without a defense."""
    promised = [cells[0]._replace(privacy={"epsilon": 2.5, "delta": 1e-5}), cells[1], cells[2]]
    promised[1] = cells[1]._replace(privacy={"epsilon": None, "delta": 1e-5})
    rows = rows_of(promised, [0, 1, 2], batch_of([0.2] * 6))
    lines = csv.DictReader(io.StringIO(as_csv([rows[0], rows[1], rows[2]])))
    assert [(line["epsilon"], line["delta"]) for line in lines] == [("2.5", "1e-05"), ("", "1e-05"), ("", "")]


def test_a_batch_runs_with_noise_and_not_with_a_target(tmp_path):
    """What is kept under the name of a batch does not hang on how its noise was found."""
    config = make_config(defense="dp_sgd")
    wanted = replace(config, target_epsilon=3.0)
    with pytest.raises(ValueError, match=r"target_epsilon=3\.0: expected 0 in a batch"):
        check_batch([config, wanted])
    solved = with_privacy(
        Cell({}, (wanted,)), lambda lane: solve_for_noise(PrivacyPlan(lane, (640, 640), 0, 3.0))
    ).lanes
    given = replace(config, noise_multiplier=solved[0].defense.hyperparameters.noise_multiplier)
    assert given != config
    check_batch(solved)
    assert batch_directory(tmp_path, solved) == batch_directory(tmp_path, [given])


@pytest.mark.parametrize(
    ("values", "seeds", "named"),
    [
        ({"learning_rate": []}, 1, "learning_rate="),
        ({"learning_rate": [0.1, 0.1]}, 1, "learning_rate=0.1,0.1"),
        ({"learning_rate": [0.1]}, 0, "num_seeds=0"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(values, seeds, named):
    with pytest.raises(ValueError, match=named):
        make_cells(make_config(), values, seeds)
