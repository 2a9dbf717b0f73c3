"""Laplace noise on uploaded values (Zhu, Liu and Han 2019; He, Zhang and Lee 2020).

It has no privacy claim: without a bound on the values, no amount of noise gives a guarantee.
"""

from __future__ import annotations

import jax

from gan_leak.defenses.contract import FEATURES, GRADIENT, UPLOAD, Defense, HyperParameter, noise
from gan_leak.settings import at_least
from gan_leak.types import Array, UploadTransform


def laplace_noise(scale: Array | float) -> UploadTransform:
    """Add Laplace noise of this scale to every value sent."""
    return noise(scale, jax.random.laplace)


DEFENSE = Defense(
    name="laplace",
    stages=(UPLOAD, GRADIENT, FEATURES),
    build=laplace_noise,
    hyperparameters=(
        HyperParameter(
            "laplace_scale",
            0.01,
            "Defense 'laplace': scale of the noise on every uploaded value (Zhu, Liu and Han 2019, on a gradient).",
            at_least(0),
        ),
    ),
)
