"""Rows of a table of attacks on split inference: their settings from flags, their arrays and their measures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.common.flags import check_distinct
from experiments.common.split_config import SplitConfig
from experiments.common.tables import AppliedDefense, defended_name, parse_defenses, transform_of, weight_or_own
from gan_leak.defenses.contract import FEATURES
from gan_leak.runs.inversion import split
from gan_leak.runs.inversion.split_attacks import SPLIT_ATTACKS, SplitTask
from gan_leak.runs.storage.resumable import SavedProgress
from gan_leak.types import PyTree


class Setting(NamedTuple):
    """One row of the table."""

    split: str
    attack: str
    knowledge: str
    defense: AppliedDefense

    def __str__(self) -> str:
        return defended_name(self.undefended(), self.defense)

    def undefended(self) -> str:
        return ", ".join(filter(None, (self.split, self.attack.replace("_", " "), self.knowledge)))


def row_settings(config: SplitConfig, victim: split.Victim) -> Iterator[Setting]:
    """All rows; raises ValueError for an unknown split, attack or defense."""
    defenses = parse_defenses(config.defenses, FEATURES)
    layers = [layer.strip() for layer in config.splits.split(",")] if config.splits else victim.splits
    check_distinct("splits", layers)
    for layer in layers:
        split.split_network(victim, layer)
        for attack in _attacks(config.attacks):
            SPLIT_ATTACKS[attack].check(victim.name, layer)
            for knowledge in SPLIT_ATTACKS[attack].knowledge:
                for defense in defenses:
                    yield Setting(layer, attack, knowledge, defense)


def _attacks(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    if not set(chosen) <= set(SPLIT_ATTACKS) or len(set(chosen)) < len(chosen):
        raise ValueError(f"attacks={text}: expected some of {', '.join(SPLIT_ATTACKS)}, none twice")
    return chosen


def attack_setting(
    config: SplitConfig,
    victim: split.Victim,
    data: split.SplitData,
    setting: Setting,
    victim_params: Callable[[], PyTree],
    progress: SavedProgress,
) -> dict[str, np.ndarray]:
    """All arrays of a row and its picture."""
    params = victim_params()
    # Keys depend on the name: a row is independent of the other rows, and every defense faces the same attack.
    named = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(setting.undefended().encode()))
    # The defense also covers the answers to queries and the input of the cloud, with independent noise.
    key, key_features, key_accuracy = jax.random.split(named, 3)
    parts = split.split_network(victim, setting.split)
    send = split.defended_client(transform_of(setting.defense, FEATURES), parts.client, params)
    task = SplitTask(
        victim,
        setting.split,
        parts,
        params,
        data,
        query=send,
        features=send(key_features, data.tested[0][data.chosen]),
        knowledge=setting.knowledge,
        epochs=config.attack_epochs,
        iterations=config.iterations,
        total_variation=weight_or_own("total_variation", config.total_variation, None),
    )
    outcome = split.measure(victim, SPLIT_ATTACKS[setting.attack].run(key, task, progress), data)
    cloud = jax.jit(lambda key, inputs: parts.cloud.apply(params, send(key, inputs)))
    return {**outcome._asdict(), "accuracy": np.array(split.accuracy(key_accuracy, cloud, data.tested))}


def row_measures(
    victim: split.Victim, setting: Setting, saved: dict[str, np.ndarray], classes: int
) -> dict[str, np.ndarray | float]:
    """Arrays by measure: for the first image of every class as in the paper, for the others, and published values."""
    found: dict[str, np.ndarray | float] = {}
    for measure in split.Outcome._fields[1:]:
        found[measure] = saved[measure][:classes]
    if len(saved["psnr"]) > classes:
        found |= {f"{measure}_of_others": saved[measure][classes:] for measure in ("psnr", "ssim", "re_identified")}
    reference = split.published_scores(victim, setting.attack, setting.knowledge, setting.split)
    if reference and setting.defense.name == "none":
        found["published_psnr"], found["published_ssim"] = reference
    found["model_accuracy"] = float(saved["accuracy"])
    return found
