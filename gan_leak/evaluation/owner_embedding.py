"""The owner embedding: a network that tells owners of images apart, trained on third parties only.

Pixels are one space to compare a reconstruction with the images of clients, and an attack may be good or bad there for
reasons of its own. The embedding is another space, which neither the federation nor the adversary knows. It is trained
to assign images to third parties: owners who are neither in the federation nor in the adversary's auxiliary data. Its
last hidden layer, at length 1, serves other owners too.

Recipe (ours): a softmax over the cosines of the embedding with one vector for each owner (NormFace, Wang et al. 2017),
on images that are shifted and noisy, since reconstructions are. Images are averaged down to at most 32 x 32 pixels.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from gan_leak.evaluation.batches import in_batches
from gan_leak.evaluation.client_distances import Space, cosine_space
from gan_leak.evaluation.judge import load_or_train, shrink
from gan_leak.models.initialization import init_params
from gan_leak.models.layers import convolve, max_pool
from gan_leak.types import Array, PyTree

# Increased with every change of training, so that the cache returns no embedding of another recipe.
RECIPE_VERSION = 1
# Vectors that tell few owners apart do not tell others apart.
LEAST_OWNERS = 20
LEAST_IMAGES_OF_AN_OWNER = 5
FEATURES = 128

_BATCH = 64
_CELLS = 8


class EmbeddingTraining(NamedTuple):
    """The recipe for an embedding.

    least_steps: small data sets get more epochs. scale: of the cosines in the softmax. shift: pixels at most, at
    32 x 32. noise: largest deviation, in image units of [-1, 1]. dropout: share of the hidden layer.
    """

    epochs: int = 10
    least_steps: int = 300
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    scale: float = 16.0
    shift: int = 1
    noise: float = 0.3
    dropout: float = 0.3


class OwnerEmbedding(NamedTuple):
    """A trained embedding: parameters, number of third parties, and their accuracy on images not trained on.

    The accuracy is the share of a fifth of the third parties' images that the softmax assigns to the right one of all.
    """

    params: PyTree
    owners: int
    accuracy: float


class _EmbeddingNetwork(nn.Module):
    """A 3x3 convolution on an 8 x 8 grid of pixel blocks, and a dense layer."""

    owners: int

    @nn.compact
    def __call__(self, images: Array, keep: Array | None = None) -> tuple[Array, Array]:
        """Images [B, H, W, C] -> (embedding [B, 128] of length 1, cosines [B, owners]); keep [B, F]: dropout."""
        batch, height, width, channels = images.shape
        down, right = height // _CELLS, width // _CELLS
        blocks = images.reshape(batch, _CELLS, down, _CELLS, right, channels).transpose(0, 1, 3, 2, 4, 5)
        padded = jnp.pad(blocks.reshape(batch, _CELLS, _CELLS, -1), ((0, 0), (1, 1), (1, 1), (0, 0)))
        hidden = nn.Conv(64, (3, 3), padding="VALID", use_bias=False, conv_general_dilated=_convolve)(padded)
        # The bias commutes with the maximum; after the maximum it costs a quarter.
        bias = self.param("bias", nn.initializers.zeros, (64,))
        hidden = nn.relu(max_pool(hidden, 2) + bias[None, None, None]).reshape(batch, -1)
        if keep is not None:
            hidden = hidden * keep
        embedding = _to_length_one(nn.Dense(FEATURES)(hidden), axis=1)
        centers = self.param("centers", nn.initializers.normal(1.0), (FEATURES, self.owners))
        return embedding, embedding @ _to_length_one(centers, axis=0)


_HIDDEN = (_CELLS // 2) ** 2 * 64


def _convolve(images: Array, kernel: Array, strides: tuple, padding: str, **_: object) -> Array:
    return convolve(images, kernel, implementation="matmul")


def _to_length_one(vectors: Array, *, axis: int) -> Array:
    # The root of a positive number has a gradient, also for a vector of zeros.
    return vectors / jnp.sqrt(jnp.sum(vectors**2, axis=axis, keepdims=True) + 1e-12)


def embed(embedding: OwnerEmbedding, images: np.ndarray) -> np.ndarray:
    """The embedding [N, 128], of length 1, of images float32 [N, H, W, C] in [-1, 1]."""
    return _outputs(embedding.params, embedding.owners, images)[0]


def embedding_space(embedding: OwnerEmbedding) -> Space:
    """The cosine distance between embeddings, for ``gan_leak.evaluation.identification``."""
    return cosine_space("owner embedding", functools.partial(embed, embedding))


def obstacle_to_embedding(owners: np.ndarray) -> str | None:
    """Why the images of these owners [N] cannot train an embedding, or None.

    It needs at least 20 owners with 5 images each. Owners with fewer images do not count.
    """
    counts = np.unique(owners, return_counts=True)[1]
    enough = int(np.sum(counts >= LEAST_IMAGES_OF_AN_OWNER))
    if enough >= LEAST_OWNERS:
        return None
    return (
        f"{enough} third parties with at least {LEAST_IMAGES_OF_AN_OWNER} images each, expected at least {LEAST_OWNERS}"
    )


def load_or_train_owner_embedding(
    images: np.ndarray,
    owners: np.ndarray,
    *,
    cache_directory: pathlib.Path | None = None,
    training: EmbeddingTraining | None = None,
    show: Callable[[str], None] = lambda text: tqdm.tqdm.write(text, file=sys.stderr),
) -> OwnerEmbedding:
    """The embedding of the third parties' images uint8 [N, H, W, C] and owners [N], trained once and kept on disk.

    Height and width are multiples of 8. Every fifth image of an owner is not trained on and serves for the accuracy.
    The cache is that of ``load_or_train_judge``.

    Raises ValueError if there is an obstacle, see ``obstacle_to_embedding``, or if the images are not uint8.
    """
    training = training or EmbeddingTraining()
    if (obstacle := obstacle_to_embedding(owners)) is not None:
        raise ValueError(f"owners: {obstacle}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] % _CELLS or images.shape[2] % _CELLS:
        raise ValueError(
            f"images of type {images.dtype}, shape {images.shape}: expected uint8 [N, H, W, C], sides multiples of 8"
        )
    known, numbers, counts = np.unique(owners, return_inverse=True, return_counts=True)
    known, usable = known[counts >= LEAST_IMAGES_OF_AN_OWNER], counts[numbers] >= LEAST_IMAGES_OF_AN_OWNER
    images, numbers = images[usable], np.searchsorted(known, np.asarray(owners)[usable])
    tested = _every_fifth(numbers)

    def train() -> PyTree:
        return jax.device_get(train_owner_embedding(images[~tested], numbers[~tested], training))

    key = hashlib.sha256(f"{RECIPE_VERSION}, {training}, {images.shape}".encode())
    for array in (images, numbers.astype(np.int64)):
        key.update(np.ascontiguousarray(array).tobytes())
    name = f"owners-{key.hexdigest()[:32]}.msgpack"
    params = load_or_train(name, train, cache_directory=cache_directory, show=show)
    cosines = _outputs(params, len(known), images[tested].astype(np.float32) / 127.5 - 1.0)[1]
    return OwnerEmbedding(params, len(known), float(np.mean(np.argmax(cosines, axis=1) == numbers[tested])))


def train_owner_embedding(images: np.ndarray, owners: np.ndarray, training: EmbeddingTraining) -> PyTree:
    """Train on images uint8 [N, H, W, C] and owners [N], numbered from 0; returns the parameters."""
    images = shrink(images.astype(np.float32)) / 127.5 - 1.0
    network = _EmbeddingNetwork(int(owners.max()) + 1)
    batch_size = min(training.batch_size, len(images))
    steps_per_epoch = len(images) // batch_size
    epochs = max(training.epochs, -(-training.least_steps // steps_per_epoch))
    schedule = optax.cosine_onecycle_schedule(epochs * steps_per_epoch, training.learning_rate)
    optimizer = optax.adamw(schedule, weight_decay=training.weight_decay)

    def loss(params: PyTree, batch: Array, targets: Array, keep: Array) -> Array:
        _, cosines = cast(tuple[Array, Array], network.apply({"params": params}, batch, keep))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(training.scale * cosines, targets))

    def step(index: Array, carry: tuple, order: Array, key: Array, data: tuple) -> tuple:
        params, state = carry
        key_vary, key_keep = jax.random.split(jax.random.fold_in(key, index))
        picked = jax.lax.dynamic_slice(order, (index * batch_size,), (batch_size,))
        keep = jax.random.bernoulli(key_keep, 1.0 - training.dropout, (batch_size, _HIDDEN)) / (1.0 - training.dropout)
        gradients = jax.grad(loss)(params, _vary(key_vary, data[0][picked], training), data[1][picked], keep)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def epoch(key: Array, carry: tuple, data: tuple) -> tuple:
        key_order, key_steps = jax.random.split(key)
        order = jax.random.permutation(key_order, len(images))
        body = functools.partial(step, order=order, key=key_steps, data=data)
        return jax.lax.fori_loop(0, steps_per_epoch, body, carry)

    key_init, key_epochs = jax.random.split(jax.random.key(RECIPE_VERSION))
    params = init_params(network, key_init, (1, *images.shape[1:]))
    carry = (params, optimizer.init(params))
    for index in range(epochs):
        carry = epoch(jax.random.fold_in(key_epochs, index), carry, (jnp.asarray(images), jnp.asarray(owners)))
    return carry[0]


def _vary(key: Array, images: Array, training: EmbeddingTraining) -> Array:
    """Images [B, H, W, C], each moved by up to ``shift`` pixels, its border repeated, under noise of its own level."""
    key_shift, key_level, key_noise = jax.random.split(key, 3)
    most = training.shift
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    starts = jax.random.randint(key_shift, (len(images), 2), 0, 2 * most + 1)

    def moved(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])

    level = training.noise * jax.random.uniform(key_level, (len(images), 1, 1, 1))
    noisy = jax.vmap(moved)(padded, starts) + level * jax.random.normal(key_noise, images.shape)
    return jnp.clip(noisy, -1.0, 1.0)


def _outputs(params: PyTree, owners: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(embedding [N, 128], cosines [N, owners])."""
    small = shrink(np.asarray(images, np.float32))
    return in_batches(lambda batch: _apply(params, batch, owners), small, most=_BATCH)


@functools.partial(jax.jit, static_argnums=2)
def _apply(params: PyTree, images: Array, owners: int) -> tuple[Array, Array]:
    return cast(tuple[Array, Array], _EmbeddingNetwork(owners).apply({"params": params}, images))


def _every_fifth(numbers: np.ndarray) -> np.ndarray:
    """Whether an image [N] is the fifth, tenth, ... of its owner in the order of the images."""
    found = np.zeros(len(numbers), bool)
    for number in np.unique(numbers):
        found[np.flatnonzero(numbers == number)[4::5]] = True
    return found
