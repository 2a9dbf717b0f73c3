"""White-box inversion in split inference: regularised maximum likelihood (He, Zhang and Lee 2019, section 4).

The cloud knows the client's layers and sees their features of one input; the input is sought by descent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from gan_leak.attacks.descent import amsgrad, minimise
from gan_leak.attacks.priors import squared_total_variation
from gan_leak.types import Array, Model, SplitView


class LikelihoodInfo(NamedTuple):
    """The mean squared difference between the features of the result and those seen [], and the objective's path."""

    feature_error: Array
    path: Array


def regularised_likelihood(
    view: SplitView,
    client: Model,
    shape: tuple[int, int, int],
    *,
    iterations: int = 5000,
    learning_rate: float | Callable = 1e-2,
    total_variation: Array | float = 0.0,
    magnitude: Array | float = 0.0,
) -> tuple[Array, LikelihoodInfo]:
    """The input [H, W, C] whose features come nearest to those seen, in the space of the network's inputs.

    Minimises mean((client(x) - features)^2) + total_variation * TV(x) + magnitude * mean(x^2) from x = 0 by AMSGrad
    with epsilon 1e-3: the released code. The paper has the sum of squares, beta = 1 in its TV and a start of 0.5.
    Nothing is clipped on the way, and nothing is random. For ``jit`` and ``vmap`` over views; weights may be traced.
    """

    def objective(inputs: Array) -> Array:
        error = _feature_error(view, client, inputs)
        return error + total_variation * squared_total_variation(inputs) + magnitude * jnp.mean(inputs**2)

    descent = minimise(objective, jnp.zeros(shape), amsgrad(learning_rate), iterations)
    return descent.values, LikelihoodInfo(_feature_error(view, client, descent.values), descent.path)


def _feature_error(view: SplitView, client: Model, inputs: Array) -> Array:
    return jnp.mean((client.apply(view.params, inputs[None])[0] - view.features) ** 2)
