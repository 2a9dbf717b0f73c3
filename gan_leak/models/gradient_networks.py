"""The networks whose gradients are inverted: the sigmoid LeNets of DLG and GRNN, and GRNN's sigmoid ResNet-18.

``dlg_lenet_batchnorm`` is ours: DLG's LeNet with BatchNorm, to tell what BatchNorm changes.

They have sigmoids because the second derivatives of ReLU networks vanish. The default initialization is Torch's.
``with_uniform_init`` draws every parameter from U(-0.5, 0.5), as the authors do (Zhu, Liu and Han 2019, released code;
Ren, Deng and Xie 2022).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_leak.models.flax import stateless_model
from gan_leak.models.layered import Layer, layered, whole
from gan_leak.models.layers import BatchNorm, TorchConvolution, TorchDense, halve
from gan_leak.types import Array, Model, PyTree

_HALF_WIDTH = 0.5


def dlg_lenet(num_classes: int, *, image_size: int = 32, channels: int = 3, implementation: str = "auto") -> Model:
    """DLG's LeNet: 5x5 convolutions to 12 channels with strides 2, 2, 1, one linear layer; inputs [B, S, S, C]."""
    steps = [layer for stride in (2, 2, 1) for layer in (_dlg_convolution(stride, implementation), nn.sigmoid)]
    return _numbered([*steps, _flatten, TorchDense(num_classes)], image_size, channels)


def dlg_lenet_batchnorm(
    num_classes: int, *, image_size: int = 32, channels: int = 3, implementation: str = "auto"
) -> Model:
    """DLG's LeNet with BatchNorm by the current batch between each convolution and its sigmoid."""
    steps = [
        layer for stride in (2, 2, 1) for layer in (_dlg_convolution(stride, implementation), BatchNorm(), nn.sigmoid)
    ]
    return _numbered([*steps, _flatten, TorchDense(num_classes)], image_size, channels)


def _dlg_convolution(stride: int, implementation: str) -> TorchConvolution:
    return TorchConvolution(12, 5, padding=2, stride=stride, implementation=implementation)


def grnn_lenet(num_classes: int, *, image_size: int = 32, channels: int = 3, implementation: str = "auto") -> Model:
    """GRNN's LeNet: two 5x5 convolutions (6, 16) with sigmoid and max-pool, hidden layers of 120 and 84 sigmoids."""
    steps: list[Layer] = [
        layer
        for features in (6, 16)
        for layer in (TorchConvolution(features, 5, implementation=implementation), nn.sigmoid, halve)
    ]
    steps += [_flatten, TorchDense(120), nn.sigmoid, TorchDense(84), nn.sigmoid, TorchDense(num_classes)]
    return _numbered(steps, image_size, channels)


def grnn_resnet18(num_classes: int, *, image_size: int = 32, channels: int = 3, implementation: str = "auto") -> Model:
    """GRNN's ResNet-18 for small images: sigmoids instead of ReLUs, BatchNorm by the current batch."""
    return stateless_model(_SigmoidResNet(num_classes, implementation), (image_size, image_size, channels))


def _numbered(steps: list[Layer], image_size: int, channels: int) -> Model:
    return whole(
        layered([(f"layer{index}", step) for index, step in enumerate(steps)], (image_size, image_size, channels))
    )


def with_uniform_init(model: Model) -> Model:
    """The model with every parameter drawn from U(-0.5, 0.5)."""

    def init(key: Array) -> PyTree:
        leaves, structure = jax.tree.flatten(jax.eval_shape(model.init, key))
        keys = jax.random.split(key, len(leaves))
        drawn = [
            jax.random.uniform(leaf_key, leaf.shape, leaf.dtype, -_HALF_WIDTH, _HALF_WIDTH)
            for leaf_key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, drawn)

    return Model(init, model.apply)


def _flatten(images: Array) -> Array:
    return images.reshape(len(images), -1)


class _SigmoidBlock(nn.Module):
    features: int
    stride: int
    implementation: str

    @nn.compact
    def __call__(self, values: Array) -> Array:
        def convolution(size: int, stride: int, values: Array) -> Array:
            layer = TorchConvolution(
                self.features, size, size // 2, stride, use_bias=False, implementation=self.implementation
            )
            return BatchNorm()(layer(values))

        hidden = nn.sigmoid(convolution(3, self.stride, values))
        shortcut = values
        if self.stride > 1 or values.shape[-1] != self.features:
            shortcut = convolution(1, self.stride, values)
        return nn.sigmoid(convolution(3, 1, hidden) + shortcut)


class _SigmoidResNet(nn.Module):
    num_classes: int
    implementation: str

    @nn.compact
    def __call__(self, images: Array) -> Array:
        stem = TorchConvolution(64, 3, 1, use_bias=False, implementation=self.implementation)
        values = nn.sigmoid(BatchNorm()(stem(images)))
        for features, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first_stride, 1):
                values = _SigmoidBlock(features, stride, self.implementation)(values)
        return TorchDense(self.num_classes)(jnp.mean(values, axis=(1, 2)))
