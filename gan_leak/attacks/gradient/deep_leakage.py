"""Deep leakage from gradients: DLG (Zhu, Liu and Han 2019) and iDLG (Zhao, Mopuri and Bilen 2020).

L-BFGS searches for a dummy batch with the observed gradient.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak.attacks.gradient.contract import GradientAttack, GradientEvidence, GradientInversion, GradientTask
from gan_leak.attacks.gradient.observation import gradient_of, scaled_distance, squared_distance
from gan_leak.attacks.optimizers import Position, descend, limited_memory_bfgs
from gan_leak.attacks.procedure import Procedure
from gan_leak.types import Array, Model, PyTree


class _Search(NamedTuple):
    position: Position
    best: PyTree
    least: Array
    # The norm of the observed gradient over that of the start; None unless the scale is fitted.
    ratio: Array | None = None


def deep_leakage(
    model: Model,
    shape: tuple[int, int, int, int],
    num_classes: int,
    *,
    labels_known: bool = False,
    fit_scale: bool = False,
) -> Procedure:
    """Search for images of ``shape`` [B, H, W, C] and labels whose gradient is ``view.gradient``.

    Images and label logits start from N(0, 1). With ``labels_known`` (iDLG, which infers them) only images are
    optimized. The distance is the sum of squared differences over all arrays of ``view.gradient``. With ``fit_scale``
    the dummy's gradient is first scaled to fit: for a sum, or an update with an unknown rate.

    The optimizer is PyTorch's L-BFGS with rate 1, a history of 100 and no line search. A step is one inner iteration;
    the released code has 300 times 20. L-BFGS without a line search may diverge, so the result is the dummy with the
    nearest gradient.
    """
    optimizer = limited_memory_bfgs()
    distance = scaled_distance if fit_scale else squared_distance

    def labels_of(dummy: PyTree, labels: Array) -> Array:
        return labels if labels_known else jax.nn.softmax(dummy["logits"])

    def init(key: Array, evidence: GradientEvidence) -> _Search:
        view, labels = evidence
        key_images, key_labels = jax.random.split(key)
        dummy: PyTree = {"images": jax.random.normal(key_images, shape)}
        if not labels_known:
            dummy["logits"] = jax.random.normal(key_labels, (shape[0], num_classes))
        ratio = None
        if fit_scale:
            nothing = jax.tree.map(jnp.zeros_like, view.gradient)
            gradient = gradient_of(model, view.params, dummy["images"], labels_of(dummy, labels))
            ratio = jnp.sqrt(squared_distance(view.gradient, nothing) / squared_distance(gradient, nothing))
        return _Search(Position(dummy, optimizer.init(dummy)), dummy, jnp.full((), jnp.inf, jnp.float32), ratio)

    def step(key: Array, search: _Search, evidence: GradientEvidence) -> tuple[_Search, Array]:
        view, labels = evidence

        def objective(dummy: PyTree) -> Array:
            gradient = gradient_of(model, view.params, dummy["images"], labels_of(dummy, labels))
            value = distance(gradient, view.gradient)
            # Without a line search, the first move of L-BFGS suits only objectives of the usual size.
            return value if search.ratio is None else value / search.ratio**2

        position, value = descend(objective, optimizer, search.position)
        better = value < search.least
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), search.position.values, search.best)
        return _Search(position, best, jnp.where(better, value, search.least), search.ratio), value

    def extract(search: _Search, evidence: GradientEvidence) -> GradientInversion:
        least = search.least if search.ratio is None else search.least * search.ratio**2
        return GradientInversion(search.best["images"], labels_of(search.best, evidence.labels), least)

    return Procedure(init, step, extract)


def _build(task: GradientTask, *, labels_known: bool) -> Procedure:
    return deep_leakage(task.model, task.shape, task.num_classes, labels_known=labels_known, fit_scale=task.fit_scale)


DLG = GradientAttack(
    name="dlg",
    citation="Zhu, Liu and Han 2019, Deep Leakage from Gradients",
    build=functools.partial(_build, labels_known=False),
    iterations=6000,
    labels="recovered",
    # Above this, the attack on a participant takes more than 200 MB.
    largest_batch=64,
    largest_batch_reason="which remembers 200 batches",
)
IDLG = GradientAttack(
    name="idlg",
    citation="Zhao, Mopuri and Bilen 2020, iDLG: Improved Deep Leakage from Gradients",
    build=functools.partial(_build, labels_known=True),
    iterations=6000,
    labels="inferred",
    largest_batch=1,
    largest_batch_reason="which infers one label",
)
