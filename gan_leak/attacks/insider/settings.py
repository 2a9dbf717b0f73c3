"""The settings of the inside adversary: its number, its target class and its generator."""

from __future__ import annotations

import dataclasses

from gan_leak.attacks.insider.gan import DISCRIMINATORS, GENERATOR_OPTIMIZERS
from gan_leak.settings import Bounds, above, at_least, option


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """The inside adversary and its generator."""

    adversary: int = option(
        1,
        "Number of the adversary; in round-robin order, lower numbers come first (Hitaj et al. 2017, section 7).",
        bounds=at_least(0),
    )
    target_class: int = option(
        3,
        "Class that the adversary reconstructs and owns no image of (Hitaj et al. 2017, section 9.3): its number from "
        "0, or on the command line its name. Write 'index:3' or 'name:3' if a number is also a name.",
        bounds=at_least(0),
        kind="host",
        per_lane=True,
    )
    kind: str = option(
        "active",
        "'active' trains on the fakes as the fake class, 'passive' only trains its generator, 'none' has no attack "
        "(Hitaj et al. 2017, section 9.3).",
        choices=("active", "passive", "none"),
        name="attack",
    )
    first_turn: int = option(
        0,
        "Turns of the adversary before its attack begins; until then it is honest (ours).",
        bounds=at_least(0),
        later=True,
    )
    discriminator: str = option(
        "local",
        "The adversary's discriminator after a partial download: 'local' is its local model (Hitaj et al. 2017, "
        "section 7), 'remembered' has the last value that the server sent of every parameter (ours).",
        choices=DISCRIMINATORS,
        later=True,
    )
    own_images_per_batch: int = option(
        0,
        "The adversary's own images in each batch of its discriminator, beside the generated ones (ours): for "
        "--normalization=batch.",
        bounds=at_least(0),
        later=True,
    )
    generator_steps: int = option(5, "Generator updates in one adversary turn (open).", bounds=at_least(1))
    generator_batch_size: int = option(64, "Latents in one generator update (open).", bounds=at_least(1), stated=False)
    generator_width: int = option(
        64,
        "Channels of the generator's last hidden layer; each layer before it has twice as many (DCGAN code; open).",
        bounds=at_least(1),
        stated=False,
    )
    generator_optimizer: str = option(
        "sgd",
        "Generator optimizer, 'sgd' (Hitaj et al. 2017, section 8.4) or 'adam' (beta1 0.5).",
        choices=GENERATOR_OPTIMIZERS,
    )
    generator_learning_rate: float = option(
        0.02, "Learning rate of the generator (Hitaj et al. 2017, section 8.4).", bounds=above(0), kind="traced"
    )
    generator_averaging: float = option(
        0.0,
        "Reconstructions use an exponential average of the generators of past rounds; this is the weight of the "
        "earlier average. 0 = the last generator (Hitaj et al. 2017); averaging is ours, after Yazici et al. 2019.",
        bounds=Bounds(0, 1),
        kind="traced",
    )
    fakes_per_round: int = option(
        500, "Generated images that join the adversary's data each round (open).", bounds=at_least(1), stated=False
    )
    fake_memory_rounds: int = option(
        1,
        "Number of rounds that a fake stays in the adversary's data: 1 replaces all fakes each round, more accumulates "
        "(open).",
        bounds=at_least(1),
    )
