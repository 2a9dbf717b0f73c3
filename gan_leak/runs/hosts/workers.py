"""Concurrent jobs in worker processes, each with its own processor cores.

The programs of one job do not use several cores fully: two workers with a core each finish sooner than one with two.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import multiprocessing.queues
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from gan_leak.config import RunConfig
from gan_leak.machine import usable_cores
from gan_leak.runs.federated.batch import run_batch
from gan_leak.runs.federated.batch_files import finished_result
from gan_leak.runs.federated.measurement import InstrumentSource, make_instrument_source
from gan_leak.runs.federated.setup import prepare_data
from gan_leak.runs.hosts.interruption import interruptible, leave_on_signals, on_interruption
from gan_leak.runs.hosts.processes import exit_with_parent

_MOST_WORKERS = 4
_SECONDS_TO_SAVE = 2.0


def _is_never_finished(_: Callable[[str], None]) -> bool:
    return False


class Job(NamedTuple):
    """Work with a directory of its own.

    run: ``run(instrument_source, show)`` does it or continues it, and returns its result: a function of a module or a
    partial of one, since another process imports it. finished: ``finished(show)``, whether nothing is left to run; by
    default it never is. judged: the run whose judge it needs, if any.
    """

    directory: pathlib.Path
    run: Callable[[InstrumentSource, Callable[[str], None]], Any]
    finished: Callable[[Callable[[str], None]], bool] = _is_never_finished
    judged: RunConfig | None = None


def batch_job(configs: Sequence[RunConfig], directory: pathlib.Path, name: str) -> Job:
    """A batch as a job, from its lanes; its result is in the directory. name: in lines of progress."""
    run = functools.partial(_run_batch, configs, directory, name)
    return Job(directory, run, functools.partial(_has_result, directory), configs[0])


def _has_result(directory: pathlib.Path, show: Callable[[str], None]) -> bool:
    return finished_result(directory, show) is not None


def default_workers() -> int:
    """The default number of workers: one for each processor core, at most four; one with an accelerator."""
    return min(len(usable_cores()), _MOST_WORKERS) if jax.default_backend() == "cpu" else 1


def check_workers(workers: int) -> None:
    """Raise ValueError for more than eight workers and more than four for each core.

    A worker needs hundreds of megabytes.
    """
    most = max(2 * _MOST_WORKERS, 4 * len(usable_cores()))
    if workers > most:
        raise ValueError(f"workers={workers}: expected at most {most}, four for each processor core")


def _run_batch(
    configs: Sequence[RunConfig],
    directory: pathlib.Path,
    name: str,
    instrument_source: InstrumentSource,
    show: Callable[[str], None],
) -> None:
    """Run a batch or continue it, and show each evaluation and the remaining seconds."""
    rounds = configs[0].federation.rounds
    began, first = time.monotonic(), 0

    def progress(done: int, line: str) -> None:
        nonlocal began, first
        if line:
            left = (time.monotonic() - began) / (done - first) * (rounds - done)
            show(f"  {name}: round {done}/{rounds}, {line}, {left:.0f} s left")
        elif not first:
            # Training begins at round 0, or at a later round if the batch is continued.
            began, first = time.monotonic(), done

    run_batch(configs, directory, instrument_source, progress, show)


def tell(text: str) -> None:
    """Write a line of progress to standard error, unbuffered."""
    print(text, file=sys.stderr, flush=True)


@functools.cache
def _instruments_of_process() -> InstrumentSource:
    return make_instrument_source(lambda text: None)


def work_in_process(job: Job) -> Any:
    """Run a job in a worker process, which keeps its judges for later jobs; returns its result."""
    return interruptible(lambda: job.run(_instruments_of_process(), tell))


@contextlib.contextmanager
def running(
    jobs: Sequence[Job],
    workers: int,
    instrument_source: InstrumentSource,
    show: Callable[[str], None],
    work: Callable[[Job], Any] = work_in_process,
) -> Iterator[Callable[[pathlib.Path], Any]]:
    """Run the jobs in order, ``workers`` at a time.

    Yields ``wait(directory)``, which returns the result of that job once it is done, or raises its error; None for a
    job that had finished before. Leaving the context stops all running jobs; each can be continued. With one worker,
    ``wait`` runs the job in this process. work: runs a job in a worker; a function of a module, since another process
    imports it.
    """
    waiting: dict[pathlib.Path, Job] = {}
    for job in jobs:
        if job.directory not in waiting and not job.finished(show):
            waiting.setdefault(job.directory, job)
    if workers == 1 or not waiting:

        @functools.cache
        def run_here(directory: pathlib.Path) -> Any:
            return waiting[directory].run(instrument_source, show) if directory in waiting else None

        yield run_here
        return
    for judged in {job.judged.data.dataset: job.judged for job in waiting.values() if job.judged}.values():
        # Train the judge once, in this process; all workers load it from the cache.
        instrument_source(prepare_data(judged))
    context = multiprocessing.get_context("spawn")
    shares = context.Queue()
    cores = usable_cores()
    for worker in range(workers):
        shares.put(tuple(cores[worker::workers]) or tuple(cores))
    executor = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (shares, os.getpid()))
    try:
        with on_interruption(_end_workers):
            futures = {directory: executor.submit(work, job) for directory, job in waiting.items()}
            yield lambda directory: futures[directory].result() if directory in futures else None
    finally:
        # End the workers first, since a shutdown would wait for their current batches.
        _end_workers()
        executor.shutdown(cancel_futures=True)


def _end_workers() -> None:
    """End the workers. Each first saves the finished rounds of its batch."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    until = time.monotonic() + _SECONDS_TO_SAVE
    for child in children:
        child.join(max(0.0, until - time.monotonic()))


def _start_worker(shares: multiprocessing.queues.Queue, parent: int) -> None:
    # Ctrl-C reaches the whole process group, but only the parent ends its workers.
    leave_on_signals(by_terminal=False)
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
    cores = shares.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
