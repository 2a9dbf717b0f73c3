"""White-box inversion in split inference: regularized maximum likelihood (He, Zhang and Lee 2019, section 4).

The cloud knows the client's layers and sees the features of one input. Descent searches for the input.
"""

from __future__ import annotations

import jax.numpy as jnp

from gan_leak.attacks.optimizers import Position, amsgrad, descend
from gan_leak.attacks.priors import squared_total_variation
from gan_leak.attacks.procedure import Procedure
from gan_leak.types import Array, Model, SplitView


def regularized_likelihood(
    client: Model,
    shape: tuple[int, int, int],
    *,
    learning_rate: float = 1e-2,
    total_variation: Array | float = 0.0,
    magnitude: Array | float = 0.0,
) -> Procedure:
    """Search for the input [H, W, C] whose features are nearest to the observed ones.

    Minimizes mean((client(x) - features)^2) + total_variation * TV(x) + magnitude * mean(x^2) from x = 0 by AMSGrad
    with epsilon 1e-3 (released code). The paper has the sum of squares, beta = 1 in its TV and a start of 0.5. Values
    have the scale of the network's inputs and are not clipped. Nothing is random.

    The evidence is a ``SplitView`` of one input, the result the input; use ``vmap`` for several. The weights may be
    traced.
    """
    optimizer = amsgrad(learning_rate)

    def init(key: Array, view: SplitView) -> Position:
        inputs = jnp.zeros(shape)
        return Position(inputs, optimizer.init(inputs))

    def step(key: Array, position: Position, view: SplitView) -> tuple[Position, Array]:
        def objective(inputs: Array) -> Array:
            error = jnp.mean((client.apply(view.params, inputs[None])[0] - view.features) ** 2)
            return error + total_variation * squared_total_variation(inputs) + magnitude * jnp.mean(inputs**2)

        return descend(objective, optimizer, position)

    return Procedure(init, step, lambda position, view: position.values)
