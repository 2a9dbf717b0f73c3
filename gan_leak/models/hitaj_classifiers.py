"""The shared models of Hitaj et al. 2017, section 8.3, which are also the adversary's discriminator.

Also the simpler classifiers of Fredrikson et al. 2015, against which model inversion is known to work.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_leak.models.flax import stateless_model
from gan_leak.models.layers import PooledConvolution, TorchDense
from gan_leak.types import Array, Model


class PooledConvolutionClassifier(nn.Module):
    """5x5 convolutions with max-pool and tanh, one hidden layer of tanh units, linear logits.

    blocks: (features, pool) of each convolution. LogSoftMax belongs to the loss.
    """

    blocks: Sequence[tuple[int, int]]
    hidden: int
    num_outputs: int
    implementation: str = "auto"
    batchnorm: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Images [B, H, W, C] -> logits [B, K]."""
        features = images
        for channels, pool in self.blocks:
            features = PooledConvolution(channels, 5, pool, self.implementation, self.batchnorm)(features)
        features = features.reshape(features.shape[0], -1)
        hidden = jnp.tanh(TorchDense(self.hidden, name="hidden_layer")(features))
        return TorchDense(self.num_outputs, name="output_layer")(hidden)


class SigmoidClassifier(nn.Module):
    """Hidden layers of sigmoid units on the flat pixels, linear logits; without hidden layers, softmax regression."""

    hidden: Sequence[int]
    num_outputs: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Images [B, H, W, C] -> logits [B, K]."""
        features = images.reshape(images.shape[0], -1)
        for index, units in enumerate(self.hidden):
            features = nn.sigmoid(TorchDense(units, name=f"hidden_layer_{index}")(features))
        return TorchDense(self.num_outputs, name="output_layer")(features)


def mnist_classifier(
    num_outputs: int = 11, *, channels: int = 1, implementation: str = "auto", batchnorm: bool = False
) -> Model:
    """The MNIST classifier (Figure 15): 32x32 images, 105,707 parameters with 11 outputs and one channel.

    batchnorm: with BatchNorm by the current batch between max-pool and tanh, which the paper does not have.
    """
    module = PooledConvolutionClassifier(((32, 3), (64, 2)), 200, num_outputs, implementation, batchnorm)
    return stateless_model(module, (32, 32, channels))


def faces_classifier(
    num_outputs: int = 41,
    *,
    channels: int = 1,
    hidden: int = 400,
    implementation: str = "auto",
    batchnorm: bool = False,
) -> Model:
    """The AT&T classifier (Figure 17): 64x64 images, 478,665 parameters with 41 outputs and one channel.

    The text gives the three blocks; the width of the hidden layer is inferred (BUILD_NOTES.md). batchnorm: as in
    ``mnist_classifier``.
    """
    module = PooledConvolutionClassifier(((32, 3), (64, 2), (128, 2)), hidden, num_outputs, implementation, batchnorm)
    return stateless_model(module, (64, 64, channels))


def mlp_classifier(num_outputs: int, *, image_size: int, channels: int = 1, hidden: Sequence[int] = (3000,)) -> Model:
    """The multilayer perceptron of Fredrikson et al. 2015, section 5: one hidden layer of 3000 sigmoid units.

    3,108,011 parameters with 11 outputs, 32 pixels and one channel. ``hidden=()`` is their softmax regression (11,275).
    The initialization is Torch7's, as in the other classifiers here; the paper used that of its library.

    Raises ValueError for sizes below 1.

    >>> classifier = mlp_classifier(11, image_size=32, hidden=())
    >>> count_parameters(jax.eval_shape(classifier.init, jax.random.key(0)))
    11275
    """
    sizes = {"num_outputs": num_outputs, "image_size": image_size, "channels": channels}
    for name, size in (*sizes.items(), *((f"hidden[{index}]", units) for index, units in enumerate(hidden))):
        if size < 1:
            raise ValueError(f"{name}={size}: expected at least 1")
    return stateless_model(SigmoidClassifier(tuple(hidden), num_outputs), (image_size, image_size, channels))


def count_parameters(params: dict) -> int:
    """Number of scalars in a pytree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
