"""Equal batches: any number of images needs few compiled programs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from gan_leak.types import PyTree


def in_batches(function: Callable[..., PyTree], *arrays: np.ndarray, most: int) -> PyTree:
    """``function`` of arrays [M, ...], applied to batches of them and put together, as NumPy arrays [M, ...].

    A batch has ``most`` elements, or the next power of four if there are fewer; zeros complete the last one. So each
    element must count alone.

    >>> in_batches(lambda batch: 2 * batch, np.arange(5), most=4).tolist()
    [0, 2, 4, 6, 8]
    """
    count = len(arrays[0])
    bits = max(0, count - 1).bit_length()
    size = min(most, 1 << (bits + bits % 2))
    missing = -count % size if count else size
    padded = [np.pad(array, [(0, missing), *[(0, 0)] * (np.ndim(array) - 1)]) for array in arrays]
    parts = [
        jax.device_get(function(*(array[start : start + size] for array in padded)))
        for start in range(0, count + missing, size)
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
