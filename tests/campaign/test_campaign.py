"""What the campaigns rest on: a difference between two runs is seen, and how long they took is not one."""

import json
import shutil
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.runs.storage import checkpoints
from reference import campaign
from reference.campaign import Binary, Running, Server


@pytest.fixture
def run(tmp_path):
    """A directory with something of each kind that runs write."""
    path = tmp_path / "run"
    (path / "rows").mkdir(parents=True)
    np.savez(path / "rows" / "000.npz", images=np.zeros((2, 3), np.float32), seconds=np.array(1.5))
    (path / "metrics.jsonl").write_text(json.dumps({"round": 1, "losses": [0.5], "seconds": 0.1}) + "\n")
    (path / "report.html").write_text("<html></html>\n")
    for round in (3, 6):
        checkpoints.save(path / "checkpoints", round, {"x": jnp.arange(4.0) * round})
    return path


def altered(run, change):
    """What is different after a change, by the findings of the run before and after it."""
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    change(copy)
    return campaign.differences(campaign.findings(copy), campaign.findings(run))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda run: None, []),
        (lambda run: np.savez(run / "rows/000.npz", images=np.zeros((2, 3), np.float32), seconds=np.array(9.0)), []),
        (lambda run: np.savez(run / "rows/000.npz", images=np.full((2, 3), -0.0, np.float32)), ["rows/000.npz"]),
        (lambda run: (run / "rows/000.npz").write_bytes(b"PK"), ["rows/000.npz"]),
        (lambda run: (run / "metrics.jsonl").write_text('{"round": 1, "losses": [0.5], "seconds": 7}\n'), []),
        (lambda run: (run / "metrics.jsonl").write_text('{"round": 1, "losses": [0.25]}\n'), ["metrics.jsonl"]),
        (lambda run: (run / "report.html").write_text("<html></html>"), ["report.html"]),
        (lambda run: checkpoints.save(run / "checkpoints", 6, {"x": jnp.arange(4.0)}), ["checkpoints"]),
        (lambda run: checkpoints.save(run / "checkpoints", 3, {"x": jnp.arange(4.0)}), ["checkpoints"]),
        (lambda run: (run / "lock").touch(), []),
    ],
    ids=[
        *("nothing", "seconds of a row", "sign of zero", "torn array", "seconds of a round", "loss", "page"),
        *("state", "last round", "lock"),
    ],
)
def test_what_counts_as_a_difference(run, change, expected):
    assert altered(run, change) == [f"differs in {name}" for name in expected]


def test_files_too_few_and_too_many_are_differences(run):
    assert altered(run, lambda run: (run / "report.html").unlink()) == ["lacks report.html"]
    shutil.rmtree(run.with_name("copy"))
    names = ("rows/.000.npz.1f.tmp", "checkpoints/round_000006.orbax-checkpoint-tmp-1")
    found = altered(run, lambda run: [(run / name).touch() for name in names])
    assert found == [f"left over {name}" for name in sorted(names)]


def test_a_traceback_counts_where_the_binary_had_begun():
    trace = "Traceback (most recent call last):\n  File {}\nKeyboardInterrupt\n"
    assert campaign.has_traceback(trace.format('"/x/gan_leak/runs/train.py", line 1'))
    assert campaign.has_traceback("training ...\n" + trace.format('"/usr/lib/python3.11/threading.py", line 1'))
    assert not campaign.has_traceback(trace.format('"<frozen importlib._bootstrap>", line 1'))
    assert not campaign.has_traceback("error: damaged\n")


@pytest.mark.parametrize("forked", [False, True])
def test_attributes_are_replaced_before_anything_uses_them(tmp_path, monkeypatch, forked):
    (tmp_path / "constants.py").write_text("SECONDS = 20\nOTHER = 1\n")
    (tmp_path / "victim.py").write_text(
        "import sys\nfrom constants import OTHER, SECONDS\nprint(SECONDS, OTHER, sys.argv[1:], file=sys.stderr)\n"
        "sys.exit(int(SECONDS))\n"
    )
    binary = Binary("victim", ("--flag=1",), {"constants": {"SECONDS": 3}})
    variables = {"PYTHONPATH": str(tmp_path)}
    if forked:
        monkeypatch.setattr(campaign, "LAUNCHER", tmp_path / "launch.py")
        source = campaign.ROOT / "tests" / "reference" / "launch.py"
        campaign.LAUNCHER.write_text(source.read_text().replace("for name in SHARED:", "for name in ():"))
        server = Server(variables)
        ended = server.run(binary, tmp_path / "run", tmp_path / "errors", 60.0)
        server.close()
    else:
        ended = Running(binary.command(tmp_path / "run"), variables, tmp_path / "errors").wait()
    assert ended.status == 3, ended.errors
    assert ended.errors == f"3 1 ['--flag=1', '--workdir={tmp_path / 'run'}', '--resume']\n"


def test_what_does_not_end_is_ended(tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    running = Running([sys.executable, "-c", f"{code}; time.sleep(99)"], {}, tmp_path / "errors")
    assert running.wait(limit=0.5).status is None
    deadline = time.monotonic() + 30
    # A killed process is still listed until the system has cleared it away.
    while (left := running.kill_group()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
