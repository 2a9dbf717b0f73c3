"""Selection of the coordinates that a participant uploads (Shokri and Shmatikov 2015, selective SGD)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gan_leak.types import Array, PyTree, RoundHyperParameters, TransformInfo, Upload, UploadTransform


def fraction_to_count(fraction: Array | float, size: int) -> Array:
    """The number of coordinates nearest to a fraction of ``size``, at least one."""
    return jnp.clip(jnp.round(jnp.asarray(fraction) * size).astype(jnp.int32), 1, size)


def _kth_largest(bits: Array, count: Array) -> Array:
    """The count-th largest of uint32 values [D], found bit by bit from the highest: exact, O(D), at a traced count."""

    def body(step: Array, prefix: Array) -> Array:
        candidate = prefix | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
        return jnp.where(jnp.sum(bits >= candidate) >= count, candidate, prefix)

    return jax.lax.fori_loop(0, 32, body, jnp.uint32(0))


def _mask_of_largest(bits: Array, count: Array) -> Array:
    threshold = _kth_largest(bits, count)
    above, level = bits > threshold, bits == threshold
    room = count - jnp.sum(above)
    return above | (level & (jnp.cumsum(level) <= room))


def largest(scores: Array, count: Array | int, *, key: Array | None = None) -> Array:
    """Mark the ``count`` largest of non-negative scores [D] -> bool [D] with exactly ``count`` True (0 <= count <= D).

    Ties at the boundary go to the lowest index, or with a ``key`` to a uniformly random subset. NaN ranks above every
    number, so a diverged update stays visible. ``count`` may be traced.
    """
    count = jnp.asarray(count, jnp.int32)
    lottery = None if key is None else jax.random.bits(key, scores.shape, jnp.uint32) | jnp.uint32(1)
    # The search costs as much as training on several images. It is skipped in the common case that all are selected.
    return jax.lax.cond(
        count >= scores.size, lambda: jnp.ones(scores.shape, bool), lambda: _search(scores, count, lottery)
    )


def _search(scores: Array, count: Array, lottery: Array | None) -> Array:
    # Bit patterns of non-negative floats have the order of the floats.
    bits = jax.lax.bitcast_convert_type(jnp.abs(scores.astype(jnp.float32)), jnp.uint32)
    if lottery is None:
        return _mask_of_largest(bits, count)
    threshold = _kth_largest(bits, count)
    above, level = bits > threshold, bits == threshold
    return above | (level & _mask_of_largest(jnp.where(level, lottery, 0), count - jnp.sum(above)))


def _keep(upload: Upload, mask: Array) -> Upload:
    mask = mask & upload.mask
    return Upload(jnp.where(mask, upload.values, 0.0), mask)


def _stateless(params: PyTree) -> tuple[()]:
    return ()


def _info(upload: Upload) -> TransformInfo:
    return TransformInfo(jnp.sum(upload.mask).astype(jnp.int32))


def largest_fraction() -> UploadTransform:
    """Keep exactly the ``upload_fraction`` of largest magnitude; fraction 1 keeps the update unchanged."""

    def apply(
        key: Array,
        upload: Upload,
        state: PyTree,
        *,
        params: PyTree,
        hyperparameters: RoundHyperParameters,
        **extra: Any,
    ) -> tuple[Upload, PyTree, TransformInfo]:
        count = fraction_to_count(hyperparameters.upload_fraction, upload.values.size)
        kept = _keep(upload, largest(jnp.where(upload.mask, jnp.abs(upload.values), 0.0), count))
        return kept, state, _info(kept)

    return UploadTransform(_stateless, apply)


def random_above_threshold() -> UploadTransform:
    """Keep a uniformly random subset of the coordinates whose magnitude exceeds ``upload_threshold``.

    At most ``upload_fraction`` of all coordinates are kept, fewer if fewer exceed the threshold.
    """

    def apply(
        key: Array,
        upload: Upload,
        state: PyTree,
        *,
        params: PyTree,
        hyperparameters: RoundHyperParameters,
        **extra: Any,
    ) -> tuple[Upload, PyTree, TransformInfo]:
        count = fraction_to_count(hyperparameters.upload_fraction, upload.values.size)
        # Written as "not at most", so that NaN passes and is noticed.
        passing = upload.mask & ~(jnp.abs(upload.values) <= hyperparameters.upload_threshold)
        chosen = largest(passing.astype(jnp.float32), count, key=key)
        kept = _keep(upload, passing & chosen)
        return kept, state, _info(kept)

    return UploadTransform(_stateless, apply)


def truncate() -> UploadTransform:
    """Truncate uploaded values to [-upload_bound, upload_bound]."""

    def apply(
        key: Array,
        upload: Upload,
        state: PyTree,
        *,
        params: PyTree,
        hyperparameters: RoundHyperParameters,
        **extra: Any,
    ) -> tuple[Upload, PyTree, TransformInfo]:
        bound = hyperparameters.upload_bound
        truncated = Upload(jnp.clip(upload.values, -bound, bound), upload.mask)
        return truncated, state, _info(truncated)

    return UploadTransform(_stateless, apply)


def chain(*transforms: UploadTransform) -> UploadTransform:
    """Apply transforms one after the other; without any, the identity. The state is a tuple of their states."""

    def init(params: PyTree) -> tuple[PyTree, ...]:
        return tuple(transform.init(params) for transform in transforms)

    def apply(
        key: Array,
        upload: Upload,
        state: PyTree,
        *,
        params: PyTree,
        hyperparameters: RoundHyperParameters,
        **extra: Any,
    ) -> tuple[Upload, PyTree, TransformInfo]:
        new_state = []
        for index, (transform, part) in enumerate(zip(transforms, state, strict=True)):
            upload, part, _ = transform.apply(
                jax.random.fold_in(key, index), upload, part, params=params, hyperparameters=hyperparameters, **extra
            )
            new_state.append(part)
        return upload, tuple(new_state), _info(upload)

    return UploadTransform(init, apply)


def selective_upload(criterion: str) -> UploadTransform:
    """The upload rule of selective SGD: ``largest`` or ``random`` selection, then truncation to the bound.

    Raises ValueError for another criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"upload_criterion={criterion!r}: allowed are {', '.join(map(repr, CRITERIA))}")
    return chain(_SELECTIONS[criterion](), truncate())


_SELECTIONS = {"largest": largest_fraction, "random": random_above_threshold}
CRITERIA = tuple(_SELECTIONS)
