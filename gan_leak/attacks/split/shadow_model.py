"""Query-free inversion in split inference: a shadow of the client's layers (He, Zhang and Lee 2019, section 6).

The cloud knows its own layers and images like the client's. It trains layers of its own such that its own part of the
network classifies their features, and inverts those in the place of the client's.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from gan_leak.attacks.optimizers import Training, training
from gan_leak.types import Array, Model, PyTree


def shadow_model(
    shadow: Model,
    cloud: Model,
    cloud_params: PyTree,
    *,
    samples: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    epochs_between_halvings: int = 10,
) -> Training:
    """Trains ``shadow`` so that the frozen cloud layers classify its features; its data are (inputs, labels).

    inputs [N, H, W, C], labels [N]: what the cloud has itself. Cross-entropy, AMSGrad with epsilon 1e-3.
    """

    def loss(params: PyTree, batch: tuple[Array, Array]) -> Array:
        inputs, labels = batch
        logits = cloud.apply(cloud_params, shadow.apply(params, inputs))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return training(
        shadow.init,
        loss,
        samples=samples,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs_between_halvings=epochs_between_halvings,
    )
