"""The DCGAN generators of Hitaj et al. 2017, section 8.3; the image size determines the depth, as in their sources."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_leak.models.initialization import init_params
from gan_leak.models.layers import UpsampleConvolution
from gan_leak.types import Array, Model, PyTree

LATENT_SIZE = 100


def _normal_around(mean: float, deviation: float) -> nn.initializers.Initializer:
    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return mean + deviation * jax.random.normal(key, shape, dtype)

    return init


class DCGANGenerator(nn.Module):
    """Full 4x4 convolutions from 1x1 to the image size, with BatchNorm and ReLU between, tanh at the end, no biases.

    The first width is ``width * image_size / 8``; each layer halves it. BatchNorm uses the current batch.
    """

    image_size: int
    channels: int
    width: int = 64
    implementation: str = "auto"

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Latents [B, Z] -> images [B, H, W, C] in [-1, 1]."""
        features = self.width * self.image_size // 8
        # On a 1x1 input the first full convolution is a matrix product.
        hidden = nn.Dense(4 * 4 * features, use_bias=False, kernel_init=nn.initializers.normal(0.02))(latents)
        hidden = self._normalize(hidden.reshape(-1, 4, 4, features))
        while hidden.shape[1] < self.image_size // 2:
            features //= 2
            hidden = self._normalize(UpsampleConvolution(features, implementation=self.implementation)(hidden))
        return jnp.tanh(UpsampleConvolution(self.channels, implementation=self.implementation)(hidden))

    def _normalize(self, hidden: Array) -> Array:
        normalize = nn.BatchNorm(use_running_average=False, epsilon=1e-5, scale_init=_normal_around(1.0, 0.02))
        return nn.relu(normalize(hidden))


def dcgan_generator(
    image_size: int = 32,
    channels: int = 1,
    *,
    width: int = 64,
    latent_size: int = LATENT_SIZE,
    implementation: str = "auto",
) -> Model:
    """A DCGAN generator for 32 (1,066,880 parameters) or 64 (3,574,656) pixels and one channel.

    latent_size: that of the paper, or more for conditions. Raises ValueError for another image size.

    >>> generator = dcgan_generator(32, channels=1, width=16)
    >>> params = jax.eval_shape(generator.init, jax.random.key(0))
    >>> jax.eval_shape(generator.apply, params, jnp.zeros((5, LATENT_SIZE))).shape
    (5, 32, 32, 1)
    """
    if image_size not in (32, 64):
        raise ValueError(f"image_size={image_size}: allowed are 32 and 64")
    module = DCGANGenerator(image_size, channels, width, implementation)

    def init(key: Array) -> PyTree:
        return init_params(module, key, (2, latent_size))

    def apply(params: dict, latents: Array) -> Array:
        # The running averages that BatchNorm would update are never read: the generator stays in training mode.
        images, _ = module.apply({"params": params}, latents, mutable=["batch_stats"])
        return images

    return Model(init, apply)


def sample_latents(key: Array, count: int) -> Array:
    """Latents [count, Z], uniform in [-1, 1] ("uniform" in the DCGAN code)."""
    return jax.random.uniform(key, (count, LATENT_SIZE), minval=-1.0, maxval=1.0)


def sample_images(generator: Model, params: dict, key: Array, count: int, batch_size: int) -> Array:
    """Draw images [count, H, W, C] in batches of ``batch_size``, the size that BatchNorm saw in training.

    The last batch is also drawn in full and then cut, so that no image depends on a smaller batch.
    """
    batches = -(-count // batch_size)
    latents = sample_latents(key, batches * batch_size).reshape(batches, batch_size, LATENT_SIZE)
    images = jax.lax.map(lambda batch: generator.apply(params, batch), latents)
    return images.reshape(-1, *images.shape[2:])[:count]
