"""Scaling is exact and reversible; fitting pads small images and crops and resizes large ones."""

import numpy as np
import pytest

from gan_leak.data import fit, to_float, to_uint8


def test_to_float_maps_the_grey_levels_onto_minus_one_to_one():
    scaled = to_float(np.array([[0, 51, 255]], np.uint8))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[-1.0, -0.6, 1.0]], atol=1e-7)


def test_to_uint8_undoes_to_float_for_every_grey_level():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(levels)), levels)


def test_to_uint8_rounds_and_clips():
    images = np.array([-np.inf, -3.0, -1 + 0.6 / 127.5, -1 + 0.4 / 127.5, 0.99999, 7.0], np.float32)
    np.testing.assert_array_equal(to_uint8(images), np.array([0, 0, 1, 0, 255, 255], np.uint8))


def test_scaling_refuses_the_wrong_type_and_nan():
    with pytest.raises(ValueError, match=r"images\.dtype=float32, expected uint8"):
        to_float(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"images\.dtype=uint8, expected a float"):
        to_uint8(np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(np.array([0.0, np.nan]))


def test_small_images_are_centred_on_black():
    image = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3, 1)
    expected = np.array([[0, 0, 0, 0, 0], [1, 2, 3, 0, 0], [4, 5, 6, 0, 0], [0, 0, 0, 0, 0]], np.uint8)[:, :4]
    np.testing.assert_array_equal(fit(image, 4)[0, :, :, 0], expected)


def test_mnist_sized_images_get_a_border_of_two():
    fitted = fit(np.full((2, 28, 28, 1), 200, np.uint8), 32)
    assert fitted.shape == (2, 32, 32, 1)
    assert (fitted[:, 2:30, 2:30] == 200).all()
    assert fitted.sum(dtype=int) == 2 * 28 * 28 * 200


def test_images_of_the_right_size_are_unchanged():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(fit(images, 8), images)


def test_large_images_lose_what_is_outside_the_centre_square():
    image = np.full((1, 112, 92, 1), 255, np.uint8)
    image[:, 10:102] = 70
    fitted = fit(image, 64)
    assert fitted.shape == (1, 64, 64, 1)
    assert (fitted == 70).all()


def test_resizing_is_antialiased_and_keeps_channels_apart():
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 254).astype(np.uint8)
    image = np.stack([checkerboard, np.full_like(checkerboard, 9), np.zeros_like(checkerboard)], -1)[None]
    fitted = fit(image, 16)[0, 2:-2, 2:-2]
    np.testing.assert_allclose(fitted[..., 0], 127, atol=2)
    assert (fitted[..., 1] == 9).all()
    assert (fitted[..., 2] == 0).all()


def test_an_image_too_wide_but_not_too_high_is_cropped_then_padded():
    image = np.zeros((1, 2, 10, 1), np.uint8)
    image[0, :, 4:6] = 5
    expected = np.zeros((4, 4), np.uint8)
    expected[1:3, 1:3] = 5
    np.testing.assert_array_equal(fit(image, 4)[0, :, :, 0], expected)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 1)), np.zeros((2, 0, 4, 1), np.uint8)]
)
def test_fit_refuses_other_shapes_and_types(images):
    with pytest.raises(ValueError, match="expected uint8"):
        fit(images, 8)
    with pytest.raises(ValueError, match="image_size=0"):
        fit(np.zeros((1, 2, 2, 1), np.uint8), 0)
