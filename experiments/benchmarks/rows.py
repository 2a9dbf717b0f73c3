"""Table of a benchmark: cases are compiled, timed in turn with PyTorch, and divided by a lower bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.benchmarks.cases import Case, cases_of
from experiments.benchmarks.inversions import inversion_cases
from experiments.benchmarks.torch_baselines import set_threads
from gan_leak.machine import usable_cores
from gan_leak.performance import PerformanceOptions
from gan_leak.runs.timing import Timing, time_in_turn

_COLUMNS = {
    "what": "case",
    "options": "options",
    "median": "median_seconds",
    "least": "least_seconds",
    "GFLOP/s": "gflops",
    "times the floor": "times_the_floor",
    "compiled in": "compile_seconds",
    "memory": "memory_bytes",
    "PyTorch": "pytorch_seconds",
    "of PyTorch's": "ratio_to_pytorch",
}


def time_group(
    group: str, options: Sequence[PerformanceOptions], *, repeats: int, peak: float, pytorch: bool
) -> list[dict[str, Any]]:
    """Time the cases of a group under each of the options, in turn with PyTorch at one thread and at all.

    peak: float operations a second of the fastest matrix product, which gives the lower bound of every time.
    """
    functions: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    torch_names: dict[str, list[str]] = {}
    for choice in options:
        for case in inversion_cases(choice) if group == "inversions" else cases_of(group, choice):
            name = f"{case.name}, {_shown(choice)}"
            functions[name], rows[name] = _compile(case, _shown(choice))
            if pytorch and case.torch_baseline is not None and case.name not in torch_names:
                torch_baseline = case.torch_baseline()
                torch_names[case.name] = []
                for threads in sorted({1, len(usable_cores())}):
                    torch_names[case.name].append(f"{case.name}, PyTorch, {threads} threads")
                    functions[torch_names[case.name][-1]] = _with_threads(torch_baseline, threads)
    timings = time_in_turn(functions, repeats=repeats)
    for name, row in rows.items():
        torch_seconds = min((timings[name].median for name in torch_names.get(row["case"], ())), default=None)
        row.update(_speed(timings[name], row.pop("units"), row.pop("flops"), peak, torch_seconds))
    return list(rows.values())


def _shown(options: PerformanceOptions) -> str:
    return f"{options.convolution}, {options.participant_mapping}"


def _with_threads(function: Callable[[], None], threads: int) -> Callable[[], None]:
    def run() -> None:
        set_threads(threads)
        function()

    return run


def _compile(case: Case, options: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    began = time.perf_counter()
    compiled = jax.jit(case.function).lower(*case.arguments).compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    row = {
        "case": case.name,
        "options": options,
        "unit": case.unit,
        "units": case.units,
        "flops": case.flops,
        "compile_seconds": seconds,
        # Of the arguments, the results and the temporary values.
        "memory_bytes": memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        if memory is not None
        else None,
    }
    return lambda: jax.block_until_ready(compiled(*case.arguments)), row


def _speed(timing: Timing, units: int, flops: int, peak: float, torch_seconds: float | None) -> dict[str, Any]:
    return {
        "median_seconds": timing.median / units,
        "least_seconds": timing.least / units,
        "measurements": timing.measurements,
        "gflops": flops / timing.median / 1e9 if flops else None,
        "times_the_floor": timing.median * peak / flops if flops else None,
        "pytorch_seconds": None if torch_seconds is None else torch_seconds / units,
        "ratio_to_pytorch": None if torch_seconds is None else timing.median / torch_seconds,
    }


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table; a cell without a number is empty."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    lines += ["| " + " | ".join(_cell(name, row.get(name)) for name in _COLUMNS.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if name.endswith("_seconds"):
        return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    if name.endswith("_bytes"):
        return f"{value / 2**20:.3g} MiB"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
