"""Source inference: the participant that a training record came from (Hu et al., ICDM 2021).

The server has a record that some participant trained on, and asks which one. With equal priors the most probable source
is the participant whose local model has the smallest loss on the record (section IV there). The attack needs the
record, so it does not reconstruct anything. It is a baseline of user-level attacks: it shows how much of a
participant's identity its upload tells at all.

>>> from gan_leak import mlp_classifier
>>> model = mlp_classifier(2, image_size=2, hidden=())
>>> params = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))
>>> records, labels = jnp.zeros((4, 2, 2, 1)), jnp.array([0, 1, 0, 1])
>>> found = source_inference(model, LocalModels(params, jnp.ones(3, bool)), records, labels)
>>> found.losses.shape
(4, 3)
>>> source_accuracy(np.zeros((4, 3)), np.array([0, 1, 2, 0]))
0.3333333333333333
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.server.local_models import LocalModels
from gan_leak.types import Array, Model, PyTree


class SourceInference(NamedTuple):
    """The losses [R, K] of R records under K local models, and the participant with the smallest one, int32 [R].

    The loss under the model of an absent participant is infinite. Of equal losses the first counts; use
    ``source_accuracy`` on the losses, which counts a tie as a random choice.
    """

    losses: Array
    sources: Array


def source_inference(model: Model, models: LocalModels, inputs: Array, labels: Array) -> SourceInference:
    """Find the source of records: inputs [R, ...], labels int32 [R]; ``models`` as of ``local_models(view)``.

    The loss is the cross-entropy. One forward pass of all R records is done for each of the K models. Raises ValueError
    for no record, and for another number of labels.
    """
    if len(inputs) == 0 or labels.shape != inputs.shape[:1]:
        raise ValueError(f"labels.shape={labels.shape}: expected [R] for inputs {inputs.shape} of at least one record")

    def losses_of(params: PyTree) -> Array:
        log_probabilities = jax.nn.log_softmax(model.apply(params, inputs))
        return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]

    losses = jax.lax.map(losses_of, models.params).T
    losses = jnp.where(models.present[None], losses, jnp.inf)
    return SourceInference(losses, jnp.argmin(losses, axis=1).astype(jnp.int32))


def source_accuracy(losses: Array | np.ndarray, owners: Array | np.ndarray) -> float:
    """The share of records whose owner has the smallest loss; m participants with the same smallest loss count 1/m.

    losses: [R, K]; owners: int [R]. Chance is 1/K, also for an attack that gives all participants the same loss. A NaN
    is never the smallest; a record whose losses are all NaN counts 1/K. Raises ValueError for owners out of range.
    """
    losses, owners = np.asarray(losses, np.float64), np.asarray(owners)
    records, participants = losses.shape
    if owners.shape != (records,) or not np.all((owners >= 0) & (owners < participants)):
        raise ValueError(f"owners.shape={owners.shape}: expected [{records}], each from 0 to {participants - 1}")
    losses = np.where(np.isnan(losses), np.inf, losses)
    smallest = losses == losses.min(axis=1, keepdims=True)
    return float(np.mean(smallest[np.arange(records), owners] / smallest.sum(axis=1)))
