"""The flags of the binary for split inference, and what they may be."""

from __future__ import annotations

import dataclasses

from experiments.common.tables import defense_names, weight_or_own
from gan_leak.defenses.contract import FEATURES
from gan_leak.runs.inversion.split_attacks import SPLIT_ATTACKS
from gan_leak.settings import SEEDS, at_least, between, check_values, option

# Far more than any training needs; a larger number is a slip.
_MOST_EPOCHS = 100_000


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """One victim, cut at some layers and attacked in some ways."""

    network: str = option("mnist", "'mnist' (LeNet, 28 pixels) or 'cifar10' (six convolutions, 32 pixels).")
    dataset: str = option("mnist", "Data set of images that fit the network, as in the main job.")
    splits: str = option("", "Layers after which the network is cut, with commas between; the paper's if left out.")
    attacks: str = option(",".join(SPLIT_ATTACKS), f"Some of {', '.join(SPLIT_ATTACKS)}.")
    defenses: str = option(
        "none", f"What the client does to its features: none, or of {defense_names(FEATURES)} with :strength."
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


def check(config: SplitConfig) -> None:
    """Raise ValueError in one line for numbers that cannot be."""
    check_values(config)
    weight_or_own("total_variation", config.total_variation, 0.0)
