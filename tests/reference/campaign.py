"""Binaries that resume, at settings that take seconds, and how a run of one is launched, killed, damaged and compared.

A campaign kills or damages runs at random and asks of each that it ends as a run that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gan_leak.runs.federated.measurement import make_instrument_source
from gan_leak.runs.federated.setup import prepare_data
from reference.launch import LINEAR_NETWORKS
from reference.quick import people_settings, small_run, write_people, write_stripes

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHER = pathlib.Path(__file__).with_name("launch.py")
SEED = int(os.environ.get("GAN_LEAK_CAMPAIGN_SEED", "0"))
# Fields and arrays that differ between two runs of the same, and the digests of files with such.
_UNSTABLE = frozenset({"seconds", "command", "digest", "checksum", "sha256"})
MOST_SECONDS = 600.0


class Binary(NamedTuple):
    """A command that resumes.

    patches: attributes to replace, by module and name. timed: files that show how long the run took, of which only the
    end counts.
    """

    module: str
    flags: tuple[str, ...]
    patches: Mapping[str, dict[str, Any]] = types.MappingProxyType({})
    timed: tuple[str, ...] = ()

    def command(self, workdir: pathlib.Path) -> list[str]:
        arguments = [*self.flags, f"--workdir={workdir}", "--resume"]
        if not self.patches:
            return [sys.executable, "-m", self.module, *arguments]
        return [sys.executable, str(LAUNCHER), json.dumps(dict(self.patches)), self.module, *arguments]


def binaries(folder: pathlib.Path) -> dict[str, Binary]:
    """All binaries that resume, by name, on data sets that are written into ``folder``."""
    stripes = write_stripes(folder / "stripes.npz")
    common = {
        "participant_classes": "0,1;2,3",
        "target_class": 0,
        "judge_samples": 80,
        "samples_per_participant": 40,
        "batch_size": 16,
        "generator_steps": 1,
        "generator_batch_size": 8,
        "generator_width": 8,
        "fakes_per_round": 16,
        "evaluation_samples": 12,
    }
    # Intervals that are out of step, so that a kill finds one thing written and the other not.
    rounds = {"rounds": 12, "evaluation_interval": 4, "checkpoint_interval": 3}
    attack = _flags({"dataset": f"npz:{stripes}", **common, **rounds})
    cohorts = {"participant_classes": "0;1;2;3", "adversary": 3, "participants_per_round": 2, "download_fraction": 0.3}
    swept = {"rounds": 6, "evaluation_interval": 2, "learning_rate": "0.01,0.1", "num_seeds": 1}
    gradient = {"dataset": f"npz:{stripes}", "channels": 1, "images": 2, "attack": "idlg", "iterations": 40}
    split = {"dataset": f"npz:{_write_squares(folder)}", "splits": "conv1", "images": 2, "epochs": 6}
    people = people_settings(write_people(folder / "people.npz")) | {"rounds": 6}
    people |= {"baselines": "class_means,source_inference"}
    # So that computations which a tiny run ends at once are kept in parts, as long ones are.
    parts = {"gan_leak.runs.storage.resumable": {"_SECONDS_OF_A_PART": 0.02}}
    # The others run as they are; these would spend nearly all time in tracing. The modules import all that is replaced.
    linear = {"gan_leak.runs.federated.rows": {LINEAR_NETWORKS: True}}
    linear_attack = {"gan_leak.runs.federated.train": {LINEAR_NETWORKS: True}}
    presets = {"experiments.common.flags": {"PRESETS": str(_write_presets(folder, stripes, common))}}
    return {
        "gan_attack": Binary("experiments.gan_attack", attack, linear_attack),
        "cohorts": Binary("experiments.gan_attack", (*attack, *_flags(cohorts))),
        "dp_sgd": Binary("experiments.gan_attack", (*attack, "--defense=dp_sgd")),
        "sweep": Binary("experiments.sweep", (*attack, *_flags(swept), "--workers=1"), linear),
        "sweep_by_workers": Binary("experiments.sweep", (*attack, *_flags(swept), "--workers=2")),
        "reproduce": Binary(
            "experiments.reproduce",
            ("--figures=9", "--num_seeds=2", "--workers=1"),
            presets | linear,
            timed=("report.html", "calls.json"),
        ),
        "gradient_inversion": Binary(
            "experiments.gradient_inversion", (*_flags(gradient), "--defenses=none,gaussian:0.1"), parts
        ),
        "split_inference": Binary(
            "experiments.split_inference",
            (*_flags(split), "--attacks=white_box,black_box", "--attack_epochs=4", "--iterations=40"),
            parts,
        ),
        "user_leakage": Binary("experiments.user_leakage", _flags(people), parts),
    }


def train_judge(folder: pathlib.Path, binary: Binary) -> None:
    """Trains the judge of a binary, with optimized programs, so that it is found in the user's cache."""
    if any(LINEAR_NETWORKS in attributes for attributes in binary.patches.values()):
        return
    data = prepare_data(small_run(folder / "stripes.npz"))
    make_instrument_source(lambda text: None)(data)


def _flags(settings: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"--{name}={value}" for name, value in settings.items())


def _write_squares(folder: pathlib.Path) -> pathlib.Path:
    """An npz data set of 28 pixels: class k has a bright square in its own place."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    images = rng.integers(0, 40, (len(labels), 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 10 * (label // 2) :][:8, 4 + 10 * (label % 2) :][:, :8] = rng.integers(150, 250)
    np.savez(folder / "squares.npz", images=images, labels=labels)
    return folder / "squares.npz"


def _write_presets(folder: pathlib.Path, stripes: pathlib.Path, common: dict[str, Any]) -> pathlib.Path:
    """The presets of the paper's figures over settings that take seconds."""
    presets = folder / "presets"
    shutil.copytree(ROOT / "experiments" / "presets", presets, dirs_exist_ok=True)
    paper = presets / "hitaj"
    tiny = {"dataset": f"npz:{stripes}", **common, "rounds": 2, "evaluation_interval": 1}
    (paper / "hitaj_mnist.flags").write_text("\n".join(_flags(tiny)) + "\n")
    (paper / "nearest_mnist.flags").write_text("--learning_rate=0.2\n")
    (paper / "quick_mnist.flags").write_text("--evaluation_interval=1\n")
    return presets


def environment(cache: pathlib.Path) -> dict[str, str]:
    """What all launches have in common: judges and every compiled program come from ``cache``.

    Programs are compiled as in the other tests, since most of them run for less time than it takes to optimize them.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "XDG_CACHE_HOME": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "campaign"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


class Ended(NamedTuple):
    """How a process ended: its status as a shell tells it, what it said, and in how many seconds of the last signal.

    signals: those that reached it alive. status: None after ``MOST_SECONDS`` without an end.
    """

    status: int | None
    errors: str
    signals: tuple[int, ...] = ()
    by_default: bool = False
    seconds: float = 0.0


class Running:
    """A launched process, the leader of a group of its own, whose standard error is a file."""

    def __init__(self, command: list[str], variables: dict[str, str], errors: pathlib.Path):
        self.errors = errors
        self.began = time.monotonic()
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )

    def wait(self, signals: tuple[int, ...] = (), limit: float = MOST_SECONDS) -> Ended:
        """Waits for the end; what has not ended by the limit is killed with all its group."""
        began = time.monotonic()
        try:
            code: int | None = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            self.kill_group()
        said = self.errors.read_text(errors="replace")
        status = 128 - code if code is not None and code < 0 else code
        return Ended(status, said, signals, (code or 0) < 0, time.monotonic() - began)

    def signal(self, number: int, *, group: bool = False) -> bool:
        """Sends a signal and returns whether the process was still there."""
        if self.process.poll() is not None:
            return False
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return True

    def kill_group(self) -> bool:
        """Ends all that is left of the group; returns whether anything was, as far as the system tells."""
        left = False
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = path.read_text().rpartition(")")[2].split()[:3]
                left |= int(group) == self.process.pid and state != "Z"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return left


@contextlib.contextmanager
def heeding_interrupts():
    """Within, launched processes heed Ctrl-C even where the tests run in the background and ignore it."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Server:
    """Runs binaries one after another in forks of one process that has imported their libraries."""

    def __init__(self, variables: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, str(LAUNCHER), "--serve"],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, binary: Binary, workdir: pathlib.Path, errors: pathlib.Path, limit: float) -> Ended:
        """Runs a binary to its end."""
        arguments = binary.command(workdir)
        arguments = arguments[arguments.index(binary.module) + 1 :]
        request = {"patches": dict(binary.patches), "module": binary.module, "arguments": arguments}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({**request, "errors": str(errors), "limit": limit}) + "\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())
        said = errors.read_text(errors="replace")
        if code == "timeout":
            return Ended(None, said)
        return Ended(128 - code if code < 0 else code, said, by_default=code < 0)

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()


def raw_files(directory: pathlib.Path) -> dict[str, str]:
    """The digest of every file by its path, without the lock."""
    found = {}
    for path in sorted(directory.rglob("*")):
        # A process that was killed may still have children that end and take files away.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.name != "lock":
                found[path.relative_to(directory).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def findings(directory: pathlib.Path, timed: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a finished run holds, by path, without how long it took: equal for runs that found the same.

    States between rounds count by the newest checkpoint only, arrays by name and bits.
    """
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() or path.name == "lock" or _is_of_a_state(name):
            continue
        try:
            found[name] = _finding(path, any(path.match(pattern) for pattern in timed))
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            found[name] = f"unreadable: {type(error).__name__}"
    for folder in sorted(directory.rglob("checkpoints")):
        name = folder.relative_to(directory).as_posix()
        known = re.compile(r"round_\d{6}(\.sha256)?|metrics\.jsonl")
        strange = [path.name for path in folder.iterdir() if not known.fullmatch(path.name)]
        found |= {f"{name}/{stranger}": "left over" for stranger in strange}
        found[name] = _newest_state(folder)
    for folder in sorted(directory.rglob("participants")):
        strange = [path.name for path in folder.iterdir() if path.suffix != ".npz"]
        found |= {f"{folder.name}/{stranger}": "left over" for stranger in strange}
    return found


def _is_of_a_state(name: str) -> bool:
    return bool({"checkpoints", "participants"} & set(name.split("/")[:-1]))


def _finding(path: pathlib.Path, timed: bool) -> Any:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {
                name: (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest())
                for name, array in arrays.items()
                if name not in _UNSTABLE
            }
    data = path.read_bytes()
    if timed:
        return "whole" if data.rstrip().endswith((b"</html>", b"}", b"]")) else "torn"
    if path.suffix == ".json":
        return _stable(json.loads(data))
    if path.suffix == ".jsonl":
        return [_stable(json.loads(line)) for line in data.splitlines()]
    return hashlib.sha256(data).hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stable(item) for name, item in value.items() if name not in _UNSTABLE}
    if isinstance(value, list):
        return [_stable(item) for item in value]
    return value


def _newest_state(folder: pathlib.Path) -> Any:
    """Round and bits of the newest finished checkpoint, after its own digests; None if there is none."""
    manifests = sorted(folder.glob("round_*.sha256"))
    if not manifests:
        return None
    path = manifests[-1].with_suffix("")
    import jax
    from orbax.checkpoint import v1 as ocp

    with _ONE_AT_A_TIME, warnings.catch_warnings():
        # Without a template, Orbax warns that the arrays go to the device that they were saved on.
        warnings.simplefilter("ignore")
        loaded = ocp.load(path.absolute())

    def bits(leaf: Any) -> tuple[str, str]:
        is_key = isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()

    return path.name, [bits(leaf) for leaf in jax.tree.leaves(loaded)]


_ONE_AT_A_TIME = threading.Lock()


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Where the findings of a run depart from those of another, a readable line each."""
    lines = [f"lacks {name}" for name in expected.keys() - found.keys()]
    lines += [f"left over {name}" for name in found.keys() - expected.keys()]
    lines += [f"differs in {name}" for name in expected.keys() & found.keys() if found[name] != expected[name]]
    return sorted(lines)


def has_traceback(errors: str) -> bool:
    """Whether a process showed a traceback; an interpreter that has not reached the binary has said nothing before."""
    marks = ("Traceback (most recent call last)", "Fatal Python error", "Exception ignored in")
    ours = ("gan_leak/", "experiments/", "experiments.")
    starting = errors.startswith(marks) and not any(name in errors for name in ours)
    return any(mark in errors for mark in marks) and not starting


def last_lines(errors: str, count: int = 6) -> str:
    """The end of what a process said, indented."""
    return "".join(f"      | {line[:200]}\n" for line in errors.splitlines()[-count:])
