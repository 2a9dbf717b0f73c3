"""GRNN's generator of images and labels from noise (Ren, Deng and Xie 2022, released code)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp

from gan_leak.models.initialization import init_params
from gan_leak.models.layers import BatchNorm, TorchConvolution, TorchDense, torch_uniform
from gan_leak.types import Array, PyTree


class Generated(NamedTuple):
    """Images [B, S, S, C] in [0, 1] and soft labels [B, K]."""

    images: Array
    labels: Array


class Generator(NamedTuple):
    """``init(key) -> params``; ``apply(params, noise [B, Z]) -> Generated``."""

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array], Generated]


def grnn_generator(
    num_classes: int, *, image_size: int = 32, channels: int = 3, noise_size: int = 128, implementation: str = "auto"
) -> Generator:
    """The two-branch generator: ``apply(params, noise [B, noise_size]) -> Generated``.

    The image branch has 710,988 parameters at 32 pixels and three channels. BatchNorm uses the current batch.
    Raises ValueError unless the image size is a power of two from 16 on.
    """
    if image_size < 16 or image_size & (image_size - 1):
        raise ValueError(f"image_size={image_size}: expected a power of two, at least 16")
    module = _Generator(num_classes, image_size, channels, implementation)

    def init(key: Array) -> PyTree:
        return init_params(module, key, (2, noise_size))

    def apply(params: dict, noise: Array) -> Generated:
        return cast(Generated, module.apply({"params": params}, noise))

    return Generator(init, apply)


class _Generator(nn.Module):
    num_classes: int
    image_size: int
    channels: int
    implementation: str

    @nn.compact
    def __call__(self, noise: Array) -> Generated:
        labels = nn.softmax(TorchDense(self.num_classes, name="label_layer")(noise))
        features = 4 * self.image_size
        # On a 1x1 input a transposed convolution is a matrix product. Torch counts its outputs as the fan-in.
        initializer = torch_uniform(2 * features * 16)
        kernel = self.param("kernel", initializer, (noise.shape[-1], 4, 4, 2 * features))
        bias = self.param("bias", initializer, (2 * features,))
        values = _gated(jnp.einsum("bz,zhwc->bhwc", noise, kernel) + bias[None, None, None])
        while values.shape[1] < self.image_size:
            last = values.shape[1] == self.image_size // 2
            features = self.channels if last else features // 2
            values = values.repeat(2, axis=1).repeat(2, axis=2)
            convolution = TorchConvolution(2 * features, 3, 1, use_bias=False, implementation=self.implementation)
            values = _gated(BatchNorm()(convolution(values)))
        return Generated(nn.sigmoid(values), labels)


def _gated(values: Array) -> Array:
    passed, gate = jnp.split(values, 2, axis=-1)
    return passed * nn.sigmoid(gate)
