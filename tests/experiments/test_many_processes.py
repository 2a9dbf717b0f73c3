"""The main job shared by two processes over loopback: the same results, through a death and a restart."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from reference.launch import LINEAR_NETWORKS
from reference.quick import write_stripes
from reference.whole_run import measured

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHER = ROOT / "tests" / "reference" / "launch.py"
# What processes share does not depend on the networks. The module imports all that is replaced.
PATCHES = {"gan_leak.runs.federated.train": {LINEAR_NETWORKS: True}}
ROUNDS = 30


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


def command(workdir, stripes, *flags):
    """Four participants, of whom three are drawn for a round, on one device a process."""
    return [
        *(sys.executable, str(LAUNCHER), json.dumps(PATCHES), "experiments.gan_attack", f"--workdir={workdir}"),
        f"--dataset=npz:{stripes}",
        *("--participant_classes=0;1;2,3;1", "--adversary=2", "--target_class=0", "--judge_samples=80"),
        *("--samples_per_participant=40", "--batch_size=8", "--attack=none", "--schedule=synchronous"),
        *(f"--rounds={ROUNDS}", f"--evaluation_interval={ROUNDS}", "--checkpoint_interval=4"),
        *("--download_fraction=0.5", "--performance.cpu_devices=1", *flags),
    ]


def begin(flags, **settings):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(flags, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment, **settings)


def begin_both(workdir, stripes, *flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = ("--distributed", f"--coordinator_address={address}", "--num_processes=2")
    return [
        begin(command(workdir / f"of_{process}", stripes, *flags, *shared, f"--process_id={process}"))
        for process in range(2)
    ]


def end(process, timeout=120):
    _, errors = process.communicate(timeout=timeout)
    return process.returncode, errors


def assert_same(ours, theirs):
    assert [record["round"] for record in ours] == list(range(1, ROUNDS + 1))
    assert [record.get("participants") for record in ours] == [record.get("participants") for record in theirs]
    np.testing.assert_allclose([r["losses"] for r in ours], [r["losses"] for r in theirs], rtol=1e-3)
    assert ours[-1]["model_accuracy"] == pytest.approx(theirs[-1]["model_accuracy"], abs=0.02)


def alone(tmp_path, stripes, *flags):
    """What one process finds."""
    code, errors = end(begin(command(tmp_path / "alone", stripes, *flags)))
    assert code == 0, errors
    found = measured(tmp_path / "alone")
    assert np.ptp([record["losses"][0] for record in found]) > 1e-2
    return found


def assert_both_end_well(both):
    """Both leave in order; only the first writes, and only what it says matters. Returns what that is."""
    (first, said), (second, whispered) = [end(process) for process in both]
    assert (first, second) == (0, 0), said + whispered
    assert "written" in said
    assert "written" not in whispered
    return said


@pytest.mark.slow
def test_two_processes_find_what_one_does(stripes, tmp_path):
    expected = alone(tmp_path, stripes)
    assert_both_end_well(begin_both(tmp_path, stripes))
    assert not (tmp_path / "of_1").exists()
    assert_same(measured(tmp_path / "of_0"), expected)


@pytest.mark.slow
def test_a_death_a_restart_and_a_process_that_goes_on_alone_change_nothing(stripes, tmp_path):
    drawn = "--participants_per_round=3"
    expected = alone(tmp_path, stripes, drawn)
    both = begin_both(tmp_path, stripes, drawn)
    metrics = tmp_path / "of_0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 6:
        assert all(process.poll() is None for process in both), [process.stderr.read() for process in both]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in reversed(both):
        process.send_signal(signal.SIGKILL)
    for process in both:
        end(process)
    assert len(measured(tmp_path / "of_0")) < ROUNDS
    assert "continuing after round" in assert_both_end_well(begin_both(tmp_path, stripes, drawn, "--resume"))
    assert_same(measured(tmp_path / "of_0"), expected)
    for path in (tmp_path / "of_0" / "checkpoints").glob(f"round_{ROUNDS:06d}*"):
        path.rename(path.with_name(f"gone_{path.name}"))
    code, errors = end(begin(command(tmp_path / "of_0", stripes, drawn, "--resume")))
    assert code == 0, errors
    assert_same(measured(tmp_path / "of_0"), expected)


@pytest.mark.slow
def test_what_one_process_cannot_do_ends_both_with_one_line(stripes, tmp_path):
    (tmp_path / "of_0").mkdir()
    (tmp_path / "of_0" / "something else").touch()
    for flags, message in (((), "but no config.json"), (("--schedule=round_robin",), "expected 'synchronous'")):
        ended = [end(process) for process in begin_both(tmp_path, stripes, *flags)]
        assert [code for code, _ in ended] == [2, 2], ended
        for _, errors in ended:
            (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
            assert message in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--process_id=1"], "process_id=1: expected together with --distributed"),
        (["--distributed"], "expected --coordinator_address, --num_processes and --process_id"),
        (["--distributed", "--num_processes=0"], "num_processes=0: expected at least 1"),
        (["--distributed", "--num_processes=2", "--process_id=2"], "process_id=2: expected 0 to num_processes - 1, 1"),
    ],
)
def test_processes_that_cannot_be_are_refused(stripes, tmp_path, flags, message):
    code, errors = end(begin(command(tmp_path / "run", stripes, *flags)))
    assert code == 2
    assert message in errors.splitlines()[-1]
    assert not (tmp_path / "run").exists()
