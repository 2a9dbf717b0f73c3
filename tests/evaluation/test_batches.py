"""Equal batches: the same values as at once, from few programs, whatever the number of elements."""

import jax
import numpy as np
import pytest

from gan_leak.evaluation.batches import in_batches


@pytest.mark.parametrize("count", [0, 1, 2, 5, 16, 17, 63, 64, 65, 130])
def test_the_values_are_those_of_all_elements_at_once(count):
    left = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    right = np.arange(count, dtype=np.float32)
    total, scaled = in_batches(lambda a, b: (a.sum(axis=1) + b, {"twice": 2 * a}), left, right, most=50)
    np.testing.assert_array_equal(total, left.sum(axis=1) + right)
    np.testing.assert_array_equal(scaled["twice"], 2 * left)


def test_any_number_of_elements_needs_few_programs():
    """Batches of 1, 4, 16 and 50."""
    seen = set()

    @jax.jit
    def doubled(batch):
        seen.add(len(batch))
        return 2 * batch

    for count in range(120):
        in_batches(doubled, np.zeros(count, np.float32), most=50)
    assert seen == {1, 4, 16, 50}
