"""Black-box inversion in split inference by way of the client's model (He, Zhang and Lee 2019, Table 8).

The adversary queries the client for the features of its own inputs, trains layers that return the same features, and
inverts these as in the white box.
"""

from __future__ import annotations

import jax.numpy as jnp

from gan_leak.attacks.optimizers import halving_training
from gan_leak.attacks.procedure import Procedure
from gan_leak.types import Array, Model, PyTree


def reconstructed_model(
    client: Model,
    *,
    samples: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    epochs_between_halvings: int = 10,
) -> Procedure:
    """Train layers of the client's structure to return the features [N, ...] of the client for inputs [N, H, W, C].

    The samples of its ``TrainingData`` are (inputs, features); a step is an epoch. The loss is the mean squared error,
    the optimizer AMSGrad with epsilon 1e-3, as for the other networks of this adversary (ours: the released code does
    not contain this attack).
    """

    def loss(params: PyTree, batch: tuple[Array, Array], context: None) -> Array:
        inputs, features = batch
        return jnp.mean((client.apply(params, inputs) - features) ** 2)

    return halving_training(
        client.init,
        loss,
        samples=samples,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs_between_halvings=epochs_between_halvings,
    )
