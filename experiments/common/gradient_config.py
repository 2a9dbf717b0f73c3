"""The flags of the binary for attacks on one gradient, their checks, and values derived from them."""

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
# Up to a minute, which a resume repeats.
_MOST_TRAINING_STEPS = 10_000
# The keys of all steps are drawn at once.
_MOST_UTILITY_STEPS = 1_000_000


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """Participants with one network each; each sends one gradient, or the update of several steps."""

    attack: str = option("grnn", f"One of {', '.join(GRADIENT_ATTACKS)}.", choices=tuple(GRADIENT_ATTACKS))
    network: str = option("dlg_lenet", f"Network of a participant: one of {', '.join(inversion.NETWORKS)}.")
    initialisation: str = option(
        "wide", "Initial network: 'wide', U(-0.5, 0.5) as in DLG and GRNN, or 'torch', the default of PyTorch."
    )
    dataset: str = option("mnist", "Data set, as in the main job.")
    image_size: int = option(32, "Side of the images in pixels.")
    channels: int = option(3, "1, or 3: gray images repeated, as in the released code of GRNN.", choices=(1, 3))
    batch_sizes: str = option("1", "Images of one participant; separate several sizes by commas, each gives a row.")
    images: int = option(20, "Attacked images; they determine the number of participants.", bounds=at_least(1))
    local_steps: int = option(
        1,
        "SGD steps of a participant before it sends; 1 is a plain gradient.",
        bounds=between(1, _MOST_LOCAL_STEPS),
    )
    local_batch_size: int = option(0, "Images of one step; 0 = all of them.", bounds=at_least(0))
    local_learning_rate: float = option(
        0.1, "Learning rate of several steps (Geiping et al. 2020: 1e-4).", bounds=above(0)
    )
    local_shuffle: bool = option(
        False,
        "Shuffle the images again in each local epoch, as real clients do; all participants use the same order.",
        later=True,
    )
    matching: str = option(
        "ordered",
        "Order of the images that inverting_gradients assumes; several are separated by commas, each gives a row: "
        "'ordered' is the order of the images, 'known_order' that of --local_shuffle. 'epoch_mean' assumes none: each "
        "epoch has its own images, and their means must agree (Dimitrov et al. 2022).",
        later=True,
    )
    dirichlet_concentration: float = option(
        0.0,
        "Concentration of the Dirichlet distribution of each participant's classes; smaller is less balanced. 0 = "
        "images of all classes at random.",
        bounds=Bounds(0, wording="a finite number from 0"),
        later=True,
    )
    training_steps: int = option(
        0,
        "Training steps of the network before the attacked round, each on the gradient of 32 training images, which "
        "may be the attacked ones; 0 = the initial network.",
        bounds=between(0, _MOST_TRAINING_STEPS),
        later=True,
    )
    labels: str = option(
        "known",
        "Labels given to inverting_gradients: 'known' (with --gradient the array 'labels' of the file), or 'inferred' "
        "from the last layer where that is exact; idlg always infers them.",
        choices=("known", "inferred"),
    )
    iterations: int = option(
        0,
        "Iterations of the attack; 0 = its default ("
        + ", ".join(f"{attack.name} {attack.iterations}" for attack in GRADIENT_ATTACKS.values())
        + ").",
        bounds=at_least(0),
    )
    total_variation: float = option(-1.0, "Weight of total variation; -1 = the default of the attack.")
    noise_size: int = option(128, "Noise size of GRNN's generator.", bounds=at_least(1))
    loss: str = option("released", f"Loss of GRNN: one of {', '.join(LOSSES)}.", choices=tuple(LOSSES))
    restarts: int = option(1, "Starts of the attack; the start with the nearest gradient counts.", bounds=at_least(1))
    lanes: int = option(0, "Participants attacked in one program; 0 = as many as have 20 images.", bounds=at_least(0))
    defenses: str = option(
        "none", f"Defenses of the gradient: none, or one of {defense_names(GRADIENT)} with :strength."
    )
    utility_steps: int = option(
        0,
        "Training steps on defended gradients, to measure the accuracy with each defense; 0 = none.",
        bounds=between(0, _MOST_UTILITY_STEPS),
    )
    gradient: str = option(
        "",
        "npz file with the gradient of your own participant, attacked instead: all arrays params/<layer>/<name> of "
        "the network, the arrays gradient/<layer>/<name> that were sent (missing ones, as of frozen layers, are not "
        "matched), and optionally labels, int [B]. The data set gives only the names of the classes. Kernels are [H, "
        "W, in, out] and [in, out], rows after a flattened feature map in the order (H, W, C); PyTorch's [out, in, H, "
        "W] and [out, in] are read too. From a sequential PyTorch module: np.savez(path, **from_torch(model, "
        "'params', [p.detach().numpy() for p in module.parameters()]), **from_torch(model, 'gradient', "
        "[p.grad.numpy() for p in module.parameters()])) with gan_leak.runs.inversion.gradient_files.from_torch and "
        "gan_leak.runs.inversion.gradient.network_for. float16, bfloat16 and float64 are converted; .pt, .pth, "
        ".safetensors and pickles are not read.",
    )
    flatten_order: str = option(
        "auto",
        "Order of the rows of the first dense layer in --gradient: 'hwc', 'chw' as in PyTorch, or 'auto', the order "
        "that explains the gradient (exact for one image, a close estimate for a batch).",
        choices=FLATTEN_ORDERS,
        later=True,
    )
    gradient_scale: float = option(
        1.0,
        "Factor of --gradient over the gradient of the mean loss: the batch size if it is a sum. 0 = infer it from the "
        "last layer if possible, else fit it by least squares during the attack; --restarts may help "
        "(inverting_gradients compares directions and needs neither).",
        bounds=Bounds(0, wording="a finite number from 0"),
        later=True,
    )
    seed: int = option(0, "Seed of everything random.", bounds=SEEDS, effect="chance")


def check(config: GradientConfig) -> None:
    """Raise ValueError in one line for invalid flags and combinations of flags."""
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
                f"local_batch_size={config.local_batch_size}: expected a size with which {config.local_steps} local "
                f"steps use all {size} images"
            )
    _check_matching(config)
    if config.gradient:
        if "," in config.batch_sizes:
            raise ValueError(f"batch_sizes={config.batch_sizes}: expected one with --gradient")
        if config.defenses != "none" or config.utility_steps:
            raise ValueError(f"defenses={config.defenses}: expected none, and no --utility_steps, with --gradient")
        for name in ("training_steps", "dirichlet_concentration"):
            if getattr(config, name):
                raise ValueError(f"{name}={getattr(config, name)}: expected 0 with --gradient")
    elif config.gradient_scale not in (0.0, 1.0):
        raise ValueError(f"gradient_scale={config.gradient_scale}: expected 1, or 0 to fit it, without --gradient")


def matchings_of(config: GradientConfig) -> list[str]:
    """The orders of the images that the attack assumes, each for a row."""
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
        raise ValueError("matching=known_order: expected together with --local_shuffle")
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
    """The weight of total variation: the flag or the default of the attack; raises ValueError for an invalid weight."""
    attack = GRADIENT_ATTACKS[config.attack]
    if attack.total_variation is None and config.total_variation != -1.0:
        raise ValueError(f"total_variation={config.total_variation}: expected -1 with {config.attack}, which has none")
    return weight_or_own("total_variation", config.total_variation, attack.default_total_variation(config.network))


def iterations_of(config: GradientConfig) -> int:
    """The iterations of the attack: the flag or its default."""
    return config.iterations or GRADIENT_ATTACKS[config.attack].iterations


def labels_are_inferred(config: GradientConfig) -> bool:
    """Whether the labels are inferred from the gradient before the attack."""
    labels = GRADIENT_ATTACKS[config.attack].labels
    return labels == "inferred" or (labels == "given" and config.labels == "inferred")


def observation_of(config: GradientConfig, shuffled: int | None = None) -> inversion.Observation:
    """Local training of the participants; shuffled: the size of a shuffled batch, or None."""
    observation = inversion.Observation(config.local_steps, config.local_learning_rate, config.local_batch_size)
    if shuffled is None:
        return observation
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 3), shuffled)
    order = reshuffled(key, shuffled, steps=observation.steps, batch_size=observation.batch_size or shuffled)
    return observation._replace(order=tuple(np.asarray(order).tolist()))
