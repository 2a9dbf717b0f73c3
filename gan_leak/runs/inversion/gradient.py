"""Run of attacks on one gradient: victims, their uploads, the attacks, and the utility of defenses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gan_leak import trees
from gan_leak.attacks.gradient.contract import GradientEvidence, GradientInversion, GradientTask
from gan_leak.attacks.gradient.observation import gradient_of, update_of
from gan_leak.attacks.gradient.registry import GRADIENT_ATTACKS
from gan_leak.attacks.procedure import Procedure
from gan_leak.data import Dataset, to_float
from gan_leak.defenses import protect
from gan_leak.models import mnist_classifier
from gan_leak.models.gradient_networks import (
    dlg_lenet,
    dlg_lenet_batchnorm,
    grnn_lenet,
    grnn_resnet18,
    with_uniform_init,
)
from gan_leak.runs.federated.measurement import model_accuracy
from gan_leak.runs.storage.resumable import Lanes, SavedProgress, lane_keys, run_in_parts
from gan_leak.types import Array, GradientView, Model, PyTree, UploadTransform

_MAKERS = {
    "dlg_lenet": dlg_lenet,
    "dlg_lenet_batchnorm": dlg_lenet_batchnorm,
    "grnn_lenet": grnn_lenet,
    "grnn_resnet18": grnn_resnet18,
}
NETWORKS = (*_MAKERS, "mnist_classifier")
INITIALISATIONS = ("wide", "torch")
# The order in which batches of several local steps are matched: that of the images, that of the participant, or none.
MATCHINGS = ("ordered", "known_order", "epoch_mean")
_MOST_GALLERY_IMAGES = 2000


class Victims(NamedTuple):
    """E participants with a batch each: images [E, B, H, W, C] in [0, 1] and labels [E, B].

    other_images, other_labels: as many that the attack on the same participant has not seen. gallery: further images
    [G, H, W, C] and labels [G], among which a recovered image can be searched for.
    """

    images: np.ndarray
    labels: np.ndarray
    other_images: np.ndarray
    other_labels: np.ndarray
    gallery_images: np.ndarray
    gallery_labels: np.ndarray


class Observation(NamedTuple):
    """How a participant computes its upload: SGD steps, their learning rate, and the number of images in one step.

    order: the images of the steps, one step after the other; None means all images in turn, repeatedly.
    """

    steps: int
    learning_rate: float
    batch_size: int
    order: tuple[int, ...] | None = None


def network_for(name: str, initialisation: str, num_classes: int, image_size: int, channels: int) -> Model:
    """A victim network on images in [0, 1]. Raises ValueError for an unknown name or a wrong image size."""
    if initialisation not in INITIALISATIONS:
        raise ValueError(f"initialisation={initialisation}: expected one of {', '.join(INITIALISATIONS)}")
    if name == "mnist_classifier":
        if image_size != 32:
            raise ValueError(f"image_size={image_size}: expected 32 with network mnist_classifier")
        classifier = mnist_classifier(num_classes, channels=channels)
        model = Model(classifier.init, lambda params, images: classifier.apply(params, 2.0 * images - 1.0))
    elif name in _MAKERS:
        model = _MAKERS[name](num_classes, image_size=image_size, channels=channels)
    else:
        raise ValueError(f"network={name}: expected one of {', '.join(NETWORKS)}")
    return with_uniform_init(model) if initialisation == "wide" else model


def victims_from(
    dataset: Dataset,
    *,
    batch_size: int,
    images: int,
    channels: int,
    seed: int,
    dirichlet_concentration: float = 0.0,
) -> Victims:
    """Participants with different training images, chosen at random: the fewest that hold ``images`` in all.

    dirichlet_concentration: above 0, the classes of each participant have proportions of a symmetric Dirichlet
    distribution with this parameter for each class (ours); 0 = those of the data set.

    Raises ValueError if there are too few images for all of them and one further batch for comparison, or too few of a
    class.
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
    rng = np.random.default_rng(seed)
    order = rng.permutation(available)
    if dirichlet_concentration:
        order = _dealt(rng, dataset.train_labels, order, needed // batch_size, batch_size, dirichlet_concentration)
    order = order[: needed + _MOST_GALLERY_IMAGES]

    def chosen(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        picked = (to_float(dataset.train_images[places]) + 1.0) / 2.0
        return np.broadcast_to(picked, (*picked.shape[:3], channels)).copy(), dataset.train_labels[places]

    def in_batches(values: np.ndarray) -> np.ndarray:
        return values.reshape(participants, batch_size, *values.shape[1:])

    own_images, own_labels = chosen(order[:wanted])
    # The images of the next participant. For a single participant, images that no participant sent.
    other_images, other_labels = chosen(np.roll(order[:needed], -batch_size)[:wanted])
    return Victims(
        in_batches(own_images),
        in_batches(own_labels),
        in_batches(other_images),
        in_batches(other_labels),
        *chosen(order[needed:]),
    )


def _dealt(
    rng: np.random.Generator, labels: np.ndarray, order: np.ndarray, batches: int, batch_size: int, concentration: float
) -> np.ndarray:
    """The order [N] of all images, rearranged so that it begins with batches of classes in Dirichlet proportions."""
    classes = np.unique(labels)
    of_class = {label: list(order[labels[order] == label]) for label in classes}
    dealt: list[int] = []
    for _ in range(batches):
        counts = rng.multinomial(batch_size, rng.dirichlet(np.full(len(classes), concentration)))
        batch = []
        for label, count in zip(classes, counts, strict=True):
            if count > len(of_class[label]):
                raise ValueError(
                    f"dirichlet_concentration={concentration}: expected more images, class {label} has too few for "
                    f"{batches} batches of {batch_size}"
                )
            batch += [of_class[label].pop() for _ in range(count)]
        dealt += list(rng.permutation(batch))
    return np.concatenate([np.array(dealt, order.dtype), order[~np.isin(order, dealt)]])


def observe(
    key: Array, model: Model, images: Array, labels: Array, observation: Observation, transform: UploadTransform | None
) -> GradientView:
    """A fresh model, and the upload of one participant with these images [B, H, W, C] and labels [B, K]."""
    key_model, key_defense = jax.random.split(key)
    params = model.init(key_model)
    seen = update_by(model, observation)(params, images, labels)
    return GradientView(params, seen if transform is None else protect(key_defense, transform, seen))


def observe_all(
    key: Array, model: Model, images: Array, labels: Array, observation: Observation, transform: UploadTransform | None
) -> GradientView:
    """``observe`` for each participant, with a leading axis; images [E, B, H, W, C], labels [E, B, K].

    A participant's network does not depend on the transform.
    """
    keys = jax.random.split(key, len(labels))

    @jax.jit
    def observed(keys: Array, images: Array, labels: Array) -> GradientView:
        return jax.lax.map(
            lambda entry: observe(entry[0], model, entry[1], entry[2], observation, transform), (keys, images, labels)
        )

    return observed(keys, images, labels)


def update_by(model: Model, observation: Observation) -> Callable[[PyTree, Array, Array], PyTree]:
    """The upload of a participant as a function of parameters, images and labels."""

    def update(params: PyTree, images: Array, labels: Array) -> PyTree:
        return update_of(
            model,
            params,
            images,
            labels,
            learning_rate=observation.learning_rate,
            steps=observation.steps,
            batch_size=observation.batch_size or len(images),
            order=None if observation.order is None else jnp.asarray(observation.order, jnp.int32),
        )

    return update


@functools.lru_cache(maxsize=8)
def procedure_for(
    attack: str,
    model: Model,
    shape: tuple[int, int, int, int],
    num_classes: int,
    *,
    iterations: int,
    total_variation: float = 0.0,
    noise_size: int = 128,
    loss: str = "released",
    observation: Observation,
    matching: str = "ordered",
    fit_scale: bool = False,
) -> Procedure:
    """One of ``GRADIENT_ATTACKS`` on batches of ``shape`` [B, H, W, C]; the same object for the same arguments.

    observation: the adversary's assumption about the participant. matching: 'epoch_mean' uses no order.
    """
    batch = observation.batch_size or shape[0]
    several = observation.steps > 1
    task = GradientTask(
        model,
        shape,
        num_classes,
        iterations=iterations,
        total_variation=total_variation,
        update=update_by(model, observation._replace(batch_size=batch)) if several else None,
        epochs=observation.steps * batch // shape[0] if matching == "epoch_mean" else 1,
        fit_scale=fit_scale,
        noise_size=noise_size,
        loss=loss,
    )
    return GRADIENT_ATTACKS[attack].build(task)


def run_attack(
    key: Array,
    procedure: Procedure,
    evidence: GradientEvidence,
    *,
    iterations: int,
    restarts: int,
    lanes: int,
    progress: SavedProgress,
) -> GradientInversion:
    """Attack every participant, ``lanes`` at a time in one program. Keeps the restart with the nearest gradient.

    evidence: has a leading axis of participants E.
    """
    participants = len(evidence.labels)
    found = run_in_parts(
        lane_keys(key, participants * restarts),
        procedure,
        jax.tree.map(lambda leaf: jnp.repeat(leaf, restarts, axis=0), evidence),
        steps=iterations,
        unit="iteration",
        progress=progress,
        lanes=Lanes(at_a_time=lanes),
    )
    distances = jnp.where(jnp.isnan(found.distance), jnp.inf, found.distance).reshape(participants, restarts)
    best = jnp.argmin(distances, axis=1) + restarts * jnp.arange(participants)
    return trees.take(found, best)


def trained_params(
    key: Array,
    model: Model,
    dataset: Dataset,
    *,
    channels: int,
    steps: int,
    transform: UploadTransform | None = None,
) -> PyTree:
    """The parameters that training leads to from the initialization of the model, on defended gradients if asked.

    Each step takes the upload of one participant with 32 training images, and applies it by Adam with a learning rate
    of 1e-3.
    """
    num_classes = len(dataset.class_names)
    key_model, key_steps = jax.random.split(key)
    optimizer = optax.adam(1e-3)
    params = model.init(key_model)

    @jax.jit
    def train(params: PyTree, images: Array, labels: Array) -> PyTree:
        def step(carry: tuple, key: Array) -> tuple[tuple, None]:
            params, state = carry
            key_batch, key_defense = jax.random.split(key)
            chosen = jax.random.randint(key_batch, (32,), 0, len(labels))
            inputs = _prepared(images[chosen], channels)
            gradient = gradient_of(model, params, inputs, jax.nn.one_hot(labels[chosen], num_classes))
            sent = gradient if transform is None else protect(key_defense, transform, gradient)
            updates, state = optimizer.update(sent, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key_steps, steps))[0][0]

    return train(params, jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels))


def accuracy_of(model: Model, params: PyTree, dataset: Dataset, *, channels: int) -> float:
    """Accuracy on test images."""
    prepared = Model(model.init, lambda params, images: model.apply(params, _prepared(images, channels)))
    return model_accuracy(prepared, params, dataset.test_images, dataset.test_labels)


def _prepared(images: Array, channels: int) -> Array:
    units = images.astype(jnp.float32) / 255.0
    return jnp.broadcast_to(units, (*units.shape[:3], channels))


def utility(
    key: Array, model: Model, transform: UploadTransform | None, dataset: Dataset, *, channels: int, steps: int
) -> float:
    """Accuracy on test images after training on defended gradients, see ``trained_params``."""
    params = trained_params(key, model, dataset, channels=channels, steps=steps, transform=transform)
    return accuracy_of(model, params, dataset, channels=channels)
