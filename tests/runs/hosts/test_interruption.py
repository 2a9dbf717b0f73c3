"""Signals: heard while C code runs, answered in order, and not before what belongs together is done."""

import signal
import subprocess
import sys
import threading
import traceback

import pytest

from gan_leak.runs.hosts import interruption
from gan_leak.runs.hosts.interruption import interruptible, on_interruption

# A call that returns to the interpreter after minutes only, and does not hold the interpreter's lock.
HEAD = """
import hashlib, pathlib, signal, sys, time
# Whoever runs the tests in the background may have them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from gan_leak.runs.hosts.interruption import *

def note(text):
    print(text, flush=True)

def calculate():
    note("calculating")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    note("calculated")
"""
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def started(body, *, until="calculating"):
    """A process that runs the code, as soon as it has printed ``until``."""
    command = [sys.executable, "-W", "error", "-c", HEAD + body]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    while not lines or lines[-1] != f"{until}\n":
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
    return process


def ended(process):
    """(exit status, lines of output since the start, lines of error)."""
    output, errors = process.communicate(timeout=60)
    return process.returncode, output.splitlines(), errors.splitlines()


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_is_heard_while_c_code_runs(number):
    process = started(
        "leave_on_signals()\n"
        "def work():\n"
        "    with on_interruption(lambda: note('outer')), on_interruption(lambda: note('inner') or 'kept'):\n"
        "        calculate()\n"
        "interruptible(work)\n"
    )
    process.send_signal(number)
    assert ended(process) == (STATUS[number], ["inner", "outer"], ["kept"])


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_before_there_is_any_work_is_one_line(number):
    process = started("leave_on_signals()\nnote('imports')\ntime.sleep(60)\n", until="imports")
    process.send_signal(number)
    assert ended(process) == (STATUS[number], [], ["interrupted"])


def test_a_signal_waits_for_what_belongs_together(tmp_path):
    process = started(
        "leave_on_signals()\n"
        "done = []\n"
        "def work():\n"
        "    with on_interruption(lambda: note(done)):\n"
        "        with uninterrupted():\n"
        "            done.append(1)\n"
        "            note('begun')\n"
        "            time.sleep(1)\n"
        "            done.append(2)\n"
        "        while True:\n"
        "            time.sleep(0.01)\n"
        "            with uninterrupted():\n"
        "                done.append(3)\n"
        "interruptible(work)\n",
        until="begun",
    )
    process.send_signal(signal.SIGTERM)
    status, output, _ = ended(process)
    assert status == 143
    assert output[0].startswith("[1, 2")


def test_a_second_signal_does_not_disturb_saving_and_a_late_one_does_not_wait():
    body = (
        "from gan_leak.runs.hosts import interruption\n"
        "interruption._SECONDS_TO_SAVE = {patience}\n"
        "leave_on_signals()\n"
        "def save():\n"
        "    note('saving')\n"
        "    time.sleep({seconds})\n"
        "    note('saved')\n"
        "def work():\n"
        "    with on_interruption(save):\n"
        "        calculate()\n"
        "interruptible(work)\n"
    )
    process = started(body.format(seconds=1, patience=600))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, ["saved"], ["interrupted"])
    process = started(body.format(seconds=600, patience=0))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, [], ["interrupted again before all was saved"])


def test_what_cannot_be_saved_is_told_and_the_rest_is_saved():
    process = started(
        "leave_on_signals()\n"
        "def refuse():\n"
        "    raise OSError(28, 'No space left on device', 'kept.npz')\n"
        "def work():\n"
        "    with on_interruption(lambda: note('outer') or 'line'), on_interruption(refuse):\n"
        "        calculate()\n"
        "interruptible(work)\n"
    )
    process.send_signal(signal.SIGTERM)
    status, output, errors = ended(process)
    assert (status, output) == (143, ["outer"])
    assert errors == ["error: [Errno 28] No space left on device: 'kept.npz'", "line"]


def test_a_child_of_a_terminal_s_process_leaves_ctrl_c_to_its_parent():
    process = started("leave_on_signals(by_terminal=False)\ninterruptible(calculate)\n")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, [], [])


def test_ctrl_c_that_was_ignored_from_the_start_stays_ignored():
    process = started("signal.signal(signal.SIGINT, signal.SIG_IGN)\nleave_on_signals()\ninterruptible(calculate)\n")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.kill()
    ended(process)


def test_semaphores_are_removed_without_a_word():
    """As a pool of workers has them: multiprocessing would tell of each that is left."""
    process = started(
        "import multiprocessing\n"
        "leave_on_signals()\n"
        "queue = multiprocessing.get_context('spawn').Queue()\n"
        "interruptible(calculate)\n"
    )
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, [], ["interrupted"])


def test_results_and_exceptions_come_back_as_they_are():
    assert interruptible(lambda: (1, threading.current_thread() is threading.main_thread())) == (1, False)

    def fail():
        raise SystemExit(7)

    with pytest.raises(SystemExit) as caught:
        interruptible(fail)
    assert caught.value.code == 7
    assert traceback.extract_tb(caught.tb)[-1].name == "fail"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_where_nobody_hears_signals_an_exception_is_an_interruption(error, capsys):
    called = []
    with pytest.raises(error), on_interruption(lambda: called.append(1) or "line"):
        raise error
    assert (called, capsys.readouterr().err) == ([1], "line\n")
    with pytest.raises(ValueError, match="defect"), on_interruption(lambda: called.append(2)):
        raise ValueError("defect")
    with on_interruption(lambda: called.append(3)):
        pass
    assert called == [1]
    assert interruption._LEAVES == []
