"""Query-free inversion in split inference: a shadow of the client's layers (He, Zhang and Lee 2019, section 6).

The cloud knows its own layers and images like the client's. It trains layers of its own such that its own part of the
network classifies their features, and inverts those in the place of the client's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gan_leak.attacks.descent import amsgrad, fit, halving_rate
from gan_leak.types import Array, Model, PyTree


def train_shadow(
    key: Array,
    shadow: Model,
    cloud: Model,
    cloud_params: PyTree,
    inputs: Array,
    labels: Array,
    *,
    epochs: int = 50,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    epochs_between_halvings: int = 10,
) -> tuple[PyTree, Array]:
    """Trains ``shadow`` so that the frozen cloud layers classify its features -> (params, loss of each epoch).

    inputs [N, H, W, C], labels [N]: what the cloud has itself. Cross-entropy, AMSGrad with epsilon 1e-3.
    """
    key_init, key_fit = jax.random.split(key)

    def loss(params: PyTree, batch: tuple[Array, Array]) -> Array:
        inputs, labels = batch
        logits = cloud.apply(cloud_params, shadow.apply(params, inputs))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    rate = halving_rate(learning_rate, epochs_between_halvings * (len(inputs) // batch_size))
    return fit(
        key_fit,
        loss,
        shadow.init(key_init),
        (inputs, labels),
        amsgrad(rate),
        batch_size=batch_size,
        epochs=epochs,
    )
