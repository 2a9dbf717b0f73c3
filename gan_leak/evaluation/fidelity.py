"""How close one reconstruction comes to one image: matching and per-pair similarity."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def flatten(images: np.ndarray) -> np.ndarray:
    """[M, H, W, C] -> [M, H * W * C]."""
    return np.asarray(images).reshape(len(images), -1)


def euclidean_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distances [M, N] between vectors [M, F] and [N, F], by one matrix product."""
    squares = np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1)[None] - 2.0 * left @ right.T
    return np.sqrt(np.maximum(squares, 0.0))


def nearest_by_l1(images: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest candidate of each image in L1, as Hitaj et al. 2017, section 9.2.1, show it above a reconstruction.

    images [M, H, W, C], candidates [N, H, W, C] -> (indices [M], mean absolute difference per pixel [M]).
    """
    # Here, since it takes longer to import than all the rest of this package.
    from scipy.spatial.distance import cdist

    pixels = int(np.prod(np.shape(images)[1:]))
    distances = cdist(flatten(images), flatten(candidates), "cityblock") / pixels
    nearest = np.argmin(distances, axis=1)
    return nearest, distances[np.arange(len(nearest)), nearest]


def structural_similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """SSIM of each pair of images [M, H, W, C] in [-1, 1] -> [M] (Wang et al. 2004; 11x11 Gaussian window)."""
    import dm_pix

    # The luminance term needs values that start at zero.
    unit_left, unit_right = ((jnp.asarray(images) + 1.0) / 2.0 for images in (left, right))
    return np.asarray(dm_pix.ssim(unit_left, unit_right, max_val=1.0))
