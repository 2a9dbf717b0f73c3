"""GRNN (Ren, Deng and Xie 2022): a generator of images and labels is trained to produce the observed gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_leak.attacks.gradient.contract import GradientAttack, GradientEvidence, GradientInversion, GradientTask
from gan_leak.attacks.gradient.observation import gradient_of, scaled_distance, squared_distance
from gan_leak.attacks.optimizers import Position, descend
from gan_leak.attacks.priors import squared_total_variation
from gan_leak.attacks.procedure import Procedure
from gan_leak.models.grnn_generator import Generated, Generator, grnn_generator
from gan_leak.types import Array, GradientView, Model, PyTree

LOSSES = ("released", "squared")


class _Training(NamedTuple):
    noise: Array
    position: Position


def grnn(
    model: Model,
    generator: Generator,
    batch_size: int,
    *,
    noise_size: int = 128,
    learning_rate: float = 1e-4,
    total_variation: Array | float = 1e-3,
    loss: str = "released",
    fit_scale: bool = False,
) -> Procedure:
    """Search for a batch with the gradient ``view.gradient`` among the outputs of a generator for fixed noise.

    loss: 'released' is ||d||^2 + ||d|| + total_variation * TV for the difference d of the gradients, over all arrays of
    ``view.gradient`` together. The released code computes this; it calls the terms mean squared error and Wasserstein
    distance. 'squared' omits ||d||.
    fit_scale: whether the dummy's gradient is scaled to fit before d is taken.
    total_variation: the released code has 1e-3 for the LeNet and 1e-6 for the ResNet; TV is twice
    ``squared_total_variation``.

    The optimizer is RMSprop with momentum 0.99. Raises ValueError for another loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")
    optimizer = optax.rmsprop(learning_rate, decay=0.99, eps=1e-8, momentum=0.99, eps_in_sqrt=False)

    def distance(generated: Generated, view: GradientView) -> Array:
        measure = scaled_distance if fit_scale else squared_distance
        return measure(gradient_of(model, view.params, *generated), view.gradient)

    def init(key: Array, evidence: GradientEvidence) -> _Training:
        key_noise, key_generator = jax.random.split(key)
        params = generator.init(key_generator)
        return _Training(
            jax.random.normal(key_noise, (batch_size, noise_size)), Position(params, optimizer.init(params))
        )

    def step(key: Array, training: _Training, evidence: GradientEvidence) -> tuple[_Training, Array]:
        def objective(params: PyTree) -> Array:
            generated = generator.apply(params, training.noise)
            squared = distance(generated, evidence.view)
            # The norm has no gradient at zero, where the search is finished.
            norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
            prior = total_variation * 2.0 * jnp.mean(squared_total_variation(generated.images))
            return squared + prior + (norm if loss == "released" else 0.0)

        position, value = descend(objective, optimizer, training.position)
        return training._replace(position=position), value

    def extract(training: _Training, evidence: GradientEvidence) -> GradientInversion:
        generated = generator.apply(training.position.values, training.noise)
        return GradientInversion(*generated, distance(generated, evidence.view))

    return Procedure(init, step, extract)


def _build(task: GradientTask) -> Procedure:
    batch_size, image_size, _, channels = task.shape
    return grnn(
        task.model,
        grnn_generator(task.num_classes, image_size=image_size, channels=channels, noise_size=task.noise_size),
        batch_size,
        noise_size=task.noise_size,
        total_variation=task.total_variation,
        loss=task.loss,
        fit_scale=task.fit_scale,
    )


GRNN = GradientAttack(
    name="grnn",
    citation="Ren, Deng and Xie 2022, GRNN: Generative Regression Neural Network",
    build=_build,
    iterations=1000,
    labels="recovered",
    total_variation=1e-3,
    # From the released code.
    network_total_variation={"grnn_resnet18": 1e-6},
)
