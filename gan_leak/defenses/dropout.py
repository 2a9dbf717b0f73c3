"""Dropout of uploaded values: random values are set to zero (He, Zhang and Lee 2020, on features).

It has no privacy claim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gan_leak.defenses.contract import FEATURES, GRADIENT, UPLOAD, Defense, HyperParameter, stateless
from gan_leak.settings import Bounds
from gan_leak.types import Array, Upload, UploadTransform


def dropout(rate: Array | float) -> UploadTransform:
    """Set each value to zero with probability ``rate``; the others are not rescaled (released code)."""

    def change(key: Array, upload: Upload) -> Upload:
        mask = upload.mask & ~(jax.random.uniform(key, upload.values.shape) < rate)
        return Upload(jnp.where(mask, upload.values, 0.0), mask)

    return stateless(change)


DEFENSE = Defense(
    name="dropout",
    stages=(UPLOAD, GRADIENT, FEATURES),
    build=dropout,
    hyperparameters=(
        HyperParameter(
            "dropout_rate",
            0.5,
            "Defense 'dropout': probability that a value of the update is left out (He, Zhang and Lee 2020, on "
            "features).",
            Bounds(0, 1),
        ),
    ),
)
