"""The display of a run, on a terminal and elsewhere."""

import contextlib
import io
import os
import pty
import threading

import pytest
import tqdm

from gan_leak.runs.progress import progress


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run_plain(rounds, seconds_per_round, *, total, initial=0, interval=0.0):
    stream, clock = io.StringIO(), FakeClock()
    with progress(total, initial=initial, stream=stream, plain_interval_s=interval, clock=clock) as display:
        for round in rounds:
            clock.now += seconds_per_round
            display.update(round, accuracy=0.9531, loss=0.1119)
    return stream.getvalue().splitlines()


def test_plain_line_tells_all():
    stream, clock = io.StringIO(), FakeClock()
    with progress(40, initial=11, stream=stream, clock=clock) as display:
        clock.now += 1.9
        display.update(12, accuracy=0.953, loss=0.112, leakage=0.41)
    assert stream.getvalue() == ("round 12/40  accuracy 0.953  loss 0.112  leakage 0.41  1.9 s/round  left 0:53\n")


def test_plain_lines_keep_their_distance_but_the_last_round_always_shows():
    lines = run_plain(range(1, 11), 1.0, total=10, interval=4.0)
    assert [line.split()[1] for line in lines] == ["1/10", "5/10", "9/10", "10/10"]


def test_compilation_in_the_first_round_does_not_spoil_the_forecast():
    stream, clock = io.StringIO(), FakeClock()
    with progress(1000, stream=stream, plain_interval_s=0.0, clock=clock) as display:
        for round, seconds in ((1, 60.0), (2, 4.0), (4, 8.0)):
            clock.now += seconds
            display.update(round)
    assert [line.split("  ")[1:] for line in stream.getvalue().splitlines()[1:]] == [
        ["4 s/round", "left 1:06:32"],
        ["4 s/round", "left 1:06:24"],
    ]


@pytest.mark.parametrize("make_stream", [io.StringIO, FakeTerminal])
def test_last_known_values_stay(make_stream):
    stream = make_stream()
    with progress(3, stream=stream, plain_interval_s=0.0) as display:
        display.update(1, accuracy=0.5, leakage=0.25)
        display.update(2, loss=2.0)
        display.update(3, loss=1.0)
    last = stream.getvalue().replace("\r", "\n").splitlines()[-1]
    for value in ("0.500", "1.000", "0.25"):
        assert value in last


@pytest.mark.parametrize("make_stream", [io.StringIO, FakeTerminal])
def test_messages_get_a_line_of_their_own(make_stream):
    stream = make_stream()
    with progress(3, stream=stream) as display:
        display.update(1)
        display.message("checkpoint written")
        display.update(3)
    assert "checkpoint written\n" in stream.getvalue()


def test_resumed_bar_counts_from_where_it_was():
    stream = FakeTerminal()
    with progress(40, initial=20, stream=stream) as display:
        display.update(30, leakage=0.5)
    assert "20/40" in stream.getvalue()
    assert "30/40" in stream.getvalue()
    assert "leakage 0.50" in stream.getvalue()


@pytest.mark.parametrize("make_stream", [io.StringIO, FakeTerminal])
def test_errors_pass_through(make_stream):
    with pytest.raises(KeyError), progress(3, stream=make_stream()):
        raise KeyError("x")


def test_bar_shows_on_a_terminal_that_claims_no_size(monkeypatch):
    reader, writer = pty.openpty()
    shown = b""
    try:
        with os.fdopen(writer, "w") as stream:
            monkeypatch.setattr("sys.stderr", stream)
            with progress(40) as display:
                display.update(12, leakage=0.41)
        # The terminal hands on what was written in pieces, and ends in an error.
        with contextlib.suppress(OSError):
            while piece := os.read(reader, 10_000):
                shown += piece
    finally:
        os.close(reader)
    assert b"12/40" in shown
    assert b"leakage 0.41" in shown


def test_bars_need_no_semaphore_of_the_system():
    """A process that a signal ends could not remove it, and Python would warn after the last line."""
    assert type(tqdm.tqdm.get_lock()) is type(threading.RLock())
