"""Inverting Gradients (Geiping, Bauermeister, Dröge and Moeller 2020): matches a gradient's direction, not its size."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gan_leak.attacks.gradient.contract import GradientAttack, GradientEvidence, GradientInversion, GradientTask
from gan_leak.attacks.gradient.observation import cosine_distance, gradient_of
from gan_leak.attacks.optimizers import Position, descend, signed_adam
from gan_leak.attacks.priors import absolute_total_variation
from gan_leak.attacks.procedure import Procedure
from gan_leak.types import Array, Model, PyTree


def inverting_gradients(
    model: Model,
    shape: tuple[int, int, int, int],
    *,
    iterations: int = 4800,
    learning_rate: float = 0.1,
    total_variation: Array | float = 1e-4,
    update: Callable[[PyTree, Array, Array], PyTree] | None = None,
    epochs: int = 1,
    epoch_prior: Array | float = 1.0,
) -> Procedure:
    """Search for images of ``shape`` [B, H, W, C] whose gradient has the direction of the observed one.

    Minimizes 1 - cos + total_variation * TV by Adam on the sign of the gradient. The rate is divided by 10 at 3/8, 5/8
    and 7/8 of the iterations. Images start from N(0, 1) and are clipped to [0, 1] after each step (released code).

    update: ``update(params, images, labels)``, the observation as a function of a batch, if it is the update of several
    steps (``gan_leak.attacks.gradient.observation.update_of``). None for one gradient.
    epochs: above 1 if the order of the images in each epoch is unknown (Dimitrov et al. 2022). Every epoch then has its
    own images; ``update`` gets them one epoch after the other [epochs * B, ...]. The labels have the same order, so
    they assign images to batches (``infer_label_order``). The result is the mean over epochs of the images that match
    those of the first epoch.
    epoch_prior: the weight of the mean squared distance between an epoch's mean image and that of all epochs. The order
    does not change a mean image.
    """
    optimizer = signed_adam(learning_rate, iterations)
    observe = update or (lambda params, images, labels: gradient_of(model, params, images, labels))

    def distance(images: Array, evidence: GradientEvidence) -> Array:
        view, labels = evidence
        return cosine_distance(observe(view.params, images, labels), view.gradient)

    def init(key: Array, evidence: GradientEvidence) -> Position:
        images = jax.random.normal(key, (epochs * shape[0], *shape[1:]))
        return Position(images, optimizer.init(images))

    def step(key: Array, position: Position, evidence: GradientEvidence) -> tuple[Position, Array]:
        def objective(images: Array) -> Array:
            value = distance(images, evidence) + total_variation * jnp.mean(absolute_total_variation(images))
            return value if epochs == 1 else value + epoch_prior * _epoch_mean_distance(images, epochs)

        return descend(objective, optimizer, position, lambda images: jnp.clip(images, 0.0, 1.0))

    def extract(position: Position, evidence: GradientEvidence) -> GradientInversion:
        labels = evidence.labels
        images = position.values if epochs == 1 else _matched_mean(position.values, labels, epochs)
        return GradientInversion(images, labels[: shape[0]], distance(position.values, evidence))

    return Procedure(init, step, extract)


def _epoch_mean_distance(images: Array, epochs: int) -> Array:
    means = jnp.mean(images.reshape(epochs, -1, *images.shape[1:]), axis=1)
    return jnp.mean((means - jnp.mean(means, axis=0, keepdims=True)) ** 2)


def _matched_mean(images: Array, labels: Array, epochs: int) -> Array:
    """The mean over epochs of matching images, of equal labels, among [epochs * B, ...]."""
    by_epoch = images.reshape(epochs, -1, *images.shape[1:])
    count = by_epoch.shape[1]
    flat, classes = by_epoch.reshape(epochs, count, -1), labels.reshape(epochs, count, -1)

    def in_order_of_first(epoch: int) -> Array:
        apart = jnp.sum((flat[0][:, None] - flat[epoch][None]) ** 2, axis=-1)
        # Larger than the distance of any two images in [0, 1].
        other_label = flat.shape[-1] * jnp.sum((classes[0][:, None] - classes[epoch][None]) ** 2, axis=-1)
        rows, columns = optax.assignment.hungarian_algorithm(apart + other_label)
        return by_epoch[epoch][jnp.zeros(count, jnp.int32).at[rows].set(columns)]

    matched = [by_epoch[0], *(in_order_of_first(epoch) for epoch in range(1, epochs))]
    return jnp.mean(jnp.stack(matched), axis=0)


def _build(task: GradientTask) -> Procedure:
    return inverting_gradients(
        task.model,
        task.shape,
        iterations=task.iterations,
        total_variation=task.total_variation,
        update=task.update,
        epochs=task.epochs,
    )


INVERTING_GRADIENTS = GradientAttack(
    name="inverting_gradients",
    citation="Geiping, Bauermeister, Dröge and Moeller 2020, Inverting Gradients",
    build=_build,
    iterations=4800,
    labels="given",
    distance="cosine",
    total_variation=1e-4,
    several_steps=True,
)
