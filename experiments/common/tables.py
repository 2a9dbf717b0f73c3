"""Common parts of attacks on single images: defenses by name, rows that can be resumed, tables and reports."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from experiments.common.flags import check_distinct
from gan_leak.defenses.registry import find, in_stages
from gan_leak.reports.html import label, number
from gan_leak.reports.reconstruction import pictures_figure, render_reconstructions, trade_off_figure
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.storage.directory import RunDirectory, close_run, npz_bytes, read_config_file, write_atomic
from gan_leak.runs.storage.integrity import DamagedError, expect_kinds, read_npz, sealed_npz, set_aside
from gan_leak.runs.storage.resumable import SavedProgress
from gan_leak.settings import settings_of, values_of
from gan_leak.types import UploadTransform

Weight = TypeVar("Weight", float, None)


class AppliedDefense(NamedTuple):
    """A defense by name and its strength, or none."""

    name: str = "none"
    strength: float = 0.0

    def __str__(self) -> str:
        return self.name if self.name == "none" else f"{self.name} {self.strength:g}"


class Drawn(NamedTuple):
    """A finished setting: its row of the table, and originals and reconstructions [M, H, W, C] in [-1, 1].

    undefended: the name of the setting without its defense; settings that differ only in the defense share it.
    seconds: the time that it took, in this call or an earlier one.
    """

    row: dict[str, Any]
    originals: np.ndarray
    pictures: np.ndarray
    undefended: str
    defense: AppliedDefense
    seconds: float


class RowTask(NamedTuple):
    """A row: ``compute`` returns its arrays; ``draw`` makes the row and its pictures from arrays and seconds."""

    compute: Callable[[SavedProgress], Mapping[str, np.ndarray]]
    draw: Callable[[dict[str, Any], float], Drawn]


# A reconstruction under noise may have a low SSIM and still be re-identified.
_LEAKAGE = {"ssim": "SSIM of reconstructions", "re_identified": "Share of images re-identified"}

_OF_USERS = ("client_identified", "client_identified_pooled", "identification_score", "source_accuracy", "linked")

# The name of re_identified in rows of version 0.2.
_FORMER_NAME = "singled_out"


def recorded(config: Any) -> Any:
    """A configuration as a run directory records it, without later options at their default.

    So an older directory without these options still has the same configuration.
    """
    settings = settings_of(type(config))
    values = {
        name: value
        for name, value in values_of(config).items()
        if not settings[name].later or value != settings[name].default
    }
    fields = [(name, settings[name].type) for name in values]
    return dataclasses.make_dataclass(type(config).__name__, fields, frozen=True)(**values)


def parse_defenses(text: str, stage: str) -> list[AppliedDefense]:
    """Read 'none,gaussian:0.1,pruning:0.5', the defenses of a stage with one strength each.

    Raises ValueError for an unknown or repeated defense and for a wrong strength.
    """
    found: list[AppliedDefense] = []
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        if name == "none" and not colon:
            found.append(AppliedDefense())
            continue
        defense = find(name, stage)
        if defense is None or not colon:
            raise ValueError(f"defenses={part.strip()}: expected none, or {defense_names(stage)} with :strength")
        [parameter] = defense.hyperparameters
        try:
            strength = float(number)
        except ValueError:
            strength = math.nan
        if strength not in parameter.bounds or (type(parameter.default) is int and strength % 1):
            raise ValueError(f"defenses={part.strip()}: expected as strength {parameter.bounds}")
        found.append(AppliedDefense(defense.name, strength))
    check_distinct("defenses", found)
    return found


def defense_names(stage: str) -> str:
    """The names of the defenses of a stage, separated by commas."""
    return ", ".join(defense.name for defense in in_stages(stage))


def transform_of(applied: AppliedDefense, stage: str) -> UploadTransform | None:
    """The transform of the defense at this stage; None without a defense."""
    defense = find(applied.name, stage)
    return None if defense is None else defense.build(applied.strength)


def parse_numbers(name: str, text: str) -> list[int]:
    """Read whole numbers from 1, separated by commas; raises ValueError for other text or a repeated number."""
    parts = [part.strip() for part in text.split(",")]
    # At most nine digits, which fit into 32 bits; the check of the data set comes later.
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", part) for part in parts):
        raise ValueError(f"{name}={text}: expected whole numbers from 1 to 999999999, with commas between")
    check_distinct(name, numbers := [int(part) for part in parts])
    return numbers


def defended_name(undefended: str, defense: AppliedDefense) -> str:
    """The name of a row: the name of its setting, and the defense if there is one."""
    return undefended if defense.name == "none" else f"{undefended}, {defense}"


def weight_or_own(name: str, weight: float, own: Weight) -> float | Weight:
    """The weight of a flag, or the default of the attack for -1; raises ValueError for an invalid weight."""
    if weight == -1.0:
        return own
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"{name}={weight}: expected -1 or a finite number from 0")
    return weight


def check_directory(path: pathlib.Path) -> None:
    """Raise ``RefusedError`` if another kind of file is in the place of rows or reports."""
    expect_kinds(path, ("rows", "figures"), ("results.json", "report.html"))


def part_of_row(directory: RunDirectory, index: int) -> pathlib.Path:
    """The file for the progress of a long computation of a row."""
    return directory.path / "rows" / f"{index:03d}.part.npz"


def keep_row(
    directory: RunDirectory, index: int, compute: Callable[[], Mapping[str, np.ndarray]]
) -> tuple[dict[str, Any], float]:
    """The arrays of a row, read from its file or computed and saved, and the seconds of the computation.

    The progress of a computation is removed only after its result is saved. A damaged row is renamed and computed
    again, with a message.
    """
    path = directory.path / "rows" / f"{index:03d}.npz"
    arrays = _read_row(path)
    if arrays is None:
        path.parent.mkdir(exist_ok=True)
        began = time.monotonic()
        computed = compute()
        archive = npz_bytes(**computed, seconds=np.array(time.monotonic() - began))
        write_atomic(path, sealed_npz(path.name, archive))
        arrays, _ = read_npz(path)
    part_of_row(directory, index).unlink(missing_ok=True)
    seconds = float(arrays.pop("seconds"))
    return arrays, seconds


def _read_row(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    if not os.path.lexists(path):
        return None
    try:
        arrays, sealed = read_npz(path)
        if arrays.get("seconds", np.zeros(1)).shape != () or "images" not in arrays:
            raise DamagedError(f"{path}: damaged (lacks arrays of a row)")
    except DamagedError as error:
        tell(f"{error}: renamed to {set_aside(path).name} and computed again")
        return None
    if not sealed:
        tell(f"{path}: of a version without digests, so altered numbers cannot be detected")
    return {name.replace(_FORMER_NAME, "re_identified"): values for name, values in arrays.items()}


def write_results(directory: RunDirectory, title: str, drawn: Sequence[Drawn]) -> None:
    """Rewrite results.json, the pictures and report.html from the finished settings."""
    rows = [entry.row for entry in drawn]
    write_atomic(directory.path / "results.json", json.dumps(rows, indent=1, allow_nan=False).encode())
    pictures = picture_files(drawn)
    folder = directory.path / "figures"
    folder.mkdir(exist_ok=True)
    for place, image in enumerate(pictures.values()):
        write_atomic(folder / f"{place}.png", image)
    environment = read_config_file(directory.path)
    page = render_reconstructions(title, rows, pictures, environment)
    write_atomic(directory.path / "report.html", page.encode())


def run_rows(directory: RunDirectory, title: str, tasks: Sequence[RowTask]) -> list[Drawn]:
    """Every row with its pictures, from the directory or computed; rewrite the table after each."""
    drawn: list[Drawn] = []
    for index, task in enumerate(tasks):
        progress = SavedProgress(part_of_row(directory, index), tell)
        saved, seconds = keep_row(directory, index, functools.partial(task.compute, progress))
        drawn.append(task.draw(saved, seconds))
        row = drawn[-1].row
        tell_row(row)
        for note in row.get("notes", ()):
            tell(f"{row['name']}: {note}")
        write_results(directory, title, drawn)
    return drawn


def run_and_report(directory: RunDirectory, run: Callable[[], Sequence[Drawn]]) -> int:
    """Run the settings, print the paths of their files, and always release the directory."""
    try:
        for difference in directory.differences:
            tell(f"not the machine or versions this run began with: {difference}")
        run()
        tell(f"written: {directory.path / 'report.html'}, {directory.path / 'results.json'}")
    finally:
        close_run(directory)
    return 0


def picture_files(drawn: Sequence[Drawn]) -> dict[str, bytes]:
    """Pictures by caption: private images with all reconstructions, and leakage over utility if it was measured."""
    found = {}
    groups: dict[bytes, list[Drawn]] = {}
    for entry in drawn:
        groups.setdefault(entry.originals.tobytes(), []).append(entry)
    for group in groups.values():
        named = {entry.row["name"]: entry.pictures for entry in group}
        caption = f"Private images and their reconstructions: {group[0].row['name']}" + (
            f" to {group[-1].row['name']}." if len(group) > 1 else "."
        )
        found[caption] = pictures_figure(group[0].originals, named)
    charts: dict[tuple[str, str], dict[str, list[tuple[str, float, float]]]] = {}
    for entry in drawn:
        metrics = entry.row["metrics"]
        for measure in (measure for measure in _LEAKAGE if {measure, "model_accuracy"} <= metrics.keys()):
            point = (f"{entry.defense.strength:g}", metrics["model_accuracy"]["mean"], metrics[measure]["mean"])
            charts.setdefault((entry.undefended, measure), {}).setdefault(entry.defense.name, []).append(point)
    for (name, measure), series in charts.items():
        if len(series) > 1:
            caption = f"{_LEAKAGE[measure]} over utility for each defense, {name}; the numbers are strengths."
            found[caption] = trade_off_figure(series, measure=_LEAKAGE[measure], title=name)
    return found


def tell_row(row: Mapping[str, Any]) -> None:
    """Print a finished row in one line."""
    named = ("psnr", "ssim", "recovered", "re_identified", "distance", *_OF_USERS)
    words = [f"{label(name)} {number(row['metrics'][name]['mean'])}" for name in named if name in row["metrics"]]
    tell(f"{row['name']}: {', '.join(words)}")
