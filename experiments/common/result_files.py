"""Run directories as sources of a results page: their kind, and the origin of their numbers."""

from __future__ import annotations

import pathlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments.common.flags import define_flags
from experiments.common.result_tables import (
    Group,
    Table,
    read_benchmark,
    read_inversions,
    read_measurability,
    read_reproduction,
    read_results,
    read_runs,
    read_score_attacks,
    read_sweep,
    read_users,
    seeds_of,
)
from gan_leak.runs.storage.directory import METRICS_NAME, read_config_file


class Origin(NamedTuple):
    """The origin of the numbers of a page."""

    commands: list[str]
    versions: dict[str, str]
    machine: str
    date: str
    seeds: list[int]


class Kind(NamedTuple):
    """A kind of run directory: its binary, its result file, and the function that reads its tables."""

    binary: str
    result_name: str
    read: Callable[[Sequence[Group]], list[Table]]


def parse_groups(text: str) -> list[Group]:
    """Read 'label=directory,directory;label=directory'; a label is optional.

    Raises ValueError in one line for a missing directory.
    """
    groups = []
    for part in text.split(";"):
        label, equals, names = part.rpartition("=")
        directories = tuple(pathlib.Path(name.strip()).expanduser() for name in names.split(","))
        for directory in directories:
            if not directory.is_dir():
                raise ValueError(f"sources={directory}: expected the directory of a run")
        groups.append(Group(label.strip() if equals else "", directories))
    return groups


def by_kind(groups: Sequence[Group]) -> list[tuple[Kind, list[Group]]]:
    """The groups of each kind of run directory; raises ValueError in one line for a group of two kinds."""
    found: dict[str, tuple[Kind, list[Group]]] = {}
    for group in groups:
        kinds = {directory: _kind_of_directory(directory) for directory in group.directories}
        (first, kind), *others = kinds.items()
        for directory, other in others:
            if other is not kind:
                raise ValueError(f"sources={directory}: written by {other.binary}, expected {kind.binary} as {first}")
        found.setdefault(kind.binary, (kind, []))[1].append(group)
    return list(found.values())


def read_tables(groups: Sequence[Group]) -> list[Table]:
    """The tables of a page with the numbers of these directories; raises ValueError in one line for damaged files."""
    tables: list[Table] = []
    kinds = by_kind(groups)
    for kind, of_kind in kinds:
        try:
            found = kind.read(of_kind)
        except (KeyError, TypeError, IndexError) as error:
            form = f"{type(error).__name__}: {error}"
            raise ValueError(f"sources: expected files of {kind.binary} in the form of this version ({form})") from None
        if len(kinds) > 1:
            found = [{**table, "title": f"{table['title']} of {kind.binary}"} for table in found]
        tables += found
    return tables


def origin_of(groups: Sequence[Group], config_classes: Mapping[str, type]) -> Origin:
    """Commands, versions, machine, date and seeds of the runs in these directories."""
    commands: dict[str, None] = {}
    environments, dates, seeds = [], [], set()
    for kind, directory in (
        (kind, directory) for kind, of_kind in by_kind(groups) for group in of_kind for directory in group.directories
    ):
        environment = read_config_file(directory)
        config = environment.pop("config")
        if kind.binary == "reproduce":
            commands |= dict.fromkeys(_without_workdir(read_results(directory / kind.result_name)["command"]))
        else:
            # A page lists the seeds beside its commands, which would otherwise be as many as the seeds of single runs.
            named = {name: value for name, value in config.items() if name != "seed" or "num_seeds" in config}
            commands[command_line(kind.binary, config_classes[kind.binary], named)] = None
        environments.append(environment)
        dates.append(time.strftime("%Y-%m-%d", time.gmtime((directory / kind.result_name).stat().st_mtime)))
        seeds |= set(seeds_of(config))
    return Origin(
        commands=list(commands),
        versions={name: version for name, version in environments[-1]["versions"].items() if version},
        machine="; ".join(dict.fromkeys(map(_machine, environments))),
        date=max(dates),
        seeds=sorted(seeds),
    )


def command_line(binary: str, config_class: type, recorded: Mapping[str, Any]) -> str:
    """The command that runs a recorded configuration: the flags that differ from the defaults."""
    values = flags.FlagValues()
    define_flags(config_class, values)
    flat = dict(recorded)
    flat |= {f"performance.{name}": value for name, value in flat.pop("performance", {}).items()}
    parts = [
        f"--{name}={value}"
        for name, value in flat.items()
        if name not in values or str(values[name].value) != str(value)
    ]
    return shlex.join(["python", "-m", f"experiments.{binary}", *parts])


def _without_workdir(commands: str) -> list[str]:
    """The commands of a reproduction, separated by ';', without their run directory."""
    lines = [[part for part in shlex.split(line) if not _names_workdir(part)] for line in commands.split(";")]
    return [shlex.join(line) for line in lines]


def _names_workdir(argument: str) -> bool:
    return argument.lstrip("-").split("=")[0] in ("workdir", "resume")


def _kind_of_directory(directory: pathlib.Path) -> Kind:
    for kind in KINDS:
        path = directory / kind.result_name
        if path.is_file() and (path.suffix != ".json" or kind.binary == _writer(path)):
            return kind
    names = ", ".join(dict.fromkeys(kind.result_name for kind in KINDS))
    raise ValueError(f"sources={directory}: expected a finished run with one of {names}")


def _writer(path: pathlib.Path) -> str:
    """The binary that wrote a JSON file of results."""
    results = read_results(path)
    if isinstance(results, list):
        config = read_config_file(path.parent)["config"]
        telling = {"splits": "split_inference", "owners_per_client": "user_leakage"}
        return next((binary for setting, binary in telling.items() if setting in config), "gradient_inversion")
    if "format" in results:
        return "reproduce"
    if "impostors" in results:
        return "score_attacks"
    return "benchmark" if "gemm_flops" in results else "measurability"


def _machine(environment: Mapping[str, Any]) -> str:
    if environment["backend"] == "cpu":
        count = environment["cpu_count"]
        return f"{count} CPU core{'s' if count != 1 else ''}"
    return f"{environment['device_count']} x {environment['device_kind']}"


# The result file of each binary.
KINDS = (
    # Before the main job, since both write metrics.
    Kind("user_leakage", "results.json", read_users),
    Kind("gan_attack", METRICS_NAME, read_runs),
    Kind("sweep", "results.jsonl", read_sweep),
    Kind("benchmark", "benchmark.json", read_benchmark),
    Kind("reproduce", "results.json", read_reproduction),
    Kind("measurability", "results.json", read_measurability),
    Kind("score_attacks", "results.json", read_score_attacks),
    Kind("gradient_inversion", "results.json", read_inversions),
    Kind("split_inference", "results.json", read_inversions),
)
