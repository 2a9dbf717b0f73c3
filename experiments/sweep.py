"""Sweep of settings: the attack for each combination, over several seeds, in one table, one map and one report.

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
from gan_leak.config import RunConfig
from gan_leak.reports.sweep import sweep_files
from gan_leak.runs.federated.batch_files import read_result
from gan_leak.runs.federated.measurement import make_instrument_source
from gan_leak.runs.federated.result import NOT_MEASURABLE_STATUS
from gan_leak.runs.federated.sweep import Cell, SeedPictures, as_csv, make_jobs, pictures_of, rows_of
from gan_leak.runs.federated.sweep_plan import plan_sweep, swept_values
from gan_leak.runs.hosts.workers import check_workers, default_workers, running, tell
from gan_leak.runs.storage.directory import RunDirectory, close_run, open_run, read_config_file, write_atomic
from gan_leak.runs.storage.integrity import expect_kinds
from gan_leak.settings import Setting, at_least, check_values, flat_class, option, values_of

_LANES_ON_AN_ACCELERATOR = 64
_MOST_LINES_OF_DESCRIPTION = 40
_FILES = ("results.csv", "results.jsonl", "report.html", "intervals.png", "surface.png", "reconstructions.png")


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Seeds, processes and batches of a sweep."""

    num_seeds: int = option(3, "Number of seeds of each cell; the first is --seed.")
    workers: int = option(
        0, "Number of processes; 0 = one for each core, at most 4, and one on a GPU.", bounds=at_least(0), effect="call"
    )
    most_lanes: int = option(0, "Runs in one batch; 0 = those of a cell, or 64 on a GPU.", bounds=at_least(0))


def _as_flag(setting: Setting) -> Setting:
    if not setting.sweepable:
        return setting
    text = f"{setting.help} Separate several values with commas to sweep them."
    unchecked: Any = {"choices": (), "bounds": None, "check": None}
    return dataclasses.replace(setting, type=str, default=str(setting.default), help=text, **unchecked)


SweepConfig: Any = flat_class("SweepConfig", RunConfig, _as_flag, SweepOptions)


class PreparedSweep(NamedTuple):
    """A sweep with checked input. description: the owners of the data and the target of each attack, a line each."""

    config: Any
    cells: list[Cell]
    directory: RunDirectory
    description: tuple[str, ...] = ()


def prepare(config: Any, workdir: pathlib.Path, resume: bool) -> PreparedSweep:
    """Check all cells and their data and open the directory; raises ValueError for bad input."""
    check_values(config)
    check_workers(config.workers)
    cells, description = plan_sweep(*swept_values(values_of(config)), config.num_seeds)
    privacy = {cell.name: dict(cell.privacy) for cell in cells if cell.privacy}
    directory = open_run(workdir, config, resume=resume, privacy=privacy, check=_check_directory)
    for change in directory.differences:
        tell(f"not the machine or versions this sweep began with: {change}")
    return PreparedSweep(config, cells, directory, description)


def _check_directory(path: pathlib.Path) -> None:
    expect_kinds(path, ("batches",), _FILES)


def execute(prepared: PreparedSweep) -> int:
    """Run the cells without a result, and rewrite the tables after each batch.

    Returns the exit status: 0, or 3 with ``fail_if_not_measurable`` where a cell has no leakage score.
    """
    config, cells, directory, description = prepared
    for line in description[:_MOST_LINES_OF_DESCRIPTION]:
        tell(line)
    try:
        accelerator = jax.default_backend() != "cpu"
        most_lanes = config.most_lanes or (_LANES_ON_AN_ACCELERATOR if accelerator else 1)
        jobs = make_jobs(cells, directory.path / "batches", most_lanes)
        workers = config.workers or default_workers()
        rows: dict[int, dict[str, Any]] = {}
        pictures: dict[int, list[SeedPictures]] = {}
        began = time.monotonic()
        with running([job for job, _ in jobs], workers, make_instrument_source(tell), tell) as wait:
            for job, part in jobs:
                wait(job.directory)
                result = read_result(job.directory)
                rows |= rows_of(cells, part, result)
                pictures |= pictures_of(cells, part, result)
                left = (time.monotonic() - began) / len(rows) * (len(cells) - len(rows))
                tell(f"{len(rows)} of {len(cells)} cells, {left:.0f} s left")
                _write_tables(directory.path, [rows[index] for index in sorted(rows)])
        environment = read_config_file(directory.path)
        drawn = {cells[index].name: pictures[index] for index in sorted(pictures)}
        for name, content in sweep_files([rows[index] for index in sorted(rows)], environment, drawn).items():
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
