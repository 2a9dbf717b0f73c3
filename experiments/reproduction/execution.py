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
from experiments.reproduction.table_sections import table_basis, table_jobs, table_section
from gan_leak.evaluation.criteria import Verdict
from gan_leak.evaluation.leakage import DEFINITIONS
from gan_leak.reports.reconstruction import DEFINITIONS as RECONSTRUCTION_DEFINITIONS
from gan_leak.reports.reproduction import render_reproduction
from gan_leak.reports.reproduction_results import FORMAT
from gan_leak.runs.federated.result import NOT_MEASURABLE_STATUS
from gan_leak.runs.federated.rows import DEFINITIONS as RUN_DEFINITIONS
from gan_leak.runs.hosts.workers import Job, default_workers, running
from gan_leak.runs.storage.directory import close_run, read_config_file, write_atomic


def execute(prepared: Prepared) -> int:
    """Run the missing sections, and rewrite the report after each.

    Returns the exit status: 0, or 3 with ``fail_if_not_measurable`` if the leakage of a claim cannot be measured.
    """
    directory = prepared.directory
    try:
        for section in (*FIGURES, *TABLES):
            set_damaged_aside(_section_path(prepared, section), prepared.study.show)
        _run_sections(prepared)
        entries = _write_report(prepared)
        prepared.study.show(f"written: {directory.path / REPORT_NAME}, {directory.path / RESULTS_NAME}")
    finally:
        close_run(directory)
    verdicts = [Verdict(verdict["verdict"]) for entry in entries for verdict in entry.get("verdicts", ())]
    unmeasured = Verdict.NOT_MEASURABLE in verdicts
    return NOT_MEASURABLE_STATUS if unmeasured and prepared.fail_if_not_measurable else 0


def _run_sections(prepared: Prepared) -> None:
    study, run = prepared.study, prepared.table_run
    sections: tuple[Figure | Table, ...] = (*prepared.figures, *prepared.tables)
    missing = [section for section in sections if _is_missing(prepared, section)]
    jobs = [job for section in missing for job in _jobs_of(prepared, section)]
    with running(jobs, prepared.workers or default_workers(), study.instrument_source, study.show) as wait:
        for section in sections:
            shown = f"figure {section.number}" if isinstance(section, Figure) else section.number
            if section.number in prepared.unavailable:
                _skip(prepared, section, shown)
            elif section in missing:
                study.show(f"{shown}: {section.title}")
                if isinstance(section, Figure):
                    made = make_section(study, section, wait)
                else:
                    made = table_section(run, section, wait)
                write_section(_section_path(prepared, section), made)
            _write_report(prepared)


def _is_missing(prepared: Prepared, section: Figure | Table) -> bool:
    """Whether the data of a section can be read and no folder holds it from the runs and criteria of this call."""
    if section.number in prepared.unavailable:
        return False
    if isinstance(section, Figure):
        basis = basis_of(prepared.study, section)
    else:
        basis = table_basis(prepared.table_run, section)
    found = read_section(_section_path(prepared, section))
    return found is None or found.basis != basis


def _jobs_of(prepared: Prepared, section: Figure | Table) -> list[Job]:
    if isinstance(section, Figure):
        return jobs_of(prepared.study, section)
    return table_jobs(prepared.table_run, section)


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
