"""Checks of a reproduction before any run: flags, presets, claims, data and its directory."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import gan_leak
from experiments.reproduction.calls import earlier_calls
from experiments.reproduction.claims import left_out, settings_at
from experiments.reproduction.hitaj import (
    FIGURES,
    SCALES,
    Figure,
    check_names,
    select_figures,
)
from experiments.reproduction.other_papers import TABLES, Table
from experiments.reproduction.study import Study, batches_of, check_pictures
from experiments.reproduction.table_sections import TableRun, check_table
from gan_leak.reports.reproduction_results import FORMAT
from gan_leak.runs.federated.batch import check_batch
from gan_leak.runs.federated.measurement import make_instrument_source
from gan_leak.runs.federated.setup import build_experiment, prepare_data
from gan_leak.runs.federated.sweep import check_seeds
from gan_leak.runs.hosts.workers import check_workers, tell
from gan_leak.runs.memory import check_run
from gan_leak.runs.storage.directory import RunDirectory, close_run, open_run
from gan_leak.runs.storage.integrity import RefusedError, expect_kinds
from gan_leak.settings import at_least, check_values, option

RESULTS_NAME = "results.json"
REPORT_NAME = "report.html"
_SEEDS = 3
_NUMBERS = tuple(section.number for section in (*FIGURES, *TABLES))


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """The scope of a reproduction; its settings are presets."""

    figures: str = option(
        "all",
        f"'all', or numbers separated by commas: {', '.join(_NUMBERS)}. A preset of a setting, such as figure7, in the "
        "place of a number runs that setting alone.",
        effect="call",
    )
    scale: str = option(
        "quick",
        "'quick': shortened runs of the nearest settings that work, about half an hour on two CPU cores; 'paper': the "
        "paper's own hyperparameters beside them, at full length.",
        choices=SCALES,
    )
    paper_hyperparameters: bool = option(
        True, "At the scale 'paper', also run the paper's own hyperparameters, which take longest.", effect="call"
    )
    every_control: bool = option(
        True,
        "At the scale 'paper', run the controls of every setting of a figure. Otherwise all settings are judged by the "
        "controls of the first, as at the scale 'quick', which halves the time.",
        effect="call",
    )
    num_seeds: int = option(0, "Seeds of each setting; 0 = 3.", bounds=at_least(0))
    most_samples: int = option(
        0, "Largest number of training images of each participant, to save time; 0 = no limit.", bounds=at_least(0)
    )
    most_rounds: int = option(0, "Largest number of rounds, to save time; 0 = no limit.", bounds=at_least(0))
    workers: int = option(
        0,
        "Number of processes; 0 = one for each core, at most 4, and one on a GPU.",
        bounds=at_least(0),
        effect="call",
    )
    fail_if_not_measurable: bool = option(
        False, "Exit with status 3 if the leakage of a claim cannot be measured.", effect="call", later=True
    )
    cifar10: str = option(
        "tfds:cifar10",
        "CIFAR-10 for two sections, in the form of --dataset.",
        effect="call",
    )


class Prepared(NamedTuple):
    """A reproduction with checked input: its sections, its options and its directory.

    unavailable: by number, why a figure or table is not run, for its data or the scale. workers: processes, 0 for the
    default. calls: command and seconds of each earlier call on the directory. began: the start of this call by
    ``time.monotonic``.
    """

    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    study: Study
    table_run: TableRun
    directory: RunDirectory
    unavailable: dict[str, str]
    workers: int
    calls: list[dict[str, Any]]
    began: float
    fail_if_not_measurable: bool


def prepare(config: ReproduceConfig, workdir: pathlib.Path, resume: bool) -> Prepared:
    """Check flags, presets and data, and open the directory; raises ValueError for bad input."""
    began = time.monotonic()
    _check_flags(config)
    figures, tables = select_figures(config.figures, FIGURES), select_figures(config.figures, TABLES)
    study = Study(
        config.scale,
        config.paper_hyperparameters,
        config.every_control,
        config.num_seeds or _SEEDS,
        {"samples_per_participant": config.most_samples, "rounds": config.most_rounds},
        config.cifar10,
        workdir,
        make_instrument_source(tell),
        tell,
    )
    table_run = TableRun(config.scale, workdir / "tables", config.cifar10)
    unreadable, notes = _check_figures(config, study, figures)
    unavailable = _check_scale(config, (*figures, *tables)) | unreadable | _check_tables(config, table_run, tables)
    _check_version(workdir)
    directory = _open_directory(config, study.num_seeds, workdir, resume)
    for note in notes:
        tell(note)
    calls = earlier_calls(workdir, tell)
    fail = config.fail_if_not_measurable
    return Prepared(figures, tables, study, table_run, directory, unavailable, config.workers, calls, began, fail)


def _check_flags(config: ReproduceConfig) -> None:
    check_names(config.figures, _NUMBERS)
    if config.num_seeds == 1:
        raise ValueError("num_seeds=1: expected at least 2, since verdicts need intervals over seeds")
    check_values(config)
    check_seeds(config.num_seeds, least=0)
    check_workers(config.workers)


def _check_scale(config: ReproduceConfig, sections: Sequence[Figure | Table]) -> dict[str, str]:
    """By number, why the scale has nothing of a section; raises ValueError for one that the user named."""
    unavailable = {}
    for section in sections:
        if not settings_at(section.settings, config.scale):
            reason = " ".join(dict.fromkeys(left_out(section.settings, config.scale).values()))
            if config.figures != "all":
                raise ValueError(f"figures={section.number}, scale={config.scale}: expected the scale paper. {reason}")
            unavailable[section.number] = reason
    return unavailable


def _check_figures(
    config: ReproduceConfig, study: Study, figures: Sequence[Figure]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Check every batch; return by figure why its data cannot be read, and data notes."""
    unavailable = {}
    notes: dict[str, None] = {}
    for figure in figures:
        for configs in batches_of(study, figure).values():
            check_batch(configs)
            try:
                data = prepare_data(configs[0])
                check_run(configs[0], data, build_experiment(configs[0], data), lanes=len(configs))
                check_pictures(figure, config.cifar10, data)
                notes.update(dict.fromkeys(data.notes))
            except (ValueError, OSError) as error:
                # Only CIFAR-10 may be missing, and only if the user did not name its figure or its data set.
                if config.figures != "all" or configs[0].data.dataset != ReproduceConfig.cifar10:
                    raise
                unavailable[figure.number] = str(error)
    return unavailable, tuple(notes)


def _check_tables(config: ReproduceConfig, run: TableRun, tables: Sequence[Table]) -> dict[str, str]:
    unavailable = {}
    for table in tables:
        try:
            check_table(run, table)
        except RefusedError:
            raise
        except (ValueError, OSError) as error:
            if config.figures != "all" or config.cifar10 != ReproduceConfig.cifar10:
                raise
            unavailable[table.number] = str(error)
    return unavailable


def _check_version(workdir: pathlib.Path) -> None:
    path = workdir / RESULTS_NAME
    if not path.is_file():
        return
    try:
        results = json.loads(path.read_bytes())
        found = results["format"], results["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        # The other files of the directory give it again; config.json also holds the version.
        tell(f"{path}: damaged, will be written again")
        return
    if found != (FORMAT, gan_leak.__version__):
        raise ValueError(
            f"workdir={workdir}: holds results of version {found[1]} (format {found[0]}), expected "
            f"{gan_leak.__version__} (format {FORMAT}); choose another --workdir"
        )


def _open_directory(config: ReproduceConfig, seeds: int, workdir: pathlib.Path, resume: bool) -> RunDirectory:
    # Later calls may name other figures or another CIFAR-10: these settings affect only the call.
    lasting = dataclasses.replace(config, num_seeds=seeds)
    directory = open_run(workdir, lasting, resume=resume, check=_check_directory)
    if other := [change for change in directory.differences if change.startswith("versions.gan_leak ")]:
        close_run(directory)
        raise ValueError(f"workdir={workdir}: {other[0]}; choose another --workdir")
    for change in directory.differences:
        tell(f"not the machine or versions this reproduction began with: {change}")
    return directory


def _check_directory(path: pathlib.Path) -> None:
    expect_kinds(path, ("batches", "figures", "tables"), (RESULTS_NAME, REPORT_NAME))
