"""The sections of the tables: settings run by their binaries, and judged by the claims of their presets."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.common.flags import config_from_arguments
from experiments.common.tables import Drawn, picture_files, recorded
from experiments.reproduction.claims import Claim, left_out, read_claim, rows_named_by, settings_at
from experiments.reproduction.other_papers import Binary, Table
from experiments.reproduction.section_files import Section
from experiments.reproduction.verdicts import judge
from gan_leak.reports.galleries import interval_figure
from gan_leak.reports.reproduction_results import NEAREST_VARIANT
from gan_leak.runs.hosts.workers import Job
from gan_leak.runs.storage.directory import CONFIG_NAME, check_is_run, close_run, read_config_file
from gan_leak.runs.storage.integrity import RefusedError
from gan_leak.settings import replace, values_of


class TableRun(NamedTuple):
    """The options of a table: the scale, the directory of its runs, and the data set CIFAR-10."""

    scale: str
    directory: pathlib.Path
    cifar10: str


def configurations_of(run: TableRun, table: Table) -> dict[str, Any]:
    """Build the configuration of each setting of the scale, by label; a short run adds its preset."""
    found = {}
    for label, preset in settings_at(table.settings, run.scale).items():
        config = config_from_arguments(table.binary.config_class, _arguments(run, preset))
        if values_of(config)["dataset"] == "tfds:cifar10":
            config = replace(config, dataset=run.cifar10)
        found[label] = config
    return found


def check_table(run: TableRun, table: Table) -> None:
    """Raise ValueError or OSError for data that cannot be read or do not fit, or a damaged directory of a run."""
    for label, config in configurations_of(run, table).items():
        workdir = _workdir(run, table, label, config)
        if workdir.is_dir():
            check_is_run(workdir)
        if (workdir / CONFIG_NAME).exists():
            read_config_file(workdir)


def table_basis(run: TableRun, table: Table) -> str:
    """Return all inputs of a section as text: the settings, their data and their claims."""
    configurations = configurations_of(run, table)
    configs = {label: dataclasses.asdict(recorded(config)) for label, config in configurations.items()}
    data = {label: _fingerprint(table.binary, config) for label, config in configurations.items()}
    claims = [read_claim(preset).texts for preset in settings_at(table.settings, run.scale).values()]
    return json.dumps({"configs": configs, "data": data, "claims": claims})


def table_jobs(run: TableRun, table: Table) -> list[Job]:
    """The settings of a table as jobs, whose results are their rows."""
    configurations = configurations_of(run, table)
    workdirs = {label: _workdir(run, table, label, config) for label, config in configurations.items()}
    return [
        Job(workdirs[label], functools.partial(_run, table.binary, config, workdirs[label]))
        for label, config in configurations.items()
    ]


def table_section(run: TableRun, table: Table, wait: Callable[[pathlib.Path], list[Drawn]]) -> Section:
    """Judge all rows of a table. wait: returns the result of a job by its directory."""
    seconds = 0.0
    rows: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    settings = settings_at(table.settings, run.scale)
    notes = [f"{label}: not run. {why}" for label, why in left_out(table.settings, run.scale).items()]
    pictures: dict[str, bytes] = {}
    claims = {label: read_claim(preset) for label, preset in settings.items()}
    for label, config in configurations_of(run, table).items():
        drawn = wait(_workdir(run, table, label, config))
        seconds += sum(entry.seconds for entry in drawn)
        named = [entry.row | {"name": f"{label}: {entry.row['name']}"} for entry in drawn]
        rows += named
        pictures |= {f"{label}. {caption}": image for caption, image in picture_files(drawn).items()}
        judged, unjudged = _verdicts(claims[label], table, named)
        verdicts += judged
        notes += unjudged
    measured = [row for row in rows if table.measure in row["metrics"]]
    pictures["Means of every row, with 95% intervals over images."] = interval_figure(measured, metric=table.measure)
    commands = "; ".join(
        f"python -m {table.binary.module} {' '.join(_arguments(run, preset))}" for preset in settings.values()
    )
    entry = {
        "figure": table.number,
        "title": table.title,
        "claim": " ".join(dict.fromkeys(claim.claim for claim in claims.values())),
        "setup": f"Each row is a setting of {commands}.",
        "seconds": seconds,
        "verdicts": verdicts,
        "rows": rows,
        "privacy": [],
        "notes": notes,
        "error": None,
    }
    return Section(entry, {}, pictures, table_basis(run, table))


def _arguments(run: TableRun, preset: str) -> list[str]:
    shortened = [f"--preset={read_claim(preset).quick}"] if run.scale == "quick" else []
    return [f"--preset={preset}", *shortened]


@functools.cache
def _fingerprint(binary: Binary, config: Any) -> str:
    """The digest of a data set, after the check that it fits."""
    return str(binary.load_data(config)[0].fingerprint)


def _workdir(run: TableRun, table: Table, label: str, config: Any) -> pathlib.Path:
    # The name depends on all inputs, so changed settings or data start a new run.
    text = json.dumps([dataclasses.asdict(recorded(config)), _fingerprint(table.binary, config)], sort_keys=True)
    return run.directory / f"{table.settings[label]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _run(binary: Binary, config: Any, workdir: pathlib.Path, *_: Any) -> list[Drawn]:
    """Every row, read from the directory or run."""
    try:
        prepared = binary.prepare(config, workdir, (workdir / CONFIG_NAME).exists())
    except ValueError as error:
        # Flags and data of presets were checked before: the error is about the directory.
        raise RefusedError(str(error)) from error
    try:
        return binary.run_settings(prepared)
    finally:
        close_run(prepared.directory)


def _verdicts(
    claim: Claim, table: Table, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """A verdict on every row of an attack, except those that the claim compares with, and notes.

    A row that the paper does not have has no published value, and no verdict if the criteria ask for one.
    """
    beside = {"first": rows[0]}
    beside |= {name: row for name, end in table.others.items() for row in rows if row["name"].endswith(f": {end}")}
    compared = [beside[name]["name"] for name in rows_named_by(claim)]
    attacks = [row for row in rows if row["role"] == "attack" and row["name"] not in compared]
    published = {name.split(".")[0] for name in claim.names if name.startswith("published_")}
    unknown = [row["name"] for row in attacks if not published <= row["metrics"].keys()]
    verdicts = [
        judge(row["name"], NEAREST_VARIANT, claim, row, beside, measure=table.measure)
        for row in attacks
        if row["name"] not in unknown
    ]
    return verdicts, tuple(f"{name}: not judged, since the paper has no value for it." for name in unknown)
