"""Model inversion of classifiers that were trained on everything: the comparison of Hitaj et al. 2017, section 9.1."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gan_leak.attacks import model_inversion
from gan_leak.models import classifier_for, mlp_classifier
from gan_leak.runs.federated.measurement import model_accuracy
from gan_leak.runs.federated.setup import Images
from gan_leak.types import Array, Model, ModelView, PyTree

_BATCH = 100
# Plain SGD takes far longer on sigmoid units, and how a model was trained is not what inversion is about.
_LEARNING_RATE = 1e-3


class Inversions(NamedTuple):
    """Pictures [models, K, H, W, C] of all classes by several models of one kind.

    confidences: [models, K], what each model gives its picture of the class. accuracies: each model's, on test images.
    """

    pictures: np.ndarray
    confidences: np.ndarray
    accuracies: tuple[float, ...]


def train_classifier(key: Array, model: Model, data: Images, *, epochs: int) -> PyTree:
    """Trains a classifier centrally by Adam on images [N, H, W, C] and labels [N]."""
    optimizer = optax.adam(_LEARNING_RATE)
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    batch_size = min(_BATCH, len(labels))

    def loss(params: PyTree, picked: Array) -> Array:
        logits = model.apply(params, images[picked])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[picked]))

    def step(carry: tuple, picked: Array) -> tuple[tuple, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, picked), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def epoch(key: Array, carry: tuple) -> tuple:
        steps = len(labels) // batch_size
        order = jax.random.permutation(key, len(labels))[: steps * batch_size]
        return jax.lax.scan(step, carry, order.reshape(steps, batch_size))[0]

    key_init, key_epochs = jax.random.split(key)
    params = model.init(key_init)
    carry = (params, optimizer.init(params))
    for index in range(epochs):
        carry = epoch(jax.random.fold_in(key_epochs, index), carry)
    return carry[0]


def invert_all_classes(
    kind: str, seeds: int, train: Images, test: Images, num_classes: int, *, epochs: int, steps: int
) -> Inversions:
    """Trains ``seeds`` models of a kind, 'mlp' or 'cnn', and inverts each for every class from a black picture.

    Raises ValueError for another kind.
    """
    height, _, channels = train.images.shape[1:]
    if kind == "mlp":
        model = mlp_classifier(num_classes + 1, image_size=height, channels=channels)
    elif kind == "cnn":
        model = classifier_for(height, num_classes + 1, channels)
    else:
        raise ValueError(f"kind={kind!r}: expected 'mlp' or 'cnn'")
    start = jnp.full(train.images.shape[1:], -1.0)

    @jax.jit
    def invert(params: PyTree) -> tuple[Array, Array]:
        def one(target_class: Array) -> tuple[Array, Array]:
            view = ModelView(params)
            image, info = model_inversion(view, model, target_class=target_class, start=start, steps=steps)
            return image, info.confidence

        return jax.vmap(one)(jnp.arange(num_classes))

    pictures, confidences, accuracies = [], [], []
    for seed in range(seeds):
        params = train_classifier(jax.random.key(seed), model, train, epochs=epochs)
        image, confidence = invert(params)
        pictures.append(np.asarray(image))
        confidences.append(np.asarray(confidence))
        accuracies.append(model_accuracy(model, params, *test))
    return Inversions(np.stack(pictures), np.stack(confidences), tuple(accuracies))
