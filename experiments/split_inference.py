"""How much of an input do the features give away that a client sends to the cloud? (He, Zhang and Lee, ACSAC 2019)

python -m experiments.split_inference --workdir=runs/split
python -m experiments.split_inference --network=cifar10 --dataset=tfds:cifar10 --splits=conv11,ReLU22
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.flags import run_binary
from gan_leak.data import Dataset, load
from gan_leak.defenses.feature_noise import dropout, gaussian_noise, laplace_noise
from gan_leak.evaluation.criteria import summarise
from gan_leak.evaluation.split_report import render_split_inference
from gan_leak.models.layered import inverse_network_for, shadow_network_for
from gan_leak.runs import split_inference as split
from gan_leak.runs.directory import RunDirectory, close_run, npz_bytes, open_run, write_atomic
from gan_leak.runs.workers import tell

ATTACKS = ("white_box", "black_box", "query_free")
DEFENSES = {"gaussian": gaussian_noise, "laplace": laplace_noise, "dropout": dropout}


def _field(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """One victim, cut at some layers and attacked in some ways."""

    network: str = _field("mnist", "'mnist' (LeNet, 28 pixels) or 'cifar10' (six convolutions, 32 pixels).")
    dataset: str = _field("mnist", "Data set of images that fit the network, as in the main job.")
    splits: str = _field("", "Layers after which the network is cut, with commas between; the paper's if left out.")
    attacks: str = _field("white_box,black_box,query_free", "Some of white_box, black_box, query_free.")
    defense: str = _field("none", "What the client does to its features: none, gaussian, laplace or dropout.")
    strengths: str = _field("0.2,0.5,0.8", "Of the defence: deviations, scales or rates, each a row of its own.")
    samples: int = _field(0, "Most training images of the victim, and as many of the adversary; 0 = half of all each.")
    epochs: int = _field(10, "Passes over its images by the victim (He, Zhang and Lee 2019: 50).")
    attack_epochs: int = _field(10, "Passes over its images by an inverse network or a shadow (50 there).")
    images: int = _field(100, "Test images that are attacked, beside the first of every class.")
    seed: int = _field(0, "Seed of everything random.")


class Setting(NamedTuple):
    """One row of the table."""

    split: str
    attack: str
    knowledge: str
    defense: str
    strength: float


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


def _strengths(config: SplitConfig) -> list[float]:
    if config.defense == "none":
        return [0.0]
    if config.defense not in DEFENSES:
        raise ValueError(f"defense={config.defense}: expected one of none, {', '.join(DEFENSES)}")
    try:
        strengths = [float(part) for part in config.strengths.split(",")]
    except ValueError:
        strengths = [-1.0]
    most = 1.0 if config.defense == "dropout" else float("inf")
    if not all(0.0 <= strength < most for strength in strengths):
        raise ValueError(f"strengths={config.strengths}: expected numbers from 0 to below {most}, with commas between")
    return strengths


def _settings(config: SplitConfig, victim: split.Victim) -> Iterator[Setting]:
    splits = config.splits.split(",") if config.splits else list(victim.splits)
    for layer in splits:
        split.parts_of(victim, layer)
        for attack in _named("attacks", config.attacks, ATTACKS):
            if attack == "black_box":
                inverse_network_for(victim.name, layer)
            elif attack == "query_free":
                shadow_network_for(victim.name, layer)
            knowledge = {"white_box": ("",), "black_box": split.QUERIES, "query_free": split.SHADOWS}[attack]
            for known in knowledge:
                for strength in _strengths(config):
                    yield Setting(layer, attack, known, config.defense, strength)


def prepare(config: SplitConfig, workdir: pathlib.Path, resume: bool) -> PreparedSplit:
    """Checks the flags and the data and opens the directory; raises ValueError for bad input."""
    for name, least in {"samples": 0, "epochs": 1, "attack_epochs": 1, "images": 0, "seed": 0}.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name}={getattr(config, name)}: expected at least {least}")
    victim = split.victim_for(config.network)
    settings = list(_settings(config, victim))
    dataset: Dataset = load(config.dataset, image_size=victim.network.input_shape[0])
    data = split.split_data(
        victim, dataset, samples=config.samples, images=config.images, rng=np.random.default_rng(config.seed)
    )
    return PreparedSplit(config, victim, data, settings, open_run(workdir, config, resume=resume))


def execute(prepared: PreparedSplit) -> int:
    """Trains the victim, runs the attacks that are not there yet, and writes the table anew after each."""
    config, victim, data, settings, directory = prepared
    try:
        key_victim, key_attacks, key_defense = jax.random.split(jax.random.key(config.seed), 3)
        tell(f"training the victim on {len(data.own[1])} images ...")
        params = split.train_victim(key_victim, victim, data, epochs=config.epochs)
        rows: list[dict[str, Any]] = []
        pictures: dict[str, np.ndarray] = {}
        originals = data.tested[0][data.chosen]
        for index, setting in enumerate(settings):
            path = directory.path / "rows" / f"{index:03d}.npz"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                keys = jax.random.fold_in(key_attacks, index), jax.random.fold_in(key_defense, index)
                write_atomic(path, npz_bytes(**_attack(prepared, setting, params, originals, *keys)))
            saved = dict(np.load(path, allow_pickle=False))
            rows.append(_row(victim, setting, saved, len(np.unique(data.tested[1]))))
            pictures[rows[-1]["name"]] = saved["images"]
            tell(f"{rows[-1]['name']}: PSNR {rows[-1]['psnr']:.2f} dB, SSIM {rows[-1]['ssim']:.3f}")
            write_atomic(directory.path / "results.json", json.dumps(rows, indent=1, allow_nan=False).encode())
        page = render_split_inference(
            rows, pictures, split.as_images(victim, originals), json.loads((directory.path / "config.json").read_text())
        )
        write_atomic(directory.path / "report.html", page.encode())
        tell(f"written: {directory.path / 'report.html'}, {directory.path / 'results.json'}")
    finally:
        close_run(directory)
    return 0


def _attack(
    prepared: PreparedSplit,
    setting: Setting,
    params: Any,
    originals: np.ndarray,
    key: jax.Array,
    key_defense: jax.Array,
) -> dict[str, np.ndarray]:
    """Everything that a row and its picture are made of."""
    config, victim, data, *_ = prepared
    parts = split.parts_of(victim, setting.split)
    protect = (
        DEFENSES[setting.defense](setting.strength) if setting.defense != "none" else lambda key, features: features
    )
    send = split.defended(protect, parts.client, params)
    features = send(key_defense, originals)
    # What a query is answered with, and what the cloud classifies, is defended as well, with noise of its own.
    key_query, key_accuracy = jax.random.split(key_defense)
    if setting.attack == "white_box":
        numbers = victim.likelihoods.get(setting.split, victim.other)
        inputs = split.white_box(parts.client, params, features, victim.network.input_shape, numbers)
    elif setting.attack == "black_box":

        def query(inputs: np.ndarray) -> jax.Array:
            return send(key_query, inputs)

        inputs = split.black_box(
            key, victim, setting.split, query, data, setting.knowledge, features, epochs=config.attack_epochs
        )
    else:
        inputs = split.query_free(
            key, victim, setting.split, parts, params, data, setting.knowledge, features, epochs=config.attack_epochs
        )
    outcome = split.measure(victim, inputs, originals)
    cloud = jax.jit(lambda inputs: parts.cloud.apply(params, send(key_accuracy, inputs)))
    return {**outcome._asdict(), "accuracy": np.array(split.accuracy(cloud, data.tested))}


def _row(victim: split.Victim, setting: Setting, saved: dict[str, np.ndarray], classes: int) -> dict[str, Any]:
    """Means over the first image of every class, as in the paper, and over the others with 95% intervals."""
    defended = "" if setting.defense == "none" else f"{setting.defense} {setting.strength:g}"
    name = ", ".join(
        part for part in (setting.split, setting.attack.replace("_", " "), setting.knowledge, defended) if part
    )
    few = classes
    row: dict[str, Any] = {"name": name, **setting._asdict(), "accuracy": float(saved["accuracy"])}
    for measure in ("psnr", "ssim", "ssim_by_range"):
        # An image that is recovered to the bit has no finite PSNR; 100 dB stands for it.
        values = np.minimum(saved[measure].astype(float), 100.0)
        row[measure] = float(values[:few].mean())
        row[f"{measure}_of_all"] = summarise(values[few:].tolist())._asdict()
    reference = split.published(victim, setting.attack, setting.knowledge, setting.split)
    row["published"] = reference if reference and not defended else None
    return row


if __name__ == "__main__":
    run_binary(prepare, execute, SplitConfig)
