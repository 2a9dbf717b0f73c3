"""Networks and federations small enough to compile and check in a second."""

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.types import FederationData, Model

IMAGE_SHAPE = (4, 4, 1)
CLASSES = 5
FAKE_CLASS = 4


def linear_classifier(observe=None):
    """Logits = images @ kernel + bias, 85 parameters; ``observe`` is called with the images of every evaluation."""

    def init(key):
        pixels = int(np.prod(IMAGE_SHAPE))
        return {"bias": jnp.zeros(CLASSES), "kernel": 0.3 * jax.random.normal(key, (pixels, CLASSES))}

    def apply(params, images):
        if observe is not None:
            jax.debug.callback(observe, images, ordered=True)
        return images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None]

    return Model(init, apply)


def linear_generator():
    """Images = tanh(latents @ weights + bias), 1,616 parameters."""
    pixels = int(np.prod(IMAGE_SHAPE))

    def init(key):
        return {"bias": jnp.zeros(pixels), "weights": 0.05 * jax.random.normal(key, (100, pixels))}

    def apply(params, latents):
        return jnp.tanh(latents @ params["weights"] + params["bias"][None]).reshape(-1, *IMAGE_SHAPE)

    return Model(init, apply)


def federation_data(sizes, length=7, seed=0, padding=9.0):
    """Random images, labels of every class but the fake one, and a padding that would be noticed."""
    generator = np.random.default_rng(seed)
    images = generator.uniform(-1, 1, (len(sizes), length, *IMAGE_SHAPE)).astype(np.float32)
    labels = generator.integers(0, FAKE_CLASS, (len(sizes), length)).astype(np.int32)
    for participant, size in enumerate(sizes):
        images[participant, size:] = padding
    return FederationData(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(sizes, jnp.int32))


def leaves(tree):
    """The leaves of a pytree as NumPy arrays, keys as their data."""

    def plain(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return [np.asarray(plain(leaf)) for leaf in jax.tree.leaves(tree)]


def same_bits(left, right):
    """Whether two pytrees hold the same bits, NaN included."""
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(leaves(left), leaves(right), strict=True)
    )


def largest_difference(left, right):
    """The largest absolute difference between two pytrees of one structure; infinite where one holds a NaN."""
    differences = [
        np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0)
        for a, b in zip(leaves(left), leaves(right), strict=True)
    ]
    return float(np.max(np.nan_to_num(differences, nan=np.inf)))
