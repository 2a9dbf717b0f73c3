"""How near a picture comes to one image: by hand, against naive loops, and in the forms that papers report."""

import numpy as np
import pytest

from gan_leak.evaluation.fidelity import (
    group_psnr,
    match,
    peak_signal_to_noise,
    root_mean_square_error,
    uniform_similarity,
)


def pictures(count, seed=0, channels=1, size=12):
    return np.random.default_rng(seed).uniform(-1, 1, (count, size, size, channels)).astype(np.float32)


def test_psnr_by_hand():
    """A difference of 0.2 everywhere in a range of 2 is a tenth of the peak: 20 dB; one grey level is 48.13 dB."""
    images = np.zeros((2, 4, 4, 1), np.float32)
    images[1] += 2 / 255
    originals = np.zeros((2, 4, 4, 1), np.float32)
    originals[0] += 0.2
    np.testing.assert_allclose(peak_signal_to_noise(images, originals), [20.0, 20 * np.log10(255)], rtol=1e-5)
    np.testing.assert_allclose(root_mean_square_error(images, originals), [25.5, 1.0], rtol=1e-5)
    assert np.isinf(peak_signal_to_noise(images, images)).all()
    # Outside the range of images there is nothing to see.
    assert np.isinf(peak_signal_to_noise(np.full_like(images, 3.0), np.ones_like(images))).all()


def test_the_group_s_psnr_is_half_the_standard_one_and_a_constant():
    """Standard = 2 * reported - 48.13, image by image (a picture of noise has 26 to 30 there)."""
    images, originals = pictures(5), pictures(5, seed=1)
    standard, reported = peak_signal_to_noise(images, originals), group_psnr(images, originals)
    np.testing.assert_allclose(standard, 2 * reported - 48.1308, atol=1e-3)
    assert (standard < 10).all()
    assert (reported > 26).all()


def naive_similarity(left, right, span):
    """SSIM of two [H, W] pictures in [0, 1], window by window."""
    values = []
    for row in range(left.shape[0] - 6):
        for column in range(left.shape[1] - 6):
            a, b = (picture[row : row + 7, column : column + 7].astype(np.float64) for picture in (left, right))
            covariance = np.cov(a.ravel(), b.ravel(), ddof=1)
            first, second = (0.01 * span) ** 2, (0.03 * span) ** 2
            top = (2 * a.mean() * b.mean() + first) * (2 * covariance[0, 1] + second)
            bottom = (a.mean() ** 2 + b.mean() ** 2 + first) * (covariance[0, 0] + covariance[1, 1] + second)
            values.append(top / bottom)
    return np.mean(values)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("by_range", [False, True])
def test_similarity_is_that_of_every_window(channels, by_range):
    originals = pictures(3, channels=channels)
    images = np.clip(0.5 * originals + 0.2 * pictures(3, seed=1, channels=channels), -0.8, 0.8)
    found = uniform_similarity(images, originals, by_range=by_range)
    for image, original, similarity in zip((images + 1) / 2, (originals + 1) / 2, found, strict=True):
        span = np.ptp(image) if by_range else 1.0
        expected = np.mean([naive_similarity(image[..., c], original[..., c], span) for c in range(channels)])
        assert similarity == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(uniform_similarity(originals, originals), 1.0)


def test_a_batch_without_order_is_matched_as_a_whole():
    """Each original once, also where two pictures are nearest to the same one."""
    originals = pictures(6)
    order = np.array([3, 0, 5, 1, 4, 2])
    assert match(originals[order] + 0.05, originals).tolist() == order.tolist()
    line = np.zeros((3, 1, 1, 1)) + np.array([0.0, 1.0, 2.0]).reshape(-1, 1, 1, 1)
    images = np.array([0.9, 1.1, 1.2]).reshape(-1, 1, 1, 1)
    assert sorted(match(images, line).tolist()) == [0, 1, 2]
    assert match(images, line).tolist() == [0, 1, 2]
