"""Black-box inversion in split inference: a network that inverts the client's (He, Zhang and Lee 2019, section 5).

The adversary queries the client for the features of its own inputs, and learns the inverse.
"""

from __future__ import annotations

import jax.numpy as jnp

from gan_leak.attacks.optimizers import halving_training
from gan_leak.attacks.procedure import Procedure
from gan_leak.types import Array, Model, PyTree


def inverse_network(
    decoder: Model,
    *,
    samples: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    epochs_between_halvings: int = 10,
) -> Procedure:
    """Train ``decoder`` to recover inputs [N, H, W, C] from the features [N, ...] that the client returned for them.

    The samples of its ``TrainingData`` are (inputs, features); a step is an epoch. The loss is the mean squared error,
    the optimizer AMSGrad with epsilon 1e-3; samples are not shuffled (released code; the paper says SGD and Xavier).
    """

    def loss(params: PyTree, batch: tuple[Array, Array], context: None) -> Array:
        inputs, features = batch
        return jnp.mean((decoder.apply(params, features) - inputs) ** 2)

    return halving_training(
        decoder.init,
        loss,
        samples=samples,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs_between_halvings=epochs_between_halvings,
        shuffled=False,
    )
