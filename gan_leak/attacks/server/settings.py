"""The settings of mGAN-AI and of the representatives."""

from __future__ import annotations

import dataclasses

from gan_leak.attacks.server.mgan_ai_training import IDENTITY_FORMS
from gan_leak.settings import SEEDS, above, at_least, option

MATCHINGS = ("signed_adam", "lbfgs")
SIMULATIONS = ("divided", "unrolled")


@dataclasses.dataclass(frozen=True)
class MganAiConfig:
    """The attack of the server: representatives of every client, and mGAN-AI on them."""

    representatives: int = option(8, "Representatives of each client (open).", bounds=at_least(1))
    matching: str = option(
        "signed_adam",
        "Representatives by 'lbfgs' on the squared distance (Wang et al. 2019) or by 'signed_adam' on the cosine "
        "(Geiping et al. 2020).",
        choices=MATCHINGS,
    )
    matching_iterations: int = option(
        100,
        "Iterations of the matching in an attacked round; it starts from the representatives of the round before.",
        bounds=at_least(1),
    )
    matching_starts: int = option(1, "Starts of the matching; the nearest one counts.", bounds=at_least(1))
    matching_steps: str = option(
        "divided",
        "Several local steps: 'divided' matches their mean gradient, 'unrolled' simulates them.",
        choices=SIMULATIONS,
    )
    known_labels: bool = option(
        False, "Whether the server knows how many images of each class a client has; otherwise they are inferred."
    )
    identity: str = option(
        "all",
        "Identity head: 'all' = an output for each client; 'victim' = one output, and a run for each victim (ours).",
        choices=IDENTITY_FORMS,
    )
    first_round: int = option(0, "Rounds before the first attacked one.", bounds=at_least(0))
    memory_rounds: int = option(3, "Attacked rounds whose representatives train the networks.", bounds=at_least(1))
    discriminator_steps: int = option(30, "Discriminator updates in an attacked round (open).", bounds=at_least(0))
    generator_steps: int = option(30, "Generator updates in an attacked round (open).", bounds=at_least(0))
    attack_learning_rate: float = option(2e-4, "Learning rate of Adam in both networks (ours).", bounds=above(0))
    identity_weight: float = option(1.0, "Weight of the identity in both losses (open).", bounds=at_least(0))
    drawn_per_class: int = option(8, "Images that the generator draws of each client and class.", bounds=at_least(1))


@dataclasses.dataclass(frozen=True)
class ServerFederationConfig:
    """The federation that the server attacks: synchronous federated averaging."""

    seed: int = option(0, "Seed of everything random.", bounds=SEEDS, effect="chance")
    classifier: str = option(
        "project",
        "Shared model: 'project' = that of the main job, 'mgan_ai' = four convolutions (Wang et al. 2019, inferred).",
        choices=("project", "mgan_ai"),
    )
    rounds: int = option(12, "Rounds of the federation.", bounds=at_least(1))
    learning_rate: float = option(0.05, "Local learning rate.", bounds=above(0))
    local_epochs: int = option(1, "Passes of a client over its images in a round.", bounds=at_least(1))
    batch_size: int = option(
        0, "Images of a local step; 0 = all images of a client, so that an epoch is one step.", bounds=at_least(0)
    )
