"""A grid of settings: its cells, the batches of cells that share a program, and the table of results."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gan_leak.config import RunConfig
from gan_leak.evaluation.criteria import STATISTICS
from gan_leak.runs.federated.batch import batch_directory, take_lanes
from gan_leak.runs.federated.batch_files import BatchResult
from gan_leak.runs.federated.privacy import PrivacyPlan, privacy_fields
from gan_leak.runs.federated.rows import attack_row
from gan_leak.runs.hosts.workers import Job, batch_job
from gan_leak.settings import replace, settings_of, value_of

_COUNTS = ("rounds", "seeds", "diverged", "not_measurable")
# All seeds of a cell are in memory at once, and a table lists all runs.
MOST_SEEDS = 1000
MOST_RUNS = 100_000


class Cell(NamedTuple):
    """One point of the grid.

    swept: the fields that the grid varies, with their values in this cell. lanes: one for each seed. privacy: the worst
    promise over all lanes and participants, see ``gan_leak.runs.federated.privacy.privacy_fields``.
    """

    swept: dict[str, object]
    lanes: tuple[RunConfig, ...]
    privacy: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        return ", ".join(f"{field}={value}" for field, value in self.swept.items()) or "the only cell"


class SeedPictures(NamedTuple):
    """The last reconstructions [M, H, W, C] of one seed and their leakage score, None if there is none."""

    seed: int
    score: float | None
    images: np.ndarray


def check_seeds(num_seeds: int, *, least: int) -> None:
    """Raise ValueError for fewer seeds than ``least`` or more than ``MOST_SEEDS``."""
    if not least <= num_seeds <= MOST_SEEDS:
        raise ValueError(f"num_seeds={num_seeds}: expected {least} to {MOST_SEEDS}")


def make_cells(config: RunConfig, values: Mapping[str, Sequence[Any]], num_seeds: int) -> list[Cell]:
    """All combinations of the values by field, each with ``num_seeds`` lanes. The last field varies fastest.

    A field of one value is set, but not in ``swept``. Raises ValueError for a field without values or with a repeated
    one, for fewer than one seed or more than ``MOST_SEEDS``, and for more than ``MOST_RUNS`` runs.
    """
    check_seeds(num_seeds, least=1)
    for field, choices in values.items():
        if not choices or len(set(choices)) < len(choices):
            raise ValueError(f"{field}={','.join(map(str, choices))}: expected at least one value, and none twice")
    count = math.prod(map(len, values.values()))
    if count * num_seeds > MOST_RUNS:
        named = ", ".join(f"{len(choices)} of {field}" for field, choices in values.items() if len(choices) > 1)
        raise ValueError(
            f"num_seeds={num_seeds}: {count:,} cells ({named}) make {count * num_seeds:,} runs, expected at most "
            f"{MOST_RUNS:,}"
        )
    varied = [field for field, choices in values.items() if len(choices) > 1]
    cells = []
    for combination in itertools.product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        own = replace(config, **settings)
        lanes = tuple(dataclasses.replace(own, seed=config.seed + seed) for seed in range(num_seeds))
        cells.append(Cell({field: settings[field] for field in varied}, lanes))
    return cells


def with_privacy(cell: Cell, plan_of: Callable[[RunConfig], PrivacyPlan]) -> Cell:
    """The cell with the noise for its target epsilon in every lane, and with the worst promise of its lanes.

    plan_of: the plan for a configuration, see ``gan_leak.runs.federated.privacy.plan_privacy``. Raises the same
    ValueError.
    """
    # With all other partitions, the number of records of a participant does not depend on the seed.
    by_seed = cell.lanes[0].data.partition == "dirichlet"
    plans = [plan_of(lane) for lane in (cell.lanes if by_seed else cell.lanes[:1])]
    lanes = tuple(
        dataclasses.replace(plan.config, seed=lane.seed)
        for plan, lane in zip(plans if by_seed else plans * len(cell.lanes), cell.lanes, strict=True)
    )
    promises = [privacy_fields(plan) for plan in plans]
    worst = max(promises, key=lambda fields: math.inf if fields.get("epsilon") is None else fields["epsilon"])
    return cell._replace(lanes=lanes, privacy=worst)


def shape_of(config: RunConfig) -> str:
    """The settings that all configurations of one program share, as text."""
    settings = settings_of(RunConfig).items()
    return json.dumps({name: value_of(config, setting) for name, setting in settings if not setting.varies_in_batch})


def make_jobs(cells: Sequence[Cell], directory: pathlib.Path, most_lanes: int) -> list[tuple[Job, list[int]]]:
    """Batches of at most ``most_lanes`` lanes, but at least one cell, and the indices of their cells.

    Cells of one shape are adjacent, so that a worker compiles their program once.
    """
    by_shape: dict[str, list[int]] = {}
    for index, cell in enumerate(cells):
        by_shape.setdefault(shape_of(cell.lanes[0]), []).append(index)
    jobs = []
    for indices in by_shape.values():
        cells_per_job = max(1, most_lanes // len(cells[indices[0]].lanes))
        for start in range(0, len(indices), cells_per_job):
            part = indices[start : start + cells_per_job]
            lanes = [lane for index in part for lane in cells[index].lanes]
            name = cells[part[0]].name + (f" and {len(part) - 1} more" if len(part) > 1 else "")
            jobs.append((batch_job(lanes, batch_directory(directory, lanes), name), part))
    return jobs


def rows_of(cells: Sequence[Cell], part: Sequence[int], batch: BatchResult) -> dict[int, dict[str, Any]]:
    """The rows of a batch by index of the cell: its swept fields, and each measure as an interval over the seeds."""
    rows, first = {}, 0
    for index in part:
        last = first + len(cells[index].lanes)
        row = attack_row(cells[index].name, "attack", take_lanes(batch, slice(first, last)))
        rows[index] = {**row, "cell": cells[index].swept, "privacy": dict(cells[index].privacy)}
        first = last
    return rows


def pictures_of(cells: Sequence[Cell], part: Sequence[int], batch: BatchResult) -> dict[int, list[SeedPictures]]:
    """The last pictures of each seed of a batch, by index of the cell."""
    found: dict[int, list[SeedPictures]] = {}
    lane = 0
    for index in part:
        found[index] = []
        for config in cells[index].lanes:
            leakage = batch.records[lane][-1]["leakage"] or {}
            found[index].append(SeedPictures(config.seed, leakage.get("leakage_score"), batch.pictures[lane, -1]))
            lane += 1
    return found


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The CSV text of the rows, a line each: swept fields, counts, epsilon and delta, and the intervals of measures.

    The counts are those of rounds, seeds, diverged seeds and seeds that are not measurable. Epsilon and delta are empty
    without a defense; an infinite epsilon is empty. Each measure has mean, low and high.
    """
    if not rows:
        return ""
    metrics = list(rows[0]["metrics"])
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [f"{metric}_{statistic}" for metric in metrics for statistic in STATISTICS]
    writer.writerow([*rows[0]["cell"], *_COUNTS, "epsilon", "delta", *heads])
    for row in rows:
        numbers = [row["metrics"][metric][statistic] for metric in metrics for statistic in STATISTICS]
        promise = [row["privacy"].get(name) for name in ("epsilon", "delta")]
        writer.writerow([*row["cell"].values(), *(row[count] for count in _COUNTS), *promise, *numbers])
    return file.getvalue()
