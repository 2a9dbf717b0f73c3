"""The settings of collaborative learning."""

from __future__ import annotations

import dataclasses
import math

from gan_leak.collaboration.aggregation import AGGREGATORS
from gan_leak.collaboration.schedule import DELAYS, SCHEDULES
from gan_leak.collaboration.selection import CRITERIA
from gan_leak.collaboration.server import DOWNLOAD_CRITERIA
from gan_leak.settings import Bounds, above, at_least, between, option

NORMALIZATIONS = ("none", "batch")
_FRACTION = Bounds(0, 1, lowest_included=False, highest_included=True)


@dataclasses.dataclass(frozen=True)
class FederationConfig:
    """The rounds, local training, and the selective exchange of parameters."""

    participants_per_round: int = option(
        0,
        "Participants drawn at random for each round; the others stay on disk. 0 = all take part in every round, "
        "as in Hitaj et al. 2017 (McMahan et al. 2017, Algorithm 1).",
        bounds=at_least(0),
        kind="host",
    )
    rounds: int = option(
        100,
        "Number of rounds; in each round every participant takes one turn (open).",
        bounds=at_least(1),
        kind="host",
        stated=False,
    )
    schedule: str = option(
        "round_robin",
        "'round_robin' or 'random_order' (turns one after the other), 'asynchronous' (round robin from parameters that "
        "are 'delay' turns old) or 'synchronous' (all from the same parameters) "
        "(Shokri and Shmatikov 2015).",
        choices=SCHEDULES,
    )
    delay: int = option(
        0,
        "Turns of others between a participant's download and its upload; needs schedule 'asynchronous' (Hitaj et al. "
        "2017, Algorithm 1, item 7).",
        bounds=at_least(0),
        later=True,
    )
    delays: str = option(
        "fixed",
        "'fixed' is the delay in every turn, 'drawn' a random one from 0 to it.",
        choices=DELAYS,
        later=True,
    )
    aggregation: str = option(
        "add",
        "How the server merges uploads: 'add' (Shokri and Shmatikov 2015) or 'average', weighted by samples (McMahan "
        "et al. 2017; synchronous only).",
        choices=tuple(AGGREGATORS),
    )
    normalization: str = option(
        "none",
        "Normalization in the shared model: 'none' (Hitaj et al. 2017, section 8.3), or 'batch', BatchNorm by the "
        "current batch between every max-pool and tanh (ours).",
        choices=NORMALIZATIONS,
        later=True,
    )
    local_epochs: int = option(
        1, "Passes over the local data in one turn (Hitaj et al. 2017, Algorithm 1).", bounds=at_least(1)
    )
    batch_size: int = option(64, "Minibatch size (Hitaj et al. 2017, section 8.4).", bounds=at_least(1))
    learning_rate: float = option(
        0.05,
        "Learning rate of local SGD (open; Hitaj et al. 2017, section 8.4, have 0.001).",
        bounds=above(0),
        kind="traced",
    )
    learning_rate_decay: float = option(
        1e-7,
        "Torch decay d of the local learning rate, lr / (1 + steps * d) (Hitaj et al. 2017, section 8.4).",
        bounds=at_least(0),
        kind="traced",
    )
    upload_fraction: float = option(
        1.0,
        "Fraction theta_u of the update that is uploaded (Shokri and Shmatikov 2015).",
        bounds=_FRACTION,
        kind="traced",
    )
    download_fraction: float = option(
        1.0,
        "Fraction theta_d of the parameters that is downloaded (Shokri and Shmatikov 2015).",
        bounds=_FRACTION,
        kind="traced",
    )
    adversary_download_fraction: float = option(
        0.0,
        "Fraction that the adversary downloads, which the protocol leaves to each participant; 0 = as the others.",
        bounds=between(0, 1),
        kind="traced",
        later=True,
    )
    download_criterion: str = option(
        "most_updated",
        "The downloaded coordinates are the 'most_updated' ones or 'random' ones in every round (open).",
        choices=DOWNLOAD_CRITERIA,
        later=True,
    )
    upload_criterion: str = option(
        "largest",
        "'largest' magnitudes or 'random' among those above the threshold (Shokri and Shmatikov 2015; which one "
        "Hitaj et al. used without noise is open).",
        choices=CRITERIA,
    )
    upload_threshold: float = option(
        0.0,
        "Magnitude tau that a coordinate must exceed to be uploaded under the criterion 'random'.",
        bounds=at_least(0),
        kind="traced",
        defenses=("sparse_vector",),
    )
    upload_bound: float = option(
        math.inf,
        "Bound gamma: uploaded values are truncated to [-gamma, gamma] (Shokri and Shmatikov 2015).",
        bounds=Bounds(0, lowest_included=False, highest_included=True),
        kind="traced",
        defenses=("sparse_vector",),
    )
    update_count_decay: float = option(
        1.0,
        "Factor applied to the server's update counters at every upload (Shokri and Shmatikov 2015; 1 = no decay).",
        bounds=_FRACTION,
        kind="traced",
    )


def check_federation(config: FederationConfig) -> None:
    """Raise ValueError for settings that exclude each other."""
    if config.schedule != "synchronous" and not AGGREGATORS[config.aggregation]().sequential:
        raise ValueError(
            f"aggregation={config.aggregation!r}: expected with schedule 'synchronous', not {config.schedule!r}"
        )
    if config.delay and config.schedule != "asynchronous":
        raise ValueError(f"delay={config.delay}: expected with schedule 'asynchronous', not {config.schedule!r}")
