"""Times of whole processes: the start of a run, and a sweep against one process for each run."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from gan_leak.runs.hosts.interruption import on_interruption, uninterrupted

_MOST_SECONDS_TO_FIRST_ROUND = 300.0
_GRID = {"upload_fraction": ("0.03", "0.1", "0.3", "1"), "learning_rate": ("0.02", "0.05")}
_SEEDS = 3
# Short, so that the costs that do not depend on the number of rounds are visible.
_SHORT = (
    *("--rounds=10", "--evaluation_interval=10", "--evaluation_samples=100", "--samples_per_participant=500"),
    *("--generator_width=32", "--generator_batch_size=32", "--fakes_per_round=250"),
)


def start_rows() -> list[dict[str, Any]]:
    """Seconds from the start of the process to the first finished round, with an empty and a warm compilation cache."""
    with temporary_directory() as cache:
        return [
            {"case": f"start to first round, {state} cache", "options": "", "unit": "start", "median_seconds": seconds}
            for state in ("empty", "warm")
            for seconds in [seconds_to_first_round(["--compilation_cache", str(cache)])]
        ]


def seconds_to_first_round(arguments: Sequence[str]) -> float:
    """Start the main job and wait until its first round is written; raises RuntimeError if there is none."""
    with temporary_directory() as directory:
        workdir = directory / "run"
        command = [sys.executable, "-m", "experiments.gan_attack", f"--workdir={workdir}", *arguments]
        began = time.perf_counter()
        with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (workdir / "metrics.jsonl").exists():
                waited = time.perf_counter() - began
                if process.poll() is not None or waited > _MOST_SECONDS_TO_FIRST_ROUND:
                    raise RuntimeError(f"no round after {waited:.0f} s: {' '.join(command)}")
                time.sleep(0.01)
            return time.perf_counter() - began


def sweep_rows() -> list[dict[str, Any]]:
    """Seconds of a grid of short runs, as one sweep and as one process after another for each run.

    Both start with an empty compilation cache. An earlier run has trained the judge.
    """
    runs = [
        [*(f"--{name}={value}" for name, value in zip(_GRID, values, strict=True)), f"--seed={seed}"]
        for values in itertools.product(*_GRID.values())
        for seed in range(_SEEDS)
    ]
    swept = [*(f"--{name}={','.join(values)}" for name, values in _GRID.items()), f"--num_seeds={_SEEDS}"]
    _seconds_of([("gan_attack", ["--seed=0"])])
    return [
        {"case": f"{len(runs)} runs, {name}", "options": "", "unit": "sweep", "median_seconds": _seconds_of(commands)}
        for name, commands in (
            ("one sweep", [("sweep", swept)]),
            ("a process each", [("gan_attack", arguments) for arguments in runs]),
        )
    ]


def _seconds_of(commands: Sequence[tuple[str, Sequence[str]]]) -> float:
    """Seconds of binaries with their arguments, one after the other; raises RuntimeError if one fails."""
    with temporary_directory() as directory:
        began = time.perf_counter()
        for number, (binary, arguments) in enumerate(commands):
            command = [sys.executable, "-m", f"experiments.{binary}", f"--workdir={directory}/{number}", *_SHORT]
            command += ["--compilation_cache", f"{directory}/cache", *arguments]
            with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
                _, errors = process.communicate()
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)}: {errors.strip()[-300:]}")
        return time.perf_counter() - began


@contextlib.contextmanager
def temporary_directory() -> Iterator[pathlib.Path]:
    """A directory that is removed at the end, also after an interruption."""
    directory = pathlib.Path(tempfile.mkdtemp())

    def remove() -> None:
        shutil.rmtree(directory, ignore_errors=True)

    with contextlib.ExitStack() as stack:
        stack.callback(remove)
        stack.enter_context(on_interruption(remove))
        yield directory


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """A process that is ended at the end, also after an interruption."""

    def end() -> None:
        process.kill()
        process.wait()

    with contextlib.ExitStack() as stack:
        with uninterrupted():
            process = subprocess.Popen(command, **options)
            stack.callback(end)
            stack.enter_context(on_interruption(end))
        yield process
