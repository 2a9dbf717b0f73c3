"""Attacks on the features that a client sends to the cloud in split inference (He, Zhang and Lee, ACSAC 2019).

python -m experiments.split_inference --workdir=runs/split
python -m experiments.split_inference --network=cifar10 --dataset=tfds:cifar10 --splits=conv11,ReLU22
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.flags import run_binary
from experiments.common.split_config import SplitConfig, check
from experiments.common.split_rows import Setting, attack_setting, row_measures, row_settings
from experiments.common.tables import Drawn, RowTask, check_directory, run_and_report, run_rows
from gan_leak.data import Dataset, load
from gan_leak.reports.reconstruction import measured_row
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.inversion import split
from gan_leak.runs.storage.directory import RunDirectory, open_run

TITLE = "Split inference"


class PreparedSplit(NamedTuple):
    """Attacks with checked input."""

    config: SplitConfig
    victim: split.Victim
    data: split.SplitData
    settings: list[Setting]
    directory: RunDirectory


def load_data(config: SplitConfig) -> tuple[Dataset, split.SplitData]:
    """The data set and its partition; raises ValueError or OSError if it does not fit the network."""
    victim = split.victim_for(config.network)
    dataset = load(config.dataset, image_size=victim.network.input_shape[0])
    rng = np.random.default_rng(config.seed)
    return dataset, split.split_data(victim, dataset, samples=config.samples, images=config.images, rng=rng)


def prepare(config: SplitConfig, workdir: pathlib.Path, resume: bool) -> PreparedSplit:
    """Check the flags and the data and open the directory; raises ValueError for bad input."""
    check(config)
    victim = split.victim_for(config.network)
    settings = list(row_settings(config, victim))
    dataset, data = load_data(config)
    inputs = {"dataset": dataset.fingerprint}
    directory = open_run(workdir, config, resume=resume, inputs=inputs, check=check_directory)
    for note in dataset.notes:
        tell(note)
    return PreparedSplit(config, victim, data, settings, directory)


def execute(prepared: PreparedSplit) -> int:
    """Train the victim, run the attacks without a result, and rewrite the table after each."""
    return run_and_report(prepared.directory, lambda: run_settings(prepared))


def run_settings(prepared: PreparedSplit) -> list[Drawn]:
    """Every setting with its row and pictures; finished rows are read from the directory."""
    config, victim, data, settings, directory = prepared
    originals = split.as_images(victim, data.tested[0][data.chosen])
    classes = len(np.unique(data.tested[1]))

    @functools.cache
    def params() -> Any:
        key = jax.random.fold_in(jax.random.key(config.seed), 0)
        path = directory.path / "victim.npz"
        return split.load_or_train_victim(key, victim, data, path, epochs=config.epochs, tell=tell)

    def draw(setting: Setting, saved: dict[str, Any], seconds: float) -> Drawn:
        row = measured_row(str(setting), "attack", row_measures(victim, setting, saved, classes))
        return Drawn(row, originals, saved["images"], setting.undefended(), setting.defense, seconds)

    tasks = [
        RowTask(
            functools.partial(attack_setting, config, victim, data, setting, params),
            functools.partial(draw, setting),
        )
        for setting in settings
    ]
    return run_rows(directory, TITLE, tasks)


if __name__ == "__main__":
    run_binary(prepare, execute, SplitConfig)
