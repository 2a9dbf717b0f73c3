"""GAN attack of an insider on the private class of another participant (Hitaj, Ateniese and Perez-Cruz, CCS 2017).

python -m experiments.gan_attack
python -m experiments.gan_attack --preset=figure6a --workdir=runs/figure6a
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import dataclasses
import pathlib
from typing import Any

from experiments.common.flags import run_binary
from gan_leak.config import RunConfig, make_config
from gan_leak.reports.run import report_files, summary_lines
from gan_leak.runs.federated import train
from gan_leak.runs.federated.owners import describe_run
from gan_leak.runs.federated.result import RunResult, exit_status
from gan_leak.runs.hosts.processes import is_lead
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.storage.directory import write_atomic
from gan_leak.settings import Setting, flat_class, values_of


def _as_flag(setting: Setting) -> Setting:
    if setting.name == "target_class":
        # A number or a name: only the data set can distinguish them.
        return dataclasses.replace(setting, type=str, default=str(setting.default), bounds=None)
    return setting


AttackFlags: Any = flat_class("AttackFlags", RunConfig, _as_flag)


def prepare(config: Any, workdir: pathlib.Path, resume: bool) -> train.PreparedRun:
    """Check the flags and the data and open the run directory; raises ValueError for bad input."""
    values = values_of(config)
    target_class = values.pop("target_class")
    return train.prepare(make_config(**values), workdir, resume, target_class=target_class)


def execute(prepared: train.PreparedRun) -> int:
    """Print the owners of the data and the target, run, and write the report; returns the exit status."""
    for line in describe_run(prepared.config, prepared.data) if is_lead() else ():
        tell(line)
    return run_and_report(prepared)


def run_and_report(prepared: train.PreparedRun) -> int:
    """Run, write the report into the run directory and print the summary; returns the exit status.

    0, 1 if training diverged, or 3 if leakage cannot be measured and ``fail_if_not_measurable`` ended the run.
    """
    try:
        result = train.train(prepared)
        if prepared.directory is not None and result.is_trained:
            _report(result, prepared.directory.path)
    finally:
        train.close(prepared)
    return exit_status(result)


def _report(result: RunResult, directory: pathlib.Path) -> None:
    for name, content in report_files(result).items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, content)
    written = [directory / name for name in ("report.html", "reconstructions.npz", "metrics.jsonl", "figures")]
    for line in [*summary_lines(result), "", "written:", *(f"  {path}" for path in written if path.exists())]:
        tell(line)


if __name__ == "__main__":
    run_binary(prepare, execute, AttackFlags, many_processes=True)
