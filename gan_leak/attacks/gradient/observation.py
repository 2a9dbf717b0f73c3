"""The observations of a gradient attack: the gradient of a batch, the update of several steps, and inferred labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak import trees
from gan_leak.types import Array, GradientView, Model, PyTree


def soft_cross_entropy(model: Model, params: PyTree, images: Array, labels: Array) -> Array:
    """Mean over a batch of -sum_k y_k log softmax_k; images [B, H, W, C], labels [B, K], which sum to one."""
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(model.apply(params, images)), axis=-1))


def gradient_of(model: Model, params: PyTree, images: Array, labels: Array) -> PyTree:
    """The gradient of the cross-entropy of a batch; labels [B, K]."""
    return jax.grad(lambda weights: soft_cross_entropy(model, weights, images, labels))(params)


def update_of(
    model: Model,
    params: PyTree,
    images: Array,
    labels: Array,
    *,
    learning_rate: Array | float,
    steps: int,
    batch_size: int,
    order: Array | None = None,
) -> PyTree:
    """The update of several local SGD steps in units of a gradient: (params - params after them) / learning_rate.

    The batches [batch_size] take the images in order, and start again after the last. order: int [S * batch_size], the
    images of all steps instead. One step on all images gives their gradient. Raises ValueError if ``batch_size`` does
    not divide the number of images.
    """
    if len(images) % batch_size:
        raise ValueError(f"batch_size={batch_size}: expected a divisor of {len(images)}, the number of images")
    if steps == 1 and batch_size == len(images):
        # The difference of the parameters is less precise.
        return gradient_of(model, params, images, labels)
    batches = len(images) // batch_size

    def step(index: Array, current: PyTree) -> PyTree:
        start = (index % batches) * batch_size
        chosen = (jax.lax.dynamic_slice_in_dim(values, start, batch_size) for values in (images, labels))
        if order is not None:
            places = jax.lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)
            chosen = (values[places] for values in (images, labels))
        gradients = gradient_of(model, current, *chosen)
        return jax.tree.map(lambda weight, gradient: weight - learning_rate * gradient, current, gradients)

    # Unrolled, since the update is differentiated: reverse mode needs a known number of steps.
    current = params
    for index in range(steps):
        current = step(jnp.int32(index), current)
    return jax.tree.map(lambda change: change / learning_rate, trees.subtract(params, current))


def reshuffled(key: Array, count: int, *, steps: int, batch_size: int) -> Array:
    """The order [steps * batch_size] for ``update_of`` of a participant that shuffles its images in each epoch."""
    epochs = -(-steps * batch_size // count)
    orders = jax.vmap(lambda epoch: jax.random.permutation(epoch, count))(jax.random.split(key, epochs))
    return orders.reshape(-1)[: steps * batch_size]


def _pairs(gradient: PyTree, seen: PyTree) -> list[tuple[Array, Array]]:
    """The leaves of ``seen``, each with that of the gradient; raises ValueError for one that does not fit."""
    leaves = dict(jax.tree_util.tree_flatten_with_path(gradient)[0])
    pairs = []
    for place, leaf in jax.tree_util.tree_flatten_with_path(seen)[0]:
        if place not in leaves or leaves[place].shape != leaf.shape:
            name = jax.tree_util.keystr(place)
            raise ValueError(f"gradient: {name} of shape {leaf.shape}, expected arrays of the model's parameters")
        pairs.append((leaves[place], leaf))
    return pairs


def squared_distance(gradient: PyTree, seen: PyTree) -> Array:
    """The sum of squared differences over all leaves of ``seen``, which may lack some of the gradient's."""
    return sum((jnp.sum((a - b) ** 2) for a, b in _pairs(gradient, seen)), jnp.zeros(()))


def fitted_scale(gradient: PyTree, seen: PyTree) -> Array:
    """The factor [] that brings the gradient nearest to ``seen``, by least squares over the leaves of ``seen``."""
    pairs = _pairs(gradient, seen)
    product = sum((jnp.sum(a * b) for a, b in pairs), jnp.zeros(()))
    square = sum((jnp.sum(a**2) for a, _ in pairs), jnp.zeros(()))
    return product / jnp.maximum(square, jnp.finfo(jnp.float32).tiny)


def scaled_distance(gradient: PyTree, seen: PyTree) -> Array:
    """``squared_distance`` after scaling the gradient by ``fitted_scale``."""
    scale = fitted_scale(gradient, seen)
    return squared_distance(jax.tree.map(lambda leaf: scale * leaf, gradient), seen)


def cosine_distance(gradient: PyTree, seen: PyTree) -> Array:
    """1 - the cosine of the angle between two gradients, over all leaves of ``seen`` together (Geiping et al. 2020).

    ``seen`` may lack some of the gradient's leaves.
    """
    pairs = _pairs(gradient, seen)
    product = sum(jnp.sum(a * b) for a, b in pairs)
    norms = (jnp.sqrt(sum(jnp.sum(pair[side] ** 2) for pair in pairs)) for side in (0, 1))
    first, second = norms
    # A defense may set a gradient to zero. A zero gradient then has distance 1.
    return 1.0 - product / jnp.maximum(first * second, jnp.finfo(jnp.float32).tiny)


def check_view(view: GradientView) -> None:
    """Check the view of an attack; the gradient may lack some of the parameters' arrays.

    Raises ValueError if the gradient is zero or of another model than the parameters, or if either is not finite.
    """
    params, gradient = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in view
    )
    if not gradient or any(params.get(name) != shape for name, shape in gradient.items()):
        raise ValueError("gradient: of other shapes than the parameters, expected one of the same model")
    for name, tree in (("gradient", view.gradient), ("params", view.params)):
        if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree)):
            raise ValueError(f"{name}: not finite, expected numbers")
    if not any(np.any(leaf) for leaf in jax.tree.leaves(view.gradient)):
        raise ValueError("gradient: zero everywhere, expected a value other than zero")


def infer_label(last_kernel_gradient: Array) -> Array:
    """The label of a single image, from the gradient [F, K] of the last layer's weights (Zhao et al. 2020, iDLG).

    Its columns are the layer's inputs times softmax - one-hot, which is negative only at the label. So the label has
    the least sum if no input is negative, as after a sigmoid or ReLU. The sums average out noise.
    """
    return jnp.argmin(jnp.sum(last_kernel_gradient, axis=0))


def infer_label_from_bias(last_bias_gradient: Array) -> Array:
    """The label of a single image, from the gradient [K] of the last layer's bias, softmax - one-hot, in any network.

    It is more sensitive to noise than ``infer_label``, which averages.
    """
    return jnp.argmin(last_bias_gradient)


def infer_distinct_labels(last_bias_gradient: Array, batch_size: int) -> np.ndarray:
    """The sorted labels [batch_size] of a batch of distinct classes, from the gradient [K] of the last bias.

    Times the batch size, the gradient is the sum of the probabilities minus the counts of the labels. So a class with a
    negative entry is present. If there are as many negative entries as images, they are all labels, each once (Yin et
    al. 2021). With fewer, a class may be present more than once, or hidden by others' probabilities.

    Raises ValueError if the number of negative entries is not the batch size.
    """
    gradient = np.asarray(last_bias_gradient)
    present = np.flatnonzero(gradient < 0)
    if len(present) != batch_size:
        raise ValueError(
            f"labels: {len(present)} classes show in the gradient of {batch_size} images, expected one for each; give "
            "the labels, or use an attack that recovers them"
        )
    return present
