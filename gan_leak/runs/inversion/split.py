"""Run of split inference: data, a victim network, its split, and the measures of reconstructions."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from gan_leak.attacks.optimizers import TrainingData, halving_training
from gan_leak.attacks.procedure import Procedure
from gan_leak.data import Dataset, to_float
from gan_leak.defenses import protect
from gan_leak.evaluation.fidelity import class_means, peak_signal_to_noise, re_identified, uniform_similarity
from gan_leak.models.layered import (
    LayeredModel,
    SplitModel,
    he_cifar10,
    he_lenet,
    split_after,
    whole,
)
from gan_leak.runs.storage.resumable import Keys, SavedProgress, read_tree, run_in_parts, write_tree
from gan_leak.types import Array, Model, PyTree, UploadTransform

NUM_CLASSES = 10
BATCH_SIZE = 32


class WhiteBoxHyperParameters(NamedTuple):
    """The hyperparameters of one regularized likelihood (released code; He, Zhang and Lee 2019)."""

    iterations: int
    learning_rate: float
    total_variation: float
    magnitude: float = 0.0


class Victim(NamedTuple):
    """A network under attack, the normalization of its inputs, and the paper's splits.

    white_box: hyperparameters by split. other: those of all other splits.
    """

    name: str
    network: LayeredModel
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    splits: tuple[str, ...]
    white_box: dict[str, WhiteBoxHyperParameters]
    other: WhiteBoxHyperParameters


class SplitData(NamedTuple):
    """Inputs of the network [N, H, W, C] and labels [N]: the victim's, as many of the adversary, and test images.

    chosen: positions [M] of the attacked test images: the first of every class, then the first others. unseen: for each
    of those, the next of another class [M], which its attack has not seen. class_means: for each, the mean of the
    adversary's images of its class [M, H, W, C]: the baseline of an adversary that learns only the class.
    """

    own: tuple[np.ndarray, np.ndarray]
    others: tuple[np.ndarray, np.ndarray]
    tested: tuple[np.ndarray, np.ndarray]
    chosen: np.ndarray
    unseen: np.ndarray
    class_means: np.ndarray


class Outcome(NamedTuple):
    """The reconstructions of an attack [M, H, W, C], in [-1, 1], and the PSNR and two forms of SSIM of each.

    re_identified: whether it correlates more with its original than with any other test image of the class. control_*:
    the same measures against an image that the attack has not seen. class_*: the measures of the class mean.
    """

    images: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    ssim_by_range: np.ndarray
    re_identified: np.ndarray
    control_psnr: np.ndarray
    control_ssim: np.ndarray
    control_re_identified: np.ndarray
    class_psnr: np.ndarray
    class_ssim: np.ndarray
    class_re_identified: np.ndarray


def victim_for(name: str) -> Victim:
    """The victims of He, Zhang and Lee 2019: 'mnist' or 'cifar10'. Raises ValueError for any other name."""
    if name == "mnist":
        return Victim(
            name,
            he_lenet(),
            (0.5,),
            (0.5,),
            ("conv1", "ReLU2"),
            {
                "conv1": WhiteBoxHyperParameters(5000, 1e-2, 0.0),
                "ReLU2": WhiteBoxHyperParameters(5000, 1e-2, 1.0),
            },
            WhiteBoxHyperParameters(5000, 1e-2, 1.0),
        )
    if name == "cifar10":
        ten = WhiteBoxHyperParameters(5000, 1e-2, 10.0)
        none = WhiteBoxHyperParameters(5000, 1e-2, 0.0)
        return Victim(
            name,
            he_cifar10(),
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            ("conv11", "ReLU22", "ReLU32"),
            {
                **dict.fromkeys(("conv11", "ReLU11", "conv12", "ReLU12", "pool1", "conv21", "ReLU21"), none),
                **dict.fromkeys(("conv22", "ReLU22", "pool2"), ten),
                **dict.fromkeys(
                    ("conv31", "ReLU31", "conv32", "ReLU32", "pool3"), WhiteBoxHyperParameters(5000, 1e-2, 1e3)
                ),
                "fc1": WhiteBoxHyperParameters(5000, 1e-3, 1e4),
            },
            WhiteBoxHyperParameters(5000, 1e-2, 1e3),
        )
    raise ValueError(f"network={name!r}: expected mnist or cifar10")


def as_inputs(victim: Victim, images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as inputs of the network: normalized to mean 0 and deviation 1 for each channel."""
    return ((images + 1.0) / 2.0 - np.array(victim.mean, np.float32)) / np.array(victim.deviation, np.float32)


def as_images(victim: Victim, inputs: ArrayLike) -> np.ndarray:
    """The inverse of ``as_inputs``, cut to [-1, 1]. NaN becomes the mean color."""
    mean, deviation = (np.array(values, np.float32) for values in (victim.mean, victim.deviation))
    units = np.nan_to_num(np.asarray(inputs), nan=0.0) * deviation + mean
    return np.clip(2.0 * units - 1.0, -1.0, 1.0)


def split_data(victim: Victim, dataset: Dataset, *, samples: int, images: int, rng: np.random.Generator) -> SplitData:
    """Halves of the training images for the victim and for the adversary, at most ``samples`` each (0 = all).

    The first test image of every class and the first ``images`` others are attacked. All test images measure accuracy.
    Raises ValueError if the images do not fit the network, or are fewer than a batch.
    """
    shape = dataset.train_images.shape[1:]
    if shape != victim.network.input_shape:
        raise ValueError(f"dataset={dataset.name}: images of {shape}, expected {victim.network.input_shape}")
    if len(dataset.class_names) > NUM_CLASSES:
        raise ValueError(f"dataset={dataset.name}: {len(dataset.class_names)} classes, expected at most {NUM_CLASSES}")
    if (tested := len(np.unique(dataset.test_labels))) < 2:
        raise ValueError(f"dataset={dataset.name}: test images of {tested} class, expected at least 2 classes")
    if 0 < samples < BATCH_SIZE:
        raise ValueError(f"samples={samples}: expected 0, for all, or at least a batch of {BATCH_SIZE}")
    order = rng.permutation(len(dataset.train_labels))
    half = len(order) // 2
    count = min(samples or half, half)
    if count < BATCH_SIZE:
        raise ValueError(f"dataset={dataset.name}: {len(order)} training images, expected at least {2 * BATCH_SIZE}")

    def part(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return as_inputs(victim, to_float(images)), labels

    own, others = order[:count], order[half : half + count]
    firsts = [int(np.flatnonzero(dataset.test_labels == label)[0]) for label in np.unique(dataset.test_labels)]
    beside = np.setdiff1d(np.arange(len(dataset.test_labels)), firsts)[:images]
    chosen = np.array([*firsts, *beside])
    labels = dataset.test_labels[chosen]
    around = [np.roll(chosen, -place) for place in range(len(chosen))]
    unseen = [
        next(place for place in after if dataset.test_labels[place] != label)
        for after, label in zip(around, labels, strict=True)
    ]
    adversary = part(dataset.train_images[others], dataset.train_labels[others])
    return SplitData(
        part(dataset.train_images[own], dataset.train_labels[own]),
        adversary,
        part(dataset.test_images, dataset.test_labels),
        chosen,
        np.array(unseen),
        class_means(labels, *adversary),
    )


def train_victim(
    key: Array,
    victim: Victim,
    data: SplitData,
    *,
    epochs: int,
    progress: SavedProgress,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = 1e-3,
) -> PyTree:
    """Train the whole network by cross-entropy and AMSGrad with epsilon 1e-3. Its rate is halved every 20 epochs."""
    model, samples = whole(victim.network), len(data.own[1])

    def loss(params: PyTree, batch: tuple[Array, Array], context: None) -> Array:
        inputs, labels = batch
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model.apply(params, inputs), labels))

    procedure = halving_training(
        model.init,
        loss,
        samples=samples,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs_between_halvings=20,
    )
    return train(key, procedure, TrainingData(data.own), epochs=epochs, progress=progress)


def load_or_train_victim(
    key: Array, victim: Victim, data: SplitData, path: pathlib.Path, *, epochs: int, tell: Callable[[str], None]
) -> PyTree:
    """Load the parameters from a file, or train the victim (``train_victim``) and save them there."""
    params = read_tree(path, jax.eval_shape(victim.network.init, key), tell)
    part = path.with_suffix(".part.npz")
    if params is None:
        tell(f"training the victim on {len(data.own[1])} images ...")
        params = train_victim(key, victim, data, epochs=epochs, progress=SavedProgress(part, tell))
        write_tree(path, params)
    part.unlink(missing_ok=True)
    return params


def train(key: Array, procedure: Procedure, data: TrainingData, *, epochs: int, progress: SavedProgress) -> PyTree:
    """The parameters after ``epochs`` epochs of a training (``gan_leak.attacks.optimizers.training``)."""
    return run_in_parts(Keys(*jax.random.split(key)), procedure, data, steps=epochs, unit="epoch", progress=progress)


def predict_in_batches(
    key: Array, model: Callable[[Array, Any], Array], inputs: np.ndarray, batch_size: int = 500
) -> np.ndarray:
    """The outputs of ``model(key, inputs [B, ...])`` for inputs [N, ...]. Each batch has its own key."""
    outputs: np.ndarray | None = None
    for start in range(0, len(inputs), batch_size):
        part = np.asarray(model(jax.random.fold_in(key, start), inputs[start : start + batch_size]))
        if outputs is None:
            # Filled in place, since a second copy of all features of CIFAR-10 may not fit into memory.
            outputs = np.empty((len(inputs), *part.shape[1:]), part.dtype)
        outputs[start : start + len(part)] = part
    if outputs is None:
        raise ValueError("inputs: none, expected at least one")
    return outputs


def accuracy(key: Array, model: Callable[[Array, Any], Array], tested: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of inputs whose label ``model(key, inputs)`` predicts."""
    inputs, labels = tested
    return float(np.mean(np.argmax(predict_in_batches(key, model, inputs), axis=1) == labels))


def measure(victim: Victim, inputs: ArrayLike, data: SplitData) -> Outcome:
    """Measure the reconstructed inputs [M, H, W, C] against the chosen images and against the unseen images."""
    drawn, means, tested = (as_images(victim, values) for values in (inputs, data.class_means, data.tested[0]))
    labels = data.tested[1]

    def compared(images: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (
            peak_signal_to_noise(images, tested[places]),
            uniform_similarity(images, tested[places]),
            re_identified(images, places, labels[places], (tested, labels)),
        )

    psnr, ssim, identities = compared(drawn, data.chosen)
    by_range = uniform_similarity(drawn, tested[data.chosen], by_range=True)
    return Outcome(
        drawn, psnr, ssim, by_range, identities, *compared(drawn, data.unseen), *compared(means, data.chosen)
    )


def defended_client(transform: UploadTransform | None, client: Model, params: PyTree) -> Callable[[Array, Any], Array]:
    """The client with a defense (None: without): ``(key, inputs) -> features`` as it sends them."""

    def send(key: Array, inputs: Any) -> Array:
        features = client.apply(params, inputs)
        return features if transform is None else protect(key, transform, features)

    return jax.jit(send)


def split_network(victim: Victim, split: str) -> SplitModel:
    """Both parts of the victim's network. Raises the errors of ``split_after``."""
    return _parts(victim.name, split)


@functools.lru_cache(maxsize=16)
def _parts(name: str, split: str) -> SplitModel:
    # Return the same function objects each time, so that JAX reuses their compiled programs.
    return split_after(victim_for(name).network, split)


def published_scores(victim: Victim, attack: str, knowledge: str, split: str) -> tuple[float, float] | None:
    """PSNR and SSIM in He, Zhang and Lee 2019, Tables 3, 4, 6 and 8; None if they report none."""
    rows: dict[tuple[str, str], dict[str, tuple[float, float]]] = _PUBLISHED
    return rows.get((attack, knowledge), {}).get(f"{victim.name} {split}")


def _row(*values: tuple[float, float]) -> dict[str, tuple[float, float]]:
    columns = ("mnist conv1", "mnist ReLU2", "cifar10 conv11", "cifar10 ReLU22", "cifar10 ReLU32")
    return dict(zip(columns, values, strict=True))


_PUBLISHED = {
    ("white_box", ""): _row((39.69, 0.9969), (15.10, 0.5998), (37.59, 0.9960), (19.47, 0.6940), (13.38, 0.1625)),
    ("black_box", "same set"): _row(
        (39.64, 0.9887), (20.35, 0.7334), (49.88, 0.9993), (19.81, 0.6939), (15.42, 0.3124)
    ),
    ("black_box", "same distribution"): _row(
        (40.72, 0.9950), (20.81, 0.8046), (49.02, 0.9992), (19.36, 0.6802), (13.95, 0.2196)
    ),
    ("black_box", "random noise"): _row(
        (14.76, 0.7188), (7.72, 0.4310), (48.59, 0.9996), (12.79, 0.2930), (12.37, 0.0440)
    ),
    # The paper does not say which images are queried; the other attack with queries does best with these.
    ("model_reconstruction", "same set"): _row(
        (39.67, 0.9968), (15.41, 0.6103), (28.67, 0.9766), (18.02, 0.6893), (12.61, 0.1145)
    ),
    ("query_free", "same set, same structure"): _row(
        (17.60, 0.7423), (9.61, 0.4981), (21.16, 0.9104), (12.74, 0.1752), (11.09, 0.0419)
    ),
    ("query_free", "other set, same structure"): _row(
        (21.53, 0.9121), (9.27, 0.4652), (21.45, 0.9145), (11.51, 0.1723), (11.98, 0.0102)
    ),
    ("query_free", "same set, other structure"): _row(
        (12.59, 0.6430), (8.05, 0.3790), (17.55, 0.6344), (12.46, 0.2714), (10.68, 0.0247)
    ),
    ("query_free", "other set, other structure"): _row(
        (17.86, 0.6952), (8.03, 0.3226), (13.06, 0.1553), (11.30, 0.0467), (11.47, 0.0793)
    ),
}
