"""Inverting Gradients (Geiping, Bauermeister, Dröge and Moeller 2020): a gradient's direction instead of its size."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gan_leak.attacks.descent import Position, descend
from gan_leak.attacks.gradients import GradientInversion, IterativeAttack, cosine_distance, gradient_of
from gan_leak.attacks.priors import absolute_total_variation
from gan_leak.types import Array, GradientView, Model, PyTree


def inverting_gradients(
    model: Model,
    shape: tuple[int, int, int, int],
    *,
    iterations: int = 4800,
    learning_rate: float = 0.1,
    total_variation: Array | float = 1e-4,
    update: Callable[[PyTree, Array, Array], PyTree] | None = None,
) -> IterativeAttack:
    """Seeks images of ``shape`` [B, H, W, C] whose gradient, with the labels given, points where the one seen does.

    Minimises 1 - cos + total_variation * TV by Adam on the sign of the gradient, its rate a tenth from 3/8, 5/8 and 7/8
    of the iterations on, and clips to [0, 1] after each (released code). ``update(params, images, labels)``:
    what was seen as a function of a batch, if it is not one gradient but the update of several steps
    (``gan_leak.attacks.gradients.update_of``). The images start from N(0, 1).
    """
    milestones = {round(iterations * share): 0.1 for share in (3 / 8, 5 / 8, 7 / 8)}
    optimizer = optax.chain(
        optax.stateless_with_tree_map(lambda gradient, _: jnp.sign(gradient)),
        optax.adam(optax.piecewise_constant_schedule(learning_rate, milestones)),
    )
    seen = update or (lambda params, images, labels: gradient_of(model, params, images, labels))

    def distance(images: Array, view: GradientView, labels: Array) -> Array:
        return cosine_distance(seen(view.params, images, labels), view.gradient)

    def start(key: Array, view: GradientView, labels: Array) -> Position:
        images = jax.random.normal(key, shape)
        return Position(images, optimizer.init(images))

    def step(position: Position, view: GradientView, labels: Array) -> tuple[Position, Array]:
        def objective(images: Array) -> Array:
            return distance(images, view, labels) + total_variation * jnp.mean(absolute_total_variation(images))

        return descend(objective, optimizer, position, lambda images: jnp.clip(images, 0.0, 1.0))

    def read(position: Position, view: GradientView, labels: Array) -> GradientInversion:
        return GradientInversion(position.values, labels, distance(position.values, view, labels))

    return IterativeAttack(start, step, read)
