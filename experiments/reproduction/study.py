"""The runs of a reproduction of Hitaj et al.: the batches of each figure, and the basis of its section."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.common.flags import config_from_arguments
from experiments.reproduction.claims import read_claim, rows_named_by, settings_at
from experiments.reproduction.hitaj import (
    CIFAR10_FIGURES,
    Figure,
    arguments_for,
    controls_of,
    not_stated,
    variants_of,
)
from gan_leak.config import RunConfig
from gan_leak.reports.reproduction_results import NEAREST_VARIANT, PAPER_VARIANT
from gan_leak.runs.federated.batch import batch_directory
from gan_leak.runs.federated.measurement import InstrumentSource
from gan_leak.runs.federated.rows import differences_between
from gan_leak.runs.federated.setup import AttackData
from gan_leak.runs.hosts.workers import Job, batch_job
from gan_leak.settings import replace, values_of

# A batch of a figure: its setting, and its variant or control.
Key = tuple[str, str]


class Study(NamedTuple):
    """The options of a reproduction.

    every_control: at the scale of the paper, whether every setting of a figure has controls, or only the first.
    cuts: the largest value of each field, 0 for no limit; in these fields 0 means all.
    cifar10: the data set used for tfds:cifar10. directory: of the reproduction, with its batches.
    show: shows a line of progress.
    """

    scale: str
    paper_hyperparameters: bool
    every_control: bool
    num_seeds: int
    cuts: Mapping[str, int]
    cifar10: str
    directory: pathlib.Path
    instrument_source: InstrumentSource
    show: Callable[[str], None]


def configurations(study: Study, arguments: Sequence[str]) -> list[RunConfig]:
    """The configurations of a setting, one for each seed: those of its command line, with the cuts."""
    config = config_from_arguments(RunConfig, list(arguments))
    for name, most in study.cuts.items():
        if most:
            config = replace(config, **{name: min(values_of(config)[name] or most, most)})
    if config.data.dataset == "tfds:cifar10":
        config = replace(config, dataset=study.cifar10)
    return [replace(config, seed=seed) for seed in range(study.num_seeds)]


def departures(study: Study, preset: str, used: RunConfig) -> dict[str, list[Any]]:
    """The settings in which a configuration differs from the paper's own without cuts: [paper, used] by name."""
    paper = configurations(study._replace(cuts={}), arguments_for(preset, PAPER_VARIANT, study.scale))[0]
    return differences_between(paper, used, not_stated(paper))


def batches_of(study: Study, figure: Figure) -> dict[Key, list[RunConfig]]:
    """All lanes of a figure, by (setting, variant or control)."""
    found: dict[Key, list[RunConfig]] = {}
    settings = settings_at(figure.settings, study.scale)
    for label, preset in settings.items():
        for variant in variants_of(study.scale, study.paper_hyperparameters):
            arguments = arguments_for(preset, variant, study.scale)
            found[label, variant] = configurations(study, arguments)
    if figure.layout == "methods":
        return {key: _all_classes(configs[0]) for key, configs in found.items()}
    with_controls = len(settings) if study.scale == "paper" and study.every_control else 1
    for label, preset in itertools.islice(settings.items(), with_controls):
        nearest = arguments_for(preset, NEAREST_VARIANT, study.scale)
        undefended = "undefended" in rows_named_by(read_claim(preset))
        for name, arguments in controls_of(nearest, undefended=undefended).items():
            found[label, name] = configurations(study, arguments)
    return found


def _all_classes(config: RunConfig) -> list[RunConfig]:
    return [replace(config, target_class=target) for target in range(10)]


def check_pictures(figure: Figure, cifar10: str, data: AttackData) -> None:
    """Raise ValueError for pictures that do not fit the figure; the user supplies only CIFAR-10."""
    channels, classes = data.private.shape[-1], len(data.class_names)
    if figure.number in CIFAR10_FIGURES and (channels, classes) != (3, 10):
        kind = "color" if channels == 3 else "grey"
        raise ValueError(
            f"cifar10={cifar10}: {kind} images of {classes} classes, expected color images of 10 classes for figure "
            f"{figure.number}, which is about CIFAR-10"
        )


def directory_of(study: Study, configs: Sequence[RunConfig]) -> pathlib.Path:
    """The directory of a batch."""
    return batch_directory(study.directory / "batches", configs)


def jobs_of(study: Study, figure: Figure) -> list[Job]:
    """The batches of a figure as jobs."""
    lanes = batches_of(study, figure)
    return [batch_job(configs, directory_of(study, configs), ", ".join(key)) for key, configs in lanes.items()]


def basis_of(study: Study, figure: Figure) -> str:
    """All inputs of a section as text: its batches and its claims."""
    batches = {", ".join(key): directory_of(study, configs).name for key, configs in batches_of(study, figure).items()}
    claims = {label: read_claim(preset).texts for label, preset in settings_at(figure.settings, study.scale).items()}
    return json.dumps({"batches": batches, "claims": claims})
