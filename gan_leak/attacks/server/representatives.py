"""Data representatives: synthetic inputs whose gradient on the shared model matches the update of a client."""

from __future__ import annotations

from typing import NamedTuple

from gan_leak.types import Array, PyTree


class UpdateEvidence(NamedTuple):
    """The evidence of K clients: params with a leading K axis, updates [K, D] in units of a gradient, labels [K, R]."""

    params: PyTree
    updates: Array
    labels: Array


class Representatives(NamedTuple):
    """Images [K, R, H, W, C] in [-1, 1], and the distance [K] of their gradient from the update."""

    images: Array
    distances: Array
