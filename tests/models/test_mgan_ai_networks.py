"""The networks of mGAN-AI, and the trunks of these and of the project's own classifiers."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.models import as_model, classifier_for, dcgan_generator, mlp_classifier
from gan_leak.models.layered import he_lenet, whole
from gan_leak.models.mgan_ai_networks import (
    EMBEDDING_SIZE,
    conditional_generator,
    mgan_ai_classifier,
    mgan_ai_generator,
    transposed_convolve,
)
from gan_leak.models.trunks import trunk_of_flax, trunk_of_layered


def count(init):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))


def test_parameter_counts_at_28_pixels():
    assert count(mgan_ai_classifier().init) == 513_290
    assert count(mgan_ai_generator().init) == 3_348_145
    # A client more is a row more of the table of identities.
    assert count(mgan_ai_generator(identities=10).init) == 3_348_145 + 8 * 100


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 1)])
def test_shapes_at_every_size(size, channels):
    classifier = mgan_ai_classifier(7, image_size=size, channels=channels)
    trunk = trunk_of_layered(classifier)
    assert trunk.num_outputs == 7
    assert trunk.feature_size == {28: 12_544, 32: 16_384, 64: 16_384}[size]
    generator = mgan_ai_generator(categories=7, identities=3, image_size=size, channels=channels)
    images = jax.eval_shape(
        lambda key: generator.apply(generator.init(key), jnp.zeros((5, 100)), jnp.zeros(5, int), jnp.zeros(5, int)),
        jax.random.key(0),
    )
    assert images.shape == (5, size, size, channels)
    logits = jax.eval_shape(
        lambda key, images: whole(classifier).apply(classifier.init(key), images), jax.random.key(0), images
    )
    assert logits.shape == (5, 7)


def naive_transposed(images, kernel, stride, cut):
    """Pixel by pixel, as the docstring says."""
    batch, height, width, _ = images.shape
    size = len(kernel)
    full = np.zeros((batch, (height - 1) * stride + size, (width - 1) * stride + size, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            for a in range(size):
                for b in range(size):
                    full[:, stride * i + a, stride * j + b] += images[:, i, j] @ kernel[a, b]
    return full[:, cut[0] : full.shape[1] - cut[1], cut[0] : full.shape[2] - cut[1]]


@pytest.mark.parametrize(("stride", "cut"), [(1, (0, 0)), (2, (2, 1)), (3, (0, 2))])
def test_a_transposed_convolution_pixel_by_pixel(stride, cut):
    generator = np.random.default_rng(0)
    images, kernel = generator.normal(size=(2, 3, 4, 3)), generator.normal(size=(5, 5, 3, 2))
    inputs = [jnp.asarray(values, jnp.float32) for values in (images, kernel)]
    forward = naive_transposed(images, kernel, stride, cut)
    weights = jnp.asarray(generator.normal(size=forward.shape), jnp.float32)

    def with_gradients(*inputs):
        found, backward = jax.vjp(lambda *both: transposed_convolve(*both, stride, cut), *inputs)
        return found, backward(weights)

    found, gradients = jax.jit(with_gradients)(*inputs)
    np.testing.assert_allclose(found, forward, atol=1e-4)
    # It is linear in each, so that finite differences of any length give the gradients.
    for place, gradient in enumerate(gradients):
        direction = generator.normal(size=gradient.shape)
        moved = [images, kernel]
        moved[place] = direction
        expected = np.sum(np.asarray(weights) * naive_transposed(*moved, stride, cut))
        assert float(np.sum(np.asarray(gradient) * direction)) == pytest.approx(float(expected), rel=1e-3, abs=1e-2)


def test_both_conditions_reach_the_image():
    """The same latents give another image for another category, and for another identity."""
    dcgan = dcgan_generator(32, width=4, latent_size=6 + 2 * EMBEDDING_SIZE)
    generator = conditional_generator(dcgan, categories=3, identities=4, latent_size=6)
    latents = jnp.broadcast_to(jnp.linspace(-1, 1, 6)[None], (4, 6))
    conditions = jnp.array([0, 0, 2, 0]), jnp.array([1, 1, 1, 3])
    images = jax.jit(lambda key: generator.apply(generator.init(key), latents, *conditions))(jax.random.key(0))
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)
    assert float(jnp.abs(images[0] - images[2]).max()) > 1e-3
    assert float(jnp.abs(images[0] - images[3]).max()) > 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mgan_ai_classifier(image_size=27), "image_size=27: allowed are 28, 32, 64"),
        (lambda: mgan_ai_generator(image_size=16), "image_size=16: allowed are 28, 32, 64"),
        (lambda: mgan_ai_generator(categories=0), "categories=0: expected at least 1"),
        (lambda: mgan_ai_generator(identities=1), "identities=1: expected at least 2"),
    ],
)
def test_bad_sizes_are_refused(build, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build()


def last_layer(params):
    layer = params["output_layer"]["Dense_0"]
    return layer["kernel"], layer["bias"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape", "features"),
    [
        (classifier_for(32, 4, 1), (32, 32, 1), 200),
        (classifier_for(64, 4, 1), (64, 64, 1), 400),
        (mlp_classifier(4, image_size=6, hidden=(5, 3)), (6, 6, 1), 3),
        (mlp_classifier(4, image_size=6, hidden=()), (6, 6, 1), 36),
    ],
)
def test_the_trunk_of_the_own_classifiers(model, shape, features):
    """The logits are those of the model, and linear in the features with the weights of its last layer."""
    trunk = trunk_of_flax(model, shape)
    assert (trunk.feature_size, trunk.num_outputs) == (features, 4)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, *shape)), jnp.float32)

    def both_ways(key):
        params = model.init(key)
        return trunk.apply(params, images), model.apply(params, images), last_layer(params)

    (found, logits), expected, (kernel, bias) = jax.jit(both_ways)(jax.random.key(0))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(found @ kernel + bias[None], logits, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", [mgan_ai_classifier(image_size=28), he_lenet()])
def test_the_trunk_of_layered_networks(network):
    trunk = trunk_of_layered(network)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 28, 28, 1)), jnp.float32)

    def both_ways(key):
        params = network.init(key)
        return params, trunk.apply(params, images), whole(network).apply(params, images)

    params, (found, logits), expected = jax.jit(both_ways)(jax.random.key(0))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    layer = params[network.names[-1]]["Dense_0"]
    np.testing.assert_allclose(found @ layer["kernel"] + layer["bias"][None], logits, atol=1e-5)


def test_the_trunk_of_a_users_module():
    """The name of its last layer is enough; a name that is not there is refused."""
    model = as_model(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)]), (5,))
    trunk = trunk_of_flax(model, (5,), last_layer="layers_2")
    assert (trunk.feature_size, trunk.num_outputs) == (4, 3)
    with pytest.raises(ValueError, match=r"^last_layer='output_layer': called 0 times, expected the name of a module"):
        trunk_of_flax(model, (5,))
