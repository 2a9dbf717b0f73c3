"""Priors on images: neighboring pixels are similar."""

from __future__ import annotations

import jax.numpy as jnp

from gan_leak.types import Array


def squared_total_variation(images: Array) -> Array:
    """Mean squared difference of vertical neighbors plus that of horizontal ones, over images [..., H, W, C] -> [...].

    As in the released codes of He, Zhang and Lee 2019 and, twice as large, of GRNN (Ren et al. 2022).
    """
    down, right = _differences(images)
    return jnp.mean(down**2, axis=(-3, -2, -1)) + jnp.mean(right**2, axis=(-3, -2, -1))


def absolute_total_variation(images: Array) -> Array:
    """Mean absolute difference of vertical neighbors plus that of horizontal ones -> [...] (Geiping et al. 2020)."""
    down, right = _differences(images)
    return jnp.mean(jnp.abs(down), axis=(-3, -2, -1)) + jnp.mean(jnp.abs(right), axis=(-3, -2, -1))


def summed_total_variation(images: Array, exponent: float = 1.25) -> Array:
    """Sum over pixels of (dx^2 + dy^2)^exponent, over images [..., H, W, C] -> [...] (Mahendran and Vedaldi 2015).

    dx, dy: the differences to the right and lower neighbors, 0 in the last column and row.
    """
    down, right = _differences(images)
    before = [(0, 0)] * (images.ndim - 3)
    down = jnp.pad(down, [*before, (0, 1), (0, 0), (0, 0)])
    right = jnp.pad(right, [*before, (0, 0), (0, 1), (0, 0)])
    return jnp.sum((down**2 + right**2) ** exponent, axis=(-3, -2, -1))


def _differences(images: Array) -> tuple[Array, Array]:
    return images[..., 1:, :, :] - images[..., :-1, :, :], images[..., :, 1:, :] - images[..., :, :-1, :]
