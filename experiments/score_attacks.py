"""Attacks on the leakage score: impostors that have no private image, and private images that are degraded.

An impostor is made from the adversary's own images, the judge with its parameters, or other data sets. Its score should
be near 0. The score of private images should fall from 1 as they are degraded.

python -m experiments.score_attacks --workdir=runs/score_attacks
python -m experiments.score_attacks --dataset=orl_faces --image_size=64 --target_classes=10,16
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.common.flags import run_binary
from gan_leak.config import RunConfig, make_config
from gan_leak.data import load_class_names
from gan_leak.reports.score_attacks import degradations_figure, impostors_figure, render_score_attacks, scores_figure
from gan_leak.runs.federated.measurement import make_instrument_source
from gan_leak.runs.federated.score_attacks import ScoreAttacks, attack_score, other_data_sets
from gan_leak.runs.federated.setup import class_number, prepare_data
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.storage.directory import (
    RunDirectory,
    close_run,
    npz_bytes,
    open_run,
    read_config_file,
    write_atomic,
)
from gan_leak.settings import SEEDS, Bounds, check_values, option


@dataclasses.dataclass(frozen=True)
class ScoreAttacksConfig:
    """The classes whose leakage score is attacked."""

    dataset: str = option("mnist", "Data set, as in the main job.")
    image_size: int = option(32, "Height and width of the images in pixels, as in the main job.")
    target_classes: str = option("3,1,4", "The attacked classes, by name or number, separated by commas.")
    samples_per_participant: int = option(1000, "Images of each of the two participants; 0 means all.")
    judge_samples: int = option(30000, "Training images of the judge, as in the main job.")
    pictures: int = option(40, "Pictures of each variant of an impostor.", bounds=Bounds(2, 10000))
    seed: int = option(0, "Seed of the partition and of the impostors.", bounds=SEEDS, effect="chance")


class Prepared(NamedTuple):
    """The settings of each class, the pictures of other data sets, and the directory for the results."""

    cells: list[RunConfig]
    others: dict[str, np.ndarray]
    pictures: int
    directory: RunDirectory


def _cells(config: ScoreAttacksConfig) -> list[RunConfig]:
    """Settings for each class: two participants with half of the classes each; the adversary lacks the class."""
    names = load_class_names(config.dataset)
    half = len(names) // 2
    cells = []
    for text in filter(None, map(str.strip, config.target_classes.split(","))):
        target = class_number(config.dataset, text)
        cells.append(
            make_config(
                dataset=config.dataset,
                image_size=config.image_size,
                participant_classes=f"0-{half - 1};{half}-{len(names) - 1}",
                samples_per_participant=config.samples_per_participant,
                judge_samples=config.judge_samples,
                batch_size=1,
                target_class=target,
                adversary=int(target < half),
                seed=config.seed,
            )
        )
    if not cells:
        raise ValueError(f"target_classes={config.target_classes!r}: expected at least one class")
    if len({cell.attack.target_class for cell in cells}) < len(cells):
        raise ValueError(f"target_classes={config.target_classes!r}: expected each class once")
    return cells


def prepare(config: ScoreAttacksConfig, workdir: pathlib.Path, resume: bool) -> Prepared:
    """Check the data and open the directory; raises ValueError for bad input."""
    check_values(config)
    cells = _cells(config)
    shapes = [prepare_data(cell).private.shape[1:] for cell in cells]
    others = other_data_sets(config.dataset, shapes[0])
    return Prepared(cells, others, config.pictures, open_run(workdir, config, resume=resume))


def execute(prepared: Prepared) -> int:
    """Attack the score of each class; write results.json, impostors.npz, figures and report.html."""
    instruments = make_instrument_source(tell)
    results: dict[str, list[Any]] = {"references": [], "impostors": [], "degradations": []}
    galleries: dict[str, tuple[str, ScoreAttacks]] = {}
    kept: dict[str, np.ndarray] = {}
    try:
        for config in prepared.cells:
            data = prepare_data(config)
            attacked = attack_score(
                config, data, instruments(data), prepared.others, count=prepared.pictures, report=tell
            )
            for part in results:
                results[part] += getattr(attacked, part)
            name = data.class_names[config.attack.target_class]
            title = f"Impostors of class {name}, the best variant of each kind"
            galleries[f"impostors_{config.attack.target_class}"] = (title, attacked)
            kept |= {f"{name}, {kind}": pictures for kind, pictures in attacked.pictures.items()}
        drawn = {
            title: impostors_figure(attacked.impostors, attacked.pictures, title=title)
            for title, attacked in galleries.values()
        }
        charts = {
            "The leakage score of each impostor": scores_figure(results["impostors"]),
            "The leakage score of degraded private images": degradations_figure(results["degradations"]),
        }
        path = prepared.directory.path
        environment = read_config_file(path)
        (path / "figures").mkdir(exist_ok=True)
        names = dict(zip({**charts, **drawn}, ("impostor_scores", "degradations", *galleries), strict=True))
        for title, picture in {**charts, **drawn}.items():
            write_atomic(path / "figures" / f"{names[title]}.png", picture)
        write_atomic(path / "impostors.npz", npz_bytes(**kept))
        write_atomic(path / "report.html", render_score_attacks(results, {**charts, **drawn}, environment).encode())
        write_atomic(path / "results.json", (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())
    finally:
        close_run(prepared.directory)
    return 0


if __name__ == "__main__":
    run_binary(prepare, execute, ScoreAttacksConfig)
