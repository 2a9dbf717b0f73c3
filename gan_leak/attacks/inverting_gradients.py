"""Inverting Gradients (Geiping, Bauermeister, Dröge and Moeller 2020): a gradient's direction instead of its size."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gan_leak.attacks.deep_leakage import GradientInversion
from gan_leak.attacks.descent import minimise
from gan_leak.attacks.gradients import cosine_distance, gradient_of
from gan_leak.attacks.priors import absolute_total_variation
from gan_leak.types import Array, GradientView, Model, PyTree


def inverting_gradients(
    key: Array,
    view: GradientView,
    model: Model,
    shape: tuple[int, int, int, int],
    labels: Array,
    *,
    iterations: int = 4800,
    learning_rate: float = 0.1,
    total_variation: Array | float = 1e-4,
    lowest: Array | float = 0.0,
    highest: Array | float = 1.0,
    update: Callable[[PyTree, Array, Array], PyTree] | None = None,
) -> GradientInversion:
    """Seeks images [B, H, W, C] of known ``labels`` [B, K] whose gradient points where the one seen does.

    Minimises 1 - cos + total_variation * TV by Adam on the sign of the gradient, its rate a tenth from 3/8, 5/8 and 7/8
    of the iterations on, and clips to [lowest, highest] after each (released code). ``update(params, images, labels)``:
    what was seen as a function of a batch, if it is not one gradient but the update of several steps
    (``gan_leak.attacks.gradients.update_of``). The images start from N(0, 1). For ``jit`` and ``vmap``.
    """
    seen = update or (lambda params, images, labels: gradient_of(model, params, images, labels))

    def distance(images: Array) -> Array:
        return cosine_distance(seen(view.params, images, labels), view.gradient)

    def objective(images: Array) -> Array:
        return distance(images) + total_variation * jnp.mean(absolute_total_variation(images))

    milestones = {round(iterations * share): 0.1 for share in (3 / 8, 5 / 8, 7 / 8)}
    optimizer = optax.chain(
        optax.stateless_with_tree_map(lambda gradient, _: jnp.sign(gradient)),
        optax.adam(optax.piecewise_constant_schedule(learning_rate, milestones)),
    )
    descent = minimise(
        objective,
        jax.random.normal(key, shape),
        optimizer,
        iterations,
        project=lambda images: jnp.clip(images, lowest, highest),
    )
    return GradientInversion(descent.values, labels, distance(descent.values), descent.path)
