"""Arithmetic on pytrees."""

import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from reference.small import same_bits

LEFT = {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.array([1, 2], jnp.int32),)}
RIGHT = {"a": jnp.full((2, 3), 0.5), "b": (jnp.array([3, 5], jnp.int32),)}


def test_ravel_and_back():
    """All scalars as one vector in leaf order, and exactly back."""
    tree = {"b": jnp.arange(2.0), "a": jnp.arange(6.0).reshape(2, 3) + 10}
    flat, unravel = trees.ravel(tree)
    assert flat.tolist() == [10, 11, 12, 13, 14, 15, 0, 1]
    assert same_bits(unravel(flat), tree)


def test_add_and_subtract_leaf_by_leaf():
    """Values, shapes and types of each leaf."""
    assert trees.add(LEFT, RIGHT)["b"][0].tolist() == [4, 7]
    np.testing.assert_array_equal(trees.subtract(LEFT, RIGHT)["a"], np.arange(6).reshape(2, 3) - 0.5)
    assert same_bits(trees.subtract(trees.add(LEFT, RIGHT), RIGHT), LEFT)


def test_stack_take_and_put():
    """Entries of a new leading axis are the trees; replacing one leaves the others."""
    stacked = trees.stack([LEFT, RIGHT, LEFT])
    assert stacked["a"].shape == (3, 2, 3)
    assert same_bits(trees.take(stacked, 1), RIGHT)
    replaced = trees.put(stacked, jnp.int32(2), RIGHT)
    assert [same_bits(trees.take(replaced, index), LEFT) for index in range(3)] == [True, False, False]
    assert same_bits(trees.take(replaced, 2), RIGHT)


@pytest.mark.parametrize(("value", "finite"), [(1.0, True), (jnp.nan, False), (jnp.inf, False), (-jnp.inf, False)])
def test_all_finite_sees_a_single_entry(value, finite):
    """Anywhere in any leaf."""
    tree = LEFT | {"a": LEFT["a"].at[1, 2].set(value)}
    assert bool(trees.all_finite(tree)) is finite
