"""Clipping of the L2 norm of an upload.

It has no privacy claim: it bounds the change by one participant, but only added noise hides it.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from gan_leak.defenses.contract import GRADIENT, UPLOAD, Defense, HyperParameter, stateless
from gan_leak.settings import above
from gan_leak.types import Array, Upload, UploadTransform


def clip_norm(norm: Array | float) -> UploadTransform:
    """Scale the update to an L2 norm of at most ``norm``; a shorter one is unchanged."""

    def change(key: Array, upload: Upload) -> Upload:
        length = jnp.linalg.norm(upload.values)
        return Upload(upload.values * jnp.where(length > norm, norm / length, 1.0), upload.mask)

    return stateless(change)


DEFENSE = Defense(
    name="clipping",
    stages=(UPLOAD, GRADIENT),
    build=clip_norm,
    hyperparameters=(
        HyperParameter(
            "update_clipping_norm",
            1.0,
            "Defense 'clipping': L2 norm that a participant's whole update is clipped to (McMahan et al. 2018).",
            above(0),
            neutral=math.inf,
        ),
    ),
)
