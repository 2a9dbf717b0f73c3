"""Execution of a reproduction: the missing sections, and the report after each."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import gan_leak
from experiments.reproduction.calls import record_call
from experiments.reproduction.hitaj import FIGURES, Figure
from experiments.reproduction.other_papers import TABLES, Table
from experiments.reproduction.preparation import REPORT_NAME, RESULTS_NAME, Prepared
from experiments.reproduction.section_files import (
    Section,
    read_section,
    set_damaged_aside,
    write_error,
    write_section,
)
from experiments.reproduction.sections import make_section
from experiments.reproduction.study import basis_of, jobs_of
from experiments.reproduction.table_sections import table_basis, table_section
from gan_leak.evaluation.criteria import Verdict
from gan_leak.evaluation.leakage import DEFINITIONS
from gan_leak.reports.reconstruction import DEFINITIONS as RECONSTRUCTION_DEFINITIONS
from gan_leak.reports.reproduction import render_reproduction
from gan_leak.reports.reproduction_results import FORMAT
from gan_leak.runs.federated.result import NOT_MEASURABLE_STATUS
from gan_leak.runs.federated.rows import DEFINITIONS as RUN_DEFINITIONS
from gan_leak.runs.hosts.workers import default_workers, running
from gan_leak.runs.storage.directory import close_run, read_config_file, write_atomic


def execute(prepared: Prepared) -> int:
    """Run the missing sections, and rewrite the report after each.

    Returns the exit status: 0, or 3 with ``fail_if_not_measurable`` if the leakage of a claim cannot be measured.
    """
    directory = prepared.directory
    try:
        for section in (*FIGURES, *TABLES):
            set_damaged_aside(_section_path(prepared, section), prepared.study.show)
        _run_figures(prepared)
        _run_tables(prepared)
        entries = _write_report(prepared)
        prepared.study.show(f"written: {directory.path / REPORT_NAME}, {directory.path / RESULTS_NAME}")
    finally:
        close_run(directory)
    verdicts = [Verdict(verdict["verdict"]) for entry in entries for verdict in entry.get("verdicts", ())]
    unmeasured = Verdict.NOT_MEASURABLE in verdicts
    return NOT_MEASURABLE_STATUS if unmeasured and prepared.fail_if_not_measurable else 0


def _run_figures(prepared: Prepared) -> None:
    study = prepared.study
    missing = [
        figure
        for figure in prepared.figures
        if figure.number not in prepared.unavailable
        and not _holds(_section_path(prepared, figure), basis_of(study, figure))
    ]
    jobs = [job for figure in missing for job in jobs_of(study, figure)]
    with running(jobs, prepared.workers or default_workers(), study.instrument_source, study.show) as wait:
        for figure in prepared.figures:
            if figure.number in prepared.unavailable:
                _skip(prepared, figure, f"figure {figure.number}")
            elif figure in missing:
                study.show(f"figure {figure.number}: {figure.title}")
                write_section(_section_path(prepared, figure), make_section(study, figure, wait))
            _write_report(prepared)


def _run_tables(prepared: Prepared) -> None:
    """Run the tables in this process."""
    run = prepared.table_run
    for table in prepared.tables:
        path = _section_path(prepared, table)
        if table.number in prepared.unavailable:
            _skip(prepared, table, table.number)
        elif not _holds(path, table_basis(run, table)):
            prepared.study.show(f"{table.number}: {table.title}")
            write_section(path, table_section(run, table))
        _write_report(prepared)


def _holds(path: pathlib.Path, basis: str) -> bool:
    """Return whether a folder holds the section of this call, from the same runs and criteria."""
    section = read_section(path)
    return section is not None and section.basis == basis


def _section_path(prepared: Prepared, section: Figure | Table) -> pathlib.Path:
    return prepared.directory.path / "figures" / section.number


def _skip(prepared: Prepared, section: Figure | Table, shown: str) -> None:
    reason = prepared.unavailable[section.number]
    prepared.study.show(f"{shown}: not run, {reason}")
    entry = {"figure": section.number, "title": section.title, "claim": "", "error": f"Not run: {reason}"}
    write_error(_section_path(prepared, section), entry)


def _write_report(prepared: Prepared) -> list[dict[str, Any]]:
    """Write results.json and report.html from all finished sections; return their entries."""
    found = {section.number: read_section(_section_path(prepared, section)) for section in (*FIGURES, *TABLES)}
    sections = {number: section for number, section in found.items() if section is not None}
    results = _results(prepared, list(sections.values()))
    pictures = {number: section.pictures for number, section in sections.items() if section.basis}
    path = prepared.directory.path
    write_atomic(path / RESULTS_NAME, json.dumps(results, indent=1, allow_nan=False).encode())
    write_atomic(path / REPORT_NAME, render_reproduction(results, pictures).encode())
    return results["figures"]


def _results(prepared: Prepared, sections: list[Section]) -> dict[str, Any]:
    environment = read_config_file(prepared.directory.path)
    environment.pop("config")
    calls = record_call(prepared.directory.path, prepared.calls, sys.argv[1:], prepared.began)
    return {
        "format": FORMAT,
        "version": gan_leak.__version__,
        "scale": prepared.study.scale,
        "num_seeds": prepared.study.num_seeds,
        "command": "; ".join(dict.fromkeys(call["command"] for call in calls)),
        "environment": environment,
        "seconds": sum(call["seconds"] for call in calls),
        "definitions": {**DEFINITIONS, **RUN_DEFINITIONS, **RECONSTRUCTION_DEFINITIONS},
        "judges": {data: judge for section in sections for data, judge in section.judges.items()},
        "figures": [section.entry for section in sections],
    }
