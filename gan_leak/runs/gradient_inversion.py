"""Attacks on one gradient from data to numbers: victims, what they send, the attacks, and how near they come."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak import trees
from gan_leak.attacks.deep_leakage import GradientInversion, deep_leakage
from gan_leak.attacks.gradients import infer_distinct_labels, infer_label, update_of
from gan_leak.attacks.grnn import grnn
from gan_leak.attacks.inverting_gradients import inverting_gradients
from gan_leak.defenses import gradient_defenses
from gan_leak.evaluation.fidelity import (
    group_psnr,
    match,
    peak_signal_to_noise,
    root_mean_square_error,
    uniform_similarity,
)
from gan_leak.models import mnist_classifier
from gan_leak.models.gradient_victims import dlg_lenet, grnn_lenet, grnn_resnet18
from gan_leak.models.grnn_generator import grnn_generator
from gan_leak.types import Array, GradientView, Model, Upload, UploadTransform

ATTACKS = ("dlg", "idlg", "inverting_gradients", "grnn")
NETWORKS = ("dlg_lenet", "grnn_lenet", "grnn_resnet18", "mnist_classifier")
DEFENSES: dict[str, Callable[[Any], UploadTransform]] = {
    "gaussian": gradient_defenses.add_gaussian,
    "laplace": gradient_defenses.add_laplace,
    "clipping": gradient_defenses.clip_norm,
    "pruning": gradient_defenses.prune_smallest,
    "quantisation": gradient_defenses.quantise,
}
# A picture that is this alike counts as recovered: the rule in the released evaluation code of GRNN's group.
SUCCESS = 0.6
_LAST_BIAS = {"dlg_lenet": "layer7", "grnn_lenet": "layer11", "mnist_classifier": "output_layer"}


class Victims(NamedTuple):
    """E experiments of one participant each: images [E, B, H, W, C] in [0, 1], labels [E, B], and the network."""

    images: np.ndarray
    labels: np.ndarray
    network: str
    num_classes: int


class Result(NamedTuple):
    """What an attack drew of E batches, matched to the originals: images [E, B, H, W, C]; by image, [E, B].

    label_right: whether the label is told; batch_label_right has no order, so that a batch's labels count as a set.
    """

    images: np.ndarray
    psnr: np.ndarray
    group_psnr: np.ndarray
    rmse: np.ndarray
    ssim: np.ndarray
    label_right: np.ndarray
    distance: np.ndarray


def network_for(name: str, num_classes: int, image_size: int, channels: int) -> Model:
    """A victim network on images in [0, 1]. Raises ValueError for an unknown one and for a size that does not fit."""
    if name == "dlg_lenet":
        return dlg_lenet(num_classes, image_size=image_size, channels=channels)
    if name == "grnn_lenet":
        return grnn_lenet(num_classes, image_size=image_size, channels=channels)
    if name == "grnn_resnet18":
        return grnn_resnet18(num_classes, image_size=image_size, channels=channels)
    if name == "mnist_classifier":
        if image_size != 32:
            raise ValueError(f"image_size={image_size}: expected 32 with network 'mnist_classifier'")
        model = mnist_classifier(num_classes, channels=channels)
        return Model(model.init, lambda params, images: model.apply(params, 2.0 * images - 1.0))
    raise ValueError(f"network={name!r}: expected one of {', '.join(NETWORKS)}")


def defended(transform: UploadTransform, key: Array, gradient: Any) -> Any:
    """A gradient as it leaves through an upload transform."""
    flat, unravel = trees.ravel(gradient)
    everything = Upload(flat, jnp.ones(flat.shape, bool))
    upload, _, _ = transform.apply(key, everything, transform.init(gradient), params=gradient, hyperparameters=None)
    return unravel(upload.values)


def observe(
    key: Array,
    model: Model,
    images: Array,
    labels: Array,
    *,
    steps: int,
    learning_rate: float,
    local_batch_size: int,
    transform: UploadTransform | None,
) -> GradientView:
    """A fresh model and what one participant with these images [B, H, W, C] and labels [B, K] sends back."""
    key_model, key_defense = jax.random.split(key)
    params = model.init(key_model)
    seen = update_of(
        model, params, images, labels, learning_rate=learning_rate, steps=steps, batch_size=local_batch_size
    )
    return GradientView(params, seen if transform is None else defended(transform, key_defense, seen))


def last_bias_gradient(network: str, view: GradientView) -> Array:
    """The gradient of the last layer's bias, which tells labels; raises ValueError where this is not known."""
    if network not in _LAST_BIAS:
        raise ValueError(f"network={network!r}: labels can be inferred for {', '.join(_LAST_BIAS)}")
    (bias,) = [
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(view.gradient[_LAST_BIAS[network]])[0]
        if path[-1].key == "bias"
    ]
    return bias


def infer_labels(network: str, view: GradientView, batch_size: int) -> np.ndarray:
    """The labels [B] of a batch, sorted, as its gradient tells them; raises ValueError where it does not."""
    bias = last_bias_gradient(network, view)
    return np.asarray(infer_label(bias))[None] if batch_size == 1 else infer_distinct_labels(bias, batch_size)


@functools.lru_cache(maxsize=8)
def attack_for(
    name: str,
    model: Model,
    shape: tuple[int, int, int, int],
    num_classes: int,
    *,
    iterations: int,
    total_variation: float,
    update: Callable | None = None,
) -> Callable[[Array, GradientView, Array], GradientInversion]:
    """``attack(key, view, labels [B, K]) -> GradientInversion``; DLG and GRNN do not look at the labels."""
    if name == "grnn":
        generator = grnn_generator(num_classes, image_size=shape[1], channels=shape[3])
        return lambda key, view, labels: grnn(
            key, view, model, generator, shape[0], iterations=iterations, total_variation=total_variation
        )
    if name == "inverting_gradients":
        return lambda key, view, labels: inverting_gradients(
            key, view, model, shape, labels, iterations=iterations, total_variation=total_variation, update=update
        )
    known = name == "idlg"
    return lambda key, view, labels: deep_leakage(
        key, view, model, shape, num_classes, labels=labels if known else None, iterations=iterations
    )


def measure(found: GradientInversion, victims: Victims) -> Result:
    """Matches what was found, with a leading axis of experiments, to the originals, and measures each pair."""
    pictures, psnrs, groups, errors, similarities, told = [], [], [], [], [], []
    for images, labels, originals, truth in zip(
        np.asarray(found.images), np.asarray(found.labels), victims.images, victims.labels, strict=True
    ):
        images = np.nan_to_num(images, nan=0.5, posinf=1.0, neginf=0.0)
        order = np.argsort(match(images, originals))
        drawn, real = 2.0 * np.clip(images[order], 0.0, 1.0) - 1.0, 2.0 * originals - 1.0
        pictures.append((drawn + 1.0) / 2.0)
        psnrs.append(peak_signal_to_noise(drawn, real))
        groups.append(group_psnr(drawn, real))
        errors.append(root_mean_square_error(drawn, real))
        similarities.append(uniform_similarity(drawn, real))
        told.append(np.argmax(labels[order], axis=1) == truth)
    stacked = [np.stack(values) for values in (pictures, psnrs, groups, errors, similarities, told)]
    return Result._make([*stacked, np.asarray(found.distance)])


def run_attack(
    key: Array,
    name: str,
    model: Model,
    victims: Victims,
    views: GradientView,
    labels: Array,
    *,
    iterations: int,
    total_variation: float,
    restarts: int,
    lanes: int,
    update: Callable | None = None,
) -> GradientInversion:
    """Attacks every experiment, ``lanes`` at a time in one program; of several restarts the nearest gradient counts."""
    experiments, batch = victims.images.shape[:2]
    attack = attack_for(
        name,
        model,
        (batch, *victims.images.shape[2:]),
        victims.num_classes,
        iterations=iterations,
        total_variation=total_variation,
        update=update,
    )

    @jax.jit
    def all_of_them(keys: Array, views: GradientView, labels: Array) -> GradientInversion:
        return jax.lax.map(lambda entry: attack(*entry), (keys, views, labels), batch_size=lanes)

    best: GradientInversion | None = None
    for restart in range(restarts):
        found = all_of_them(jax.random.split(jax.random.fold_in(key, restart), experiments), views, labels)
        if best is None:
            best = found
        else:
            nearer = found.distance < best.distance
            best = jax.tree.map(
                lambda new, old, nearer=nearer: jnp.where(nearer.reshape(-1, *[1] * (new.ndim - 1)), new, old),
                found,
                best,
            )
    assert best is not None
    return best


def gradient_update(learning_rate: float, steps: int, local_batch_size: int, model: Model) -> Callable | None:
    """What the attack has to imitate if a participant took several steps: ``update(params, images, labels)``."""
    if steps == 1:
        return None
    return lambda params, images, labels: update_of(
        model, params, images, labels, learning_rate=learning_rate, steps=steps, batch_size=local_batch_size
    )
