"""Images between files and networks: uint8 [0, 255] on one side, float32 [-1, 1] on the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image


def to_float(images: np.ndarray) -> np.ndarray:
    """Scale uint8 images of any shape to float32 in [-1, 1] by ``x / 127.5 - 1`` (Hitaj et al. 2017, section 8.1).

    Raises ValueError if ``images`` is not uint8, which prevents scaling twice.

    >>> to_float(np.array([0, 255], np.uint8))
    array([-1.,  1.], dtype=float32)
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"images.dtype={images.dtype}, expected uint8")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: ArrayLike) -> np.ndarray:
    """Scale float images of any shape from [-1, 1] to uint8, rounded and clipped; the inverse of ``to_float``.

    Raises ValueError if ``images`` is not floating point or holds NaN.

    >>> to_uint8(np.array([-1.0, 0.2, 1.0]))
    array([  0, 153, 255], dtype=uint8)
    """
    images = np.asarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images.dtype={images.dtype}, expected a float type")
    if np.isnan(images).any():
        raise ValueError("images hold NaN, expected numbers in [-1, 1]")
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def fit(images: np.ndarray, image_size: int) -> np.ndarray:
    """Bring uint8 images [N, H, W, C] to [N, image_size, image_size, C].

    Images that fit inside are centered on black. Larger images are cropped to their center square. The square is
    resized with an antialiased bicubic filter or, if its side is at most ``image_size``, centered on black.

    Raises ValueError on another type or shape, and on an ``image_size`` below 1.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, C]")
    if image_size < 1:
        raise ValueError(f"image_size={image_size}, expected at least 1")
    if max(images.shape[1:3]) > image_size:
        images = _center_square(images)
    if max(images.shape[1:3]) > image_size:
        return _resize(images, image_size)
    return _pad(images, image_size)


def _center_square(images: np.ndarray) -> np.ndarray:
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]


def _pad(images: np.ndarray, image_size: int) -> np.ndarray:
    count, height, width, channels = images.shape
    top, left = (image_size - height) // 2, (image_size - width) // 2
    padded = np.zeros((count, image_size, image_size, channels), np.uint8)
    padded[:, top : top + height, left : left + width] = images
    return padded


def _resize(images: np.ndarray, image_size: int) -> np.ndarray:
    count, channels = images.shape[0], images.shape[3]
    resized = np.empty((count, image_size, image_size, channels), np.uint8)
    for index in range(count):
        for channel in range(channels):
            picture = Image.fromarray(np.ascontiguousarray(images[index, :, :, channel]))
            picture = picture.resize((image_size, image_size), Image.Resampling.BICUBIC)
            resized[index, :, :, channel] = np.asarray(picture)
    return resized
