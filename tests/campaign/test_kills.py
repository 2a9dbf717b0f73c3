"""Kills at random moments: whatever stops a run and however often, it goes on to the results of one left in peace.

GAN_LEAK_CAMPAIGN_KILLS: kills of each binary. GAN_LEAK_CAMPAIGN_SEED: what is drawn. GAN_LEAK_CAMPAIGN_CHAIN: the only
chain to run, to repeat one that failed. GAN_LEAK_CAMPAIGN_SECONDS: within how many seconds SIGTERM and SIGINT have to
take effect on an idle machine. GAN_LEAK_TEST_CACHE: where judges and compiled programs are kept between campaigns.
"""

import concurrent.futures
import os
import pathlib
import random
import resource
import signal
import time
from typing import Any, NamedTuple

import pytest

from reference import campaign
from reference.campaign import Binary, Ended, Running

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("GAN_LEAK_CAMPAIGN_KILLS", "50"))
ONLY = os.environ.get("GAN_LEAK_CAMPAIGN_CHAIN")
SECONDS = float(os.environ.get("GAN_LEAK_CAMPAIGN_SECONDS", "3"))
KILLS_OF_A_CHAIN = 10
SIDE_BY_SIDE = 2
# An interpreter that has not begun to run the binary cannot follow its rules.
EARLIEST = 0.3
# The settings of one binary share its kills.
BINARIES = (
    ("gan_attack", "cohorts", "dp_sgd"),
    ("sweep", "sweep_by_workers"),
    ("reproduce",),
    ("gradient_inversion",),
    ("split_inference",),
    ("user_leakage",),
)


class Setting(NamedTuple):
    """A binary with what a run of it finds that nobody disturbs, how long that takes, and how busy the machine is."""

    name: str
    binary: Binary
    expected: dict[str, Any]
    seconds: float
    slowness: float
    variables: dict[str, str]
    folder: pathlib.Path


class Plan(NamedTuple):
    """A kill: after so many seconds, or changes of the directory; signals with their delays; to the group or to one.

    cold: nothing compiled is at hand, so that most of the time goes into compiling.
    """

    after: float
    changes: int
    signals: tuple[tuple[float, int], ...]
    group: bool
    cold: bool

    def __str__(self) -> str:
        when = f"after {self.changes} changes" if self.changes else f"after {self.after:.2f} s"
        names = ", ".join(f"+{delay:.3f} s {signal.Signals(number).name}" for delay, number in self.signals)
        return f"{when}: {names}{' to the group' * self.group}{', cold' * self.cold}"


def draw_plan(rng: random.Random, setting: Setting) -> Plan:
    number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
    delay = rng.uniform(0.0, 0.3)
    second = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    signals = ((0.0, number),) if number else ((0.0, signal.SIGTERM), (delay, second))
    by_changes, cold = rng.random() < 0.3, rng.random() < 0.15
    return Plan(
        rng.uniform(0.0, 0.02) if by_changes else rng.uniform(EARLIEST, 1.2 * setting.seconds),
        rng.randint(1, 8) if by_changes else 0,
        signals,
        # As a terminal does.
        number == signal.SIGINT and rng.random() < 0.5,
        cold and not by_changes,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    every = campaign.binaries(folder)
    assert set(every) == {name for settings in BINARIES for name in settings}
    with campaign.heeding_interrupts():
        yield folder, campaign.environment(pathlib.Path(os.environ["XDG_CACHE_HOME"])), every


def make_setting(prepared, name: str) -> Setting:
    """Runs a binary twice to its end, the second time with all compiled: both have to find the same."""
    folder, variables, every = prepared
    binary = every[name]
    campaign.train_judge(folder, binary)
    found = []
    for attempt in ("cold", "warm"):
        workdir = folder / f"{name}-{attempt}"
        used = _processor_seconds()
        running = Running(binary.command(workdir), variables, folder / f"{name}-{attempt}.err")
        ended = running.wait()
        assert ended.status == 0, campaign.last_lines(ended.errors, 40)
        found.append(campaign.findings(workdir, binary.timed))
        seconds = time.monotonic() - running.began
        slowness = max(1.0, seconds / (_processor_seconds() - used))
    assert campaign.differences(*found) == []
    return Setting(name, binary, found[0], seconds, slowness, variables, folder)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kill(running: Running, plan: Plan, workdir: pathlib.Path) -> Ended:
    """Follows the plan and waits for the end."""
    if plan.changes:
        seen, changes = _look(workdir), 0
        while changes < plan.changes and running.process.poll() is None:
            time.sleep(0.005)
            now = _look(workdir)
            changes, seen = changes + (now != seen), now
        time.sleep(plan.after)
    else:
        while time.monotonic() - running.began < plan.after and running.process.poll() is None:
            time.sleep(0.005)
    reached = []
    for delay, number in plan.signals:
        time.sleep(delay)
        if running.signal(number, group=plan.group):
            reached.append(number)
    return running.wait(tuple(reached))


def _look(workdir: pathlib.Path) -> frozenset[tuple[str, int, int]]:
    """All paths with their sizes and times of change."""
    found = set()
    for folder, _, names in os.walk(workdir):
        for name in names:
            try:
                status = os.stat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            found.add((os.path.join(folder, name), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def problems_of(ended: Ended, setting: Setting) -> list[str]:
    """What is wrong with how a killed process ended."""
    if ended.status is None:
        return ["hangs"]
    found = []
    allowed = {0, *(128 + number for number in ended.signals)}
    if ended.status not in allowed:
        found.append(f"exit status {ended.status} instead of {' or '.join(map(str, sorted(allowed)))}")
    if campaign.has_traceback(ended.errors):
        found.append("shows a traceback")
    if signal.SIGKILL in ended.signals:
        return found
    if ended.seconds > SECONDS * setting.slowness:
        found.append(f"took {ended.seconds:.1f} s to stop, at most {SECONDS * setting.slowness:.1f} s allowed")
    lines = [line for line in ended.errors.splitlines() if line.strip()]
    told = [line for line in lines if "interrupted" in line]
    if ended.status and not ended.by_default and told != lines[-1:]:
        found.append(f"says {len(told)} times that it was interrupted, once as the last line expected")
    return found


def verify(setting: Setting, workdir: pathlib.Path, ended: Ended) -> list[str]:
    """What is wrong with a run that has ended by itself."""
    if ended.status != 0:
        return [f"exit status {ended.status} of a run that nobody stopped"]
    found = campaign.differences(campaign.findings(workdir, setting.binary.timed), setting.expected)
    return found + ["shows a traceback"] * campaign.has_traceback(ended.errors)


def run_chain(setting: Setting, number: int, kills: int) -> tuple[list[str], list[float]]:
    """Starts, kills and resumes a run until it was killed so often, then lets it end; a new one where it ends before.

    Returns what went wrong, a paragraph each, and in how many seconds it stopped after SIGTERM and SIGINT.
    """
    rng = random.Random(f"{campaign.SEED} {setting.name} {number}")
    failures, seconds, launched, past = [], [], [], []
    directories = iter(range(1_000))
    workdir = setting.folder / f"{setting.name}-{number}-{next(directories)}"
    done = 0
    while done <= kills:
        plan = draw_plan(rng, setting) if done < kills else None
        command = setting.binary.command(workdir)
        command += ["--compilation_cache=off"] if plan and plan.cold else []
        running = Running(command, setting.variables, workdir.with_suffix(f".{len(launched)}.err"))
        launched.append(running)
        ended = running.wait() if plan is None else kill(running, plan, workdir)
        past.append(f"    {plan if ended.signals else 'left alone'}: status {ended.status}, {ended.seconds:.2f} s")
        problems = []
        if ended.signals:
            problems += problems_of(ended, setting)
            seconds += [ended.seconds] * (signal.SIGKILL not in ended.signals)
        if not ended.signals or ended.status == 0:
            problems += verify(setting, workdir, ended)
        done += bool(ended.signals) or plan is None
        if problems:
            what = "; ".join(problems[:8])
            failures.append(
                f"{setting.name}, chain {number}, {workdir.name}: {what}\n" + "\n".join(past[-6:]) + "\n"
                f"{campaign.last_lines(ended.errors)}"
            )
        if ended.status in (0, 1, 2, None):
            workdir = setting.folder / f"{setting.name}-{number}-{next(directories)}"
            past.clear()
    if any([running.kill_group() for running in launched]):
        failures.append(f"{setting.name}, chain {number}: leaves processes behind")
    return failures, seconds


@pytest.mark.parametrize(
    ("name", "kills"), [(name, -(-KILLS // len(settings))) for settings in BINARIES for name in settings]
)
def test_a_run_that_is_killed_at_random_ends_as_one_that_is_not(prepared, name, kills):
    setting = make_setting(prepared, name)
    chains = [min(KILLS_OF_A_CHAIN, kills - first) for first in range(0, kills, KILLS_OF_A_CHAIN)]
    wanted = range(len(chains)) if ONLY is None else [int(ONLY)]
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as executor:
        ended = list(executor.map(lambda number: run_chain(setting, number, chains[number]), wanted))
    failures = [failure for found, _ in ended for failure in found]
    seconds = sorted(second for _, found in ended for second in found)
    stopped = f"{seconds[len(seconds) // 2]:.1f} s, at most {seconds[-1]:.1f} s" if seconds else "never"
    print(
        f"\n{name}: {sum(chains[number] for number in wanted)} kills, {len(failures)} failures; stops after {stopped}; "
        f"an undisturbed run takes {setting.seconds:.1f} s, busy {setting.slowness:.1f}; seed {campaign.SEED}"
    )
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
