"""Quantization of an upload to evenly spaced values, with random rounding (Alistarh et al. 2017).

It has no privacy claim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gan_leak.defenses.contract import GRADIENT, UPLOAD, Defense, HyperParameter, stateless
from gan_leak.settings import Bounds
from gan_leak.types import Array, Upload, UploadTransform


def quantize(bits: Array | int) -> UploadTransform:
    """Round values to 2^bits evenly spaced ones from the least to the largest, at random and without bias."""

    def change(key: Array, upload: Upload) -> Upload:
        least, most = jnp.min(upload.values), jnp.max(upload.values)
        intervals = jnp.left_shift(1, jnp.asarray(bits, jnp.int32)) - 1
        step = jnp.maximum(most - least, jnp.finfo(jnp.float32).tiny) / intervals
        places = jnp.floor((upload.values - least) / step + jax.random.uniform(key, upload.values.shape))
        return Upload(jnp.where(upload.mask, least + step * places, 0.0), upload.mask)

    return stateless(change)


DEFENSE = Defense(
    name="quantization",
    stages=(UPLOAD, GRADIENT),
    build=quantize,
    hyperparameters=(
        HyperParameter(
            "quantization_bits",
            8,
            "Defense 'quantization': bits of one uploaded value (Alistarh et al. 2017), 1 to 16.",
            Bounds(1, 16, highest_included=True, wording="a whole number from 1 to 16"),
            neutral=None,
        ),
    ),
    aliases=("quantisation",),
)
