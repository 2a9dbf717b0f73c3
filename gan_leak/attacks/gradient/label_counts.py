"""The class counts of a batch, from the gradient of the last layer (Ma et al. 2023, iLRG, section 3)."""

from __future__ import annotations

import jax
import numpy as np

from gan_leak.types import Array, PyTree

# Largest distance of a count from a whole number. An absent class or a wrong count gives a larger one.
_FROM_WHOLE = 0.1
# Largest distance, half of L1, between the probabilities of two classes' images.
_PROBABILITIES_APART = 0.25
# Largest part of the last bias's gradient that a scale may leave unexplained.
_UNEXPLAINED = 0.01


def last_layer_leaf(num_classes: int, ndim: int, tree: PyTree) -> Array:
    """The kernel (ndim 2) or the bias (ndim 1) of the last layer: the only such leaf that ends in ``num_classes``.

    Raises ValueError if there are several, or none.
    """
    alike = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == ndim and leaf.shape[-1] == num_classes]
    if len(alike) != 1:
        raise ValueError(f"labels: {len(alike)} gradients end in {num_classes} classes, expected one layer's")
    return alike[0]


def infer_label_counts(
    kernel: np.ndarray, bias: np.ndarray, kernel_gradient: np.ndarray, bias_gradient: np.ndarray, batch_size: int
) -> np.ndarray:
    """The labels [batch_size] of a batch, sorted and with repetitions, from the last layer and its gradients.

    kernel, kernel_gradient: [F, K]; bias, bias_gradient: [K]. The gradients are of a mean over the batch.

    The method assumes that the images of class k share one input of the layer: the k-th column of the kernel's gradient
    over the k-th entry of the bias's. This input gives their probabilities. The counts solve
    batch_size * bias_gradient = sum of probabilities - counts. This is exact if the probabilities do not depend on the
    image, and nearly exact in an untrained network.

    Raises ValueError unless the probabilities of the classes are similar, and the counts are within 0.1 of whole
    numbers, sum to the batch size, and include every class with a negative bias gradient.
    """
    weights, offsets, columns, entries = (
        np.asarray(values, np.float64) for values in (kernel, bias, kernel_gradient, bias_gradient)
    )
    tiny = np.finfo(np.float64).tiny
    inputs = (columns / np.where(entries == 0, tiny, entries)).T * (entries != 0)[:, None]
    probabilities = _softmax(inputs @ weights + offsets)
    equations = np.vstack([probabilities.T - np.eye(len(entries)), np.ones(len(entries))])
    solved = np.linalg.lstsq(equations, np.append(batch_size * entries, batch_size), rcond=None)[0]
    counts = np.rint(solved).astype(int)
    off = float(np.max(np.abs(solved - counts)))
    shown = probabilities[counts > 0]
    apart = max((0.5 * float(np.max(np.abs(shown - row).sum(axis=1))) for row in shown), default=1.0)
    consistent = counts.sum() == batch_size and (counts >= 0).all() and (counts[entries < 0] >= 1).all()
    if not consistent or off > _FROM_WHOLE or apart > _PROBABILITIES_APART:
        raise ValueError(
            f"labels: the counts of {batch_size} images cannot be inferred reliably ({off:.2f} from whole numbers, "
            f"probabilities {apart:.2f} apart); expected known labels: --labels=known with an array 'labels' in the "
            "file of --gradient, or an attack that recovers them"
        )
    return np.repeat(np.arange(len(entries)), counts)


def infer_scale(
    kernel: np.ndarray, bias: np.ndarray, kernel_gradient: np.ndarray, bias_gradient: np.ndarray, batch_size: int
) -> float | None:
    """The factor between a gradient and that of a mean over the batch, from its last layer; None if it is unknown.

    Arrays as in ``infer_label_counts``. For one image it is exact. The ratio of the layer's gradients is its input, the
    input gives the probabilities p, and the bias gradient is a multiple of p - one-hot. For a batch it is 1 (a mean) or
    the batch size (a sum), if exactly one of them gives whole counts.
    """
    if batch_size > 1:
        possible = []
        for scale in (1.0, float(batch_size)):
            try:
                infer_label_counts(kernel, bias, kernel_gradient / scale, bias_gradient / scale, batch_size)
                possible.append(scale)
            except ValueError:
                continue
        return possible[0] if len(possible) == 1 else None
    entries = np.asarray(bias_gradient, np.float64)
    for label in (int(np.argmin(entries)), int(np.argmax(entries))):
        if entries[label] == 0:
            continue
        inputs = np.asarray(kernel_gradient, np.float64)[:, label] / entries[label]
        expected = _softmax(inputs @ np.asarray(kernel, np.float64) + bias)
        expected[label] -= 1.0
        scale = float(entries @ expected / max(expected @ expected, np.finfo(np.float64).tiny))
        if np.linalg.norm(entries - scale * expected) < _UNEXPLAINED * np.linalg.norm(entries):
            return scale
    return None


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
