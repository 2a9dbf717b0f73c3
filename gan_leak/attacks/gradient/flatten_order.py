"""The order in which a network flattens its last feature map: (H, W, C) as here, or (C, H, W) as in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Largest relative error of the better order, and its least advantage. The right order leaves at most 0.2, the other
# 0.6 and more.
_EXPLAINED = 0.3
_TIMES_BETTER = 2.0


def infer_flatten_order(
    kernel: np.ndarray,
    kernel_gradient: np.ndarray,
    bias_gradient: np.ndarray,
    convolution_bias_gradient: np.ndarray,
    slope: Callable[[np.ndarray], np.ndarray],
) -> str | None:
    """The order, 'hwc' or 'chw', of the rows of the first dense layer, or None if it cannot be inferred.

    kernel, kernel_gradient [H W C, F] and bias_gradient [F]: of the dense layer. convolution_bias_gradient [C]: of the
    convolution before it. slope: the derivative of the activation between them as a function of its value.

    By the chain rule, the bias gradient of a channel is the sum of the dense layer's backward values over the rows of
    this channel. For one image this is exact, since the gradients give the rows' inputs. For a batch the inputs are
    averages.
    """
    rows, passed, observed = (
        np.asarray(values, np.float64) for values in (kernel_gradient, bias_gradient, convolution_bias_gradient)
    )
    channels, norm = len(observed), float(np.linalg.norm(observed))
    if not norm or not np.any(passed) or len(rows) % channels:
        return None
    inputs = rows @ passed / (passed @ passed)
    back = (np.asarray(kernel, np.float64) @ passed) * slope(inputs)
    left = {
        "hwc": np.linalg.norm(back.reshape(-1, channels).sum(axis=0) - observed) / norm,
        "chw": np.linalg.norm(back.reshape(channels, -1).sum(axis=1) - observed) / norm,
    }
    best, other = sorted(left, key=left.__getitem__)
    return best if left[best] < _EXPLAINED and left[other] > _TIMES_BETTER * left[best] else None


def chw_to_hwc(rows: np.ndarray, channels: int) -> np.ndarray:
    """Rows [C H W, F] in the order (H, W, C)."""
    return rows.reshape(channels, -1, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)
