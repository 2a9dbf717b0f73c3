"""Similarity of a reconstruction to an image: matching and measures of pairs."""

from __future__ import annotations

import jax
import numpy as np

from gan_leak.evaluation.batches import in_batches
from gan_leak.types import Array

_BATCH = 250


def flatten(images: np.ndarray) -> np.ndarray:
    """[M, H, W, C] -> [M, H * W * C]."""
    return np.asarray(images).reshape(len(images), -1)


def euclidean_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distances [M, N] between vectors [M, F] and [N, F], by one matrix product."""
    squares = np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1)[None] - 2.0 * left @ right.T
    return np.sqrt(np.maximum(squares, 0.0))


def nearest(images: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The index [M] of the candidate [N, H, W, C] that is nearest to each image [M, H, W, C] on pixels."""
    return np.argmin(euclidean_distances(flatten(images), flatten(candidates)), axis=1)


def re_identified(images: np.ndarray, originals: np.ndarray, labels: np.ndarray, known: tuple) -> np.ndarray:
    """Whether each image [M, H, W, C] correlates most with its own original among all known images of its class -> [M].

    originals [M]: positions among the known images; labels [M]: their classes; known: images [N, H, W, C] and classes
    [N]. Brightness and contrast do not count. An image that correlates with
    nothing, or equally with two images, is not re-identified; nor is one whose original is the only one of its class.
    """
    candidates, classes = known
    drawn = _centred(flatten(images))
    found = np.zeros(len(images), bool)
    for label in np.unique(labels):
        mine, alike = np.flatnonzero(labels == label), np.flatnonzero(classes == label)
        correlations = drawn[mine] @ _centred(flatten(candidates[alike])).T
        own = alike[None] == np.asarray(originals)[mine][:, None]
        others = np.max(correlations, axis=1, initial=0.0, where=~own)
        found[mine] = (np.max(correlations, axis=1, initial=0.0, where=own) > others) & (len(alike) > 1)
    return found


def class_means(labels: np.ndarray, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """For each label [M] the mean of the images [N, H, W, C] of its class, of all where there are none -> [M, ...]."""

    def mean(label: int) -> np.ndarray:
        alike = images[classes == label]
        return np.mean(alike if len(alike) else images, axis=0)

    means = {label: mean(label) for label in np.unique(labels)}
    return np.stack([means[label] for label in labels])


def _centred(vectors: np.ndarray) -> np.ndarray:
    """Vectors [M, F] of mean 0 and length 1, or 0."""
    shifted = vectors.astype(np.float64) - np.mean(vectors, axis=1, keepdims=True, dtype=np.float64)
    lengths = np.linalg.norm(shifted, axis=1, keepdims=True)
    # Constant, except for rounding.
    return np.where(lengths > 1e-6, shifted / np.maximum(lengths, 1e-6), 0.0)


def nearest_by_l1(images: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest candidate of each image in L1, as Hitaj et al. 2017, section 9.2.1, show it.

    images [M, H, W, C], candidates [N, H, W, C] -> (indices [M], mean absolute difference per pixel [M]).
    """
    # Imported here, because its import takes longer than that of the whole package.
    from scipy.spatial.distance import cdist

    pixels = int(np.prod(np.shape(images)[1:]))
    distances = cdist(flatten(images), flatten(candidates), "cityblock") / pixels
    nearest = np.argmin(distances, axis=1)
    return nearest, distances[np.arange(len(nearest)), nearest]


def structural_similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """SSIM of each pair of images [M, H, W, C] in [-1, 1] -> [M] (Wang et al. 2004; 11x11 Gaussian window)."""
    return in_batches(_structural_similarity, left, right, most=_BATCH)


@jax.jit
def _structural_similarity(left: Array, right: Array) -> Array:
    import dm_pix

    # The luminance term needs values that start at zero.
    return dm_pix.ssim((left + 1.0) / 2.0, (right + 1.0) / 2.0, max_val=1.0)


def peak_signal_to_noise(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """PSNR in dB of each image [M, H, W, C] against its original, both in [-1, 1] and cut to it -> [M]; inf if equal.

    10 log10(peak^2 / mean squared error), the standard form: the peak is the range of the values.
    """
    error = root_mean_square_error(images, originals)
    with np.errstate(divide="ignore"):
        return 20.0 * np.log10(255.0 / error)


def root_mean_square_error(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """The root of the mean squared difference of each pair, in gray levels of 0 to 255 -> [M].

    The group of GRNN reports this as "MSE" (FedKL, AdaDefense: released evaluation code).
    """
    difference = np.clip(images, -1.0, 1.0).astype(np.float64) - np.clip(originals, -1.0, 1.0)
    return 127.5 * np.sqrt(np.mean(difference**2, axis=(1, 2, 3)))


def group_psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """The "PSNR" of the group of GRNN: 10 log10(255^2 / root mean square error) -> [M].

    Half of the standard PSNR plus 24.07 dB: an unrelated picture has 26 to 30.
    """
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(255.0**2 / root_mean_square_error(images, originals))


def uniform_similarity(images: np.ndarray, originals: np.ndarray, *, by_range: bool = False) -> np.ndarray:
    """SSIM with a uniform window of 7 pixels, as in scikit-image, of images [M, H, W, C] in [-1, 1] -> [M].

    by_range: use the range of values in each reconstruction, as the released code of He, Zhang and Lee 2019; pale
    pictures score lower. Otherwise the range is that of all possible values.
    """
    from scipy.ndimage import uniform_filter

    left, right = ((np.clip(values, -1.0, 1.0).astype(np.float64) + 1.0) / 2.0 for values in (images, originals))
    window, covariance_norm = 7, 49.0 / 48.0
    # A constant reconstruction has no range.
    spans = np.maximum(np.ptp(left, axis=(1, 2, 3)), 1e-6) if by_range else np.ones(len(left))
    first, second = (((factor * spans) ** 2)[:, None, None, None] for factor in (0.01, 0.03))

    def average(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, size=(1, window, window, 1))

    mean_left, mean_right = average(left), average(right)
    variance_left = covariance_norm * (average(left**2) - mean_left**2)
    variance_right = covariance_norm * (average(right**2) - mean_right**2)
    covariance = covariance_norm * (average(left * right) - mean_left * mean_right)
    similarity = (2 * mean_left * mean_right + first) * (2 * covariance + second)
    similarity /= (mean_left**2 + mean_right**2 + first) * (variance_left + variance_right + second)
    # Only windows inside the image.
    inner = slice(window // 2, -(window // 2))
    return similarity[:, inner, inner].mean(axis=(1, 2, 3))


def match(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """The original of each image [M, H, W, C], each original [M, ...] once -> permutation [M].

    Minimizes the sum of squared differences, because a recovered batch has no order.
    """
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(euclidean_distances(flatten(images), flatten(originals)) ** 2)
    return columns
