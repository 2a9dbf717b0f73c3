"""Workers: every batch runs once, in a process with cores of its own, and nothing runs on when nobody waits."""

import functools
import hashlib
import multiprocessing
import os
import pathlib
import time

import pytest

from gan_leak.config import make_config
from gan_leak.machine import usable_cores
from gan_leak.runs.hosts import workers
from gan_leak.runs.hosts.interruption import interruptible, on_interruption
from gan_leak.runs.hosts.workers import Job, batch_job, default_workers, running


def note_process(job):
    """Stands in for work: notes who did it, and lasts long enough for the other worker to take the next."""
    job.directory.mkdir()
    with (job.directory / "process").open("a") as file:
        cores = ",".join(str(core) for core in usable_cores())
        file.write(f"{os.getpid()} {cores}\n")
    time.sleep(0.5)
    if job.directory.name == "fails":
        raise ValueError("a batch that fails")
    return job.directory.name.upper()


def never_end(job):
    job.directory.mkdir()
    (job.directory / "started").write_text(str(os.getpid()))
    (job.directory / "started").rename(job.directory / "pid")
    time.sleep(600)


def keep_when_ended(job):
    """Stands in for a batch that keeps what it has, and is in the middle of a call that takes hours."""

    def keep():
        (job.directory / "kept").touch()

    def work():
        job.directory.mkdir()
        with on_interruption(keep):
            (job.directory / "started").touch()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

    interruptible(work)


@pytest.fixture
def no_judge(monkeypatch):
    monkeypatch.setattr(workers, "prepare_data", lambda config: config)
    return lambda data: None


def jobs_in(folder, names):
    return [batch_job([make_config(rounds=10)], folder / name, name) for name in names]


def wait_for(*paths, parent=None):
    """Return once workers have made these files; a worker that never begins is a failure and no test that hangs."""
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in paths):
        assert parent is None or parent.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes(folder):
    return {path.parent.name: path.read_text().splitlines() for path in folder.glob("*/process")}


@pytest.mark.slow
def test_every_batch_is_run_once_each_worker_on_cores_of_its_own(tmp_path, no_judge):
    jobs = jobs_in(tmp_path, ["a", "b", "c", "d"])
    with running([*jobs, jobs[0]], 2, no_judge, print, note_process) as wait:
        for job in reversed(jobs):
            assert wait(job.directory) == job.directory.name.upper()
            assert job.directory.name in processes(tmp_path)
    found = processes(tmp_path)
    assert set(found) == set("abcd")
    assert all(len(lines) == 1 for lines in found.values())
    cores_of = dict(line.split() for (line,) in found.values())
    assert len(cores_of) == 2
    assert str(os.getpid()) not in cores_of
    if len(usable_cores()) > 1:
        first, second = (set(cores.split(",")) for cores in cores_of.values())
        assert not first & second
        assert first | second == {str(core) for core in usable_cores()}


def test_who_waits_for_a_batch_that_fails_is_told_and_the_others_go_on(tmp_path, no_judge):
    jobs = jobs_in(tmp_path, ["fails", "a", "b"])
    with running(jobs, 2, no_judge, print, note_process) as wait:
        with pytest.raises(ValueError, match="a batch that fails"):
            wait(tmp_path / "fails")
        wait(tmp_path / "b")
    assert set(processes(tmp_path)) == {"fails", "a", "b"}


def test_a_worker_that_is_ended_keeps_what_it_has(tmp_path, no_judge, capfd):
    with running(jobs_in(tmp_path, ["a", "b"]), 2, no_judge, print, keep_when_ended):
        wait_for(tmp_path / "a" / "started", tmp_path / "b" / "started")
    assert (tmp_path / "a" / "kept").exists()
    assert (tmp_path / "b" / "kept").exists()
    assert capfd.readouterr().err == ""


def test_leaving_ends_what_still_runs(tmp_path, no_judge):
    jobs = jobs_in(tmp_path, ["a", "b", "c"])
    with running(jobs, 2, no_judge, print, never_end):
        wait_for(tmp_path / "a", tmp_path / "b")
        left = time.monotonic()
    assert time.monotonic() - left < 60
    assert not multiprocessing.active_children()
    assert not (tmp_path / "c").exists()


def test_a_finished_batch_is_not_run(tmp_path, no_judge, monkeypatch):
    jobs = jobs_in(tmp_path, ["a", "b", "c"])
    monkeypatch.setattr(workers, "finished_result", lambda directory, say: True if directory.name == "a" else None)
    with running(jobs, 2, no_judge, print, note_process) as wait:
        for job in jobs:
            wait(job.directory)
    assert set(processes(tmp_path)) == {"b", "c"}


def test_one_worker_is_this_process_and_does_what_is_waited_for(tmp_path, monkeypatch):
    jobs, made = jobs_in(tmp_path, ["a", "b"]), []
    monkeypatch.setattr(workers, "run_batch", lambda configs, directory, *_: made.append(directory.name))
    with running(jobs, 1, None, print) as wait:
        assert made == []
        wait(tmp_path / "b")
        wait(tmp_path / "b")
        assert made == ["b"]


def process_of(directory, instruments, show):
    return directory.name, os.getpid(), len(usable_cores())


def test_a_job_has_the_same_cores_whatever_else_is_left(tmp_path):
    """So a run that is continued, with the last job alone, ends in the bits of one that was not interrupted."""
    job = Job(tmp_path, functools.partial(process_of, tmp_path))
    with running([job], 1, None, print) as wait:
        assert wait(tmp_path) == wait(tmp_path) == (tmp_path.name, os.getpid(), len(usable_cores()))
        assert wait(tmp_path / "unknown") is None
    with running([job], 2, None, print) as wait:
        name, process, cores = wait(tmp_path)
    assert name == tmp_path.name
    assert process != os.getpid()
    assert cores == -(-len(usable_cores()) // 2)


def start_and_hang(folder):
    """Stands in for a reproduction that is killed: starts two workers at batches that never end."""
    workers.prepare_data = lambda config: config
    with running(jobs_in(folder, ["a", "b"]), 2, lambda data: None, print, never_end):
        time.sleep(600)


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    """Even by SIGKILL: whoever continues a batch must be its only writer."""
    parent = multiprocessing.get_context("spawn").Process(target=start_and_hang, args=(tmp_path,))
    parent.start()
    wait_for(tmp_path / "a" / "pid", tmp_path / "b" / "pid", parent=parent)
    pids = [int((tmp_path / name / "pid").read_text()) for name in "ab"]
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended, though nobody may ever ask for its status.
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_progress_tells_the_time_left_from_what_was_done_here(tmp_path, monkeypatch):
    """A batch continued at round 4, of which two rounds took ten seconds, has twenty to go, however long it loaded."""
    (job,), shown, clock = jobs_in(tmp_path, ["a"]), [], iter([0.0, 100.0, 110.0])
    monkeypatch.setattr(workers.time, "monotonic", lambda: next(clock))

    def continued(configs, directory, instruments, show, say):
        show(4, "")
        show(5, "")
        show(6, "accuracy 0.9")

    monkeypatch.setattr(workers, "run_batch", continued)
    job.run(None, shown.append)
    assert shown == ["  a: round 6/10, accuracy 0.9, 20 s left"]


def test_no_more_workers_than_cores():
    assert 1 <= default_workers() <= min(4, len(usable_cores()))
