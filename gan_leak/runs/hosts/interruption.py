"""SIGINT and SIGTERM end a process within seconds, during any computation, and keep finished work.

Python handles a signal only in the main thread, and only between two of its instructions. A program that XLA compiles
or runs may take minutes. So a binary works in a second thread, and its main thread only waits for signals. After a
signal, the main thread calls the functions given to ``on_interruption``, newest first, and ends the process. The second
thread continues until the process ends, but cannot enter ``uninterrupted``.

This module imports the standard library only, so that a binary can call ``leave_on_signals`` before its long imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

Result = TypeVar("Result")
Leave = Callable[[], str | None]

_SECONDS_BETWEEN_LOOKS = 0.2
# Saving takes less. A second signal after this time ends the process at once.
_SECONDS_TO_SAVE = 2.0
_SECONDS_TO_FLUSH = 0.5
# Tracing and compiling nest deeply. A main thread usually has 8 MB; another thread may get less.
_STACK_BYTES = 64 * 2**20

# Signals concern the whole process, so its handlers are global too.
_LEAVES: list[Leave] = []
_BUSY = threading.RLock()
_SIGNALS: list[float] = []


def leave_on_signals(*, by_terminal: bool = True) -> None:
    """Make SIGTERM end this process with status 143, and SIGINT with 130. The main thread must call it.

    A process that was started with SIGINT ignored keeps ignoring it. by_terminal: False ignores SIGINT, which a
    terminal sends to all processes of a group, and shows only lines about errors while saving.
    """
    if not by_terminal:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave if by_terminal else _leave_silently)


def interruptible(work: Callable[[], Result]) -> Result:
    """Run ``work()`` in a second thread, so that this one handles signals. Returns its result or raises its error."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        # Child processes inherit the mask, so that on Ctrl-C only the parent ends them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    before = threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=run, name="work", daemon=True)
    thread.start()
    threading.stack_size(before)
    while thread.is_alive():
        thread.join(_SECONDS_BETWEEN_LOOKS)
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def on_interruption(leave: Leave) -> Iterator[None]:
    """Call ``leave()`` if an interruption ends the process within the block, and show the line that it returns.

    Of nested blocks, the newest ``leave`` is called first, and only its line is shown. ``leave`` runs in the main
    thread while the block continues in another, but waits while that is ``uninterrupted``. A KeyboardInterrupt or
    SystemExit of the block itself counts as an interruption, and is raised again.
    """
    _LEAVES.append(leave)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if line := leave():
            print(line, file=sys.stderr, flush=True)
        raise
    finally:
        _LEAVES.remove(leave)


def uninterrupted() -> contextlib.AbstractContextManager:
    """Delay a signal within a block: for several changes at once, and for saving. It must take less than a second."""
    return _BUSY


def _leave(signal_number: int, _: FrameType | None) -> None:
    if _may_leave(signal_number):
        errors, lines = _call_all()
        _end(128 + signal_number, [*errors, *(lines[:1] or ["interrupted"])])


def _leave_silently(signal_number: int, _: FrameType | None) -> None:
    if _may_leave(signal_number):
        _end(128 + signal_number, _call_all()[0])


def _may_leave(signal_number: int) -> bool:
    """Whether this is the first signal. A later one is ignored for two seconds, and then ends the process at once."""
    _SIGNALS.append(time.monotonic())
    if _SIGNALS[-1] - _SIGNALS[0] > _SECONDS_TO_SAVE:
        _end(128 + signal_number, ["interrupted again before all was saved"])
    return len(_SIGNALS) == 1


def _call_all() -> tuple[list[str], list[str]]:
    """Call all functions given to ``on_interruption``. Returns lines about errors, and the lines of the functions."""
    # Errors of the other threads no longer matter.
    threading.excepthook = lambda _: None
    errors: list[str] = []
    lines: list[str] = []
    # Never released: the other threads must not change the saved files.
    _BUSY.acquire()
    for leave in reversed(_LEAVES):
        try:
            lines += [line for line in [leave()] if line]
        except Exception as error:
            errors.append(f"error: {' '.join(str(error).split()) or type(error).__name__}")
    return errors, lines


def _end(status: int, lines: list[str]) -> NoReturn:
    # Flushing may block, because another thread may hold a stream.
    deadline = threading.Timer(_SECONDS_TO_FLUSH, os._exit, [status])
    deadline.daemon = True
    deadline.start()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, "".join(f"{line}\n" for line in lines).encode())
    if "multiprocessing.util" in sys.modules:
        # Otherwise multiprocessing warns of leaked semaphores on standard error.
        with contextlib.suppress(Exception):
            sys.modules["multiprocessing.util"]._run_finalizers(0)
    # A normal exit would wait for the other thread, or unload modules that it uses.
    os._exit(status)
