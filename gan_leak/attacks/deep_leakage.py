"""Deep leakage from gradients: DLG (Zhu, Liu and Han 2019) and iDLG (Zhao, Mopuri and Bilen 2020).

A dummy batch is sought whose gradient is the one that was seen, by L-BFGS.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_leak.attacks.descent import limited_memory_bfgs
from gan_leak.attacks.gradients import gradient_of, squared_distance
from gan_leak.types import Array, GradientView, Model, PyTree


class GradientInversion(NamedTuple):
    """A recovered batch: images [B, H, W, C] and labels [B, K], which sum to one; how far its gradient still is [].

    path [iterations]: that distance before each iteration.
    """

    images: Array
    labels: Array
    distance: Array
    path: Array


class _Path(NamedTuple):
    dummy: PyTree
    state: PyTree
    best: PyTree
    least: Array


def deep_leakage(
    key: Array,
    view: GradientView,
    model: Model,
    shape: tuple[int, int, int, int],
    num_classes: int,
    *,
    labels: Array | None = None,
    iterations: int = 6000,
    memory: int = 100,
) -> GradientInversion:
    """Seeks images of ``shape`` [B, H, W, C] and labels whose gradient is ``view.gradient``.

    Images and label logits start from N(0, 1); with ``labels`` [B, K] given, as iDLG infers them, only images are
    sought. The distance is the sum of squared differences over all parameters. L-BFGS with rate 1, a history of
    ``memory`` and no line search, as PyTorch's; an iteration is one of its inner ones, of which the released code has
    20 in each of 300 steps. Returns the dummy whose gradient came nearest, since L-BFGS without a line search may
    leave. For ``jit`` and ``vmap`` over keys and views.
    """
    key_images, key_labels = jax.random.split(key)
    dummy: PyTree = {"images": jax.random.normal(key_images, shape)}
    if labels is None:
        dummy["logits"] = jax.random.normal(key_labels, (shape[0], num_classes))

    def labels_of(dummy: PyTree) -> Array:
        return jax.nn.softmax(dummy["logits"]) if labels is None else labels

    def objective(dummy: PyTree) -> Array:
        gradient = gradient_of(model, view.params, dummy["images"], labels_of(dummy))
        return squared_distance(gradient, view.gradient)

    optimizer = limited_memory_bfgs(memory=memory)

    def step(path: _Path, _: None) -> tuple[_Path, Array]:
        value, gradients = jax.value_and_grad(objective)(path.dummy)
        better = value < path.least
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), path.dummy, path.best)
        updates, state = optimizer.update(gradients, path.state, path.dummy)
        moved = optax.apply_updates(path.dummy, updates)
        return _Path(moved, state, best, jnp.where(better, value, path.least)), value

    start = _Path(dummy, optimizer.init(dummy), dummy, jnp.asarray(jnp.inf))
    last, values = jax.lax.scan(step, start, length=iterations)
    return GradientInversion(last.best["images"], labels_of(last.best), last.least, values)
