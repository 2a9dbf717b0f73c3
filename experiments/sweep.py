"""A grid of settings of the attack, each over several seeds: one table, one map of the leakage, one report.

python -m experiments.sweep --upload_fraction=0.01,0.1,1 --download_fraction=0.1,1 --workdir=runs/sweep
python -m experiments.sweep --preset=figure14a --preset=nearest_mnist --epsilon_per_release=1,10,100,1000
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import dataclasses
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax

from experiments.common.flags import run_binary
from gan_leak.config import RunConfig, make_config, validate
from gan_leak.reports.sweep import sweep_files
from gan_leak.runs.federated.batch import check_batch
from gan_leak.runs.federated.batch_files import read_result
from gan_leak.runs.federated.measurement import make_instrument_source
from gan_leak.runs.federated.owners import describe_run
from gan_leak.runs.federated.privacy import PrivacyPlan, counts_for_privacy, solve_for_noise
from gan_leak.runs.federated.result import NOT_MEASURABLE_STATUS
from gan_leak.runs.federated.setup import build_experiment, class_number, prepare_data
from gan_leak.runs.federated.sweep import Cell, as_csv, make_cells, make_jobs, rows_of, with_privacy
from gan_leak.runs.hosts.workers import check_workers, default_workers, running, tell
from gan_leak.runs.memory import check_run
from gan_leak.runs.storage.directory import RunDirectory, close_run, open_run, read_config_file, write_atomic
from gan_leak.runs.storage.integrity import expect_kinds
from gan_leak.settings import (
    Setting,
    at_least,
    check_values,
    flat_class,
    option,
    program_of,
    replace,
    settings_of,
    values_of,
    with_defaults,
)

_LANES_ON_AN_ACCELERATOR = 64
_MOST_LINES_TOLD = 40


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """How a grid is run."""

    num_seeds: int = option(3, "Seeds of each cell, from --seed on.")
    workers: int = option(
        0, "Processes side by side; 0 = one a core, at most 4; one on a GPU.", bounds=at_least(0), effect="call"
    )
    most_lanes: int = option(
        0, "Runs that share a program at a time; 0 = those of a cell, or 64 on a GPU.", bounds=at_least(0)
    )


def _as_flag(setting: Setting) -> Setting:
    if not setting.sweepable:
        return setting
    text = f"{setting.help} Several, with commas between, are swept."
    unchecked: Any = {"choices": (), "bounds": None, "check": None}
    return dataclasses.replace(setting, type=str, default=str(setting.default), help=text, **unchecked)


SweepConfig: Any = flat_class("SweepConfig", RunConfig, _as_flag, SweepOptions)


class PreparedSweep(NamedTuple):
    """A sweep whose input has been checked. told: who owns what and what is attacked, a line each."""

    config: Any
    cells: list[Cell]
    directory: RunDirectory
    told: tuple[str, ...] = ()


def _parse(setting: Setting, text: str) -> Any:
    try:
        return setting.type(text.strip())
    except ValueError:
        expected = "a whole number" if setting.type is int else "a number"
        raise ValueError(f"{setting.name}={text}: expected {expected}, or several with commas between") from None


def _values(config: Any) -> tuple[RunConfig, dict[str, list[Any]]]:
    """The configuration that all cells share, and the values of each setting that may be swept.

    Raises ValueError for a value of another type, and for a class that the data set does not have.
    """
    given = values_of(config)
    fixed, values = {}, {}
    for name, setting in settings_of(RunConfig).items():
        if name == "target_class":
            values[name] = [class_number(config.dataset, part) for part in given[name].split(",")]
        elif setting.sweepable:
            values[name] = [_parse(setting, part) for part in given[name].split(",")]
        else:
            fixed[name] = given[name]
    return make_config(**fixed), values


def prepare(config: Any, workdir: pathlib.Path, resume: bool) -> PreparedSweep:
    """Checks every cell and its data and opens the directory; raises ValueError for bad input."""
    check_values(config)
    check_workers(config.workers)
    shared, values = _values(config)
    cells = make_cells(shared, values, config.num_seeds)
    if "none" in values["attack"]:
        raise ValueError("attack=none: expected active, passive or both, since a sweep measures leakage")
    dealt: dict[RunConfig, tuple[tuple[int, ...], int]] = {}
    told: dict[str, None] = {}

    def plan_of(lane: RunConfig) -> PrivacyPlan:
        # Cells that differ in numbers only have their data in common.
        kind = with_defaults(lane, lambda setting: setting.kind == "traced")
        kind = dataclasses.replace(kind, defense=program_of(lane).defense)
        if kind not in dealt:
            data = prepare_data(lane)
            # Its size does not depend on the noise, which is yet to be solved for.
            sized = replace(lane, target_epsilon=0.0)
            check_run(sized, data, build_experiment(sized, data), lanes=config.num_seeds)
            told.update(dict.fromkeys(describe_run(lane, data)))
            dealt[kind] = counts_for_privacy(lane, data)
        return solve_for_noise(PrivacyPlan(lane, *dealt[kind], lane.defense.target_epsilon))

    for cell in cells:
        validate(cell.lanes[0])
        check_values(cell.lanes[-1])
    cells = [with_privacy(cell, plan_of) for cell in cells]
    for cell in cells:
        check_batch(cell.lanes)
    privacy = {cell.name: dict(cell.privacy) for cell in cells if cell.privacy}
    directory = open_run(workdir, config, resume=resume, privacy=privacy, check=_check_directory)
    for change in directory.differences:
        tell(f"not the machine or versions this sweep began with: {change}")
    return PreparedSweep(config, cells, directory, tuple(told))


def _check_directory(path: pathlib.Path) -> None:
    expect_kinds(path, ("batches",), ("results.csv", "results.jsonl", "report.html", "intervals.png", "surface.png"))


def execute(prepared: PreparedSweep) -> int:
    """Runs the cells that are not there yet, and writes the tables anew after each batch of them.

    Returns the exit status: 0, or 3 with ``fail_if_not_measurable`` where a cell has no leakage score.
    """
    config, cells, directory, told = prepared
    for line in told[:_MOST_LINES_TOLD]:
        tell(line)
    try:
        accelerator = jax.default_backend() != "cpu"
        most_lanes = config.most_lanes or (_LANES_ON_AN_ACCELERATOR if accelerator else 1)
        jobs = make_jobs(cells, directory.path / "batches", most_lanes)
        workers = config.workers or default_workers()
        rows: dict[int, dict[str, Any]] = {}
        began = time.monotonic()
        with running([job for job, _ in jobs], workers, make_instrument_source(tell), tell) as wait:
            for job, part in jobs:
                wait(job.directory)
                rows |= rows_of(cells, part, read_result(job.directory))
                left = (time.monotonic() - began) / len(rows) * (len(cells) - len(rows))
                tell(f"{len(rows)} of {len(cells)} cells, {left:.0f} s left")
                _write_tables(directory.path, [rows[index] for index in sorted(rows)])
        environment = read_config_file(directory.path)
        for name, content in sweep_files([rows[index] for index in sorted(rows)], environment).items():
            write_atomic(directory.path / name, content)
        tell(f"written: {directory.path / 'report.html'}, {directory.path / 'results.csv'}")
    finally:
        close_run(directory)
    unmeasured = any(row["not_measurable"] for row in rows.values())
    return NOT_MEASURABLE_STATUS if unmeasured and config.fail_if_not_measurable else 0


def _write_tables(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    write_atomic(path / "results.csv", as_csv(rows).encode())
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_atomic(path / "results.jsonl", lines.encode())


if __name__ == "__main__":
    run_binary(prepare, execute, SweepConfig)
