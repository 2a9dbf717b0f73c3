"""What a participant may do to a gradient before it leaves: noise, clipping, pruning, quantisation.

Each is an ``UploadTransform`` that composes with selection and truncation. None comes with a promise of privacy by
itself: they are measured against attacks, as their papers do. For a promise see ``dp_sgd`` and ``sparse_vector``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gan_leak.collaboration.selection import fraction_to_count, largest
from gan_leak.types import Array, PyTree, TransformInfo, Upload, UploadTransform


def _stateless(change: Any) -> UploadTransform:
    def apply(
        key: Array, upload: Upload, state: PyTree, *, params: PyTree, hyperparameters: Any, **extra: Any
    ) -> tuple[Upload, PyTree, TransformInfo]:
        changed = change(key, upload)
        return changed, state, TransformInfo(jnp.sum(changed.mask).astype(jnp.int32))

    return UploadTransform(lambda params: (), apply)


def add_gaussian(standard_deviation: Array | float) -> UploadTransform:
    """Adds N(0, standard_deviation^2) to every value sent (Zhu, Liu and Han 2019, section 5.1, state the variance)."""

    def change(key: Array, upload: Upload) -> Upload:
        noise = standard_deviation * jax.random.normal(key, upload.values.shape)
        return Upload(jnp.where(upload.mask, upload.values + noise, 0.0), upload.mask)

    return _stateless(change)


def add_laplace(scale: Array | float) -> UploadTransform:
    """Adds Laplace noise of this scale to every value sent."""

    def change(key: Array, upload: Upload) -> Upload:
        noise = scale * jax.random.laplace(key, upload.values.shape)
        return Upload(jnp.where(upload.mask, upload.values + noise, 0.0), upload.mask)

    return _stateless(change)


def clip_norm(norm: Array | float) -> UploadTransform:
    """Scales the update to an L2 norm of at most ``norm``; a shorter one stays as it is."""

    def change(key: Array, upload: Upload) -> Upload:
        length = jnp.linalg.norm(upload.values)
        return Upload(upload.values * jnp.where(length > norm, norm / length, 1.0), upload.mask)

    return _stateless(change)


def prune_smallest(share: Array | float) -> UploadTransform:
    """Leaves out this share of the values, the smallest in magnitude (Zhu, Liu and Han 2019: gradient compression)."""

    def change(key: Array, upload: Upload) -> Upload:
        count = fraction_to_count(1.0 - share, upload.values.size)
        mask = upload.mask & largest(jnp.where(upload.mask, jnp.abs(upload.values), 0.0), count)
        return Upload(jnp.where(mask, upload.values, 0.0), mask)

    return _stateless(change)


def quantise(bits: int) -> UploadTransform:
    """Rounds values to 2^bits evenly spaced ones from the least to the largest, up or down at random, without bias."""

    def change(key: Array, upload: Upload) -> Upload:
        least, most = jnp.min(upload.values), jnp.max(upload.values)
        step = jnp.maximum(most - least, jnp.finfo(jnp.float32).tiny) / (2**bits - 1)
        places = jnp.floor((upload.values - least) / step + jax.random.uniform(key, upload.values.shape))
        return Upload(jnp.where(upload.mask, least + step * places, 0.0), upload.mask)

    return _stateless(change)
