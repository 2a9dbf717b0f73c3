"""A table of numbers in a federation: the breast-cancer table, small networks, and their gradients by hand."""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.types import FederationData, Model

FEATURES = 30
HIDDEN = 8
FAKE_CLASS = 2
CLASSES = 3


@functools.cache
def breast_cancer():
    """The breast-cancer table of scikit-learn: rows [569, 30] scaled to [-1, 1], labels 0 (malignant) or 1 (benign)."""
    # The file alone: the package takes seconds to import.
    path = importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/breast_cancer.csv")
    table = np.loadtxt(str(path), delimiter=",", skiprows=1)
    rows, labels = table[:, :FEATURES], table[:, FEATURES]
    low, high = rows.min(axis=0), rows.max(axis=0)
    return (2 * (rows - low) / (high - low) - 1).astype(np.float32), labels.astype(np.int32)


def tabular_federation(owned, length):
    """Participants with the rows of these indices, padded to one length with what would be noticed."""
    rows, labels = breast_cancer()
    inputs = np.full((len(owned), length, FEATURES), 9.0, np.float32)
    targets = np.zeros((len(owned), length), np.int32)
    for participant, indices in enumerate(owned):
        inputs[participant, : len(indices)] = rows[indices]
        targets[participant, : len(indices)] = labels[indices]
    sizes = jnp.array([len(indices) for indices in owned], jnp.int32)
    return FederationData(jnp.asarray(inputs), jnp.asarray(targets), sizes)


def mlp(inputs, outputs, squash=lambda values: values):
    """A network with one hidden layer of tanh units."""

    def init(key):
        key_first, key_second = jax.random.split(key)
        return {
            "w1": jax.random.normal(key_first, (inputs, HIDDEN)) / np.sqrt(inputs),
            "b1": jnp.zeros(HIDDEN),
            "w2": jax.random.normal(key_second, (HIDDEN, outputs)) / np.sqrt(HIDDEN),
            "b2": jnp.zeros(outputs),
        }

    def apply(params, batch):
        hidden = jnp.tanh(batch @ params["w1"] + params["b1"][None])
        return squash(hidden @ params["w2"] + params["b2"][None])

    return Model(init, apply)


def mlp_classifier():
    """Rows [B, 30] -> logits [B, 3], the last of them for fakes."""
    return mlp(FEATURES, CLASSES)


def mlp_generator():
    """Latents [B, 100] -> rows [B, 30] in [-1, 1]."""
    return mlp(100, FEATURES, jnp.tanh)


def example_gradient(params, row, label):
    """The gradient of the negative log-likelihood of one row by the chain rule, named as the parameters."""
    hidden = np.tanh(row @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    error = np.exp(logits - logits.max())
    error /= error.sum()
    error[label] -= 1
    back = (params["w2"] @ error) * (1 - hidden**2)
    return {"w1": np.outer(row, back), "b1": back, "w2": np.outer(hidden, error), "b2": error}


def train(params, rows, labels, rate, steps, clipping_norm=np.inf):
    """Steps of gradient descent on the mean over all rows of their gradients, each clipped to a norm."""
    params = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    for _ in range(steps if len(rows) else 0):
        total = {name: np.zeros_like(leaf) for name, leaf in params.items()}
        for row, label in zip(rows, labels, strict=True):
            gradient = example_gradient(params, row.astype(np.float64), label)
            norm = np.sqrt(sum((leaf**2).sum() for leaf in gradient.values()))
            for name in total:
                total[name] += gradient[name] * min(1.0, clipping_norm / norm)
        params = {name: leaf - rate * total[name] / len(rows) for name, leaf in params.items()}
    return params
