"""Several processes, on one or many hosts, that run one program: start, common errors, broadcast.

Every process computes; only the lead process (index 0) reads and writes the run directory.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gan_leak.types import PyTree

_LONGEST_REFUSAL = 1000
_SECONDS_BETWEEN_LOOKS = 1.0
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def join_processes(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Make this process one of several. SLURM, Open MPI, Kubernetes or the TPU pod provide arguments that are None.

    It must be called before any computation. Raises ValueError if a number is out of range, or if an argument is None
    and none of these systems provides it.
    """
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"num_processes={num_processes}: expected at least 1")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        raise ValueError(f"process_id={process_id}: expected 0 to num_processes - 1, {(num_processes or 1) - 1}")
    # Otherwise JAX handles SIGTERM itself: it notifies all processes and continues.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except ValueError as error:
        raise ValueError(
            f"distributed=True: no SLURM, Open MPI, Kubernetes or TPU pod connects the processes ({error}); "
            "expected --coordinator_address, --num_processes and --process_id"
        ) from None


def is_lead() -> bool:
    """Whether this is the process that reads and writes the run directory."""
    return jax.process_index() == 0


@contextlib.contextmanager
def raise_together() -> Iterator[None]:
    """Raise a ValueError of one process in all processes, so that none waits for another.

    All processes must run the block. With several processes, an OSError of the block becomes a ValueError.
    """
    if jax.process_count() == 1:
        yield
        return
    own = ""
    try:
        yield
    except (ValueError, OSError) as error:
        own = str(error)
    encoded = np.zeros(_LONGEST_REFUSAL, np.uint8)
    refusal = np.frombuffer(own.encode(errors="backslashreplace")[:_LONGEST_REFUSAL], np.uint8)
    encoded[: len(refusal)] = refusal
    for process, row in enumerate(multihost_utils.process_allgather(encoded)):
        text = bytes(row).rstrip(b"\0").decode(errors="replace")
        if text:
            raise ValueError(text if process == jax.process_index() else f"process {process}: {text}")


def broadcast_from_lead(tree: PyTree) -> PyTree:
    """The arrays of the lead process, in every process. Other processes pass arrays of the same shapes and types."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(jax.device_get(tree))


def run_outside_collective(
    function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
) -> _Result:
    """Run a function of a module without the other processes of the run, and return its result.

    Orbax waits for all processes of a run in order to save or load, even if only one has data. So with several
    processes the function runs in a helper process, which is not part of the run.
    """
    if jax.process_count() == 1:
        return function(*arguments, **named)
    return _helper().submit(function, *arguments, **named).result()


@functools.cache
def _helper() -> concurrent.futures.ProcessPoolExecutor:
    atexit.register(_end_helper)
    return concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), _begin_helper, (os.getpid(),)
    )


def _end_helper() -> None:
    _helper().shutdown()
    # Otherwise the interpreter would delete it after the modules that its deletion needs.
    _helper.cache_clear()


def _begin_helper(parent: int) -> None:
    # Ctrl-C reaches the whole process group, but the helper must finish the work of its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
    # Leave the accelerators to the run.
    jax.config.update("jax_platforms", "cpu")


def exit_with_parent(parent: int) -> None:
    """End this process when its parent has ended, so that a resumed run is the only writer."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
