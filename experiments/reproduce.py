"""Every experiment of Hitaj, Ateniese and Perez-Cruz (CCS 2017) and of the papers after it, claims beside measures.

python -m experiments.reproduce --scale=quick --workdir=runs/reproduce
python -m experiments.reproduce --scale=paper --figures=6,7 --workdir=runs/paper
python -m experiments.reproduce --scale=quick --workdir=runs/reproduce --resume
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import dataclasses
import json
import os
import pathlib
import shlex
import sys
import time
from typing import Any, NamedTuple

import gan_leak
from experiments.common.flags import run_binary
from experiments.reproduction.hitaj import FIGURES, SCALES, Figure, check_names, select_figures
from experiments.reproduction.other_papers import TABLES, Table, TableRun, check_table, table_basis, table_entry
from experiments.reproduction.section_files import (
    KeptSection,
    read_section,
    set_damaged_aside,
    write_error,
    write_section,
)
from experiments.reproduction.sections import Study, basis_of, batches_of, check_pictures, jobs_of, make_section
from gan_leak.config import check_counts
from gan_leak.evaluation.criteria import Verdict
from gan_leak.evaluation.leakage import DEFINITIONS
from gan_leak.reports.reconstruction import DEFINITIONS as RECONSTRUCTION_DEFINITIONS
from gan_leak.reports.reproduction import render_reproduction
from gan_leak.reports.reproduction_results import FORMAT
from gan_leak.runs.federated.batch import check_batch
from gan_leak.runs.federated.measurement import make_instrument_source
from gan_leak.runs.federated.result import NOT_MEASURABLE_STATUS
from gan_leak.runs.federated.setup import build_experiment, prepare_data
from gan_leak.runs.federated.sweep import check_seeds
from gan_leak.runs.hosts.workers import check_workers, default_workers, running, tell
from gan_leak.runs.memory import check_run
from gan_leak.runs.storage.directory import RunDirectory, close_run, open_run, read_config_file, write_atomic
from gan_leak.runs.storage.integrity import (
    DamagedError,
    RefusedError,
    expect_kinds,
    read_file,
    read_json,
    sealed_json,
    set_aside,
)

_SEEDS = 3
_CALLS_NAME = "calls.json"
_NUMBERS = tuple(section.number for section in (*FIGURES, *TABLES))


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """What to reproduce; the settings themselves are presets."""

    figures: str = dataclasses.field(
        default="all",
        metadata={"help": "'all', or numbers separated by commas: " + ", ".join(_NUMBERS)},
    )
    scale: str = dataclasses.field(
        default="quick",
        metadata={
            "help": "'quick': shortened runs of the nearest settings that work, about 50 minutes on two CPU cores; "
            "'paper': the paper's own hyper-parameters beside them, at full length.",
            "choices": SCALES,
        },
    )
    paper_hyperparameters: bool = dataclasses.field(
        default=True,
        metadata={"help": "At the paper's scale, run its own hyper-parameters too, which take longest."},
    )
    num_seeds: int = dataclasses.field(default=0, metadata={"help": "Seeds of each setting; 0 = 3."})
    most_samples: int = dataclasses.field(
        default=0, metadata={"help": "Cuts the training images of each participant, for want of time; 0 = no cut."}
    )
    most_rounds: int = dataclasses.field(default=0, metadata={"help": "Cuts the rounds likewise; 0 = no cut."})
    workers: int = dataclasses.field(
        default=0,
        metadata={"help": "Processes that run settings side by side; 0 = one a core, at most 4; one on a GPU."},
    )
    fail_if_not_measurable: bool = dataclasses.field(
        default=False,
        metadata={"help": "Exit with status 3 if the leakage of a claim cannot be measured.", "later": True},
    )
    cifar10: str = dataclasses.field(
        default="tfds:cifar10",
        metadata={"help": "Where CIFAR-10 is, for two sections: a data set as --dataset takes it."},
    )


class Prepared(NamedTuple):
    """A reproduction whose input has been checked: what to run, how, and in which directory.

    calls: command and seconds of each call that worked on the directory before; began: when this one did.
    """

    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    study: Study
    directory: RunDirectory
    unavailable: dict[str, str]
    workers: int
    calls: list[dict[str, Any]]
    began: float
    fail_if_not_measurable: bool


def prepare(config: ReproduceConfig, workdir: pathlib.Path, resume: bool) -> Prepared:
    """Checks flags, presets and data, and opens the directory; raises ValueError for bad input."""
    began = time.monotonic()
    _check(config)
    figures, tables = select_figures(config.figures, FIGURES), select_figures(config.figures, TABLES)
    seeds = config.num_seeds or _SEEDS

    cuts = {"samples_per_participant": config.most_samples, "rounds": config.most_rounds}
    study = Study(
        config.scale,
        config.paper_hyperparameters,
        seeds,
        cuts,
        config.cifar10,
        workdir,
        make_instrument_source(tell),
        tell,
    )
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
                # Only CIFAR-10 has to be brought along; asked for by name, its absence is an error like any other.
                if config.figures != "all" or configs[0].dataset != ReproduceConfig.cifar10:
                    raise
                unavailable[figure.number] = str(error)
    for table in tables:
        try:
            check_table(TableRun(config.scale, workdir / "tables", config.cifar10), table)
        except RefusedError:
            raise
        except (ValueError, OSError) as error:
            if config.figures != "all" or config.cifar10 != ReproduceConfig.cifar10:
                raise
            unavailable[table.number] = str(error)
    _check_version(workdir)
    # What a directory holds may grow from one call to the next, with CIFAR-10 brought along in between.
    default = ReproduceConfig()
    lasting = dataclasses.replace(
        default, scale=config.scale, num_seeds=seeds, most_samples=config.most_samples, most_rounds=config.most_rounds
    )
    directory = open_run(workdir, lasting, resume=resume, check=_check_directory)
    if other := [change for change in directory.differences if change.startswith("versions.gan_leak ")]:
        close_run(directory)
        raise ValueError(f"workdir={workdir}: {other[0]}; choose another --workdir")
    for change in directory.differences:
        tell(f"not the machine or versions this reproduction began with: {change}")
    for note in notes:
        tell(note)
    earlier, fail = _earlier_calls(workdir), config.fail_if_not_measurable
    return Prepared(figures, tables, study, directory, unavailable, config.workers, earlier, began, fail)


def _check(config: ReproduceConfig) -> None:
    check_names(config.figures, _NUMBERS)
    if config.num_seeds == 1:
        raise ValueError("num_seeds=1: expected at least 2, since the verdicts rest on intervals over seeds")
    for name in ("num_seeds", "most_samples", "most_rounds", "workers"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name}={getattr(config, name)}: expected at least 0")
    check_counts(config)
    check_seeds(config.num_seeds, least=0)
    check_workers(config.workers)


def _check_directory(path: pathlib.Path) -> None:
    expect_kinds(path, ("batches", "figures", "tables"), ("results.json", "report.html"))


def _earlier_calls(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = workdir / _CALLS_NAME
    try:
        return _read_calls(path) if os.path.lexists(path) else []
    except DamagedError as error:
        tell(f"{error}: renamed to {set_aside(path).name}; the report will not count the time of earlier calls")
        return []


def _read_calls(path: pathlib.Path) -> list[dict[str, Any]]:
    # Without a digest, it is a list.
    if read_file(path).startswith(b"["):
        try:
            calls = json.loads(read_file(path))
        except (ValueError, RecursionError):
            calls = None
    else:
        calls = read_json(path, ())[0]["calls"]
    if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
        raise DamagedError(f"{path}: damaged (holds no list of calls)")
    return calls


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, dict) and isinstance(call.get("command"), str) and isinstance(call.get("seconds"), int | float)
    )


def _check_version(workdir: pathlib.Path) -> None:
    path = workdir / "results.json"
    if not path.is_file():
        return
    try:
        results = json.loads(path.read_bytes())
        found = results["format"], results["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        # It is made of what else the directory holds; of which version that is, config.json tells as well.
        tell(f"{path}: damaged, will be written again")
        return
    if found != (FORMAT, gan_leak.__version__):
        raise ValueError(
            f"workdir={workdir}: holds results of version {found[1]} (format {found[0]}), expected "
            f"{gan_leak.__version__} (format {FORMAT}); choose another --workdir"
        )


def execute(prepared: Prepared) -> int:
    """Runs the figures that are not there yet and writes the report anew after each.

    Returns the exit status: 0, or 3 with ``fail_if_not_measurable`` where the leakage of a claim cannot be measured.
    """
    study, directory = prepared.study, prepared.directory
    for kept in (*FIGURES, *TABLES):
        set_damaged_aside(_section_path(prepared, kept), study.show)
    missing = [
        figure
        for figure in prepared.figures
        if figure.number not in prepared.unavailable and not _is_finished(prepared, figure)
    ]
    jobs = [job for figure in missing for job in jobs_of(study, figure)]
    try:
        with running(jobs, prepared.workers or default_workers(), study.instrument_source, study.show) as wait:
            for figure in prepared.figures:
                path = _section_path(prepared, figure)
                if figure.number in prepared.unavailable:
                    study.show(f"figure {figure.number}: not run, {prepared.unavailable[figure.number]}")
                    _write_error(path, figure, prepared.unavailable[figure.number])
                elif figure in missing:
                    study.show(f"figure {figure.number}: {figure.title}")
                    section = make_section(study, figure, wait)
                    write_section(path, KeptSection(section.entry, section.judges, section.pictures, section.basis))
                _write_report(prepared)
        for table in prepared.tables:
            _make_table(prepared, table)
            _write_report(prepared)
        study.show(f"written: {directory.path / 'report.html'}, {directory.path / 'results.json'}")
    finally:
        close_run(directory)
    results = json.loads((directory.path / "results.json").read_text())
    verdicts = [verdict["verdict"] for entry in results["figures"] for verdict in entry.get("verdicts", ())]
    unmeasured = Verdict.NOT_MEASURABLE in verdicts
    return NOT_MEASURABLE_STATUS if unmeasured and prepared.fail_if_not_measurable else 0


def _make_table(prepared: Prepared, table: Table) -> None:
    """Runs a section of another paper in this process, unless the directory holds it."""
    study, path = prepared.study, _section_path(prepared, table)
    run = TableRun(study.scale, prepared.directory.path / "tables", study.cifar10)
    if table.number in prepared.unavailable:
        study.show(f"{table.number}: not run, {prepared.unavailable[table.number]}")
        _write_error(path, table, prepared.unavailable[table.number])
    elif not _holds(path, basis := table_basis(run, table)):
        study.show(f"{table.number}: {table.title}")
        entry, pictures = table_entry(run, table)
        write_section(path, KeptSection(entry, {}, pictures, basis))


def _is_finished(prepared: Prepared, figure: Figure) -> bool:
    """Whether the directory holds the section that this call would make, from the same batches and criteria."""
    return _holds(_section_path(prepared, figure), basis_of(prepared.study, figure))


def _holds(path: pathlib.Path, basis: str) -> bool:
    section = read_section(path)
    return section is not None and section.basis == basis


def _section_path(prepared: Prepared, figure: Figure | Table) -> pathlib.Path:
    return prepared.directory.path / "figures" / figure.number


def _write_error(path: pathlib.Path, figure: Figure | Table, error: str) -> None:
    write_error(path, {"figure": figure.number, "title": figure.title, "claim": "", "error": f"Not run: {error}"})


def _write_report(prepared: Prepared) -> None:
    entries: list[dict[str, Any]] = []
    judges: dict[str, Any] = {}
    pictures: dict[str, dict[str, bytes]] = {}
    for figure in (*FIGURES, *TABLES):
        if (section := read_section(_section_path(prepared, figure))) is not None:
            entries.append(section.entry)
            judges.update(section.judges)
            if section.basis:
                pictures[figure.number] = section.pictures
    environment = read_config_file(prepared.directory.path)
    environment.pop("config")
    command = shlex.join(["python", "-m", "experiments.reproduce", *sys.argv[1:]])
    calls = [*prepared.calls, {"command": command, "seconds": time.monotonic() - prepared.began}]
    write_atomic(prepared.directory.path / _CALLS_NAME, sealed_json(_CALLS_NAME, {"calls": calls}))
    results = {
        "format": FORMAT,
        "version": gan_leak.__version__,
        "scale": prepared.study.scale,
        "num_seeds": prepared.study.num_seeds,
        "command": "; ".join(dict.fromkeys(call["command"] for call in calls)),
        "environment": environment,
        "seconds": sum(call["seconds"] for call in calls),
        "definitions": {**DEFINITIONS, **RECONSTRUCTION_DEFINITIONS},
        "judges": judges,
        "figures": entries,
    }
    write_atomic(prepared.directory.path / "results.json", json.dumps(results, indent=1, allow_nan=False).encode())
    write_atomic(prepared.directory.path / "report.html", render_reproduction(results, pictures).encode())


if __name__ == "__main__":
    run_binary(prepare, execute, ReproduceConfig)
