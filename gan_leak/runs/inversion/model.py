"""Model inversion of centrally trained classifiers: the comparison of Hitaj et al. 2017, section 9.1."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gan_leak.attacks.model.model_inversion import InversionTarget, ModelInversion, model_inversion
from gan_leak.attacks.optimizers import TrainingData, training
from gan_leak.models import classifier_for, mlp_classifier
from gan_leak.runs.federated.measurement import model_accuracy
from gan_leak.runs.federated.setup import Images
from gan_leak.runs.storage.resumable import UNSAVED, Keys, Lanes, lane_keys, run_in_parts
from gan_leak.types import Array, Model, ModelView, PyTree

_BATCH = 100
# Plain SGD is far slower on sigmoid units, and inversion does not depend on how a model was trained.
_LEARNING_RATE = 1e-3


class Inversions(NamedTuple):
    """Pictures [models, K, H, W, C] of all classes by several models of one kind.

    confidences: [models, K], each model's confidence that its picture shows the class. accuracies: of each model on
    test images.
    """

    pictures: np.ndarray
    confidences: np.ndarray
    accuracies: tuple[float, ...]


def train_classifier(key: Array, model: Model, data: Images, *, epochs: int) -> PyTree:
    """The parameters of a classifier, trained centrally by Adam on images [N, H, W, C] and labels [N]."""
    samples = len(data.labels)

    def loss(params: PyTree, batch: tuple[Array, Array], context: None) -> Array:
        images, labels = batch
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model.apply(params, images), labels))

    procedure = training(model.init, loss, optax.adam(_LEARNING_RATE), samples=samples, batch_size=min(_BATCH, samples))
    examples = TrainingData((data.images, data.labels))
    keys = Keys(*jax.random.split(key))
    return run_in_parts(keys, procedure, examples, steps=epochs, unit="epoch", progress=UNSAVED)


def invert_all_classes(
    kind: str, seeds: int, train: Images, test: Images, num_classes: int, *, epochs: int, steps: int
) -> Inversions:
    """Train ``seeds`` models of a kind, 'mlp' or 'cnn', and invert each for every class from a black picture.

    Raises ValueError for any other kind.
    """
    height, _, channels = train.images.shape[1:]
    if kind == "mlp":
        model = mlp_classifier(num_classes + 1, image_size=height, channels=channels)
    elif kind == "cnn":
        model = classifier_for(height, num_classes + 1, channels)
    else:
        raise ValueError(f"kind={kind!r}: expected 'mlp' or 'cnn'")
    start, procedure = jnp.full(train.images.shape[1:], -1.0), model_inversion(model)
    found: list[ModelInversion] = []
    accuracies = []
    for seed in range(seeds):
        params = train_classifier(jax.random.key(seed), model, train, epochs=epochs)
        found.append(
            run_in_parts(
                # Nothing is random.
                lane_keys(jax.random.key(0), num_classes),
                procedure,
                InversionTarget(ModelView(params), jnp.arange(num_classes), start),
                steps=steps,
                unit="step",
                progress=UNSAVED,
                lanes=Lanes(evidence=InversionTarget._make((None, 0, None))),
            )
        )
        accuracies.append(model_accuracy(model, params, *test))
    pictures, confidences = (
        np.stack([np.asarray(values) for values in column])
        for column in zip(*((entry.image, entry.info.confidence) for entry in found), strict=True)
    )
    return Inversions(pictures, confidences, tuple(accuracies))
