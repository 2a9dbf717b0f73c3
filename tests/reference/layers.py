"""Layers by nested loops, from their definitions in Torch."""

import math

import numpy as np


def convolve(image, kernel):
    """Cross-correlation [H, W, C] with [K, K, C, O], stride 1, no padding."""
    size, height, width = kernel.shape[0], image.shape[0] - kernel.shape[0] + 1, image.shape[1] - kernel.shape[0] + 1
    output = np.zeros((height, width, kernel.shape[3]))
    for row in range(height):
        for column in range(width):
            for a in range(size):
                for b in range(size):
                    output[row, column] += image[row + a, column + b] @ kernel[a, b]
    return output


def max_pool(image, window):
    """Floor-mode max-pool [H, W, C] -> (values, position [.., 2] of the first maximum of each window, row by row)."""
    height, width, channels = image.shape[0] // window, image.shape[1] // window, image.shape[2]
    values, positions = np.zeros((height, width, channels)), np.zeros((height, width, channels, 2), int)
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                best = -math.inf
                for y in range(row * window, (row + 1) * window):
                    for x in range(column * window, (column + 1) * window):
                        if image[y, x, channel] > best:
                            best = image[y, x, channel]
                            positions[row, column, channel] = y, x
                values[row, column, channel] = best
    return values, positions


def full_convolution(image, kernel, stride=2, padding=1):
    """Torch's SpatialFullConvolution: input (y, x) adds kernel[a, b] to output (y * stride - padding + a, ...)."""
    size = kernel.shape[0]
    height, width = ((side - 1) * stride - 2 * padding + size for side in image.shape[:2])
    output = np.zeros((height, width, kernel.shape[3]))
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for a in range(size):
                for b in range(size):
                    row, column = y * stride - padding + a, x * stride - padding + b
                    if 0 <= row < height and 0 <= column < width:
                        output[row, column] += image[y, x] @ kernel[a, b]
    return output
