"""How much of a private class does an insider with a GAN see? (Hitaj, Ateniese and Perez-Cruz, CCS 2017)

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
from gan_leak.runs.federated import train
from gan_leak.runs.federated.owners import describe_run
from gan_leak.runs.hosts.processes import leads
from gan_leak.runs.hosts.workers import tell
from gan_leak.settings import Setting, flat_class, values_of


def _as_flag(setting: Setting) -> Setting:
    if setting.name == "target_class":
        # A number or a name, which only the data set tells apart.
        return dataclasses.replace(setting, type=str, default=str(setting.default), bounds=None)
    return setting


AttackFlags: Any = flat_class("AttackFlags", RunConfig, _as_flag)


def prepare(config: Any, workdir: pathlib.Path, resume: bool) -> train.PreparedRun:
    """Checks the flags and the data and opens the run directory; raises ValueError for bad input."""
    values = values_of(config)
    target_class = values.pop("target_class")
    return train.prepare(make_config(**values), workdir, resume, target_class=target_class)


def execute(prepared: train.PreparedRun) -> int:
    """Says who owns what and what the adversary is after, and runs; returns the exit status."""
    for line in describe_run(prepared.config, prepared.data) if leads() else ():
        tell(line)
    return train.execute(prepared)


if __name__ == "__main__":
    run_binary(prepare, execute, AttackFlags, many_processes=True)
