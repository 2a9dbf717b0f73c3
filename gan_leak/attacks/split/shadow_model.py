"""Query-free inversion in split inference: a shadow of the client's layers (He, Zhang and Lee 2019, section 6).

The cloud knows its own layers, and has images similar to the client's. It trains shadow layers whose features its own
layers classify, and then inverts the shadow instead of the client.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from gan_leak.attacks.optimizers import halving_training
from gan_leak.attacks.procedure import Procedure
from gan_leak.types import Array, Model, PyTree


def shadow_model(
    shadow: Model,
    cloud: Model,
    *,
    samples: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    epochs_between_halvings: int = 10,
) -> Procedure:
    """Train ``shadow`` so that the frozen layers of the cloud classify its features.

    The samples of its ``TrainingData`` are the cloud's own (inputs [N, H, W, C], labels [N]); its context is the
    parameters of the cloud. A step is an epoch. The loss is the cross-entropy, the optimizer AMSGrad, epsilon 1e-3.
    """

    def loss(params: PyTree, batch: tuple[Array, Array], cloud_params: PyTree) -> Array:
        inputs, labels = batch
        logits = cloud.apply(cloud_params, shadow.apply(params, inputs))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return halving_training(
        shadow.init,
        loss,
        samples=samples,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs_between_halvings=epochs_between_halvings,
    )
