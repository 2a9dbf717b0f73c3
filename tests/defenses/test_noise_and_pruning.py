"""Defenses without a promise: that they do what they say, at the scale they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gan_leak.collaboration.selection import chain
from gan_leak.defenses import (
    clip_norm,
    dropout,
    gaussian_noise,
    laplace_noise,
    protect,
    prune_smallest,
    quantize,
)
from gan_leak.types import Upload

SIZE = 20_000
VALUES = jnp.asarray(np.random.default_rng(0).normal(size=SIZE).astype(np.float32))
EVERYTHING = Upload(VALUES, jnp.ones(SIZE, bool))
HALF = Upload(jnp.where(jnp.arange(SIZE) % 2, VALUES, 0.0), jnp.arange(SIZE) % 2 == 1)


def sent(transform, upload=EVERYTHING, seed=1):
    result, state, info = transform.apply(
        jax.random.key(seed), upload, transform.init(VALUES), params=VALUES, hyperparameters=None
    )
    assert state == ()
    assert int(info.uploaded) == int(jnp.sum(result.mask))
    assert not np.any(np.asarray(result.values)[~np.asarray(result.mask)])
    return np.asarray(result.values), np.asarray(result.mask)


@pytest.mark.parametrize(
    ("transform", "distribution"), [(gaussian_noise, scipy.stats.norm), (laplace_noise, scipy.stats.laplace)]
)
def test_noise_has_its_law_and_scale_and_leaves_alone_what_is_not_sent(transform, distribution):
    values, _ = sent(transform(0.3))
    noise = values - np.asarray(VALUES)
    assert scipy.stats.kstest(noise, distribution(scale=0.3).cdf).pvalue > 1e-3
    for wrong in (0.25, 0.36):
        assert scipy.stats.kstest(noise, distribution(scale=wrong).cdf).pvalue < 1e-6
    _, mask = sent(transform(0.3), HALF)
    assert mask.tolist() == np.asarray(HALF.mask).tolist()
    assert not np.array_equal(sent(transform(0.3), seed=2)[0], values)
    np.testing.assert_array_equal(sent(transform(0.0))[0], VALUES)


def test_clipping_shortens_and_never_lengthens():
    values, _ = sent(clip_norm(3.0))
    assert np.linalg.norm(values) == pytest.approx(3.0, rel=1e-5)
    np.testing.assert_allclose(values / values[0], np.asarray(VALUES) / VALUES[0], rtol=1e-3)
    np.testing.assert_array_equal(sent(clip_norm(1e6))[0], VALUES)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.99])
def test_pruning_leaves_out_the_smallest(share):
    values, mask = sent(prune_smallest(share))
    assert mask.sum() == round((1 - share) * SIZE)
    kept, left_out = np.abs(np.asarray(VALUES))[mask], np.abs(np.asarray(VALUES))[~mask]
    assert not left_out.size or left_out.max() <= kept.min()
    np.testing.assert_array_equal(values[mask], np.asarray(VALUES)[mask])


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quantization_has_so_many_values_and_no_bias(bits):
    draws = np.stack([sent(quantize(bits), seed=seed)[0] for seed in range(8)])
    assert len(np.unique(draws[0])) <= 2**bits
    step = float(jnp.ptp(VALUES)) / (2**bits - 1)
    assert np.abs(draws - np.asarray(VALUES)).max() <= step * 1.01
    error = (draws - np.asarray(VALUES)).mean()
    assert abs(error) < 5 * step / np.sqrt(draws.size)
    # Rounding to the nearest would be the same every time.
    assert not np.array_equal(draws[0], draws[1])


def test_they_compose():
    both = chain(prune_smallest(0.5), gaussian_noise(0.1))
    upload, _, info = both.apply(jax.random.key(0), EVERYTHING, both.init(VALUES), params=VALUES, hyperparameters=None)
    assert int(info.uploaded) == SIZE // 2
    noise = np.asarray(upload.values - VALUES)[np.asarray(upload.mask)]
    assert scipy.stats.kstest(noise, scipy.stats.norm(scale=0.1).cdf).pvalue > 1e-3


def test_what_a_client_does_to_its_features():
    features = jnp.asarray(np.random.default_rng(1).normal(size=(4, SIZE // 4)).astype(np.float32))
    for defense, distribution in ((gaussian_noise, scipy.stats.norm), (laplace_noise, scipy.stats.laplace)):
        noise = np.asarray(protect(jax.random.key(3), defense(0.5), features) - features).ravel()
        assert scipy.stats.kstest(noise, distribution(scale=0.5).cdf).pvalue > 1e-3
        assert scipy.stats.kstest(noise, distribution(scale=0.6).cdf).pvalue < 1e-6
    dropped = np.asarray(protect(jax.random.key(4), dropout(0.3), features))
    zero = dropped == 0
    assert scipy.stats.binomtest(int(zero.sum()), SIZE, 0.3).pvalue > 1e-3
    # As released: what is kept is not made larger.
    np.testing.assert_array_equal(dropped[~zero], np.asarray(features)[~zero])
