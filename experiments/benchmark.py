"""Benchmark: the time of each part of a run on this machine, beside a lower bound and the time of PyTorch.

python -m experiments.benchmark --workdir=runs/benchmark
python -m experiments.benchmark --groups=steps --convolutions=blocked,matmul,lax
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import dataclasses
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax

from experiments.benchmarks.cases import GROUPS
from experiments.benchmarks.commands import start_rows, sweep_rows
from experiments.benchmarks.rows import as_table, time_group
from experiments.benchmarks.torch_baselines import torch_is_installed
from experiments.common.flags import check_distinct, run_binary
from gan_leak.collaboration.synchronous import PARTICIPANT_MAPPINGS
from gan_leak.machine import MOST_CPU_DEVICES, use_cpu_devices
from gan_leak.models.layers import IMPLEMENTATIONS
from gan_leak.performance import PerformanceOptions
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.storage.directory import RunDirectory, close_run, open_run, write_atomic
from gan_leak.runs.timing import busy_share, gemm_peak
from gan_leak.settings import at_least, between, check_values, option

_SECONDS_OF_IDLE_CHECK = 2.0
_MOST_BUSY = 0.1
_FROM_OUTSIDE = {"start": start_rows, "sweep": sweep_rows}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Cases to time, and the number of repeats."""

    groups: str = option("all", f"Groups to time: 'all', or some of {', '.join(GROUPS)}, separated by commas.")
    repeats: int = option(7, "Measurements of each case, in turn with the others of its group.", bounds=at_least(1))
    convolutions: str = option("auto", f"Which of {', '.join(IMPLEMENTATIONS)}; several are timed in turn.")
    mappings: str = option("auto", f"Which of {', '.join(PARTICIPANT_MAPPINGS)}; several are timed in turn.")
    cpu_devices: int = option(
        1,
        "Number of devices of a CPU; synchronous rounds are sharded over them.",
        bounds=between(1, MOST_CPU_DEVICES),
    )
    pytorch: bool = option(True, "Whether to time the same work in PyTorch, if it is installed.")


class PreparedBenchmark(NamedTuple):
    """A benchmark with checked input."""

    groups: list[str]
    options: list[PerformanceOptions]
    repeats: int
    pytorch: bool
    directory: RunDirectory


def _chosen(name: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    chosen = text.split(",")
    if not set(chosen) <= set(allowed):
        raise ValueError(f"{name}={text}: expected some of {', '.join(allowed)}, with commas between")
    check_distinct(name, chosen)
    return chosen


def prepare(config: BenchmarkConfig, workdir: pathlib.Path, resume: bool) -> PreparedBenchmark:
    """Check the flags and open the directory; raises ValueError for bad input."""
    check_values(config)
    groups = list(GROUPS) if config.groups == "all" else _chosen("groups", config.groups, GROUPS)
    options = [
        PerformanceOptions(convolution=convolution, participant_mapping=mapping)
        for convolution in _chosen("convolutions", config.convolutions, IMPLEMENTATIONS)
        for mapping in _chosen("mappings", config.mappings, PARTICIPANT_MAPPINGS)
    ]
    # A cached program has no compilation time.
    jax.config.update("jax_enable_compilation_cache", False)
    if config.cpu_devices > 1:
        use_cpu_devices("cpu_devices", config.cpu_devices)
    directory = open_run(workdir, config, resume=resume)
    return PreparedBenchmark(groups, options, config.repeats, config.pytorch and torch_is_installed(), directory)


def execute(prepared: PreparedBenchmark) -> int:
    """Time one group after the other, and rewrite the table after each."""
    path = prepared.directory.path
    try:
        busy = busy_share(_SECONDS_OF_IDLE_CHECK)
        if busy > _MOST_BUSY:
            tell(f"the machine is {busy:.0%} busy with other work: ratios are reliable, times are not")
        peak = gemm_peak()
        tell(f"matrix products of this machine: {peak / 1e9:.0f} GFLOP/s")
        rows: list[dict[str, Any]] = []
        for group in prepared.groups:
            tell(f"timing {group} ...")
            if group in _FROM_OUTSIDE:
                rows += _FROM_OUTSIDE[group]()
            else:
                rows += time_group(
                    group, prepared.options, repeats=prepared.repeats, peak=peak, pytorch=prepared.pytorch
                )
            result = {"gemm_flops": peak, "busy_before": None if math.isnan(busy) else busy, "rows": rows}
            write_atomic(path / "benchmark.json", json.dumps(result, indent=1, allow_nan=False).encode())
            write_atomic(path / "benchmark.md", as_table(rows).encode())
        print(as_table(rows), end="")
        tell(f"written: {path / 'benchmark.md'}, {path / 'benchmark.json'}")
    finally:
        close_run(prepared.directory)
    return 0


if __name__ == "__main__":
    run_binary(prepare, execute, BenchmarkConfig)
