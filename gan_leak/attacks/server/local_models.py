"""The local models of participants as the server knows them, and model inversion of all of them at once.

>>> from gan_leak import Received, ServerView, Upload, mlp_classifier
>>> model = mlp_classifier(2, image_size=2, hidden=())
>>> sent = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), model.init(jax.random.key(0)))
>>> values = jnp.stack([jnp.zeros(10), jnp.ones(10)])
>>> uploads = Received(Upload(values, values > 0), None)
>>> view = ServerView(0, jnp.arange(2), sent, jnp.ones((2, 10), bool), uploads, trees.take(sent, 0))
>>> models = local_models(view)
>>> models.present
Array([False,  True], dtype=bool)
>>> procedure = invert_local_models(model, 2, patience=2)
>>> target = LocalInversionTarget(models.params, jnp.zeros((2, 2, 1)))
>>> procedure.extract(procedure.init(jax.random.key(1), target), target).image.shape
(2, 2, 2, 2, 1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.attacks.model.model_inversion import InversionTarget, ModelInversion, clip_to_range, model_inversion
from gan_leak.attacks.procedure import Procedure
from gan_leak.attacks.server.observed_updates import seen_updates
from gan_leak.types import Array, Model, ModelView, PyTree, ServerView


class LocalModels(NamedTuple):
    """The models of participants after local training, as the server can compute them.

    params: a leading P axis on every leaf. present: bool [P], the participants that uploaded something.
    """

    params: PyTree
    present: Array


def local_models(view: ServerView) -> LocalModels:
    """The local models: the parameters that each participant was sent plus the change that it uploaded.

    They are exact if all parameters are downloaded and uploaded, and no defense changes the update. Coordinates that a
    participant did not take or did not upload count as those that were sent.
    """
    seen = seen_updates(view)
    return LocalModels(change_params(view.sent, seen.updates), seen.sent)


def change_params(params: PyTree, changes: Array) -> PyTree:
    """Parameters with a leading P axis plus changes [P, D]; a gradient g is a change of -rate * steps * g."""

    def one(own: PyTree, change: Array) -> PyTree:
        flat, unravel = trees.ravel(own)
        return unravel(flat + change)

    return jax.vmap(one)(params, changes)


class LocalInversionTarget(NamedTuple):
    """The input of an inversion of local models: parameters with a leading K axis, start image [H, W, C] in [-1, 1]."""

    params: PyTree
    start: Array


def invert_local_models(
    classifier: Model,
    classes: int,
    *,
    learning_rate: Array | float = 0.4,
    patience: int = 100,
    confidence: Array | float = 0.99,
    process: Callable[[Array], Array] = clip_to_range,
) -> Procedure:
    """Model inversion (Fredrikson et al. 2015) of K local models for the classes 0 to ``classes`` - 1, all at once.

    A baseline of user-level attacks: the local model of one participant, inverted for each class. The evidence is a
    ``LocalInversionTarget``, the result a ``ModelInversion`` with images [K, classes, H, W, C] and diagnostics [K,
    classes]. The info of a step is the cost [K, classes]. See ``model_inversion`` for the hyperparameters; an image
    whose descent is finished stays unchanged.

    Raises ValueError for fewer than one class, and as ``model_inversion`` does.
    """
    if classes < 1:
        raise ValueError(f"classes={classes}: expected at least 1")
    single = model_inversion(
        classifier, learning_rate=learning_rate, patience=patience, confidence=confidence, process=process
    )
    numbers = jnp.arange(classes)

    def for_each(fun: Callable[..., PyTree], target: LocalInversionTarget, *paths: PyTree) -> PyTree:
        """``fun(single target, *paths)`` for each model and class; paths have the axes [K, classes]."""

        def one(params: PyTree, target_class: Array, *own: PyTree) -> PyTree:
            return fun(InversionTarget(ModelView(params), target_class, target.start), *own)

        of_classes = jax.vmap(one, (None, 0, *[0] * len(paths)))
        return jax.vmap(of_classes, (0, None, *[0] * len(paths)))(target.params, numbers, *paths)

    def init(key: Array, target: LocalInversionTarget) -> PyTree:
        # Nothing is random, so the key may serve all.
        return for_each(lambda one: single.init(key, one), target)

    def step(key: Array, paths: PyTree, target: LocalInversionTarget) -> tuple[PyTree, Array]:
        def advance(one: InversionTarget, path: PyTree) -> tuple[PyTree, Array]:
            new_path, cost = single.step(key, path, one)
            return jax.tree.map(lambda old, new: jnp.where(path.finished, old, new), path, new_path), cost

        return for_each(advance, target, paths)

    def extract(paths: PyTree, target: LocalInversionTarget) -> ModelInversion:
        return for_each(lambda one, path: single.extract(path, one), target, paths)

    return Procedure(init, step, extract, lambda paths: jnp.all(paths.finished))
