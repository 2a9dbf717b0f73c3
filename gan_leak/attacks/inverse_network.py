"""Black-box inversion in split inference: a network that undoes the client's (He, Zhang and Lee 2019, section 5).

The adversary may ask the client for the features of inputs of its own choice, and learns the way back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gan_leak.attacks.descent import amsgrad, fit, halving_rate
from gan_leak.types import Array, Model, PyTree


def train_inverse_network(
    key: Array,
    decoder: Model,
    inputs: Array,
    features: Array,
    *,
    epochs: int = 50,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    epochs_between_halvings: int = 10,
) -> tuple[PyTree, Array]:
    """Learns inputs [N, H, W, C] from what the client answered, features [N, ...] -> (params, loss of each epoch).

    Mean squared error, AMSGrad with epsilon 1e-3, in the order given (released code; the paper says SGD and Xavier).
    """
    key_init, key_fit = jax.random.split(key)

    def loss(params: PyTree, batch: tuple[Array, Array]) -> Array:
        inputs, features = batch
        return jnp.mean((decoder.apply(params, features) - inputs) ** 2)

    rate = halving_rate(learning_rate, epochs_between_halvings * (len(inputs) // batch_size))
    return fit(
        key_fit,
        loss,
        decoder.init(key_init),
        (inputs, features),
        amsgrad(rate),
        batch_size=batch_size,
        epochs=epochs,
        shuffled=False,
    )
