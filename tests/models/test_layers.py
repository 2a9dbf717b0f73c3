"""The fast layers are the textbook layers: values and gradients against loops and against XLA's own convolutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import machine
from gan_leak.models import layers
from gan_leak.models.layers import (
    IMPLEMENTATIONS,
    PooledConvolution,
    UpsampleConvolution,
    convolve,
    max_pool,
    pooled_convolve,
    resolve_implementation,
    upsample_convolve,
)
from reference import layers as twin
from reference.small import largest_difference


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("side", "size"), [((6, 8), 3), ((5, 5), 5), ((7, 4), 2)])
def test_convolution_equals_nested_loops(implementation, side, size):
    """Cross-correlation without padding, several channels in and out."""
    images, kernel = normal(2, *side, 3), normal(size, size, 3, 4, seed=1)
    expected = np.stack([twin.convolve(np.asarray(image), np.asarray(kernel)) for image in images])
    np.testing.assert_allclose(convolve(images, kernel, implementation=implementation), expected, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("side", [(1, 1), (2, 3), (4, 4)])
def test_upsampling_equals_torchs_scatter(implementation, side):
    """Every input pixel adds the kernel at twice its position less one; what falls outside is dropped."""
    images, kernel = normal(2, *side, 3), normal(4, 4, 3, 2, seed=1)
    expected = np.stack([twin.full_convolution(np.asarray(image), np.asarray(kernel)) for image in images])
    result = upsample_convolve(images, kernel, implementation=implementation)
    assert result.shape == (2, 2 * side[0], 2 * side[1], 2)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def in_three_ways(fun, images, kernels):
    """Of the first pair alone, of all pairs vmapped, of all pairs in a scan."""
    plain = jax.jit(fun)(images[0], kernels[0])
    mapped = jax.jit(jax.vmap(fun))(images, kernels)
    _, scanned = jax.jit(lambda: jax.lax.scan(lambda carry, pair: (carry, fun(*pair)), 0, (images, kernels)))()
    return plain, mapped, scanned


@pytest.mark.parametrize("operation", [convolve, upsample_convolve])
def test_gradients_of_matmul_equal_those_of_the_stock_convolution(operation):
    """With respect to images and kernel, for a random cotangent; plainly, vmapped over kernels and inside a scan."""
    images, kernels = normal(3, 2, 6, 5, 3), normal(3, 4, 4, 3, 2, seed=1)

    def gradients(implementation):
        def inner(images, kernel):
            output = operation(images, kernel, implementation=implementation)
            return jnp.sum(output * jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape))

        return in_three_ways(jax.grad(inner, argnums=(0, 1)), images, kernels)

    matmul, lax = gradients("matmul"), gradients("lax")
    assert largest_difference(matmul, lax) < 1e-4
    assert largest_difference(matmul[1], matmul[2]) < 1e-5
    assert largest_difference(matmul[0], jax.tree.map(jnp.zeros_like, matmul[0])) > 1


def heavy_ties(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(-2, 2, shape).astype(np.float32))


@pytest.mark.parametrize(("window", "side"), [(2, (6, 4)), (3, (6, 9)), (1, (3, 3))])
def test_max_pool_and_its_gradient_go_to_the_first_maximum(window, side):
    """Values and gradients against a loop, with many equal maxima; XLA's own gradient fails the same comparison."""
    images, cotangent = heavy_ties(2, *side, 3), normal(2, side[0] // window, side[1] // window, 3)
    values, pull = jax.vjp(lambda images: max_pool(images, window), images)
    expected = np.zeros(images.shape, np.float32)
    for number, image in enumerate(np.asarray(images)):
        best, positions = twin.max_pool(image, window)
        np.testing.assert_array_equal(values[number], best)
        for (row, column, channel), value in np.ndenumerate(np.asarray(cotangent)[number]):
            y, x = positions[row, column, channel]
            expected[number, y, x, channel] += value
    np.testing.assert_array_equal(pull(cotangent)[0], expected)
    if window > 1:
        blocks = (2, side[0] // window, window, side[1] // window, window, 3)
        _, stock = jax.vjp(lambda images: images.reshape(blocks).max(axis=(2, 4)), images)
        assert np.abs(stock(cotangent)[0] - expected).max() > 0.1


@pytest.mark.parametrize("position", [(0, 0), (1, 1), (0, 1)])
def test_max_pool_shows_not_a_number(position):
    """A NaN anywhere in a window is its result, and no other window's; infinities are ordinary numbers."""
    images = normal(1, 4, 4, 1).at[0, 3, 3, 0].set(jnp.inf).at[(0, *position, 0)].set(jnp.nan)
    pooled = max_pool(images, 2)[0, :, :, 0]
    assert np.isnan(pooled).tolist() == [[True, False], [False, False]]
    assert float(pooled[1, 1]) == np.inf


def blocks_of(most, monkeypatch, images, kernel):
    """Lets as many images as wished fit a block."""
    places = (images.shape[-3] - kernel.shape[-4] + 1) * (images.shape[-2] - kernel.shape[-3] + 1)
    per_image = 4 * places * int(np.prod(kernel.shape[-4:-1]) + kernel.shape[-1])
    monkeypatch.setattr(layers, "_BLOCK_BYTES", most * per_image)
    return layers.block_size(images, kernel)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "most", "block"), [(1, 4, 1), (12, 5, 4), (12, 4, 4), (7, 4, 4), (11, 3, 3), (6, 99, 6)]
)
def test_blocks_change_neither_values_nor_gradients(batch, most, block, monkeypatch):
    """With and without a rest, plainly, vmapped over kernels and in a scan; blocks are as large as the cache allows."""
    images, kernels = normal(3, batch, 8, 11, 2), normal(3, 3, 3, 2, 4, seed=1)
    assert blocks_of(most, monkeypatch, images[0], kernels[0]) == block

    def everything(implementation):
        def inner(images, kernel):
            output = pooled_convolve(images, kernel, 3, implementation=implementation)
            return jnp.sum(output * jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)), output

        return in_three_ways(jax.value_and_grad(inner, argnums=(0, 1), has_aux=True), images, kernels)

    blocked, lax = everything("blocked"), everything("lax")
    assert largest_difference(blocked, lax) < 1e-4
    assert largest_difference(blocked[0][1], jax.tree.map(jnp.zeros_like, blocked[0][1])) > 1


def test_blocks_have_second_derivatives(monkeypatch):
    """As inversion of gradients needs them: the derivative of a gradient's length, against the stock convolution."""
    images, kernel = normal(5, 6, 6, 1), normal(3, 3, 1, 2, seed=1)
    assert blocks_of(2, monkeypatch, images, kernel) == 2

    def length_of_gradient(images, implementation):
        def loss(kernel):
            return jnp.sum(jnp.tanh(pooled_convolve(images, kernel, 2, implementation=implementation)))

        return jnp.sum(jax.grad(loss)(kernel) ** 2)

    blocked, lax = (jax.grad(length_of_gradient)(images, implementation) for implementation in ("blocked", "lax"))
    np.testing.assert_allclose(blocked, lax, atol=1e-4)
    assert np.abs(blocked).max() > 0.1


def test_unknown_implementations_are_refused_and_auto_is_for_the_machine(monkeypatch):
    for cores, expected in ((1, "blocked"), (2, "matmul")):
        monkeypatch.setattr(machine, "usable_cores", lambda cores=cores: list(range(cores)))
        assert resolve_implementation("auto") == (expected if jax.default_backend() == "cpu" else "matmul")
    with pytest.raises(ValueError, match="implementation='fft': allowed are 'auto', 'blocked', 'matmul', 'lax'"):
        resolve_implementation("fft")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("side", "pool"), [((12, 9), 3), ((11, 8), 2), ((13, 13), 3)])
def test_pooled_convolution_is_convolution_tanh_and_floor_mode_pool(implementation, side, pool):
    """In the textbook's order, bias before tanh, and what does not fill a window dropped after it was computed."""
    images = normal(2, *side, 2)
    layer = PooledConvolution(3, kernel_size=3, pool=pool, implementation=implementation)
    params = layer.init(jax.random.key(0), images)["params"]
    expected = []
    for image in np.asarray(images):
        convolved = np.tanh(twin.convolve(image, np.asarray(params["kernel"])) + np.asarray(params["bias"]))
        expected.append(twin.max_pool(convolved, pool)[0])
    result = layer.apply({"params": params}, images)
    assert result.shape == (2, (side[0] - 2) // pool, (side[1] - 2) // pool, 3)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_pooled_convolution_has_the_gradient_of_the_textbook_order():
    """Pooling before tanh moves no gradient: same derivative as convolution, tanh, reduce_window."""
    images = normal(2, 9, 8, 2)
    layer = PooledConvolution(3, kernel_size=3, pool=2)
    params = layer.init(jax.random.key(0), images)["params"]

    def textbook(params, images):
        convolved = convolve(images, params["kernel"], implementation="lax") + params["bias"][None, None, None]
        pooled = jax.lax.reduce_window(jnp.tanh(convolved), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jnp.sum(pooled**3)

    def ours(params, images):
        return jnp.sum(layer.apply({"params": params}, images) ** 3)

    expected = jax.grad(textbook, argnums=(0, 1))(params, images)
    assert largest_difference(jax.grad(ours, argnums=(0, 1))(params, images), expected) < 1e-4


@functools.cache
def upsample_params():
    return UpsampleConvolution(8).init(jax.random.key(0), jnp.zeros((1, 2, 2, 16)))["params"]


def test_upsampling_layer_has_a_kernel_and_no_bias():
    """[4, 4, C, O] and nothing else."""
    assert jax.tree.map(jnp.shape, upsample_params()) == {"kernel": (4, 4, 16, 8)}
