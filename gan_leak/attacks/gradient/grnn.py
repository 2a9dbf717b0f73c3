"""GRNN (Ren, Deng and Xie 2022): a generator of images and labels is trained until its gradient is the one seen."""

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
    """Seek a batch whose gradient is ``view.gradient``, as the output of a generator for noise that is kept.

    loss: 'released' is ||d||^2 + ||d|| + total_variation * TV for the difference d of the gradients, all arrays that
    ``view.gradient`` holds together, which is what the released code computes under the names of a mean squared error
    and a Wasserstein distance; 'squared' is without the norm. fit_scale: d after the dummy's gradient is scaled to fit.
    TV is twice ``squared_total_variation``; its weight is 1e-3 for the LeNet and 1e-6 for the ResNet. RMSprop with
    momentum 0.99. Raises ValueError for another loss.
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
            # The norm has no gradient at zero, where nothing is left to do.
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
    # Its own for the ResNet-18 (released code).
    network_total_variation={"grnn_resnet18": 1e-6},
)
