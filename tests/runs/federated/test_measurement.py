"""The accuracy of a model is that of all images, in batches that are even samples of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.runs.federated.measurement import model_accuracy
from gan_leak.types import Model


def brightness(params, images):
    """Class 1 for images brighter than the parameter."""
    level = jnp.mean(images, axis=(1, 2, 3))
    return jnp.stack([jnp.full_like(level, params), level], axis=1)


def relative_brightness(params, images):
    """Class 1 for images brighter than the mean of their batch, as BatchNorm makes a model depend on it."""
    return brightness(0.0, images - jnp.mean(images)[None, None, None, None])


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_every_image_counts_once(count):
    levels = np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)
    images = np.broadcast_to(levels[:, None, None, None], (count, 2, 2, 1)).copy()
    labels = np.random.default_rng(1).integers(0, 3, count).astype(np.int32)
    model = Model(lambda key: 0.0, brightness)
    assert model_accuracy(model, jnp.float32(0.0), images, labels) == np.mean((levels > 0) == labels)


def test_a_model_that_reads_the_batch_is_right_on_images_sorted_by_class():
    labels = np.repeat(np.array([0, 1], np.int32), 100)
    images = np.broadcast_to(labels[:, None, None, None], (200, 2, 2, 1)).astype(np.float32)
    model = Model(lambda key: (), relative_brightness)
    assert model_accuracy(model, (), images, labels) == 1.0
    alone = [jnp.argmax(model.apply((), image[None])) for image in images[::50]]
    assert jax.device_get(alone) == [0] * len(alone)
