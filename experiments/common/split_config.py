"""The flags of the binary for split inference, and their checks."""

from __future__ import annotations

import dataclasses

from experiments.common.tables import defense_names, weight_or_own
from gan_leak.defenses.contract import FEATURES
from gan_leak.runs.inversion.split_attacks import SPLIT_ATTACKS
from gan_leak.settings import SEEDS, at_least, between, check_values, option

# Far more than any training needs; a larger number is a mistake.
_MOST_EPOCHS = 100_000


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """One victim network, its cuts and the attacks."""

    network: str = option("mnist", "'mnist' (LeNet, 28 pixels) or 'cifar10' (six convolutions, 32 pixels).")
    dataset: str = option("mnist", "Data set of images that fit the network, as in the main job.")
    splits: str = option("", "Layers behind a cut, separated by commas; if left out, those of the paper.")
    attacks: str = option(",".join(SPLIT_ATTACKS), f"Some of {', '.join(SPLIT_ATTACKS)}.")
    defenses: str = option(
        "none", f"Defenses of the features: none, or one of {defense_names(FEATURES)} with :strength."
    )
    samples: int = option(
        0,
        "Largest number of training images of the victim, and of the adversary; 0 = half of all for each.",
        bounds=at_least(0),
    )
    epochs: int = option(10, "Epochs of the victim (He, Zhang and Lee 2019: 50).", bounds=between(1, _MOST_EPOCHS))
    attack_epochs: int = option(
        10, "Epochs of an inverse network or a shadow (He, Zhang and Lee 2019: 50).", bounds=between(1, _MOST_EPOCHS)
    )
    iterations: int = option(
        0, "Steps of a white-box or query-free inversion; 0 = 5000 or 500, as in the released code.", bounds=at_least(0)
    )
    total_variation: float = option(
        -1.0, "Weight of total variation in a white-box inversion; -1 = that of the released code for the split."
    )
    images: int = option(100, "Attacked test images, beside the first of every class.", bounds=at_least(0))
    seed: int = option(0, "Seed of everything random.", bounds=SEEDS, effect="chance")


def check(config: SplitConfig) -> None:
    """Raise ValueError in one line for invalid settings."""
    check_values(config)
    weight_or_own("total_variation", config.total_variation, 0.0)
