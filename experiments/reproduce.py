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

from experiments.common.flags import run_binary
from experiments.reproduction.execution import execute
from experiments.reproduction.preparation import ReproduceConfig, prepare

if __name__ == "__main__":
    run_binary(prepare, execute, ReproduceConfig)
