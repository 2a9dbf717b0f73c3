"""Black-box inversion in split inference: a network that undoes the client's (He, Zhang and Lee 2019, section 5).

The adversary may ask the client for the features of inputs of its own choice, and learns the way back.
"""

from __future__ import annotations

import jax.numpy as jnp

from gan_leak.attacks.optimizers import Training, training
from gan_leak.types import Array, Model, PyTree


def inverse_network(
    decoder: Model,
    *,
    samples: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    epochs_between_halvings: int = 10,
) -> Training:
    """Learns inputs [N, H, W, C] from what the client answered, features [N, ...]; its data are (inputs, features).

    Mean squared error, AMSGrad with epsilon 1e-3, in the order given (released code; the paper says SGD and Xavier).
    """

    def loss(params: PyTree, batch: tuple[Array, Array]) -> Array:
        inputs, features = batch
        return jnp.mean((decoder.apply(params, features) - inputs) ** 2)

    return training(
        decoder.init,
        loss,
        samples=samples,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs_between_halvings=epochs_between_halvings,
        shuffled=False,
    )
