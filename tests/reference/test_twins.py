"""The twins themselves, on cases small enough to work out by hand."""

import numpy as np
import pytest

from reference import federation, layers, selection

SETTINGS = federation.Settings(0.1, 0.5, 1.0, 1.0, "largest", 0.0, np.inf, 1.0, 1, 2, 3)


def test_gradient_is_the_slope_of_the_loss():
    """Central differences of the loss give the hand-written gradient."""
    generator = np.random.default_rng(0)
    images, labels = generator.normal(size=(4, 2, 2, 1)), [0, 2, 1, 2]
    params = generator.normal(size=3 + 12)
    gradient = federation.loss_and_gradient(params, images, labels, 3)[1]
    for index, slope in enumerate(gradient):
        step = np.zeros_like(params)
        step[index] = 1e-5
        above = federation.loss_and_gradient(params + step, images, labels, 3)[0]
        below = federation.loss_and_gradient(params - step, images, labels, 3)[0]
        assert slope == pytest.approx((above - below) / 2e-5, abs=1e-8)


def test_selection_rules_by_hand():
    """Counts, ties and truncation of a case that fits in one line."""
    assert selection.indices_of_largest([1, 3, 3, 0, 3], 2) == {1, 2}
    assert selection.is_some_largest([False, False, True, False, True], [1, 3, 3, 0, 3], 2)
    assert not selection.is_some_largest([True, False, True, False, False], [1, 3, 3, 0, 3], 2)
    assert not selection.is_some_choice_above([True, True], [0.5, -2.0], 1.0, 2)
    assert [selection.truncated(value, 1.5) for value in (-2, 1, 3)] == [-1.5, 1, 1.5]
    assert selection.count_of_fraction(0.01, 30) == 1


def test_full_convolution_by_hand():
    """One pixel in the corner of a 2x2 image puts the kernel, less its first row and column, into the corner."""
    image, kernel = np.zeros((2, 2, 1)), np.arange(16.0).reshape(4, 4, 1, 1)
    image[0, 0] = 1
    output = layers.full_convolution(image, kernel)[:, :, 0]
    assert output.tolist() == [[5, 6, 7, 0], [9, 10, 11, 0], [13, 14, 15, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("batches", [[[0, 1]], [[0, 1], [1]], [[0], [1, 2]], [[0, 1], [2], [0]]])
def test_batches_that_miss_or_repeat_a_sample_are_refused(batches):
    """The check of observed batches can fail."""
    federation.check_batches([[2, 0], [1]], 3, SETTINGS)
    with pytest.raises(AssertionError):
        federation.check_batches(batches, 3, SETTINGS)
