"""The progress display of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TextIO

import tqdm

from gan_leak.runs.hosts.interruption import on_interruption

# Its own lock is a semaphore of the system; Python warns of it if a process is ended by a signal.
tqdm.tqdm.set_lock(threading.RLock())

# Short enough that all values fit into 80 columns.
_BAR_FORMAT = "{n_fmt}/{total_fmt} |{bar}| {rate_inv_fmt}, {remaining} left{postfix}"


class Update(Protocol):
    def __call__(
        self, round: int, *, accuracy: float | None = None, loss: float | None = None, leakage: float | None = None
    ) -> None: ...


class Progress(NamedTuple):
    """``update(round, accuracy=, loss=, leakage=)`` shows ``round`` finished rounds. A value that is left out keeps its
    last known value. ``message(text)`` shows a separate line.
    """

    update: Update
    message: Callable[[str], None]


@contextlib.contextmanager
def progress(
    total_rounds: int,
    *,
    initial: int = 0,
    stream: TextIO | None = None,
    plain_interval_s: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show the rounds of a run on ``stream`` (default: standard error), starting from ``initial`` finished rounds.

    A terminal gets a bar. Any other stream gets at most one line in ``plain_interval_s`` seconds, and always one for
    the last round. ``clock`` returns the time in seconds.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        options = {"unit": "round", "bar_format": _BAR_FORMAT, **_bar_size(stream)}
        bar = tqdm.tqdm(total=total_rounds, initial=initial, file=stream, **options)
        # Closing ends the line of the bar, so that later text starts on a new line.
        with bar, on_interruption(bar.close):
            yield _bar_progress(bar, stream)
    else:
        yield _plain_progress(total_rounds, initial, stream, plain_interval_s, clock)


def _bar_size(stream: TextIO) -> dict[str, Any]:
    try:
        known = all(os.get_terminal_size(stream.fileno()))
    except (OSError, ValueError):
        known = False
    # Emulated terminals often report a size of 0 by 0. With that size tqdm would show nothing.
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def _bar_progress(bar: tqdm.tqdm, stream: TextIO) -> Progress:
    known: dict[str, str] = {}

    def update(
        round: int, *, accuracy: float | None = None, loss: float | None = None, leakage: float | None = None
    ) -> None:
        known.update(_format(accuracy, loss, leakage))
        bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in known.items()), refresh=False)
        bar.update(round - bar.n)
        bar.refresh()

    return Progress(update, lambda text: bar.write(text, file=stream))


def _plain_progress(
    total_rounds: int, initial: int, stream: TextIO, interval_s: float, clock: Callable[[], float]
) -> Progress:
    known: dict[str, str] = {}
    # The speed is measured from the first update, because earlier rounds include the compilation.
    since_round, since_time = initial, clock()
    updated = False
    last_line = -float("inf")

    def update(
        round: int, *, accuracy: float | None = None, loss: float | None = None, leakage: float | None = None
    ) -> None:
        nonlocal since_round, since_time, updated, last_line
        now = clock()
        known.update(_format(accuracy, loss, leakage))
        seconds_per_round = (now - since_time) / max(round - since_round, 1)
        if not updated:
            updated, since_round, since_time = True, round, now
        if round >= total_rounds or now - last_line >= interval_s:
            last_line = now
            parts = [f"round {round}/{total_rounds}", *(f"{name} {value}" for name, value in known.items())]
            left = seconds_per_round * max(total_rounds - round, 0)
            print("  ".join([*parts, f"{seconds_per_round:.2g} s/round", f"left {_clock_time(left)}"]), file=stream)
            stream.flush()

    def message(text: str) -> None:
        print(text, file=stream, flush=True)

    return Progress(update, message)


def _format(accuracy: float | None, loss: float | None, leakage: float | None) -> dict[str, str]:
    values = {"accuracy": (accuracy, ".3f"), "loss": (loss, ".3f"), "leakage": (leakage, ".2f")}
    return {name: format(value, digits) for name, (value, digits) in values.items() if value is not None}


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
