"""SIGINT and SIGTERM end a process within moments, whatever it computes; what is finished is kept.

Python hears a signal only in the main thread, and only between two of its own instructions. A program that XLA compiles
or runs may take minutes. So a binary works in a second thread, and its main thread does nothing but hear signals. On
one, the main thread calls what ``on_interruption`` was given, newest first, and ends the process. The other thread is
not told: it may go on until the process ends, but not past ``uninterrupted``.

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
# Saving takes less; a second signal after it says that somebody does not want to wait any longer.
_SECONDS_TO_SAVE = 2.0
_SECONDS_TO_FLUSH = 0.5
# A main thread usually has 8 MB, a thread of its own may get less, and tracing and compiling nest deeply.
_STACK_BYTES = 64 * 2**20

# Signals come to the process as a whole, and so does what it has to do before it ends.
_LEAVES: list[Leave] = []
_BUSY = threading.RLock()
_SIGNALS: list[float] = []


def leave_on_signals(*, by_terminal: bool = True) -> None:
    """From now on SIGTERM ends this process with status 143, and SIGINT with 130; to be called by the main thread.

    A process that was started with SIGINT ignored goes on ignoring it. ``by_terminal``: False ignores SIGINT, which a
    terminal sends to all processes of a group, and shows no line but for what cannot be saved.
    """
    if not by_terminal:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave if by_terminal else _leave_silently)


def interruptible(work: Callable[[], Result]) -> Result:
    """The result of ``work()``, or what it raises; it runs in a thread of its own, so that this one hears signals."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        # Processes that this thread starts inherit it: on Ctrl-C their parent ends them in its own way.
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
    """Within, ``leave()`` is called before an interruption ends the process, and the line that it returns is shown.

    Of several, the newest is called first, and only its line is shown. ``leave`` runs in the main thread while the
    block goes on in another, but not while that is ``uninterrupted``. A KeyboardInterrupt or SystemExit of the block
    itself counts as an interruption, and is raised again.
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
    """Within, a signal waits: for changes that belong together, and for saving. It should take less than a second."""
    return _BUSY


def _leave(signal_number: int, _: FrameType | None) -> None:
    if _may_leave(signal_number):
        errors, lines = _call_all()
        _end(128 + signal_number, [*errors, *(lines[:1] or ["interrupted"])])


def _leave_silently(signal_number: int, _: FrameType | None) -> None:
    if _may_leave(signal_number):
        _end(128 + signal_number, _call_all()[0])


def _may_leave(signal_number: int) -> bool:
    """Whether this is the first signal; a later one is ignored while what the first began may take its time."""
    _SIGNALS.append(time.monotonic())
    if _SIGNALS[-1] - _SIGNALS[0] > _SECONDS_TO_SAVE:
        _end(128 + signal_number, ["interrupted again before all was saved"])
    return len(_SIGNALS) == 1


def _call_all() -> tuple[list[str], list[str]]:
    """Calls all that wants to be called; what went wrong, and the lines that were returned."""
    # What the other threads make of it does not matter any more.
    threading.excepthook = lambda _: None
    errors: list[str] = []
    lines: list[str] = []
    # Never released: whatever works here must not change what was saved.
    _BUSY.acquire()
    for leave in reversed(_LEAVES):
        try:
            lines += [line for line in [leave()] if line]
        except Exception as error:
            errors.append(f"error: {' '.join(str(error).split()) or type(error).__name__}")
    return errors, lines


def _end(status: int, lines: list[str]) -> NoReturn:
    # Another thread may hold a stream or be stuck in it.
    deadline = threading.Timer(_SECONDS_TO_FLUSH, os._exit, [status])
    deadline.daemon = True
    deadline.start()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, "".join(f"{line}\n" for line in lines).encode())
    if "multiprocessing.util" in sys.modules:
        # Semaphores that nobody removes are told of on standard error.
        with contextlib.suppress(Exception):
            sys.modules["multiprocessing.util"]._run_finalizers(0)
    # The interpreter would wait for the other thread, or pull the modules from under it.
    os._exit(status)
