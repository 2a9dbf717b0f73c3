"""Attacks on one gradient from data to numbers: victims, what they send, the attacks, and how near they come."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gan_leak import trees
from gan_leak.attacks.gradient.deep_leakage import deep_leakage
from gan_leak.attacks.gradient.grnn import grnn
from gan_leak.attacks.gradient.inverting_gradients import inverting_gradients
from gan_leak.attacks.gradient.observation import GradientInversion, IterativeAttack, advance, gradient_of, update_of
from gan_leak.data import Dataset, to_float
from gan_leak.defenses import protect
from gan_leak.evaluation.fidelity import (
    class_means,
    group_psnr,
    match,
    nearest,
    peak_signal_to_noise,
    root_mean_square_error,
    singled_out,
    uniform_similarity,
)
from gan_leak.models import mnist_classifier
from gan_leak.models.gradient_networks import dlg_lenet, drawn_widely, grnn_lenet, grnn_resnet18
from gan_leak.models.grnn_generator import grnn_generator
from gan_leak.runs.storage.resumable import Course, in_parts
from gan_leak.types import Array, GradientView, Model, PyTree, UploadTransform

ATTACKS = ("dlg", "idlg", "inverting_gradients", "grnn")
NETWORKS = ("dlg_lenet", "grnn_lenet", "grnn_resnet18", "mnist_classifier")
INITIALISATIONS = ("wide", "torch")
# How the batches of several local steps are matched: in the order of the images, in the client's, or in none.
MATCHINGS = ("ordered", "known_order", "epoch_mean")
# A picture that is this alike counts as recovered: the rule in the released evaluation code of GRNN's group.
SUCCESS = 0.6
# Measures that are also taken against images that the attack has not seen.
CONTROLS = ("psnr", "ssim", "recovered", "singled_out", "label_right", "identified")
_MOST_GALLERY_IMAGES = 2000
_TESTED_AT_A_TIME = 2000


class Victims(NamedTuple):
    """E participants with a batch each: images [E, B, H, W, C] in [0, 1] and labels [E, B].

    other_images, other_labels: as many that the attack on the same participant has not seen. gallery: further images
    [G, H, W, C] and labels [G], in which somebody may look for what was recovered.
    """

    images: np.ndarray
    labels: np.ndarray
    other_images: np.ndarray
    other_labels: np.ndarray
    gallery_images: np.ndarray
    gallery_labels: np.ndarray


class Observation(NamedTuple):
    """How a participant arrives at what it sends: SGD steps and their learning rate, the images of one step.

    order: which images the steps use, one step after the other; None is round and round.
    """

    steps: int
    learning_rate: float
    batch_size: int
    order: tuple[int, ...] | None = None


class Measures(NamedTuple):
    """How near each matched picture comes to its original [E, B].

    recovered: an SSIM of at least 0.6. singled_out: whether it correlates more with the original than with any other
    image of its class, of all that are attacked and the gallery. label_right: whether the label is told. identified:
    whether the nearest image of the gallery is of the right class.
    """

    psnr: np.ndarray
    ssim: np.ndarray
    recovered: np.ndarray
    singled_out: np.ndarray
    label_right: np.ndarray
    identified: np.ndarray
    rmse: np.ndarray
    group_psnr: np.ndarray


class Result(NamedTuple):
    """What an attack drew, in the order of the originals [E, B, H, W, C], and how near it comes.

    other_measures: the same pictures held against images that the attack has not seen. baselines: by name what
    pictures score that nobody needs an attack for [E, B]: the mean of the gallery's images of the class, and black.
    """

    images: np.ndarray
    measures: Measures
    other_measures: Measures
    baselines: dict[str, np.ndarray]


def network_for(name: str, initialisation: str, num_classes: int, image_size: int, channels: int) -> Model:
    """A victim network on images in [0, 1]. Raises ValueError for an unknown one and for a size that does not fit."""
    if initialisation not in INITIALISATIONS:
        raise ValueError(f"initialisation={initialisation}: expected one of {', '.join(INITIALISATIONS)}")
    sizes: dict[str, Any] = {"image_size": image_size, "channels": channels}
    if name == "mnist_classifier":
        if image_size != 32:
            raise ValueError(f"image_size={image_size}: expected 32 with network mnist_classifier")
        classifier = mnist_classifier(num_classes, channels=channels)
        model = Model(classifier.init, lambda params, images: classifier.apply(params, 2.0 * images - 1.0))
    elif name in NETWORKS:
        make = {"dlg_lenet": dlg_lenet, "grnn_lenet": grnn_lenet, "grnn_resnet18": grnn_resnet18}[name]
        model = make(num_classes, **sizes)
    else:
        raise ValueError(f"network={name}: expected one of {', '.join(NETWORKS)}")
    return drawn_widely(model) if initialisation == "wide" else model


def victims_from(dataset: Dataset, *, batch_size: int, images: int, channels: int, seed: int) -> Victims:
    """Participants with different training images, chosen at random: as few as hold ``images`` altogether.

    Raises ValueError if there are not enough, for all of them and a batch that is held against them.
    """
    participants = -(-images // batch_size)
    wanted = participants * batch_size
    available = len(dataset.train_labels)
    needed = max(wanted, 2 * batch_size)
    if needed >= available:
        raise ValueError(f"batch_size={batch_size}, images={images}: expected fewer than {available} images in all")
    if dataset.train_images.shape[-1] not in (1, channels):
        raise ValueError(
            f"channels={channels}: expected {dataset.train_images.shape[-1]}, as the images of {dataset.name} have"
        )
    order = np.random.default_rng(seed).permutation(available)[: needed + _MOST_GALLERY_IMAGES]

    def chosen(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        picked = (to_float(dataset.train_images[places]) + 1.0) / 2.0
        return np.broadcast_to(picked, (*picked.shape[:3], channels)).copy(), dataset.train_labels[places]

    def in_batches(values: np.ndarray) -> np.ndarray:
        return values.reshape(participants, batch_size, *values.shape[1:])

    own_images, own_labels = chosen(order[:wanted])
    # The next participant's; of a single one, images that nobody sent.
    other_images, other_labels = chosen(np.roll(order[:needed], -batch_size)[:wanted])
    return Victims(
        in_batches(own_images),
        in_batches(own_labels),
        in_batches(other_images),
        in_batches(other_labels),
        *chosen(order[needed:]),
    )


def observe(
    key: Array, model: Model, images: Array, labels: Array, how: Observation, transform: UploadTransform | None
) -> GradientView:
    """A fresh model and what one participant with these images [B, H, W, C] and labels [B, K] sends back."""
    key_model, key_defense = jax.random.split(key)
    params = model.init(key_model)
    seen = update_by(model, how)(params, images, labels)
    return GradientView(params, seen if transform is None else protect(key_defense, transform, seen))


def update_by(model: Model, how: Observation) -> Callable[[PyTree, Array, Array], PyTree]:
    """What a participant sends as a function of parameters and batch."""

    def update(params: PyTree, images: Array, labels: Array) -> PyTree:
        return update_of(
            model,
            params,
            images,
            labels,
            learning_rate=how.learning_rate,
            steps=how.steps,
            batch_size=how.batch_size or len(images),
            order=None if how.order is None else jnp.asarray(how.order, jnp.int32),
        )

    return update


@functools.lru_cache(maxsize=8)
def attack_for(
    name: str,
    model: Model,
    shape: tuple[int, int, int, int],
    num_classes: int,
    *,
    iterations: int,
    total_variation: float,
    noise_size: int,
    loss: str,
    how: Observation,
    matching: str = "ordered",
    fit_scale: bool = False,
) -> IterativeAttack:
    """One of ``ATTACKS`` on batches of ``shape`` [B, H, W, C], with the settings that concern it.

    how: what the adversary takes for granted of the participant. matching 'epoch_mean' needs no order of it.
    """
    if name == "grnn":
        generator = grnn_generator(num_classes, image_size=shape[1], channels=shape[3], noise_size=noise_size)
        return grnn(
            model,
            generator,
            shape[0],
            noise_size=noise_size,
            total_variation=total_variation,
            loss=loss,
            fit_scale=fit_scale,
        )
    if name == "inverting_gradients":
        batch = how.batch_size or shape[0]
        return inverting_gradients(
            model,
            shape,
            iterations=iterations,
            total_variation=total_variation,
            update=update_by(model, how._replace(batch_size=batch)) if how.steps > 1 else None,
            epochs=how.steps * batch // shape[0] if matching == "epoch_mean" else 1,
        )
    return deep_leakage(model, shape, num_classes, labels_known=name == "idlg", fit_scale=fit_scale)


@functools.lru_cache(maxsize=8)
def _programs(attack: IterativeAttack, lanes: int) -> tuple[Callable, Callable, Callable]:
    """The three parts of an attack over a leading axis, compiled once for all rows of a table."""

    @jax.jit
    def begin(keys: Array, views: GradientView, labels: Array) -> PyTree:
        return jax.lax.map(lambda lane: attack.start(*lane), (keys, views, labels), batch_size=lanes)

    @jax.jit
    def go_on(states: PyTree, views: GradientView, labels: Array, steps: Array) -> PyTree:
        return jax.lax.map(
            lambda lane: advance(attack, lane[0], lane[1], lane[2], steps), (states, views, labels), batch_size=lanes
        )

    @jax.jit
    def read(states: PyTree, views: GradientView, labels: Array) -> GradientInversion:
        return jax.lax.map(lambda lane: attack.read(*lane), (states, views, labels), batch_size=lanes)

    return begin, go_on, read


def run_attack(
    key: Array,
    attack: IterativeAttack,
    views: GradientView,
    labels: Array,
    *,
    iterations: int,
    restarts: int,
    lanes: int,
    course: Course,
) -> GradientInversion:
    """Attacks every participant, ``lanes`` at a time in one program; of the restarts the nearest gradient counts.

    views, labels [E, B, K]: with a leading axis of participants.
    """
    participants = len(labels)
    keys = jax.random.split(key, participants * restarts)
    views, labels = jax.tree.map(lambda leaf: jnp.repeat(leaf, restarts, axis=0), (views, labels))
    begin, go_on, read = _programs(attack, lanes)
    states = in_parts(
        lambda: begin(keys, views, labels),
        lambda states, done, steps: go_on(states, views, labels, steps),
        total=iterations,
        unit="iteration",
        course=course,
    )
    found = read(states, views, labels)
    distances = jnp.where(jnp.isnan(found.distance), jnp.inf, found.distance).reshape(participants, restarts)
    best = jnp.argmin(distances, axis=1) + restarts * jnp.arange(participants)
    return trees.take(found, best)


def shown(found: GradientInversion) -> np.ndarray:
    """The images that were found, as far as they can be shown: in [0, 1], grey where they are not finite."""
    return np.clip(np.nan_to_num(np.asarray(found.images), nan=0.5, posinf=1.0, neginf=0.0), 0.0, 1.0)


def measure(found: GradientInversion, victims: Victims) -> Result:
    """Matches what was found, with a leading axis of participants, to the originals, and measures each pair."""
    images = shown(found)
    told = np.argmax(np.asarray(found.labels), axis=-1)
    own, order = _compared(images, told, victims.images, victims.labels, victims)
    others, _ = _compared(images, told, victims.other_images, victims.other_labels, victims)
    drawn = np.stack([pictures[places] for pictures, places in zip(images, order, strict=True)])
    return Result(drawn, own, others, _baselines(victims))


def _baselines(victims: Victims) -> dict[str, np.ndarray]:
    shape = victims.labels.shape
    originals = victims.images.reshape(-1, *victims.images.shape[2:])
    means = class_means(victims.labels.ravel(), victims.gallery_images, victims.gallery_labels)
    found = {}
    for name, pictures in (("class", means), ("blank", np.zeros_like(originals))):
        for measure, values in zip(("psnr", "ssim", "recovered"), _likeness(pictures, originals), strict=True):
            found[f"{name}_{measure}"] = values.reshape(shape)
    known, places = _known(victims.images, victims.labels, victims)
    found["class_singled_out"] = singled_out(means, places.ravel(), victims.labels.ravel(), known).reshape(shape)
    return found


def _known(
    originals: np.ndarray, labels: np.ndarray, victims: Victims
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Originals and gallery with their labels, among which an image is singled out, and where the originals stand."""
    images = np.concatenate([originals.reshape(-1, *originals.shape[2:]), victims.gallery_images])
    classes = np.concatenate([labels.ravel(), victims.gallery_labels])
    return (images, classes), np.arange(labels.size).reshape(labels.shape)


def _likeness(pictures: np.ndarray, originals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PSNR, SSIM and whether it is recovered, of each pair of images [M, H, W, C] in [0, 1]."""
    left, right = 2.0 * pictures - 1.0, 2.0 * originals - 1.0
    similarity = uniform_similarity(left, right)
    return peak_signal_to_noise(left, right), similarity, similarity >= SUCCESS


def _compared(
    images: np.ndarray, told: np.ndarray, originals: np.ndarray, labels: np.ndarray, victims: Victims
) -> tuple[Measures, list[np.ndarray]]:
    measured, orders = [], []
    known, places = _known(originals, labels, victims)
    for drawn, answers, real, truth, place in zip(images, told, originals, labels, places, strict=True):
        order = np.argsort(match(drawn, real))
        left, right = 2.0 * drawn[order] - 1.0, 2.0 * real - 1.0
        identities = victims.gallery_labels[nearest(drawn[order], victims.gallery_images)]
        measured.append(
            Measures(
                *_likeness(drawn[order], real),
                singled_out(drawn[order], place, truth, known),
                answers[order] == truth,
                identities == truth,
                root_mean_square_error(left, right),
                group_psnr(left, right),
            )
        )
        orders.append(order)
    return Measures(*map(np.stack, zip(*measured, strict=True))), orders


def utility(
    key: Array, model: Model, transform: UploadTransform | None, dataset: Dataset, *, channels: int, steps: int
) -> float:
    """Accuracy on test images after training on gradients that went through the defence.

    Each step takes the gradient of 32 training images, as one participant sends it, and applies it by Adam with rate
    1e-3, from the usual initialisation.
    """
    num_classes = len(dataset.class_names)
    key_model, key_steps = jax.random.split(key)
    optimizer = optax.adam(1e-3)
    params = model.init(key_model)

    def prepared(images: Array) -> Array:
        units = images.astype(jnp.float32) / 255.0
        return jnp.broadcast_to(units, (*units.shape[:3], channels))

    @jax.jit
    def train(params: PyTree, images: Array, labels: Array) -> PyTree:
        def step(carry: tuple, key: Array) -> tuple[tuple, None]:
            params, state = carry
            key_batch, key_defense = jax.random.split(key)
            chosen = jax.random.randint(key_batch, (32,), 0, len(labels))
            gradient = gradient_of(model, params, prepared(images[chosen]), jax.nn.one_hot(labels[chosen], num_classes))
            sent = gradient if transform is None else protect(key_defense, transform, gradient)
            updates, state = optimizer.update(sent, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key_steps, steps))[0][0]

    params = train(params, jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels))
    answer = jax.jit(lambda params, images: jnp.argmax(model.apply(params, prepared(images)), axis=1))
    batches = range(0, len(dataset.test_images), _TESTED_AT_A_TIME)
    answers = [np.asarray(answer(params, dataset.test_images[at : at + _TESTED_AT_A_TIME])) for at in batches]
    return float(np.mean(np.concatenate(answers) == dataset.test_labels))
