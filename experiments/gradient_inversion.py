"""Attacks on the gradient or update of one participant (DLG, iDLG, Inverting Gradients, GRNN).

python -m experiments.gradient_inversion --attack=grnn --workdir=runs/grnn
python -m experiments.gradient_inversion --attack=dlg --network=dlg_lenet --defenses=none,pruning:0.2,gaussian:0.01
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import functools
import hashlib
import pathlib
from typing import NamedTuple

from experiments.common.flags import run_binary
from experiments.common.gradient_config import GradientConfig, check, matchings_of
from experiments.common.gradient_rows import (
    Setting,
    attack_setting,
    draw_setting,
    load_victims,
    procedure_of,
    row_settings,
    trained_model,
)
from experiments.common.tables import (
    Drawn,
    RowTask,
    check_directory,
    parse_defenses,
    parse_numbers,
    run_and_report,
    run_rows,
)
from gan_leak.data import Dataset, load
from gan_leak.defenses.contract import GRADIENT
from gan_leak.files import open_regular, user_path
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.inversion import gradient as inversion
from gan_leak.runs.memory import check_inversion
from gan_leak.runs.storage.directory import RunDirectory, open_run
from gan_leak.types import Model

TITLE = "Attacks on one gradient"


class PreparedInversion(NamedTuple):
    """Attacks with checked input."""

    config: GradientConfig
    dataset: Dataset
    model: Model
    settings: list[Setting]
    directory: RunDirectory


def load_data(config: GradientConfig) -> tuple[Dataset, Model]:
    """The data set and its network; raises ValueError or OSError if they do not fit each other."""
    dataset = load(config.dataset, image_size=config.image_size)
    model = inversion.network_for(
        config.network, config.initialisation, len(dataset.class_names), config.image_size, config.channels
    )
    for size in () if config.gradient else parse_numbers("batch_sizes", config.batch_sizes):
        load_victims(config, dataset, size)
    return dataset, model


def prepare(config: GradientConfig, workdir: pathlib.Path, resume: bool) -> PreparedInversion:
    """Check the flags, the data and the gradients and open the directory; raises ValueError for bad input."""
    check(config)
    parse_defenses(config.defenses, GRADIENT)
    dataset, model = load_data(config)
    _check_memory(config, dataset, model)
    settings = row_settings(config, dataset, model)
    inputs = {"dataset": dataset.fingerprint}
    if config.gradient:
        with open_regular(user_path("gradient", config.gradient)) as file:
            inputs["gradient"] = hashlib.file_digest(file, "sha256").hexdigest()
    directory = open_run(workdir, config, resume=resume, inputs=inputs, check=check_directory)
    for note in dataset.notes:
        tell(note)
    return PreparedInversion(config, dataset, model, settings, directory)


def _check_memory(config: GradientConfig, dataset: Dataset, model: Model) -> None:
    num_classes = len(dataset.class_names)
    for size in parse_numbers("batch_sizes", config.batch_sizes):
        participants = 1 if config.gradient else -(-config.images // size)
        for matching in matchings_of(config):
            check_inversion(
                f"batch_sizes={size}, images={config.images}, restarts={config.restarts}, "
                f"noise_size={config.noise_size}",
                procedure_of(config, model, num_classes, size, matching),
                model,
                (size, config.image_size, config.image_size, config.channels),
                num_classes,
                lanes=participants * config.restarts,
            )


def execute(prepared: PreparedInversion) -> int:
    """Run the rows without a result, and rewrite the table after each."""
    return run_and_report(prepared.directory, lambda: run_settings(prepared))


def run_settings(prepared: PreparedInversion) -> list[Drawn]:
    """Every setting with its row and pictures; finished rows are read from the directory."""
    config, dataset, model, settings, directory = prepared
    if config.training_steps:
        model = trained_model(config, dataset, model)
        settings = row_settings(config, dataset, model)
    tasks = [
        RowTask(
            functools.partial(attack_setting, config, dataset, model, setting),
            functools.partial(draw_setting, config, dataset, setting),
        )
        for setting in settings
    ]
    return run_rows(directory, TITLE, tasks)


if __name__ == "__main__":
    run_binary(prepare, execute, GradientConfig)
