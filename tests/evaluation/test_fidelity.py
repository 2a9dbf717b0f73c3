"""Matching and per-pair similarity, against naive loops."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gan_leak.evaluation.fidelity import (
    euclidean_distances,
    flatten,
    nearest_by_l1,
    re_identified,
    structural_similarity,
)

SIDES = st.integers(1, 5)
COUNTS = st.integers(1, 6)
SEEDS = st.integers(0, 2**16)


def _uniform(seed, *shape):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _naive_ssim(left, right):
    """Wang et al. 2004, section III-B, in float64: 11x11 Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03."""
    left, right = (np.asarray(image, np.float64) / 2 + 0.5 for image in (left, right))
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(left.shape[0] - 10):
        for j in range(left.shape[1] - 10):
            x, y = left[i : i + 11, j : j + 11], right[i : i + 11, j : j + 11]
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            variance_x = (window * (x - mean_x) ** 2).sum()
            variance_y = (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
            structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
            values.append(luminance * structure)
    return float(np.mean(values))


def test_flatten_keeps_the_order_of_images_and_of_pixels():
    """Row i of the result is image i, read row by row."""
    images = np.arange(2 * 3 * 4 * 2).reshape(2, 3, 4, 2)
    assert flatten(images).tolist() == [images[0].ravel().tolist(), images[1].ravel().tolist()]


@hypothesis.given(
    left=COUNTS, right=COUNTS, features=st.integers(1, 40), scale=st.sampled_from([0.1, 10.0]), seed=SEEDS
)
def test_euclidean_distances_equal_a_loop_over_pairs(left, right, features, scale, seed):
    """Entry (i, j) is the distance of vector i on the left and j on the right, of whatever number and length."""
    a, b = scale * _uniform(seed, left, features), scale * _uniform(seed + 1, right, features)
    naive = [[math.dist(x.tolist(), y.tolist()) for y in b] for x in a]
    np.testing.assert_allclose(euclidean_distances(a, b), naive, rtol=1e-3, atol=2e-3 * scale)


def test_euclidean_distances_of_equal_vectors_are_zero_and_never_nan():
    """Rounding below zero does not reach the square root."""
    vectors = 1 + 1e-3 * _uniform(0, 50, 300)
    diagonal = np.diag(euclidean_distances(vectors, vectors))
    assert np.all(diagonal < 0.02)
    assert np.all(diagonal >= 0)


@hypothesis.given(images=COUNTS, candidates=COUNTS, height=SIDES, width=SIDES, channels=st.integers(1, 3), seed=SEEDS)
def test_nearest_by_l1_equals_a_loop_over_pairs(images, candidates, height, width, channels, seed):
    """The index and the mean absolute difference per pixel of the nearest candidate, of whatever shape."""
    a, b = _uniform(seed, images, height, width, channels), _uniform(seed + 1, candidates, height, width, channels)
    nearest, distance = nearest_by_l1(a, b)
    naive = np.array(
        [[np.mean([abs(float(p) - float(q)) for p, q in zip(x.flat, y.flat, strict=True)]) for y in b] for x in a]
    )
    assert nearest.shape == distance.shape == (images,)
    assert nearest.tolist() == naive.argmin(axis=1).tolist()
    np.testing.assert_allclose(distance, naive.min(axis=1), rtol=1e-6, atol=1e-9)


def test_nearest_by_l1_finds_a_copy_and_calls_it_zero():
    """An image that is among the candidates is its own nearest, at distance exactly 0."""
    candidates = _uniform(3, 20, 8, 8, 1)
    nearest, distance = nearest_by_l1(candidates[[7, 0, 19]], candidates)
    assert nearest.tolist() == [7, 0, 19]
    assert distance.tolist() == [0.0, 0.0, 0.0]


def test_ssim_of_identical_images_is_one():
    """Each of a batch, textured or flat."""
    images = np.concatenate([_uniform(0, 3, 16, 16, 1), np.full((1, 16, 16, 1), -1, np.float32)])
    np.testing.assert_allclose(structural_similarity(images, images), np.ones(4), atol=1e-5)


def test_ssim_falls_as_noise_grows(mnist_test):
    """More noise, less similarity, for every digit."""
    images = mnist_test[0][:20]
    noise = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    steps = np.array([structural_similarity(images, images + level * noise) for level in (0.0, 0.1, 0.3, 1.0)])
    assert np.all(np.diff(steps, axis=0) < -0.01)


def test_ssim_is_symmetric_and_pairs_image_by_image():
    """Left and right may change places; image i meets image i only."""
    left, right = _uniform(0, 4, 16, 16, 1), _uniform(1, 4, 16, 16, 1)
    forth = structural_similarity(left, right)
    np.testing.assert_allclose(forth, structural_similarity(right, left), atol=1e-6)
    np.testing.assert_allclose(forth[::-1], structural_similarity(left[::-1], right[::-1]), atol=1e-6)
    assert np.ptp(forth) > 1e-3


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_ssim_equals_a_naive_float64_implementation(mnist_test, noise):
    """The published formula, window by window."""
    left = mnist_test[0][:3]
    right = np.clip(left + noise * _uniform(2, *left.shape), -1, 1)
    naive = [_naive_ssim(x[..., 0], y[..., 0]) for x, y in zip(left, right, strict=True)]
    np.testing.assert_allclose(structural_similarity(left, right), naive, atol=1e-3)


def test_the_very_image_is_re_identified_whatever_its_brightness():
    known = _uniform(0, 30, 6, 6, 1)
    classes = np.arange(30) % 3
    places = np.array([4, 7, 20])
    dim = 0.1 * known[places] + 0.4
    assert re_identified(dim, places, classes[places], (known, classes)).tolist() == [True, True, True]
    # Held against another image of the class, and as what tells nothing.
    assert not re_identified(dim, places + 3, classes[places], (known, classes)).any()
    flat = np.full((3, 6, 6, 1), 0.1, np.float32)
    assert not re_identified(flat, places, classes[places], (known, classes)).any()
    # A negative correlates with everything else more.
    assert not re_identified(-dim, places, classes[places], (known, classes)).any()


def test_the_only_image_of_a_class_is_not_re_identified_nor_by_what_resembles_no_image():
    known, classes = _uniform(5, 7, 6, 6, 1), np.array([0, 1, 1, 1, 2, 2, 2])
    assert re_identified(known, np.arange(7), classes, (known, classes)).tolist() == [False] + [True] * 6
    # All negatives: each lies less far from its own than from its like, and resembles neither.
    opposite = np.stack([-known[1], -known[2]])
    pair = (np.stack([0.1 * known[1] + known[2], known[2]]), np.zeros(2, int))
    assert not re_identified(opposite, np.arange(2), np.zeros(2, int), pair).any()


def test_of_two_equal_images_none_is_re_identified():
    known = np.repeat(_uniform(1, 2, 6, 6, 1), [2, 1], axis=0)
    found = re_identified(known, np.arange(3), np.zeros(3, int), (known, np.zeros(3, int)))
    assert found.tolist() == [False, False, True]


def test_singling_out_equals_a_loop_over_correlation_coefficients():
    known, classes = _uniform(2, 40, 5, 5, 1), np.arange(40) % 4
    places = np.arange(12)
    drawn = known[places] + 2.0 * _uniform(3, 12, 5, 5, 1)
    expected = []
    for image, place in zip(drawn, places, strict=True):
        alike = np.flatnonzero(classes == classes[place])
        best = max(alike, key=lambda other: np.corrcoef(image.ravel(), known[other].ravel())[0, 1])
        expected.append(bool(best == place))
    assert 0 < sum(expected) < 12
    assert re_identified(drawn, places, classes[places], (known, classes)).tolist() == expected
