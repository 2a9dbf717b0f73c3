"""Convolution layers that stay fast inside ``scan`` and under ``vmap`` on every backend.

XLA's CPU backend runs its convolution inside a loop an order of magnitude slower than outside, and turns a ``vmap``
over kernels into a grouped convolution. Here a convolution is patches and one matrix product (``"matmul"``), and a
transposed convolution is one matrix product and an overlap-add. ``"blocked"`` also runs convolution and pooling on a
few images at a time, so that intermediate values stay in a core's cache. All equal XLA's operation (``"lax"``) to float
tolerance.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_leak.machine import has_core_for_each_device
from gan_leak.types import Array

IMPLEMENTATIONS = ("auto", "blocked", "matmul", "lax")
_NHWC = ("NHWC", "HWIO", "NHWC")
# Bytes of patches and products in a block: half of a core's second-level cache on current processors.
_BLOCK_BYTES = 2**19


def resolve_implementation(implementation: str) -> str:
    """Replace ``auto`` by ``blocked`` on a CPU with a core for each device, and by ``matmul`` elsewhere.

    Several cores share the work on a whole batch, but not on a block. Raises ValueError for an unknown name.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r}: allowed are {', '.join(map(repr, IMPLEMENTATIONS))}")
    if implementation == "auto":
        return "blocked" if has_core_for_each_device() else "matmul"
    return implementation


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Torch7's default initialization, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases (nn/Linear.lua)."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def convolve(images: Array, kernel: Array, *, implementation: str, stride: int = 1) -> Array:
    """Convolve images [B, H, W, C] with [K, K, C, O], no padding -> [B, H', W', O], H' = (H - K) // stride + 1."""
    implementation = resolve_implementation(implementation)
    if implementation == "lax":
        return jax.lax.conv_general_dilated(images, kernel, (stride, stride), "VALID", dimension_numbers=_NHWC)
    size, _, channels, outputs = kernel.shape
    height, width = ((side - size) // stride + 1 for side in images.shape[1:3])
    if stride > 1:
        down, right = stride * (height - 1) + 1, stride * (width - 1) + 1
        patches = jnp.concatenate(
            [images[:, i : i + down : stride, j : j + right : stride] for i in range(size) for j in range(size)],
            axis=-1,
        )
    elif implementation == "blocked":
        # First rows, then columns: on one core, two copies of few pieces cost less than one of many.
        rows = jnp.concatenate([images[:, i : i + height] for i in range(size)], axis=-1)
        patches = jnp.concatenate([rows[:, :, j : j + width] for j in range(size)], axis=-1)
        kernel = kernel.transpose(1, 0, 2, 3)
    else:
        patches = jnp.concatenate(
            [images[:, i : i + height, j : j + width, :] for i in range(size) for j in range(size)], axis=-1
        )
    products = patches.reshape(-1, size * size * channels) @ kernel.reshape(-1, outputs)
    return products.reshape(-1, height, width, outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(images: Array, window: int) -> Array:
    """Max-pool [B, H, W, C] over window x window with equal stride; H and W must be multiples of the window.

    The gradient goes to the first maximum of a window, as in Torch. JAX's own gradient shares it among equal maxima and
    takes several times as long on a CPU.
    """
    return functools.reduce(jnp.maximum, _offsets(images, window))


def halve(images: Array) -> Array:
    """``max_pool`` over 2x2: [B, H, W, C] -> [B, H/2, W/2, C]."""
    return max_pool(images, 2)


def _offsets(images: Array, window: int) -> list[Array]:
    """The entries of all windows at each place within them, window^2 times [B, H/window, W/window, C]."""
    batch, height, width, channels = images.shape
    windows = images.reshape(batch, height // window, window, width // window, window, channels)
    return [windows[:, :, offset // window, :, offset % window] for offset in range(window * window)]


def _max_and_position(images: Array, window: int) -> tuple[Array, Array]:
    # The barrier separates the maximum from its position: together they take three times as long.
    best = jax.lax.optimization_barrier(max_pool(images, window))
    entries = _offsets(jax.lax.stop_gradient(images), window)
    position = jnp.full(best.shape, len(entries) - 1, jnp.int8)
    for offset, entry in reversed(list(enumerate(entries[:-1]))):
        position = jnp.where(entry == best, jnp.int8(offset), position)
    return best, position


def _max_pool_backward(window: int, position: Array, gradient: Array) -> tuple[Array]:
    offsets = jnp.arange(window * window, dtype=jnp.int8).reshape(1, 1, window, 1, window, 1)
    spread = jnp.where(position[:, :, None, :, None] == offsets, gradient[:, :, None, :, None], 0)
    batch, height, width, channels = position.shape
    return (spread.reshape(batch, height * window, width * window, channels),)


max_pool.defvjp(_max_and_position, _max_pool_backward)


def pooled_convolve(images: Array, kernel: Array, pool: int, *, implementation: str) -> Array:
    """``max_pool(convolve(images, kernel), pool)``: [B, H, W, C] with [K, K, C, O] -> [B, H', W', O].

    H - K + 1 and W - K + 1 must be multiples of the pool.
    """
    if resolve_implementation(implementation) == "blocked":
        return _pooled_in_blocks(images, kernel, pool)
    return max_pool(convolve(images, kernel, implementation=implementation), pool)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pooled_in_blocks(images: Array, kernel: Array, pool: int) -> Array:
    blocks = _in_blocks(images, block_size(images, kernel))
    pooled = jax.lax.map(lambda block: max_pool(convolve(block, kernel, implementation="blocked"), pool), blocks)
    return _joined(pooled, len(images))


def block_size(images: Array, kernel: Array) -> int:
    """The number of images whose patches and products fit the cache; a divisor of the batch if one is near."""
    batch, height, width, _ = images.shape
    size, _, channels, outputs = kernel.shape
    places = (height - size + 1) * (width - size + 1)
    most = max(1, min(batch, _BLOCK_BYTES // (4 * places * (size * size * channels + outputs))))
    divisors = [count for count in range(most, most // 2, -1) if batch % count == 0]
    return divisors[0] if divisors else most


def _in_blocks(values: Array, block: int) -> Array:
    """[B, ...] -> [blocks, block, ...], padded with zeros."""
    missing = -len(values) % block
    padded = jnp.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)]) if missing else values
    return padded.reshape(-1, block, *values.shape[1:])


def _joined(blocks: Array, count: int) -> Array:
    return blocks.reshape(-1, *blocks.shape[2:])[:count]


def _pooled_forward(images: Array, kernel: Array, pool: int) -> tuple[Array, tuple[Array, Array, Array]]:
    def pooled(block: Array) -> tuple[Array, Array]:
        return _max_and_position(convolve(block, kernel, implementation="blocked"), pool)

    best, position = jax.lax.map(pooled, _in_blocks(images, block_size(images, kernel)))
    return _joined(best, len(images)), (images, kernel, position)


def _pooled_backward(pool: int, residuals: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array]:
    images, kernel, position = residuals

    def backward(kernel_gradient: Array, block: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        images, position, gradient = block
        _, of_convolution = jax.vjp(lambda *inputs: convolve(*inputs, implementation="blocked"), images, kernel)
        images_gradient, more = of_convolution(*_max_pool_backward(pool, position, gradient))
        return kernel_gradient + more, images_gradient

    block = position.shape[1]
    blocks = (_in_blocks(images, block), position, _in_blocks(gradient, block))
    kernel_gradient, images_gradient = jax.lax.scan(backward, jnp.zeros_like(kernel), blocks)
    return _joined(images_gradient, len(images)), kernel_gradient


_pooled_in_blocks.defvjp(_pooled_forward, _pooled_backward)


class BatchNorm(nn.Module):
    """BatchNorm by the statistics of the current batch, without running statistics."""

    @nn.compact
    def __call__(self, values: Array) -> Array:
        axes = tuple(range(values.ndim - 1))
        scale = self.param("scale", nn.initializers.ones, (values.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (values.shape[-1],))
        centered = values - jnp.mean(values, axes, keepdims=True)
        normal = centered * jax.lax.rsqrt(jnp.mean(centered**2, axes, keepdims=True) + 1e-5)
        return normal * jnp.expand_dims(scale, axes) + jnp.expand_dims(bias, axes)


class PooledConvolution(nn.Module):
    """Convolution, max-pool in floor mode, tanh: the block of the classifiers of Hitaj et al. 2017, section 8.3.

    batchnorm: with BatchNorm between max-pool and tanh, which the paper does not have. tanh is monotone, so it commutes
    with the maximum and runs after it, on a fraction of the values. Outputs that floor mode would drop are never
    computed.
    """

    features: int
    kernel_size: int
    pool: int
    implementation: str = "auto"
    batchnorm: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Images [B, H, W, C] -> [B, (H-K+1)//pool, (W-K+1)//pool, features]."""
        channels, size = images.shape[-1], self.kernel_size
        initializer = torch_uniform(size * size * channels)
        kernel = self.param("kernel", initializer, (size, size, channels, self.features))
        bias = self.param("bias", initializer, (self.features,))
        height, width = (((side - size + 1) // self.pool) * self.pool + size - 1 for side in images.shape[1:3])
        pooled = pooled_convolve(images[:, :height, :width], kernel, self.pool, implementation=self.implementation)
        values = pooled + bias[None, None, None]
        return jnp.tanh(BatchNorm()(values) if self.batchnorm else values)


class TorchConvolution(nn.Module):
    """A convolution with Torch's zero padding on all sides, stride, and default initialization of weights and bias."""

    features: int
    kernel_size: int
    padding: int = 0
    stride: int = 1
    use_bias: bool = True
    implementation: str = "auto"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Images [B, H, W, C] -> [B, H', W', features], H' = (H + 2 padding - kernel_size) // stride + 1."""
        channels, size = images.shape[-1], self.kernel_size
        initializer = torch_uniform(size * size * channels)
        kernel = self.param("kernel", initializer, (size, size, channels, self.features))
        padded = jnp.pad(images, ((0, 0), *[(self.padding, self.padding)] * 2, (0, 0)))
        outputs = convolve(padded, kernel, implementation=self.implementation, stride=self.stride)
        if not self.use_bias:
            return outputs
        return outputs + self.param("bias", initializer, (self.features,))[None, None, None]


class TorchTransposedConvolution(nn.Module):
    """Torch's ConvTranspose2d with its default initialization; the kernel has the orientation of a convolution's."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    implementation: str = "auto"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Images [B, H, W, C] -> [B, H', W', features], H' = (H-1) stride - 2 padding + size + output_padding."""
        size, edge = self.kernel_size, self.kernel_size - 1 - self.padding
        # Torch counts the outputs as the fan-in of a transposed convolution.
        initializer = torch_uniform(size * size * self.features)
        kernel = self.param("kernel", initializer, (size, size, images.shape[-1], self.features))
        bias = self.param("bias", initializer, (self.features,))
        sides = [(edge, edge + self.output_padding, self.stride - 1)] * 2
        spread = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *sides, (0, 0, 0)])
        return convolve(spread, kernel, implementation=self.implementation) + bias[None, None, None]


class TorchDense(nn.Module):
    """A fully connected layer with Torch7's default initialization of weights and bias."""

    features: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Inputs [B, F] -> [B, features]."""
        initializer = torch_uniform(inputs.shape[-1])
        return nn.Dense(self.features, kernel_init=initializer, bias_init=initializer)(inputs)


def upsample_convolve(images: Array, kernel: Array, *, implementation: str) -> Array:
    """Transposed convolution 4x4, stride 2, Torch padding 1: [B, H, W, C] with [4, 4, C, O] -> [B, 2H, 2W, O].

    Input pixel i adds ``kernel[a]`` to output row 2i - 1 + a, and likewise for columns (Torch's kernel orientation).
    """
    if resolve_implementation(implementation) == "lax":
        return jax.lax.conv_general_dilated(
            images, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_NHWC
        )
    return _upsample_by_matmul(images, kernel)


@jax.custom_vjp
def _upsample_by_matmul(images: Array, kernel: Array) -> Array:
    batch, height, width, channels = images.shape
    outputs = kernel.shape[-1]
    products = images.reshape(-1, channels) @ _kernel_as_matrix(kernel)
    products = products.reshape(batch, height, width, 4, 4, outputs)
    rows = _overlap_add(products, spatial_axis=1, kernel_axis=3)  # [B, H, 2, W, 4, O]
    both = _overlap_add(rows, spatial_axis=3, kernel_axis=4)  # [B, H, 2, W, 2, O]
    return both.reshape(batch, 2 * height, 2 * width, outputs)


def _kernel_as_matrix(kernel: Array) -> Array:
    """[4, 4, C, O] -> [C, 16 O]."""
    return kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)


def _overlap_add(products: Array, *, spatial_axis: int, kernel_axis: int) -> Array:
    def tap(index: int) -> Array:
        return jax.lax.index_in_dim(products, index, kernel_axis, keepdims=False)

    def shift(values: Array, step: int) -> Array:
        padding = [(0, 0, 0)] * values.ndim
        padding[spatial_axis] = (step, -step, 0)
        return jax.lax.pad(values, jnp.zeros((), values.dtype), padding)

    even = tap(1) + shift(tap(3), 1)
    odd = tap(2) + shift(tap(0), -1)
    return jnp.stack([even, odd], axis=spatial_axis + 1)


def _upsample_forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _upsample_by_matmul(images, kernel), (images, kernel)


def _upsample_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # The derived gradient of the overlap-add would write sixteen padded copies of the products. Patches of the gradient
    # give the same.
    images, kernel = residuals
    _, height, width, channels = images.shape
    padded = jnp.pad(gradient, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = jnp.concatenate(
        [padded[:, a : a + 2 * height : 2, b : b + 2 * width : 2] for a in range(4) for b in range(4)], axis=-1
    ).reshape(-1, 16 * kernel.shape[-1])
    images_gradient = (patches @ _kernel_as_matrix(kernel).T).reshape(images.shape)
    kernel_gradient = images.reshape(-1, channels).T @ patches
    kernel_gradient = kernel_gradient.reshape(channels, 4, 4, -1).transpose(1, 2, 0, 3)
    return images_gradient, kernel_gradient


_upsample_by_matmul.defvjp(_upsample_forward, _upsample_backward)


class UpsampleConvolution(nn.Module):
    """Torch's SpatialFullConvolution 4x4, stride 2, padding 1, without bias, weights N(0, 0.02)."""

    features: int
    implementation: str = "auto"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Images [B, H, W, C] -> [B, 2H, 2W, features]."""
        kernel = self.param("kernel", nn.initializers.normal(0.02), (4, 4, images.shape[-1], self.features))
        return upsample_convolve(images, kernel, implementation=self.implementation)
