"""The labels of representatives, inferred from the last layer of the clients' updates; traceable, for all clients.

``gan_leak.attacks.gradient.label_counts`` solves the same equations for one batch, and refuses what is not exact (Ma et
al. 2023, iLRG, section 3). Here the nearest whole counts are taken, since a server attacks every client in every round.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.attacks.gradient.label_counts import last_layer_leaf
from gan_leak.types import Array, Model, PyTree


class InferredLabels(NamedTuple):
    """Labels int32 [K, R] and weights float32 [K, R] of the representatives, as in ``UpdateEvidence``.

    counts: int32 [K, C], the inferred number of each client's images of each class.
    """

    labels: Array
    weights: Array
    counts: Array


def infer_labels(
    params: PyTree,
    updates: Array,
    sizes: Array,
    *,
    num_classes: int,
    representatives: int,
    probabilities: Array | None = None,
) -> InferredLabels:
    """The labels of ``representatives`` images a client, from the last layer of its update.

    params: with a leading K axis. updates: float32 [K, D], as in ``UpdateEvidence``. sizes: int32 [K], the number of
    each client's images. probabilities: [K, C, C], those of each client's model for images of each class (row),
    from auxiliary images (``class_probabilities``); None: from the update, which is exact for an untrained model only.

    The gradient of the last bias is the mean of the probabilities minus the part of each class. After several local
    steps the equation is approximate. Raises ValueError unless exactly one kernel and one bias end in the classes.
    """

    def of_client(params: PyTree, update: Array, size: Array, rows: Array | None) -> InferredLabels:
        gradient = trees.ravel(params)[1](update)
        kernel, bias, kernel_gradient, bias_gradient = (
            last_layer_leaf(num_classes, ndim, tree) for tree in (params, gradient) for ndim in (2, 1)
        )
        if rows is None:
            rows = probabilities_from_update(kernel, bias, kernel_gradient, bias_gradient)
        counts = whole_counts(class_parts(bias_gradient, rows), size)
        return InferredLabels(*share_out(counts, representatives), counts)

    for ndim in (2, 1):
        # Raises before tracing.
        last_layer_leaf(num_classes, ndim, trees.take(params, 0))
    return jax.vmap(of_client)(params, updates, sizes, probabilities)


def class_probabilities(model: Model, params: PyTree, images: Array, labels: Array, num_classes: int) -> Array:
    """The mean probabilities [C, C] of a model for the images [A, H, W, C] of each class (row), labels [A].

    The row of a class without images is one-hot: the model is taken to be certain.
    """
    members = jax.nn.one_hot(labels, num_classes)
    sums = members.T @ jax.nn.softmax(model.apply(params, images))
    counts = jnp.sum(members, axis=0)[:, None]
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1.0), jnp.eye(num_classes))


def probabilities_from_update(kernel: Array, bias: Array, kernel_gradient: Array, bias_gradient: Array) -> Array:
    """The probabilities [C, C] of each class's images (row), from the last layer and its gradients (iLRG).

    kernel, kernel_gradient: [F, C]; bias, bias_gradient: [C]. The images of class c are taken to share one input of the
    layer: column c of the kernel's gradient over entry c of the bias's.
    """
    known = bias_gradient != 0
    inputs = jnp.where(known[:, None], (kernel_gradient / jnp.where(known, bias_gradient, 1.0)[None]).T, 0.0)
    return jax.nn.softmax(inputs @ kernel + bias[None])


def class_parts(bias_gradient: Array, probabilities: Array) -> Array:
    """The part of each class among a client's images [C], at least 0 and of sum one; least squares.

    Solves bias_gradient = sum over classes of part * (probabilities of the class - its one-hot vector).
    """
    classes = len(bias_gradient)
    equations = jnp.concatenate([probabilities.T - jnp.eye(classes), jnp.ones((1, classes))])
    solved = jnp.linalg.lstsq(equations, jnp.append(bias_gradient, 1.0))[0]
    parts = jnp.maximum(solved, 0.0)
    return parts / jnp.maximum(jnp.sum(parts), jnp.finfo(parts.dtype).tiny)


def whole_counts(parts: Array, size: Array | int) -> Array:
    """Whole numbers [C] of sum ``size`` nearest to size * parts, by largest remainders; ties go to lower classes."""
    quotas = size * parts
    counts = jnp.floor(quotas).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(counts - quotas))
    return counts + (rank < size - jnp.sum(counts))


def share_out(counts: Array, representatives: int) -> tuple[Array, Array]:
    """The sorted labels int32 [R] and the weights float32 [R] of R representatives of ``counts`` images [C].

    Adams's method: the next representative goes to the class with most images for each that it has, to the lower class
    in a tie. So a class without images gets none, and every other one at least one if there are enough. A class's
    weight is its part of the represented images, shared equally by its representatives.
    """

    def give(_: Array, seats: Array) -> Array:
        # A class without a representative comes first.
        claims = jnp.where(seats > 0, counts / jnp.maximum(seats, 1), counts * (jnp.sum(counts) + 1.0))
        return seats.at[jnp.argmax(claims)].add(1)

    seats = jax.lax.fori_loop(0, representatives, give, jnp.zeros(len(counts), jnp.int32))
    labels = jnp.repeat(jnp.arange(len(counts), dtype=jnp.int32), seats, total_repeat_length=representatives)
    weights = (counts / jnp.maximum(seats, 1))[labels]
    return labels, weights / jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
