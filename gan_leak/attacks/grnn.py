"""GRNN (Ren, Deng and Xie 2022): a generator of images and labels is trained until its gradient is the one seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gan_leak.attacks.deep_leakage import GradientInversion
from gan_leak.attacks.descent import minimise
from gan_leak.attacks.gradients import gradient_of, squared_distance
from gan_leak.attacks.priors import squared_total_variation
from gan_leak.models.grnn_generator import Generator
from gan_leak.types import Array, GradientView, Model, PyTree

LOSSES = ("released", "squared")


def grnn(
    key: Array,
    view: GradientView,
    model: Model,
    generator: Generator,
    batch_size: int,
    *,
    noise_size: int = 128,
    iterations: int = 1000,
    learning_rate: float = 1e-4,
    total_variation: Array | float = 1e-3,
    loss: str = "released",
) -> GradientInversion:
    """Seeks a batch whose gradient is ``view.gradient``, as the output of a generator for noise that is kept.

    loss: 'released' is ||d||^2 + ||d|| + total_variation * TV for the difference d of the gradients, all parameters
    together, which is what the released code computes under the names of a mean squared error and a Wasserstein
    distance; 'squared' is without the norm. TV is twice ``squared_total_variation``; its weight is 1e-3 for the LeNet
    and 1e-6 for the ResNet. RMSprop with momentum 0.99. Raises ValueError for another loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")
    key_noise, key_generator = jax.random.split(key)
    noise = jax.random.normal(key_noise, (batch_size, noise_size))

    def distance(params: PyTree) -> Array:
        return squared_distance(gradient_of(model, view.params, *generator.apply(params, noise)), view.gradient)

    def objective(params: PyTree) -> Array:
        images, labels = generator.apply(params, noise)
        squared = squared_distance(gradient_of(model, view.params, images, labels), view.gradient)
        # The norm has no gradient at zero, where nothing is left to do.
        norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
        prior = total_variation * 2.0 * jnp.mean(squared_total_variation(images))
        return squared + prior + (norm if loss == "released" else 0.0)

    optimizer = optax.rmsprop(learning_rate, decay=0.99, eps=1e-8, momentum=0.99, eps_in_sqrt=False)
    descent = minimise(objective, generator.init(key_generator), optimizer, iterations)
    images, labels = generator.apply(descent.values, noise)
    return GradientInversion(images, labels, distance(descent.values), descent.path)
