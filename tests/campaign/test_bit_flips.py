"""Flipped bits in the files of a run: a resume gives the same results, repairs and says so, or refuses in one line.

GAN_LEAK_CAMPAIGN_FLIPS: how many. GAN_LEAK_CAMPAIGN_SEED: what is drawn. GAN_LEAK_CAMPAIGN_FLIP: the only flip to try,
to repeat one that failed. GAN_LEAK_TEST_CACHE: where judges and compiled programs are kept between campaigns.
"""

import collections
import concurrent.futures
import os
import pathlib
import queue
import random
import re
import shutil
import signal
import time
from typing import Any, NamedTuple

import pytest

from reference import campaign
from reference.campaign import Binary, Ended, Running, Server

pytestmark = pytest.mark.slow

FLIPS = int(os.environ.get("GAN_LEAK_CAMPAIGN_FLIPS", "200"))
ONLY = os.environ.get("GAN_LEAK_CAMPAIGN_FLIP")
SIDE_BY_SIDE = 2
# Of so many flips one is resumed as a user does, the others in forks of a process that has imported what takes long.
ONE_AS_USERS = 10
# By binary: the files at whose presence a run is killed, so that there is something of everything in its directory.
# Checkpoints count in batches that are not finished.
KILLED_AT = {
    "gan_attack": ("evaluations/round_000008.npz", "checkpoints/round_000009.sha256"),
    "cohorts": ("evaluations/round_000008.npz", "checkpoints/round_000009.sha256"),
    "sweep": ("results.csv", "batches/*/checkpoints/*.sha256"),
    "reproduce": ("batches/*/result.json", "batches/*/checkpoints/*.sha256"),
    "gradient_inversion": ("rows/000.npz", "rows/001.part.npz"),
    "split_inference": ("rows/000.npz", "rows/00[123].part.npz"),
}
WORK = re.compile(r"(round|epoch|iteration) \d+/\d+")
DAMAGE = re.compile(r"damaged|unfinished|missing|not readable|not the machine or versions")
# What the results were made of: once they are finished, a resume does not read it.
NOT_RESULTS = re.compile(r"batches/.*|victim\.npz")
# What was damaged may be kept under another name.
SET_ASIDE = re.compile(r"left over .*\.damaged\d*(/.*)?")


class State(NamedTuple):
    """A run directory that is finished or was interrupted, and what is found in it once its run has ended."""

    binary: Binary
    path: pathlib.Path
    expected: dict[str, Any]
    limit: float


class Flip(NamedTuple):
    """A bit of a file of a run directory."""

    file: str
    bit: int

    def __str__(self) -> str:
        return f"bit {self.bit % 8} of byte {self.bit // 8} of {self.file}"


def wanted_flips() -> range | list[int]:
    return range(FLIPS) if ONLY is None else [int(ONLY)]


def binary_of(number: int) -> str:
    """The binary whose run a flip damages: two flips of each, one in either of its states, and so on."""
    return list(KILLED_AT)[number // 2 % len(KILLED_AT)]


def draw_flip(rng: random.Random, directory: pathlib.Path) -> Flip:
    """Any bit of any file; each kind of file as often as the others, however many of it there are."""
    kinds = collections.defaultdict(list)
    for name in campaign.raw_files(directory):
        if (directory / name).stat().st_size:
            kinds[_kind(name)].append(name)
    file = rng.choice(kinds[rng.choice(sorted(kinds))])
    return Flip(file, rng.randrange(8 * (directory / file).stat().st_size))


def _kind(name: str) -> str:
    """The place of a file in a run directory, without numbers and hashes."""
    return re.sub(r"[0-9a-f]{16,}|\d+", "*", name.split("/state/")[0].split("/_")[0])


def apply(flip: Flip, directory: pathlib.Path) -> None:
    data = bytearray((directory / flip.file).read_bytes())
    data[flip.bit // 8] ^= 1 << flip.bit % 8
    (directory / flip.file).write_bytes(data)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flips")
    every = campaign.binaries(folder)
    variables = campaign.environment(pathlib.Path(os.environ["XDG_CACHE_HOME"]))
    servers: queue.Queue[Server] = queue.Queue()
    for _ in range(SIDE_BY_SIDE):
        servers.put(Server(variables))
    with campaign.heeding_interrupts():
        # Few flips need the runs of few binaries.
        names = sorted({binary_of(number) for number in wanted_flips()})
        for name in names:
            campaign.train_judge(folder, every[name])
        with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as executor:
            made = executor.map(lambda name: make_states(folder, variables, servers, name, every[name]), names)
            states = dict(zip(names, made, strict=True))
        yield folder, variables, servers, states
    for _ in range(SIDE_BY_SIDE):
        servers.get().close()


def make_states(
    folder: pathlib.Path, variables: dict[str, str], servers: queue.Queue[Server], name: str, binary: Binary
) -> list[State]:
    """A finished run and one that was killed in the midst of its work."""
    finished, killed = folder / f"{name}-finished", folder / f"{name}-interrupted"
    server = servers.get()
    began = time.monotonic()
    ended = server.run(binary, finished, folder / f"{name}.err", campaign.MOST_SECONDS)
    limit = 60.0 + 5.0 * (time.monotonic() - began)
    servers.put(server)
    assert ended.status == 0, campaign.last_lines(ended.errors, 40)
    expected = campaign.findings(finished, binary.timed)
    for _ in range(10):
        running = Running(binary.command(killed), variables, folder / f"{name}.err")
        while not _is_amid(killed, KILLED_AT[name]) and running.process.poll() is None:
            time.sleep(0.005)
        if running.signal(signal.SIGKILL) and running.wait().status == 128 + signal.SIGKILL:
            break
        shutil.rmtree(killed)
    else:
        raise AssertionError(f"{name}: ended each time before it could be killed")
    return [State(binary, path, expected, limit) for path in (finished, killed)]


def _is_amid(workdir: pathlib.Path, patterns: tuple[str, ...]) -> bool:
    def of_work_in_progress(path: pathlib.Path) -> bool:
        return path.parent.name != "checkpoints" or not (path.parent.parent / "result.json").exists()

    return all(any(map(of_work_in_progress, workdir.glob(pattern))) for pattern in patterns)


def classify(flip: Flip, state: State, ended: Ended, before: dict[str, str], workdir: pathlib.Path) -> str:
    """What came of a flip: "identical", "repaired", "refused" or "not read"; anything else is a fault, in words."""
    if ended.status is None:
        return "FAILED: hangs"
    if campaign.has_traceback(ended.errors):
        return f"FAILED: traceback, exit status {ended.status}"
    lines = [line for line in ended.errors.splitlines() if line.strip()]
    if ended.status == 2:
        after = campaign.raw_files(workdir)
        lost = [name for name, digest in before.items() if after.get(name) != digest and not name.endswith(".tmp")]
        if [line for line in lines if line.startswith("error:")] != lines[-1:]:
            return "FAILED: refused in other than one line"
        if any(WORK.search(line) for line in lines):
            return "FAILED: refused only after work"
        return f"FAILED: refused, and {lost[0]} is changed or gone" if lost else "refused"
    if ended.status != 0:
        return f"FAILED: exit status {ended.status}"
    found = campaign.findings(workdir, state.binary.timed)
    told = any(DAMAGE.search(line) for line in lines)
    differing = [line for line in campaign.differences(found, state.expected) if not SET_ASIDE.fullmatch(line)]
    if differing == [f"differs in {flip.file}"] and NOT_RESULTS.fullmatch(flip.file):
        return "not read"
    if differing:
        return f"FAILED: {'told, but not repaired' if told else 'silent difference'}: {'; '.join(differing[:4])}"
    return "repaired" if told else "identical"


def try_flip(prepared, number: int) -> tuple[str, str, str]:
    """Flips a bit of a copy and resumes; returns the kind of file, what came of it, and a paragraph about that."""
    folder, variables, servers, states = prepared
    rng = random.Random(f"{campaign.SEED} flip {number}")
    state = states[binary_of(number)][number % 2]
    workdir, errors = folder / f"flip-{number}", folder / f"flip-{number}.err"
    shutil.copytree(state.path, workdir)
    flip = draw_flip(rng, workdir)
    apply(flip, workdir)
    before = campaign.raw_files(workdir)
    if number % ONE_AS_USERS == ONE_AS_USERS - 1:
        command = state.binary.command(workdir)
        ended = Running(command, variables, errors).wait(limit=state.limit)
    else:
        server = servers.get()
        ended = server.run(state.binary, workdir, errors, state.limit)
        servers.put(server)
    outcome = classify(flip, state, ended, before, workdir)
    if not outcome.startswith("FAILED"):
        shutil.rmtree(workdir)
    about = (
        f"flip {number}, a copy of {state.path} with a flipped {flip}: {outcome}\n{campaign.last_lines(ended.errors)}"
    )
    return _kind(flip.file), outcome, about


def test_a_flipped_bit_is_harmless_repaired_or_refused(prepared):
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as executor:
        tried = list(executor.map(lambda number: try_flip(prepared, number), wanted_flips()))
    table = collections.Counter((kind, outcome.split(":")[0]) for kind, outcome, _ in tried)
    print(f"\n{len(tried)} flips, seed {campaign.SEED}:")
    for (kind, outcome), count in sorted(table.items()):
        print(f"  {count:4} {outcome:10} {kind}")
    failures = [about for _, outcome, about in tried if outcome.startswith("FAILED")]
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
