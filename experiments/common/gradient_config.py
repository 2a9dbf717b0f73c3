"""The flags of the binary for attacks on one gradient, what they may be, and what follows from them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from experiments.common.tables import defense_names, parse_numbers, weight_or_own
from gan_leak.attacks.gradient.grnn import LOSSES
from gan_leak.attacks.gradient.observation import reshuffled
from gan_leak.attacks.gradient.registry import GRADIENT_ATTACKS
from gan_leak.defenses.contract import GRADIENT
from gan_leak.runs.inversion import gradient as inversion
from gan_leak.runs.inversion.gradient_files import FLATTEN_ORDERS
from gan_leak.settings import SEEDS, Bounds, above, at_least, between, check_values, option

# Local steps are traced one after the other.
_MOST_LOCAL_STEPS = 1000
# Each has a key of its own, which all are drawn at once.
_MOST_UTILITY_STEPS = 1_000_000


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """Participants who each send one gradient, or the update of several steps, of a network of their own."""

    attack: str = option("grnn", f"One of {', '.join(GRADIENT_ATTACKS)}.", choices=tuple(GRADIENT_ATTACKS))
    network: str = option("dlg_lenet", f"Whose gradient it is: one of {', '.join(inversion.NETWORKS)}.")
    initialisation: str = option(
        "wide", "Of the network: 'wide', U(-0.5, 0.5) as the authors of DLG and GRNN, or 'torch', the usual one."
    )
    dataset: str = option("mnist", "Data set, as in the main job.")
    image_size: int = option(32, "Side of the images in pixels.")
    channels: int = option(3, "1, or 3: grey images repeated, as in the released code of GRNN.", choices=(1, 3))
    batch_sizes: str = option("1", "Images of one participant; several with commas between, each a row.")
    images: int = option(20, "Images that are attacked: as many participants as it takes.", bounds=at_least(1))
    local_steps: int = option(
        1,
        "SGD steps that a participant takes before it sends; 1 is a plain gradient.",
        bounds=between(1, _MOST_LOCAL_STEPS),
    )
    local_batch_size: int = option(0, "Images of one step; 0 = all of them.", bounds=at_least(0))
    local_learning_rate: float = option(
        0.1, "Learning rate of several steps (Geiping et al. 2020: 1e-4).", bounds=above(0)
    )
    local_shuffle: bool = option(
        False,
        "Shuffle the images anew in each local epoch, as real clients do; all participants in the same order.",
        later=True,
    )
    matching: str = option(
        "ordered",
        "Order of several steps that inverting_gradients takes for granted, several with commas between, each a row: "
        "'ordered' is that of the images, 'known_order' that of --local_shuffle, 'epoch_mean' none (Dimitrov et al. "
        "2022: images of its own for each epoch, tied by their mean).",
        later=True,
    )
    labels: str = option(
        "known",
        "What inverting_gradients is given: 'known' labels (with --gradient the array 'labels' of the file), or "
        "'inferred' from the last layer where that is beyond doubt; idlg infers them.",
        choices=("known", "inferred"),
    )
    iterations: int = option(
        0,
        "Iterations of the attack; 0 = its own ("
        + ", ".join(f"{attack.name} {attack.iterations}" for attack in GRADIENT_ATTACKS.values())
        + ").",
        bounds=at_least(0),
    )
    total_variation: float = option(-1.0, "Weight of total variation; -1 = the attack's own.")
    noise_size: int = option(128, "Of GRNN's generator.", bounds=at_least(1))
    loss: str = option("released", f"Of GRNN: one of {', '.join(LOSSES)}.", choices=tuple(LOSSES))
    restarts: int = option(
        1, "Starts of the attack, of which that counts whose gradient comes nearest.", bounds=at_least(1)
    )
    lanes: int = option(
        0, "Participants that share a program at a time; 0 = so many that they have 20 images.", bounds=at_least(0)
    )
    defenses: str = option(
        "none", f"What a participant does to its gradient: none, or of {defense_names(GRADIENT)} with :strength."
    )
    utility_steps: int = option(
        0,
        "Training steps on defended gradients that tell each defense's accuracy; 0 = none.",
        bounds=between(0, _MOST_UTILITY_STEPS),
    )
    gradient: str = option(
        "",
        "npz file with what a participant of yours sent, attacked instead: all arrays params/<layer>/<name> of the "
        "network and those of gradient/<layer>/<name> that were sent (what is missing, as of frozen layers, is not "
        "matched), optionally labels, int [B]; the data set only tells the classes. Kernels are [H, W, in, out] and "
        "[in, out], rows behind a flattened feature map in the order (H, W, C); PyTorch's [out, in, H, W] and "
        "[out, in] are read too. From a PyTorch module that is a chain: np.savez(path, **from_torch(model, 'params', "
        "[p.detach().numpy() for p in module.parameters()]), **from_torch(model, 'gradient', [p.grad.numpy() for p in "
        "module.parameters()])) with gan_leak.runs.inversion.gradient_files.from_torch and "
        "gan_leak.runs.inversion.gradient.network_for. float16, bfloat16 and float64 are converted; .pt, .pth, "
        ".safetensors and pickles are not read.",
    )
    flatten_order: str = option(
        "auto",
        "Order of the rows of the first dense layer in --gradient: 'hwc', 'chw' as in PyTorch, or 'auto', that which "
        "explains the gradient (exact for one image, a close estimate for a batch).",
        choices=FLATTEN_ORDERS,
        later=True,
    )
    gradient_scale: float = option(
        1.0,
        "How many times the mean's gradient --gradient is: the batch size if it is a sum. 0 = read off the last layer "
        "where it tells, else fitted by least squares during the attack, with --restarts if need be "
        "(inverting_gradients compares directions and needs neither).",
        bounds=Bounds(0, wording="a finite number from 0"),
        later=True,
    )
    seed: int = option(0, "Seed of everything random.", bounds=SEEDS, effect="chance")


def check(config: GradientConfig) -> None:
    """Raise ValueError in one line for flags that cannot be, alone or together."""
    check_values(config)
    attack = GRADIENT_ATTACKS[config.attack]
    if config.local_steps > 1 and not attack.several_steps:
        raise ValueError(
            f"local_steps={config.local_steps}: expected 1 with {config.attack}, which imitates a gradient"
        )
    total_variation_of(config)
    for size in parse_numbers("batch_sizes", config.batch_sizes):
        if size > attack.largest_batch:
            reason = f", {attack.largest_batch_reason}" if attack.largest_batch_reason else ""
            raise ValueError(
                f"batch_sizes={size}: expected at most {attack.largest_batch} with {config.attack}{reason}"
            )
        if size % (config.local_batch_size or size):
            raise ValueError(f"local_batch_size={config.local_batch_size}: expected a divisor of {size}")
        if config.local_steps * (config.local_batch_size or size) < size:
            raise ValueError(
                f"local_batch_size={config.local_batch_size}: expected so many that {config.local_steps} local steps "
                f"use all {size} images"
            )
    _check_matching(config)
    if config.gradient:
        if "," in config.batch_sizes:
            raise ValueError(f"batch_sizes={config.batch_sizes}: expected one with --gradient")
        if config.defenses != "none" or config.utility_steps:
            raise ValueError(f"defenses={config.defenses}: expected none, and no --utility_steps, with --gradient")
    elif config.gradient_scale not in (0.0, 1.0):
        raise ValueError(f"gradient_scale={config.gradient_scale}: expected 1, or 0 to fit it, without --gradient")


def matchings_of(config: GradientConfig) -> list[str]:
    """The ways in which the batches of several steps are matched, each a row."""
    return [part.strip() for part in config.matching.split(",")]


def _check_matching(config: GradientConfig) -> None:
    matchings = matchings_of(config)
    for matching in matchings:
        if matching not in inversion.MATCHINGS:
            raise ValueError(f"matching={matching}: expected one of {', '.join(inversion.MATCHINGS)}")
        if matching != "ordered" and config.local_steps == 1:
            raise ValueError(f"matching={matching}: expected ordered with one local step")
    if len(set(matchings)) < len(matchings):
        raise ValueError(f"matching={config.matching}: expected each once")
    if "known_order" in matchings and not config.local_shuffle:
        raise ValueError("matching=known_order: expected --local_shuffle, whose order it is")
    if config.local_shuffle and (config.gradient or config.local_steps == 1):
        raise ValueError("local_shuffle=True: expected several local steps and no --gradient")
    for size in parse_numbers("batch_sizes", config.batch_sizes) if "epoch_mean" in matchings else ():
        images = config.local_steps * (config.local_batch_size or size)
        if images % size or images == size:
            raise ValueError(
                f"matching=epoch_mean: expected two or more whole epochs, but {config.local_steps} local steps use "
                f"{images} images of {size}"
            )


def total_variation_of(config: GradientConfig) -> float:
    """The weight of total variation: the flag's or the attack's own; raises ValueError for one that is none."""
    attack = GRADIENT_ATTACKS[config.attack]
    if attack.total_variation is None and config.total_variation != -1.0:
        raise ValueError(f"total_variation={config.total_variation}: expected -1 with {config.attack}, which has none")
    return weight_or_own("total_variation", config.total_variation, attack.default_total_variation(config.network))


def iterations_of(config: GradientConfig) -> int:
    """The iterations of the attack: the flag's or its own."""
    return config.iterations or GRADIENT_ATTACKS[config.attack].iterations


def labels_are_inferred(config: GradientConfig) -> bool:
    """Whether the labels that the attack is given are inferred from the gradient before it."""
    labels = GRADIENT_ATTACKS[config.attack].labels
    return labels == "inferred" or (labels == "given" and config.labels == "inferred")


def observation_of(config: GradientConfig, shuffled: int | None = None) -> inversion.Observation:
    """How participants arrive at what they send; shuffled: the size of a batch whose images they shuffle."""
    observation = inversion.Observation(config.local_steps, config.local_learning_rate, config.local_batch_size)
    if shuffled is None:
        return observation
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 3), shuffled)
    order = reshuffled(key, shuffled, steps=observation.steps, batch_size=observation.batch_size or shuffled)
    return observation._replace(order=tuple(np.asarray(order).tolist()))
