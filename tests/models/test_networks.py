"""The networks of Hitaj et al. 2017, section 8.3, and perceptrons: sizes, initialisations, and fast equals stock."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gan_leak.models import (
    LATENT_SIZE,
    classifier_for,
    count_parameters,
    dcgan_generator,
    faces_classifier,
    mlp_classifier,
    mnist_classifier,
    sample_images,
    sample_latents,
)
from gan_leak.models.gradient_networks import dlg_lenet, dlg_lenet_batchnorm
from gan_leak.types import Model
from reference.small import largest_difference, same_bits


@functools.cache
def params_of(make, *arguments):
    return jax.jit(make(*arguments).init)(jax.random.key(0))


def made_up_params(model, *leading, seed=0):
    """Parameters of a network's structure without running its initialisation, with leading axes."""
    generator = np.random.default_rng(seed)

    def fill(path, leaf):
        values = generator.normal(size=(*leading, *leaf.shape)) / math.sqrt(math.prod(leaf.shape[:-1]))
        if "scale" in jax.tree_util.keystr(path):
            values = 1 + 0.1 * values
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(model.init, jax.random.key(0)))


@functools.cache
def narrow_generator():
    """A generator for 32 pixels of a sixteenth of the width, compiled, with parameters."""
    model = dcgan_generator(32, width=4)
    return Model(model.init, jax.jit(model.apply)), made_up_params(model)


@pytest.mark.parametrize(
    ("make", "arguments", "count"),
    [
        (mnist_classifier, (), 105_707),
        (mnist_classifier, (10,), 105_506),
        (faces_classifier, (), 478_665),
        (dcgan_generator, (32,), 1_066_880),
        (dcgan_generator, (64,), 3_574_656),
    ],
)
def test_parameter_counts(make, arguments, count):
    """The numbers of SPECS.md 1.2 to 1.4, counted over the shapes without running anything."""
    shapes = jax.eval_shape(make(*arguments).init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    ("outputs", "channels", "hidden", "count"),
    [
        # Softmax regression: K (F + 1) for F pixels.
        (11, 1, (), 11 * (1024 + 1)),
        (10, 3, (), 10 * (3072 + 1)),
        (11, 1, (3000,), 3_108_011),
        (10, 1, (20, 30), 20 * (1024 + 1) + 30 * (20 + 1) + 10 * (30 + 1)),
    ],
)
def test_parameter_counts_of_perceptrons(outputs, channels, hidden, count):
    """Each layer has its weights and a bias a unit; 3000 units are the default."""
    make = functools.partial(mlp_classifier, outputs, image_size=32, channels=channels)
    model = make() if hidden == (3000,) else make(hidden=hidden)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def test_a_perceptron_by_hand():
    """Sigmoid units on the flat pixels and linear outputs; without hidden layers, linear in the pixels."""
    images = np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 2)).astype(np.float32)

    def sigmoid(values):
        return 1 / (1 + np.exp(-values))

    for hidden in ((), (5,), (5, 6)):
        model = mlp_classifier(3, image_size=4, channels=2, hidden=hidden)
        params = made_up_params(model)
        expected = images.reshape(3, -1)
        for index in range(len(hidden)):
            layer = params[f"hidden_layer_{index}"]["Dense_0"]
            expected = sigmoid(expected @ layer["kernel"] + layer["bias"][None])
        layer = params["output_layer"]["Dense_0"]
        expected = expected @ layer["kernel"] + layer["bias"][None]
        logits = model.apply(params, jnp.asarray(images))
        assert (logits.shape, logits.dtype) == ((3, 3), jnp.float32)
        np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_outputs": 0}, "num_outputs=0"),
        ({"image_size": 0}, "image_size=0"),
        ({"channels": -1}, "channels=-1"),
        ({"hidden": (5, 0)}, r"hidden\[1\]=0"),
    ],
)
def test_perceptrons_without_size_are_refused(arguments, message):
    """One line with the name, the value and what is expected."""
    with pytest.raises(ValueError, match=f"^{message}: expected at least 1$"):
        mlp_classifier(**({"num_outputs": 3, "image_size": 4} | arguments))


def test_count_parameters_counts_scalars():
    """Over all leaves of a real initialisation."""
    assert count_parameters(params_of(mnist_classifier)) == 105_707


@pytest.mark.parametrize(("size", "outputs", "channels"), [(32, 11, 1), (64, 41, 1), (32, 4, 3)])
def test_classifiers_map_images_to_logits(size, outputs, channels):
    """[B, H, W, C] to [B, K]: unnormalised, one row an image."""
    model = classifier_for(size, outputs, channels)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, size, size, channels)), jnp.float32)
    params, apply = made_up_params(model), jax.jit(model.apply)
    logits = apply(params, images)
    assert logits.shape == (3, outputs)
    assert logits.dtype == jnp.float32
    assert np.abs(jax.nn.logsumexp(logits, axis=1)).min() > 0.1
    np.testing.assert_allclose(apply(params, images[::-1])[1], logits[1], atol=1e-5)
    np.testing.assert_allclose(apply(params, images.at[::2].set(9.0))[1], logits[1], atol=1e-5)


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (64, 3)])
def test_generators_map_latents_to_images(size, channels):
    """[B, Z] to [B, H, W, C] in [-1, 1], and all of it is used when the weights are large."""
    model = dcgan_generator(size, channels, width=4)
    params = jax.tree.map(lambda leaf: 3 * leaf, made_up_params(model))
    images = jax.jit(model.apply)(params, sample_latents(jax.random.key(1), 5))
    assert images.shape == (5, size, size, channels)
    assert images.dtype == jnp.float32
    assert -1 <= float(images.min()) < -0.9
    assert 0.9 < float(images.max()) <= 1


@pytest.mark.parametrize("size", [16, 28, 128])
def test_other_image_sizes_are_refused(size):
    """One line with the name, the value and what is allowed."""
    message = f"image_size={size}: allowed are 32 and 64"
    with pytest.raises(ValueError, match=message):
        dcgan_generator(size)
    with pytest.raises(ValueError, match=message):
        classifier_for(size, 11, 1)


def network(kind, size, implementation):
    if kind == "classifier":
        return classifier_for(size, 11, 1, implementation=implementation)
    return dcgan_generator(size, width=8, implementation=implementation)


def inputs_for(kind, size, count):
    shape = (count, 2, size, size, 1) if kind == "classifier" else (count, 2, LATENT_SIZE)
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, shape), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", ["classifier", "generator"])
def test_matmul_equals_lax_in_value_and_gradients(kind, size):
    """For parameters and inputs, and no less when vmapped or scanned over both."""
    params = made_up_params(network(kind, size, "matmul"), 2)
    inputs = inputs_for(kind, size, 2)

    def value_and_gradients(implementation):
        apply = network(kind, size, implementation).apply

        def inner(params, inputs):
            outputs = apply(params, inputs)
            # A different weight for each output: with equal ones the BatchNorm gradients cancel.
            return jnp.mean(outputs * jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape))

        return jax.value_and_grad(inner, argnums=(0, 1))

    first = jax.tree.map(lambda leaf: leaf[0], (params, inputs))
    stock = jax.jit(value_and_gradients("lax"))(*first)
    scale = largest_difference(stock, jax.tree.map(jnp.zeros_like, stock))
    assert scale > 1e-4
    mapped = jax.jit(jax.vmap(value_and_gradients("matmul")))(params, inputs)
    assert largest_difference(jax.tree.map(lambda leaf: leaf[0], mapped), stock) < 1e-4 * scale

    def body(carry, pair):
        return carry, value_and_gradients("matmul")(*pair)

    _, scanned = jax.jit(lambda pair: jax.lax.scan(body, 0, pair))((params, inputs))
    assert largest_difference(scanned, mapped) < 1e-4 * scale


def fits(values, distribution):
    """Whether a Kolmogorov-Smirnov test at the level 1e-4 takes the values for a sample of the distribution."""
    return scipy.stats.kstest(np.asarray(values).ravel(), distribution.cdf).pvalue > 1e-4


def follows(values, distribution, wrong=1.2):
    """Whether the values fit the distribution; checks first that the same test notices a wrong scale."""
    wider, narrower = (fits(scale * np.asarray(values), distribution) for scale in (wrong, 1 / wrong))
    assert not wider
    assert not narrower
    return fits(values, distribution)


@pytest.mark.parametrize(("make", "blocks"), [(mnist_classifier, 2), (faces_classifier, 3)])
def test_classifier_initialisation_is_torchs(make, blocks):
    """Weights and biases of every layer uniform within 1 / sqrt(fan in)."""
    params = params_of(make)
    layers = [params[f"PooledConvolution_{index}"] for index in range(blocks)]
    layers += [params[name]["Dense_0"] for name in ("hidden_layer", "output_layer")]
    assert sum(count_parameters(layer) for layer in layers) == count_parameters(params)
    scaled_biases = []
    for layer in layers:
        bound = 1 / math.sqrt(math.prod(layer["kernel"].shape[:-1]))
        assert np.abs(layer["kernel"]).max() <= bound
        assert np.abs(layer["bias"]).max() <= bound
        uniform = scipy.stats.uniform(-bound, 2 * bound)
        assert fits(layer["kernel"], uniform)
        assert layer["kernel"].size < 1000 or follows(layer["kernel"], uniform)
        scaled_biases.append(np.asarray(layer["bias"]) / bound)
    assert follows(np.concatenate(scaled_biases), scipy.stats.uniform(-1, 2), wrong=1.5)


def test_perceptron_initialisation_is_torchs():
    """Weights and biases of every layer uniform within 1 / sqrt(fan in)."""
    params = params_of(functools.partial(mlp_classifier, image_size=16, hidden=(300, 200)), 11)
    for name, fan_in in (("hidden_layer_0", 256), ("hidden_layer_1", 300), ("output_layer", 200)):
        layer, bound = params[name]["Dense_0"], 1 / math.sqrt(fan_in)
        assert layer["kernel"].shape[0] == fan_in
        assert np.abs(layer["kernel"]).max() <= bound
        assert np.abs(layer["bias"]).max() <= bound
        assert follows(layer["kernel"], scipy.stats.uniform(-bound, 2 * bound))
        assert fits(layer["bias"], scipy.stats.uniform(-bound, 2 * bound))


@pytest.mark.parametrize(("size", "width"), [(32, 64), (64, 16)])
def test_generator_initialisation_is_dcgans(size, width):
    """Convolutions N(0, 0.02), BatchNorm scales N(1, 0.02) and shifts 0, and nothing else is learned."""
    leaves = jax.tree_util.tree_leaves_with_path(params_of(functools.partial(dcgan_generator, width=width), size))
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    kernels = [leaf for name, leaf in named.items() if "kernel" in name]
    scales = [leaf.ravel() for name, leaf in named.items() if "scale" in name]
    shifts = [leaf for name, leaf in named.items() if "bias" in name]
    depth = int(math.log2(size)) - 1
    assert (len(kernels), len(scales), len(shifts)) == (depth, depth - 1, depth - 1)
    assert len(named) == 3 * depth - 2
    for kernel in kernels:
        assert fits(kernel, scipy.stats.norm(0, 0.02))
        assert kernel.size < 5000 or follows(kernel, scipy.stats.norm(0, 0.02))
    assert follows(np.concatenate(scales) - 1, scipy.stats.norm(0, 0.02), wrong=2.0)
    assert all(not shift.any() for shift in shifts)


def test_initialisations_differ_between_layers_and_keys():
    """No two layers share their draws, and another key gives other ones."""
    params = params_of(mnist_classifier)
    kernels = [params["PooledConvolution_0"]["kernel"], params["PooledConvolution_1"]["kernel"]]
    assert not same_bits(kernels[0].ravel()[:800], kernels[1].ravel()[:800])
    assert not same_bits(jax.jit(mnist_classifier().init)(jax.random.key(1)), params)


def test_batch_norm_uses_the_batch_at_hand():
    """An image follows its latent under a permutation of the batch, and changes with its company."""
    (_, apply), params = narrow_generator()
    latents = sample_latents(jax.random.key(1), 4)
    images = apply(params, latents)
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(params, latents[order]), images[order], atol=1e-5)
    company = latents.at[1:].multiply(3.0)
    assert np.abs(apply(params, company)[0] - images[0]).max() > 1e-4


def test_hidden_activations_are_normalised():
    """A first layer ten times as large gives the same images: only batch statistics can undo that."""
    model, params = narrow_generator()
    latents = 5 * sample_latents(jax.random.key(1), 4)
    larger = params | {"Dense_0": jax.tree.map(lambda leaf: 10 * leaf, params["Dense_0"])}
    images = model.apply(params, latents)
    assert np.abs(model.apply(larger, latents) - images).max() < 0.01 * np.abs(images).max()


def test_latents_are_uniform_between_minus_one_and_one():
    """[count, Z], and the test would notice U(0, 1), a normal or another scale."""
    latents = np.asarray(sample_latents(jax.random.key(0), 200))
    assert latents.shape == (200, LATENT_SIZE)
    assert np.abs(latents).max() <= 1
    uniform = scipy.stats.uniform(-1, 2)
    assert follows(latents, uniform)
    assert not fits(np.abs(latents), uniform)


def test_sampled_images_come_in_whole_batches():
    """A count that does not fill its last batch cuts the images, and never shrinks the batch that BatchNorm sees."""
    model, params = narrow_generator()
    draw = jax.jit(sample_images, static_argnums=(0, 3, 4))
    seven, eight = (draw(model, params, jax.random.key(1), count, 4) for count in (7, 8))
    assert seven.shape == (7, 32, 32, 1)
    assert same_bits(seven, eight[:7])
    latents = sample_latents(jax.random.key(1), 8)
    np.testing.assert_allclose(eight[4:], model.apply(params, latents[4:]), atol=1e-5)
    shrunk = model.apply(params, jnp.stack([latents[4], latents[5], latents[6], latents[6]]))
    assert np.abs(seven[4:] - shrunk[:3]).max() > 1e-4


@pytest.mark.parametrize(("make", "size"), [(mnist_classifier, 32), (faces_classifier, 64)])
def test_batchnorm_of_a_classifier_removes_what_a_convolution_adds_to_every_image(make, size):
    model, plain = make(5, batchnorm=True), make(5)
    params = model.init(jax.random.key(0))
    features = sum(leaf.size for name, layer in params.items() if "Pooled" in name for leaf in (layer["bias"],))
    assert count_parameters(params) == count_parameters(plain.init(jax.random.key(0))) + 2 * features
    images = jax.random.uniform(jax.random.key(1), (4, size, size, 1), minval=-1.0)
    shifted = {
        name: {**layer, "bias": layer["bias"] + 3.0} if "Pooled" in name else layer for name, layer in params.items()
    }
    np.testing.assert_allclose(model.apply(shifted, images), model.apply(params, images), atol=1e-4)


def test_batchnorm_of_the_lenet_removes_what_its_convolutions_add_to_every_image():
    """So the biases of the convolutions have no gradient, and features have the scale of BatchNorm."""
    model = dlg_lenet_batchnorm(10, channels=1)
    params = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (4, 32, 32, 1))
    shifted = {
        name: {**layer, "bias": layer["bias"] + 3.0} if name in ("layer0", "layer3", "layer6") else layer
        for name, layer in params.items()
    }
    np.testing.assert_allclose(model.apply(shifted, images), model.apply(params, images), atol=1e-4)
    assert count_parameters(params) == count_parameters(dlg_lenet(10, channels=1).init(jax.random.key(0))) + 3 * 24
    alone = jnp.concatenate([model.apply(params, images[at : at + 1]) for at in range(4)])
    assert np.abs(alone - model.apply(params, images)).max() > 0.01
