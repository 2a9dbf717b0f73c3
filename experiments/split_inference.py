"""How much of an input do the features give away that a client sends to the cloud? (He, Zhang and Lee, ACSAC 2019)

python -m experiments.split_inference --workdir=runs/split
python -m experiments.split_inference --network=cifar10 --dataset=tfds:cifar10 --splits=conv11,ReLU22
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.flags import check_distinct, run_binary
from experiments.common.tables import (
    Defense,
    Drawn,
    check_directory,
    defended_name,
    keep_row,
    parse_defenses,
    part_of_row,
    run_and_report,
    tell_row,
    weight_or_own,
    write_results,
)
from gan_leak.data import Dataset, load
from gan_leak.defenses.feature_noise import dropout, gaussian_noise, laplace_noise
from gan_leak.models.layered import inverse_network_for, shadow_network_for
from gan_leak.reports.reconstruction import measured_row
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.inversion import split
from gan_leak.runs.storage.directory import RunDirectory, open_run
from gan_leak.runs.storage.resumable import Course, read_tree, write_tree
from gan_leak.settings import SEEDS, at_least, between, check_values, option

TITLE = "Split inference"
# Each has a key of its own, which all are drawn at once.
_MOST_EPOCHS = 100_000
ATTACKS = ("white_box", "black_box", "query_free")
DEFENSES = {"gaussian": gaussian_noise, "laplace": laplace_noise, "dropout": dropout}


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """One victim, cut at some layers and attacked in some ways."""

    network: str = option("mnist", "'mnist' (LeNet, 28 pixels) or 'cifar10' (six convolutions, 32 pixels).")
    dataset: str = option("mnist", "Data set of images that fit the network, as in the main job.")
    splits: str = option("", "Layers after which the network is cut, with commas between; the paper's if left out.")
    attacks: str = option(",".join(ATTACKS), f"Some of {', '.join(ATTACKS)}.")
    defenses: str = option(
        "none", f"What the client does to its features: none, or of {', '.join(DEFENSES)} with :strength."
    )
    samples: int = option(
        0,
        "Most training images of the victim, and as many of the adversary; 0 = half of all each.",
        bounds=at_least(0),
    )
    epochs: int = option(
        10, "Passes over its images by the victim (He, Zhang and Lee 2019: 50).", bounds=between(1, _MOST_EPOCHS)
    )
    attack_epochs: int = option(
        10, "Passes over its images by an inverse network or a shadow (50 there).", bounds=between(1, _MOST_EPOCHS)
    )
    iterations: int = option(
        0, "Steps of a white-box or query-free inversion; 0 = the released code's, 5000 and 500.", bounds=at_least(0)
    )
    total_variation: float = option(
        -1.0, "Weight of total variation in a white-box inversion; -1 = the released code's, of the split."
    )
    images: int = option(100, "Test images that are attacked, beside the first of every class.", bounds=at_least(0))
    seed: int = option(0, "Seed of everything random.", bounds=SEEDS, effect="chance")


class Setting(NamedTuple):
    """One row of the table."""

    split: str
    attack: str
    knowledge: str
    defense: Defense

    def __str__(self) -> str:
        return defended_name(self.undefended(), self.defense)

    def undefended(self) -> str:
        return ", ".join(filter(None, (self.split, self.attack.replace("_", " "), self.knowledge)))


class PreparedSplit(NamedTuple):
    """Attacks whose input has been checked."""

    config: SplitConfig
    victim: split.Victim
    data: split.SplitData
    settings: list[Setting]
    directory: RunDirectory


def _named(name: str, text: str, known: tuple[str, ...]) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    if not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
        raise ValueError(f"{name}={text}: expected some of {', '.join(known)}, none twice")
    return chosen


def _settings(config: SplitConfig, victim: split.Victim) -> Iterator[Setting]:
    defenses = parse_defenses(config.defenses, DEFENSES)
    layers = [layer.strip() for layer in config.splits.split(",")] if config.splits else victim.splits
    check_distinct("splits", layers)
    for layer in layers:
        split.parts_of(victim, layer)
        for attack in _named("attacks", config.attacks, ATTACKS):
            if attack == "black_box":
                inverse_network_for(victim.name, layer)
            elif attack == "query_free":
                shadow_network_for(victim.name, layer)
            knowledge = {"white_box": ("",), "black_box": split.QUERIES, "query_free": split.SHADOWS}[attack]
            for known in knowledge:
                for defense in defenses:
                    yield Setting(layer, attack, known, defense)


def load_data(config: SplitConfig) -> tuple[Dataset, split.SplitData]:
    """The data set, and whose image is whose; raises ValueError or OSError for one that does not fit the network."""
    victim = split.victim_for(config.network)
    dataset = load(config.dataset, image_size=victim.network.input_shape[0])
    rng = np.random.default_rng(config.seed)
    return dataset, split.split_data(victim, dataset, samples=config.samples, images=config.images, rng=rng)


def prepare(config: SplitConfig, workdir: pathlib.Path, resume: bool) -> PreparedSplit:
    """Checks the flags and the data and opens the directory; raises ValueError for bad input."""
    check_values(config)
    weight_or_own("total_variation", config.total_variation, 0.0)
    victim = split.victim_for(config.network)
    settings = list(_settings(config, victim))
    dataset, data = load_data(config)
    inputs = {"dataset": dataset.fingerprint}
    directory = open_run(workdir, config, resume=resume, inputs=inputs, check=check_directory)
    for note in dataset.notes:
        tell(note)
    return PreparedSplit(config, victim, data, settings, directory)


def execute(prepared: PreparedSplit) -> int:
    """Trains the victim, runs the attacks that are not there yet, and writes the table anew after each."""
    return run_and_report(prepared.directory, functools.partial(run_settings, prepared))


def run_settings(prepared: PreparedSplit) -> list[Drawn]:
    """Every setting with its row and pictures, from the directory where it is there."""
    _, victim, data, settings, directory = prepared
    params = functools.cache(functools.partial(_victim_params, prepared))
    inputs = data.tested[0][data.chosen]
    originals = split.as_images(victim, inputs)
    classes = len(np.unique(data.tested[1]))
    drawn: list[Drawn] = []
    for index, setting in enumerate(settings):
        saved, seconds = keep_row(
            directory, index, functools.partial(_attack, prepared, setting, index, params, inputs)
        )
        row = measured_row(str(setting), "attack", _measures(victim, setting, saved, classes))
        drawn.append(Drawn(row, originals, saved["images"], setting.undefended(), setting.defense, seconds))
        tell_row(row)
        write_results(directory, TITLE, drawn)
    return drawn


def _victim_params(prepared: PreparedSplit) -> Any:
    """The victim's parameters, trained here or before."""
    config, victim, data, _, directory = prepared
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    path = directory.path / "victim.npz"
    part = path.with_name("victim.part.npz")
    params = read_tree(path, jax.eval_shape(victim.network.init, key), tell)
    if params is None:
        tell(f"training the victim on {len(data.own[1])} images ...")
        params = split.train_victim(key, victim, data, epochs=config.epochs, course=Course(part, tell))
        write_tree(path, params)
    part.unlink(missing_ok=True)
    return params


def _attack(
    prepared: PreparedSplit, setting: Setting, index: int, victim_params: Callable[[], Any], originals: np.ndarray
) -> dict[str, np.ndarray]:
    """Everything that a row and its picture are made of."""
    config, victim, data, _, directory = prepared
    course = Course(part_of_row(directory, index), tell)
    params = victim_params()
    # By name, so that a row is the same whichever others are asked for, and every defence meets the same attack.
    named = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(setting.undefended().encode()))
    # What a query is answered with, and what the cloud classifies, is defended as well, with noise of its own.
    key, key_features, key_accuracy = jax.random.split(named, 3)
    parts = split.parts_of(victim, setting.split)
    protect = DEFENSES.get(setting.defense.name, lambda strength: lambda key, features: features)
    send = split.defended(protect(setting.defense.strength), parts.client, params)
    features = send(key_features, originals)
    if setting.attack == "white_box":
        numbers = victim.likelihoods.get(setting.split, victim.other)
        numbers = numbers._replace(
            iterations=config.iterations or numbers.iterations,
            total_variation=weight_or_own("total_variation", config.total_variation, numbers.total_variation),
        )
        inputs = split.white_box(parts.client, params, features, victim.network.input_shape, numbers, course)
    elif setting.attack == "black_box":
        inputs = split.black_box(
            key,
            victim,
            setting.split,
            send,
            data,
            setting.knowledge,
            features,
            epochs=config.attack_epochs,
            course=course,
        )
    else:
        inputs = split.query_free(
            key,
            victim,
            setting.split,
            parts,
            params,
            data,
            setting.knowledge,
            features,
            epochs=config.attack_epochs,
            course=course,
            iterations=config.iterations or split.QUERY_FREE_ITERATIONS,
        )
    outcome = split.measure(victim, inputs, data)
    cloud = jax.jit(lambda key, inputs: parts.cloud.apply(params, send(key, inputs)))
    return {**outcome._asdict(), "accuracy": np.array(split.accuracy(key_accuracy, cloud, data.tested))}


def _measures(
    victim: split.Victim, setting: Setting, saved: dict[str, np.ndarray], classes: int
) -> dict[str, np.ndarray | float]:
    """By measure: over the first image of every class, as in the paper, over the others, and what is published."""
    found: dict[str, np.ndarray | float] = {}
    for measure in split.Outcome._fields[1:]:
        found[measure] = saved[measure][:classes]
    if len(saved["psnr"]) > classes:
        found |= {f"{measure}_of_others": saved[measure][classes:] for measure in ("psnr", "ssim", "singled_out")}
    reference = split.published(victim, setting.attack, setting.knowledge, setting.split)
    if reference and setting.defense.name == "none":
        found["published_psnr"], found["published_ssim"] = reference
    found["model_accuracy"] = float(saved["accuracy"])
    return found


if __name__ == "__main__":
    run_binary(prepare, execute, SplitConfig)
