"""Inference of a participant's labels and of the gradient's scale, before an attack on the images."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak import trees
from gan_leak.attacks.gradient.label_counts import infer_label_counts, infer_scale, last_layer_leaf
from gan_leak.attacks.gradient.label_order import infer_label_order
from gan_leak.attacks.gradient.observation import infer_distinct_labels, infer_label, infer_label_from_bias
from gan_leak.runs.inversion.gradient_files import LoadedGradient
from gan_leak.types import Array, GradientView, PyTree

# Networks whose last layer has no negative input.
_BEHIND_SIGMOIDS = ("dlg_lenet", "dlg_lenet_batchnorm", "grnn_lenet", "grnn_resnet18")


def infer_gradient_scale(num_classes: int, view: GradientView, batch_size: int) -> float | None:
    """The gradient's multiple of the mean's gradient (``infer_scale``); None if the last layer does not reveal it."""
    try:
        kernel, bias, kernel_gradient, bias_gradient = (
            np.asarray(last_layer_leaf(num_classes, ndim, tree)) for tree in view for ndim in (2, 1)
        )
    except ValueError:
        return None
    return infer_scale(kernel, bias, kernel_gradient, bias_gradient, batch_size)


def arranged_labels(
    key: Array,
    update: Callable[[PyTree, Array, Array], PyTree],
    views: GradientView,
    labels: Array,
    image_shape: tuple[int, int, int],
    *,
    epochs: int,
    batch_size: int,
) -> Array:
    """Labels [E, B, K] of participants in the order of their epochs [E, epochs * B, K], as inferred from the updates.

    update: the upload of a participant as a function of parameters, images and labels in this order. Gray images
    replace the unknown images of the participant (``infer_label_order``).
    """
    participants, size, num_classes = labels.shape
    images = jnp.full((epochs * size, *image_shape), 0.5)

    def of_last_layer(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf if leaf.shape[-1] == num_classes and leaf.ndim < 3 else None, tree)

    arranged = []
    for index in range(participants):
        view = trees.take(views, index)
        seen = of_last_layer(view.gradient)

        def simulate(order: Array, params: PyTree = view.params) -> PyTree:
            return update(params, images, jax.nn.one_hot(order, num_classes))

        order, _ = infer_label_order(
            jax.random.fold_in(key, index),
            simulate,
            seen if jax.tree.leaves(seen) else view.gradient,
            np.argmax(np.asarray(labels[index]), axis=-1),
            epochs=epochs,
            batch_size=batch_size,
        )
        arranged.append(jax.nn.one_hot(order, num_classes))
    return jnp.stack(arranged)


def infer_labels(network: str, num_classes: int, view: GradientView, batch_size: int, *, steps: int = 1) -> np.ndarray:
    """The labels [B] of a batch, sorted, as inferred from its gradient. Raises ValueError if it does not reveal them.

    The update of several steps is the sum of their gradients. It is divided by ``steps`` to give one gradient.
    """
    last = functools.partial(last_layer_leaf, num_classes)
    if batch_size == 1:
        if network in _BEHIND_SIGMOIDS:
            return np.asarray(infer_label(last(2, view.gradient)))[None]
        return np.asarray(infer_label_from_bias(last(1, view.gradient)))[None]
    bias_gradient = last(1, view.gradient)
    if np.count_nonzero(np.asarray(bias_gradient) < 0) == batch_size:
        return infer_distinct_labels(bias_gradient, batch_size)
    kernel, bias = (np.asarray(last(ndim, view.params)) for ndim in (2, 1))
    kernel_gradient = np.asarray(last(2, view.gradient))
    return infer_label_counts(kernel, bias, kernel_gradient / steps, np.asarray(bias_gradient) / steps, batch_size)


def infer_labels_of_all(
    network: str, num_classes: int, views: GradientView, batch_size: int, *, steps: int = 1
) -> np.ndarray:
    """``infer_labels`` for views with a leading axis of participants -> [E, B]."""
    participants = len(jax.tree.leaves(views)[0])
    return np.stack(
        [
            infer_labels(network, num_classes, trees.take(views, index), batch_size, steps=steps)
            for index in range(participants)
        ]
    )


def divided_by_inferred_scale(loaded: LoadedGradient, num_classes: int, batch_size: int) -> LoadedGradient:
    """Divide a user's gradient by its scale, if the last layer reveals it, to give that of a mean over the batch."""
    scale = infer_gradient_scale(num_classes, loaded.view, batch_size)
    gradient = jax.tree.map(lambda leaf: leaf / (scale or 1.0), loaded.view.gradient)
    return loaded._replace(view=loaded.view._replace(gradient=gradient), scale=scale)
