"""Pruning of uploaded values: the smallest are left out (Zhu, Liu and Han 2019).

It has no privacy claim: the choice of values depends on the data.
"""

from __future__ import annotations

import jax.numpy as jnp

from gan_leak.collaboration.selection import fraction_to_count, largest
from gan_leak.defenses.contract import GRADIENT, UPLOAD, Defense, HyperParameter, stateless
from gan_leak.settings import Bounds
from gan_leak.types import Array, Upload, UploadTransform


def prune_smallest(fraction: Array | float) -> UploadTransform:
    """Leave out this fraction of all values, the smallest in magnitude (Zhu, Liu and Han 2019: compression)."""

    def change(key: Array, upload: Upload) -> Upload:
        count = fraction_to_count(1.0 - fraction, upload.values.size)
        mask = upload.mask & largest(jnp.where(upload.mask, jnp.abs(upload.values), 0.0), count)
        return Upload(jnp.where(mask, upload.values, 0.0), mask)

    return stateless(change)


DEFENSE = Defense(
    name="pruning",
    stages=(UPLOAD, GRADIENT),
    build=prune_smallest,
    hyperparameters=(
        HyperParameter(
            "pruning_fraction",
            0.2,
            "Defense 'pruning': fraction of the update that is left out, the smallest in magnitude (Zhu, Liu and Han "
            "2019, from 0.2 on).",
            Bounds(0, 1),
        ),
    ),
)
