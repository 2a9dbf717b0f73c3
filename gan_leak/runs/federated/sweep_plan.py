"""Plan of a sweep: the values of each swept setting, and cells with checked data, memory and privacy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gan_leak.config import RunConfig, make_config, validate
from gan_leak.runs.federated.batch import check_batch
from gan_leak.runs.federated.owners import describe_run
from gan_leak.runs.federated.privacy import PrivacyPlan, counts_for_privacy, solve_for_noise
from gan_leak.runs.federated.setup import build_experiment, class_number, prepare_data
from gan_leak.runs.federated.sweep import Cell, make_cells, with_privacy
from gan_leak.runs.memory import check_run
from gan_leak.settings import Setting, check_values, program_of, replace, settings_of, with_defaults


class SweepPlan(NamedTuple):
    """Checked cells of a sweep. description: the owners of the data and the target of each attack, a line each."""

    cells: list[Cell]
    description: tuple[str, ...]


def swept_values(given: Mapping[str, Any]) -> tuple[RunConfig, dict[str, list[Any]]]:
    """The configuration that all cells share, and the values of each setting that can be swept.

    given: the value of every setting of RunConfig by name; those that can be swept are text with commas between
    values. Raises ValueError for a value of another type, and for a class that the data set does not have.
    """
    fixed, values = {}, {}
    for name, setting in settings_of(RunConfig).items():
        if name == "target_class":
            values[name] = [class_number(given["dataset"], part) for part in given[name].split(",")]
        elif setting.sweepable:
            values[name] = [_parse(setting, part) for part in given[name].split(",")]
        else:
            fixed[name] = given[name]
    return make_config(**fixed), values


def _parse(setting: Setting, text: str) -> Any:
    try:
        return setting.type(text.strip())
    except ValueError:
        expected = "a whole number" if setting.type is int else "a number"
        raise ValueError(f"{setting.name}={text}: expected {expected}, or several with commas between") from None


def plan_sweep(config: RunConfig, values: Mapping[str, Sequence[Any]], num_seeds: int) -> SweepPlan:
    """Make all cells and check their settings, data, memory and privacy; raises ValueError for bad input."""
    cells = make_cells(config, values, num_seeds)
    if "none" in values["attack"]:
        raise ValueError("attack=none: expected active, passive or both, since a sweep measures leakage")
    counts: dict[RunConfig, tuple[tuple[int, ...], int]] = {}
    description: dict[str, None] = {}

    def plan_of(lane: RunConfig) -> PrivacyPlan:
        # Cells that differ only in traced values have the same data.
        kind = with_defaults(lane, lambda setting: setting.kind == "traced")
        kind = dataclasses.replace(kind, defense=program_of(lane).defense)
        if kind not in counts:
            data = prepare_data(lane)
            # The size of a run does not depend on its noise, which is not known yet.
            sized = replace(lane, target_epsilon=0.0)
            check_run(sized, data, build_experiment(sized, data), lanes=num_seeds)
            description.update(dict.fromkeys(describe_run(lane, data)))
            counts[kind] = counts_for_privacy(lane, data)
        return solve_for_noise(PrivacyPlan(lane, *counts[kind], lane.defense.target_epsilon))

    for cell in cells:
        validate(cell.lanes[0])
        check_values(cell.lanes[-1])
    cells = [with_privacy(cell, plan_of) for cell in cells]
    for cell in cells:
        check_batch(cell.lanes)
    return SweepPlan(cells, tuple(description))
