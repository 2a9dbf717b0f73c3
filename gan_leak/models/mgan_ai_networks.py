"""Networks for mGAN-AI (Wang et al. 2019): the shared classifier, and generators of a category and an identity.

The papers' text was not available. The shapes that others quote are those of the ACGAN example of Keras, which is
followed here without its dropout and BatchNorm. BUILD_NOTES.md lists what is ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_leak.models.flax import stateless_model
from gan_leak.models.hitaj_generators import LATENT_SIZE
from gan_leak.models.layered import Layer, LayeredModel, layered
from gan_leak.models.layers import TorchConvolution, TorchDense
from gan_leak.types import Array, Model, PyTree

EMBEDDING_SIZE = 100
# By image size: the strides of the classifier, the first side of the generator, and the widths of its layers.
_STRIDES = {28: (2, 1, 2, 1), 32: (2, 1, 2, 1), 64: (2, 2, 2, 1)}
_FIRST_SIDES = {28: 3, 32: 4, 64: 4}
_WIDTHS = {28: (384, 192, 96), 32: (384, 192, 96), 64: (384, 192, 96, 48)}
_KERNEL_SIZE = 5


class ConditionalGenerator(NamedTuple):
    """A generator with a category and an identity as conditions.

    ``init(key) -> params``; ``apply(params, latents [B, Z], categories int32 [B], identities int32 [B]) -> images
    [B, H, W, C]`` in [-1, 1]. categories, identities: how many of each there are. latent_size: Z.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array, Array, Array], Array]
    categories: int
    identities: int
    latent_size: int


def _check_image_size(image_size: int) -> None:
    if image_size not in _STRIDES:
        raise ValueError(f"image_size={image_size}: allowed are {', '.join(map(str, _STRIDES))}")


def mgan_ai_classifier(
    num_classes: int = 10, *, image_size: int = 28, channels: int = 1, implementation: str = "auto"
) -> LayeredModel:
    """The shared classifier: four 3x3 convolutions to 32, 64, 128 and 256 channels, LeakyReLU 0.2, one dense layer.

    513,290 parameters with 28 pixels, one channel and 10 classes. At 64 pixels three convolutions have stride 2
    (ours). It has neither dropout nor BatchNorm, since its gradient is matched. The initialization is Torch's (ours).

    Raises ValueError for an image size other than 28, 32 and 64.
    """
    _check_image_size(image_size)
    layers: list[tuple[str, Layer]] = []
    for index, stride in enumerate(_STRIDES[image_size]):
        convolution = TorchConvolution(32 * 2**index, 3, padding=1, stride=stride, implementation=implementation)
        layers += [(f"convolution{index}", convolution), (f"activation{index}", _leaky_relu)]
    layers += [("flat", _flat), ("output_layer", TorchDense(num_classes))]
    return layered(layers, (image_size, image_size, channels))


def _leaky_relu(values: Array) -> Array:
    return nn.leaky_relu(values, 0.2)


def _flat(images: Array) -> Array:
    return images.reshape(len(images), -1)


def conditional_generator(
    generator: Model, *, categories: int, identities: int, latent_size: int = LATENT_SIZE
) -> ConditionalGenerator:
    """Add the two conditions to a generator with latents of size ``latent_size + 2 * EMBEDDING_SIZE``.

    Its latents are concat(z, embedding of the category, embedding of the identity). The embeddings are learned and
    start uniform in [-1, 1], as z (ours). Raises ValueError for fewer than one category or two identities.

    >>> from gan_leak.models import dcgan_generator
    >>> dcgan = dcgan_generator(32, width=4, latent_size=LATENT_SIZE + 2 * EMBEDDING_SIZE)
    >>> generator = conditional_generator(dcgan, categories=10, identities=6)
    >>> params = jax.eval_shape(generator.init, jax.random.key(0))
    >>> numbers = jnp.zeros(5, int)
    >>> jax.eval_shape(generator.apply, params, jnp.zeros((5, LATENT_SIZE)), numbers, numbers).shape
    (5, 32, 32, 1)
    """
    for name, count, least in (("categories", categories, 1), ("identities", identities, 2)):
        if count < least:
            raise ValueError(f"{name}={count}: expected at least {least}")

    def init(key: Array) -> dict:
        key_generator, *keys = jax.random.split(key, 3)
        tables = [
            jax.random.uniform(table_key, (count, EMBEDDING_SIZE), minval=-1.0, maxval=1.0)
            for table_key, count in zip(keys, (categories, identities), strict=True)
        ]
        return {"generator": generator.init(key_generator), "categories": tables[0], "identities": tables[1]}

    def apply(params: dict, latents: Array, category: Array, identity: Array) -> Array:
        joined = jnp.concatenate([latents, params["categories"][category], params["identities"][identity]], axis=1)
        return generator.apply(params["generator"], joined)

    return ConditionalGenerator(init, apply, categories, identities, latent_size)


def mgan_ai_generator(
    *, categories: int = 10, identities: int = 2, image_size: int = 28, channels: int = 1
) -> ConditionalGenerator:
    """The generator: a dense layer to 3x3x384, transposed 5x5 convolutions to 192, 96 and the image, ReLU, tanh.

    3,348,145 parameters with 28 pixels, one channel, 10 categories and 2 identities. It starts from 4x4 at 32 and 64
    pixels, and has one more layer, of 48 channels, at 64 pixels (ours).

    Raises ValueError for an image size other than 28, 32 and 64.

    >>> from gan_leak.models import count_parameters
    >>> count_parameters(jax.eval_shape(mgan_ai_generator().init, jax.random.key(0)))
    3348145
    """
    _check_image_size(image_size)
    module = _Generator(_FIRST_SIDES[image_size], _WIDTHS[image_size], channels)
    network = stateless_model(module, (LATENT_SIZE + 2 * EMBEDDING_SIZE,))
    return conditional_generator(network, categories=categories, identities=identities)


class _Generator(nn.Module):
    """From latents through a small image: one convolution without padding, then one for each doubling of the side."""

    first_side: int
    widths: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        first, second, *later = self.widths
        hidden = nn.relu(nn.Dense(self.first_side**2 * first, name="dense")(latents))
        hidden = hidden.reshape(-1, self.first_side, self.first_side, first)
        hidden = nn.relu(_TransposedConvolution(second, name="convolution0")(hidden))
        for index, width in enumerate(later, start=1):
            hidden = nn.relu(_TransposedConvolution(width, doubles=True, name=f"convolution{index}")(hidden))
        return jnp.tanh(_TransposedConvolution(self.channels, doubles=True, name="image")(hidden))


class _TransposedConvolution(nn.Module):
    """A transposed 5x5 convolution [B, H, W, C] -> [B, H + 4, W + 4, features], or [B, 2H, 2W, features] if it doubles.

    The initialization is Glorot's, as in Keras.
    """

    features: int
    doubles: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        shape = (_KERNEL_SIZE, _KERNEL_SIZE, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        stride, cut = (2, (2, 1)) if self.doubles else (1, (0, 0))
        return transposed_convolve(images, kernel, stride, cut) + bias[None, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def transposed_convolve(images: Array, kernel: Array, stride: int, cut: tuple[int, int]) -> Array:
    """Transposed convolution of [B, H, W, C] with [K, K, C, O] -> [B, H', W', O].

    Input pixel i adds ``kernel[a]`` to output row ``stride * i + a - cut[0]``, and likewise for columns. cut: rows and
    columns removed at the beginning and at the end: H' = (H - 1) * stride + K - sum(cut). It is one matrix product and
    an overlap-add, which is several times faster on a CPU than a convolution of an image spread by zeros.
    """
    batch, height, width, channels = images.shape
    size, _, _, outputs = kernel.shape
    products = images.reshape(-1, channels) @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    products = products.reshape(batch, height, width, size, size, outputs)
    return _overlap_add(_overlap_add(products, 1, 3, stride, cut), 2, 3, stride, cut)


def _overlap_add(products: Array, axis: int, kernel_axis: int, stride: int, cut: tuple[int, int]) -> Array:
    """Sum the entries of the kernel's axis into the spatial axis, each at its place; the kernel's axis is removed."""
    size = products.shape[kernel_axis]
    total: Array | None = None
    for index in range(size):
        tap = jax.lax.index_in_dim(products, index, kernel_axis, keepdims=False)
        padding = [(0, 0, 0)] * tap.ndim
        padding[axis] = (index - cut[0], size - 1 - index - cut[1], stride - 1)
        placed = jax.lax.pad(tap, jnp.zeros((), tap.dtype), padding)
        total = placed if total is None else total + placed
    assert total is not None
    return total


def _forward(images: Array, kernel: Array, stride: int, cut: tuple[int, int]) -> tuple[Array, tuple[Array, Array]]:
    return transposed_convolve(images, kernel, stride, cut), (images, kernel)


def _backward(
    stride: int, cut: tuple[int, int], residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    # The derived gradient of the overlap-add would write padded copies of all products. Patches give the same.
    images, kernel = residuals
    _, height, width, channels = images.shape
    size, _, _, outputs = kernel.shape
    padded = jnp.pad(gradient, ((0, 0), cut, cut, (0, 0)))
    down, right = stride * (height - 1) + 1, stride * (width - 1) + 1
    patches = jnp.concatenate(
        [padded[:, a : a + down : stride, b : b + right : stride] for a in range(size) for b in range(size)], axis=-1
    ).reshape(-1, size * size * outputs)
    matrix = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    kernel_gradient = (images.reshape(-1, channels).T @ patches).reshape(channels, size, size, outputs)
    return (patches @ matrix.T).reshape(images.shape), kernel_gradient.transpose(1, 2, 0, 3)


transposed_convolve.defvjp(_forward, _backward)
