"""What a client may do to its features before they leave: noise and dropout (He, Zhang and Lee 2019 and 2020).

None of them comes with a promise of privacy: they are measured against the attacks, and against accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gan_leak.types import Array

FeatureDefense = Callable[[Array, Array], Array]


def gaussian_noise(standard_deviation: Array | float) -> FeatureDefense:
    """Adds N(0, standard_deviation^2) to every feature: ``defense(key, features) -> features``."""
    return lambda key, features: features + standard_deviation * jax.random.normal(key, features.shape)


def laplace_noise(scale: Array | float) -> FeatureDefense:
    """Adds Laplace noise of this scale to every feature."""
    return lambda key, features: features + scale * jax.random.laplace(key, features.shape)


def dropout(rate: Array | float) -> FeatureDefense:
    """Sets every feature to zero with probability ``rate``; the others keep their size (released code)."""
    return lambda key, features: jnp.where(jax.random.uniform(key, features.shape) < rate, 0.0, features)
