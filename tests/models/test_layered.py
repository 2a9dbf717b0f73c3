"""Networks in named layers: cut anywhere they compute the same, and they are the published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.models import count_parameters
from gan_leak.models.layered import (
    he_cifar10,
    he_lenet,
    inverse_network_for,
    layered,
    shadow_network_for,
    split_after,
    whole,
)
from gan_leak.models.layers import TorchConvolution, TorchTransposedConvolution

SPLITS = {"mnist": ("conv1", "ReLU2"), "cifar10": ("conv11", "ReLU22", "ReLU32")}
NETWORKS = {"mnist": he_lenet, "cifar10": he_cifar10}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_both_sides_of_every_cut_are_the_whole(network):
    model = NETWORKS[network]()
    params = model.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, *model.input_shape))
    expected = whole(model).apply(params, images)
    assert expected.shape == (2, 10)
    for name in model.names[:-1]:
        parts = split_after(model, name)
        features = parts.client.apply(params, images)
        assert features.shape == (2, *parts.feature_shape)
        np.testing.assert_allclose(parts.cloud.apply(params, features), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["conv3", "fc3", ""])
def test_a_cut_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(
        ValueError, match=f"split='{name}': expected one of conv1, ReLU1, pool1, conv2, ReLU2, pool2, fc1"
    ):
        split_after(he_lenet(), name)


def test_the_networks_are_the_published_ones():
    lenet, cifar = he_lenet(), he_cifar10()
    assert split_after(lenet, "conv1").feature_shape == (24, 24, 8)
    assert split_after(lenet, "ReLU2").feature_shape == (8, 8, 16)
    assert split_after(cifar, "conv11").feature_shape == (32, 32, 64)
    assert split_after(cifar, "ReLU22").feature_shape == (16, 16, 128)
    assert split_after(cifar, "ReLU32").feature_shape == (8, 8, 128)
    # conv1 + conv2 + fc1 + fc2 + fc3, counted by hand.
    by_hand = (25 * 8 + 8) + (25 * 8 * 16 + 16) + (256 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
    assert count_parameters(lenet.init(jax.random.key(0))) == by_hand


@pytest.mark.parametrize(("network", "split"), [(name, split) for name, splits in SPLITS.items() for split in splits])
def test_inverse_networks_and_shadows_fit_their_split(network, split):
    model = NETWORKS[network]()
    shape = split_after(model, split).feature_shape
    decoder = inverse_network_for(network, split)
    back = jax.eval_shape(lambda key: decoder.apply(decoder.init(key), jnp.zeros((3, *shape))), jax.random.key(0))
    assert back.shape == (3, *model.input_shape)
    shadow = shadow_network_for(network, split)
    forth = jax.eval_shape(
        lambda key: shadow.apply(shadow.init(key), jnp.zeros((3, *model.input_shape))), jax.random.key(0)
    )
    assert forth.shape == (3, *shape)
    for build in (inverse_network_for, shadow_network_for):
        with pytest.raises(ValueError, match="split='pool9': expected one of "):
            build(network, "pool9")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("implementation", ["matmul", "blocked"])
def test_convolutions_with_padding_and_stride_are_the_stock_ones(stride, implementation):
    images = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    ours = TorchConvolution(4, 3, 1, stride, implementation=implementation)
    params = ours.init(jax.random.key(1), images)
    stock = TorchConvolution(4, 3, 1, stride, implementation="lax")
    np.testing.assert_allclose(ours.apply(params, images), stock.apply(params, images), atol=1e-5)
    gradients = [jax.grad(lambda p, m=layer: jnp.sum(m.apply(p, images) ** 2))(params) for layer in (ours, stock)]
    for left, right in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "extra", "expected"),
    [(3, 1, 1, 0, 5), (3, 2, 1, 1, 10), (5, 2, 0, 1, 14), (5, 1, 0, 0, 9)],
)
def test_a_transposed_convolution_is_the_transpose_of_one(size, stride, padding, extra, expected):
    """<conv(x), y> = <x, transposed(y)> with the kernel turned around and its channels exchanged."""
    layer = TorchTransposedConvolution(2, size, stride, padding, extra)
    small = jax.random.normal(jax.random.key(0), (1, 5, 5, 3))
    params = layer.init(jax.random.key(1), small)["params"]
    large = layer.apply({"params": {**params, "bias": jnp.zeros(2)}}, small)
    assert large.shape == (1, expected, expected, 2)
    other = jax.random.normal(jax.random.key(2), large.shape)
    kernel = params["kernel"][::-1, ::-1].transpose(0, 1, 3, 2)
    padded = jnp.pad(other, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    down = jax.lax.conv_general_dilated(
        padded, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[:, :5, :5]
    assert float(jnp.sum(down * small)) == pytest.approx(float(jnp.sum(large * other)), rel=1e-4)


def test_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="expected each name once"):
        layered([("a", jnp.tanh), ("a", jnp.tanh)], (2, 2, 1))
