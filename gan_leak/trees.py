"""Arithmetic on pytrees of parameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gan_leak.types import Array, PyTree


def ravel(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """The leaves of a pytree as one vector [D], and the function that converts such a vector to the pytree."""
    return ravel_pytree(tree)


def add(left: PyTree, right: PyTree) -> PyTree:
    """Left + right, leaf by leaf."""
    return jax.tree.map(jnp.add, left, right)


def subtract(left: PyTree, right: PyTree) -> PyTree:
    """Left - right, leaf by leaf."""
    return jax.tree.map(jnp.subtract, left, right)


def take(tree: PyTree, index: Array | np.ndarray | slice | tuple[slice, ...] | int) -> PyTree:
    """Entry ``index`` of the leading axis of every leaf. As in NumPy, a slice or an array takes several entries."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def expand(tree: PyTree) -> PyTree:
    """The pytree with a leading axis of length one on every leaf."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def put(tree: PyTree, index: Array | int, entry: PyTree) -> PyTree:
    """The pytree with entry ``index`` of the leading axis of every leaf replaced."""
    return jax.tree.map(lambda leaf, new: leaf.at[index].set(new), tree, entry)


def stack(trees: list[PyTree]) -> PyTree:
    """One pytree with a new leading axis, from pytrees of the same structure."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def zeros(shapes: PyTree) -> PyTree:
    """Zeros for a pytree of arrays or of their shapes, such as that of ``jax.eval_shape``."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def all_finite(tree: PyTree) -> Array:
    """Bool []: True where no leaf holds a NaN or an infinity."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
