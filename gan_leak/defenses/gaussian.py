"""Gaussian noise on uploaded values (Zhu, Liu and Han 2019; He, Zhang and Lee 2020).

It has no privacy claim: without a bound on the values, no amount of noise gives a guarantee.
"""

from __future__ import annotations

import jax

from gan_leak.defenses.contract import FEATURES, GRADIENT, UPLOAD, Defense, HyperParameter, noise
from gan_leak.settings import at_least
from gan_leak.types import Array, UploadTransform


def gaussian_noise(standard_deviation: Array | float) -> UploadTransform:
    """Add N(0, standard_deviation^2) to every value sent (Zhu, Liu and Han 2019, section 5.1, state the variance)."""
    return noise(standard_deviation, jax.random.normal)


DEFENSE = Defense(
    name="gaussian",
    stages=(UPLOAD, GRADIENT, FEATURES),
    build=gaussian_noise,
    hyperparameters=(
        HyperParameter(
            "gaussian_deviation",
            0.01,
            "Defense 'gaussian': standard deviation of the noise on every uploaded value (Zhu, Liu and Han 2019, on a "
            "gradient).",
            at_least(0),
        ),
    ),
)
