"""SIGTERM and Ctrl-C during a run, wherever it is: it ends at once, and resumes to the same bits."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from gan_leak.runs.federated import train
from gan_leak.settings import values_of
from reference import whole_run
from reference.quick import small_run

SCRIPT = pathlib.Path(__file__).with_name("interrupted_run.py")
# What a signal does not end would take a minute or hours; what it ends takes a second where nothing else runs.
LIMIT = 30


@pytest.fixture
def config(stripes):
    return small_run(stripes, rounds=5, evaluation_interval=4, checkpoint_interval=4)


def run(config, workdir, resume=False):
    assert whole_run.run(config, workdir, resume) == 0


def results(workdir):
    return (workdir / "reconstructions.npz").read_bytes(), whole_run.measured(workdir)


def interrupted(config, workdir, place, number):
    """(exit status, standard error) of a run that a signal meets at a place."""
    flags = [f"--{name}={value}" for name, value in values_of(config).items()]
    # Compiled as in this process, so that bits can be compared.
    path = f"{SCRIPT.parents[3]}:{SCRIPT.parents[2]}"
    environment = {**os.environ, "PYTHONPATH": path, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    # Whoever runs the tests in the background may have them ignore Ctrl-C.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", heed, sys.executable, str(SCRIPT), place, f"--workdir={workdir}", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        first = process.stdout.readline()
        process.send_signal(number)
        try:
            _, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        assert first == "here\n", errors
        return process.returncode, errors


# Round 3 is finished; round 4 would be evaluated and saved.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number", "kept"),
    [
        ("compiling", signal.SIGTERM, 3),
        pytest.param("compiling", signal.SIGINT, 3, marks=pytest.mark.slow),
        pytest.param("training", signal.SIGTERM, 3, marks=pytest.mark.slow),
        pytest.param("judge", signal.SIGINT, 3, marks=pytest.mark.slow),
        pytest.param("saving", signal.SIGTERM, 4, marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_where_it_is_and_resumes_to_the_same_bits(config, tmp_path, linear_networks, place, number, kept):
    workdir = tmp_path / "run"
    status, errors = interrupted(config, workdir, place, number)
    assert status == 128 + number
    assert errors.splitlines()[-1] == f"interrupted; --workdir={workdir} --resume continues after round {kept}"
    assert "Traceback" not in errors
    assert (workdir / "checkpoints" / f"round_{kept:06d}.sha256").exists()
    run(config, workdir, resume=True)
    run(config, tmp_path / "whole")
    assert results(workdir) == results(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_killed_while_it_saves_resumes_to_the_same_bits(config, tmp_path, linear_networks):
    status, _ = interrupted(config, tmp_path / "run", "saving", signal.SIGKILL)
    assert status == -signal.SIGKILL
    run(config, tmp_path / "run", resume=True)
    run(config, tmp_path / "whole")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.slow
def test_what_is_interrupted_while_it_loads_begins_anew(config, tmp_path, linear_networks):
    status, errors = interrupted(config, tmp_path / "run", "loading", signal.SIGTERM)
    assert (status, errors) == (143, "interrupted\n")
    run(config, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_rounds_that_are_not_evaluated_yet_are_not_saved(config, tmp_path, monkeypatch, linear_networks):
    """Else the run would go on after them, and their metrics would be missing."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "measure_leakage", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    run(config, tmp_path / "whole")
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
