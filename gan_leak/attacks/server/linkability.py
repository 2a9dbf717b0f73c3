"""Linkability of anonymous updates: which upload of round t and which of round t' came from the same participant?

Song et al. (JSAC 2020, "Analyzing User-Level Privacy Attack Against Federated Learning") train a Siamese network on
representatives of updates to link clients whose names the server does not know. Their full text was not available, so
the network, the loss and the matching are ours: the contrastive loss of Hadsell et al. (CVPR 2006) on the mean of the
embeddings of an owner's representatives, trained on owners that the adversary simulates with auxiliary data, and an
optimal assignment. Baselines that need no network are the cosine of raw updates and the label counts.

>>> from gan_leak import mlp_classifier
>>> network = mlp_classifier(4, image_size=4, hidden=())
>>> bright = jnp.linspace(-1.0, 1.0, 3)[:, None, None, None, None, None]
>>> owners = jnp.broadcast_to(bright, (3, 2, 5, 4, 4, 1))
>>> siamese(network).finished is None
True
>>> params = train_siamese(jax.random.key(0), network, owners, steps=3)
>>> distances = siamese_distances(network, params, owners[:, 0], owners[:, 1])
>>> linking_accuracy(link(np.random.default_rng(0), distances), np.arange(3))
1.0
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gan_leak.attacks.optimizers import Position, descend
from gan_leak.attacks.procedure import Procedure, run_procedure
from gan_leak.types import Array, Model, PyTree


class SiameseInfo(NamedTuple):
    """The diagnostics of a training step: its loss [], and mean distances [] of equal and of different owners."""

    loss: Array
    same: Array
    different: Array


def embed(network: Model, params: PyTree, representatives: Array) -> Array:
    """Embed sets of images [..., R, H, W, C] -> [..., E]: the mean over each set, whose order does not matter.

    network: a model whose outputs are the embedding of an image, such as a classifier with E outputs.
    """
    *leading, count, height, width, channels = representatives.shape
    outputs = network.apply(params, representatives.reshape(-1, height, width, channels))
    return jnp.mean(outputs.reshape(*leading, count, outputs.shape[-1]), axis=-2)


def euclidean(first: Array, second: Array) -> Array:
    """The distances of vectors [A, E] to vectors [B, E] -> [A, B]. The gradient of a distance of zero is zero."""
    squares = jnp.sum((first[:, None] - second[None]) ** 2, axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def contrastive_loss(distances: Array, margin: Array | float) -> Array:
    """The contrastive loss of Hadsell et al. 2006 for distances [A, A] of owners in two rounds -> [].

    On the diagonal are distances d of the same owner, with loss d^2; elsewhere those of two owners, with loss
    max(0, margin - d)^2. The means over both kinds of pairs count equally (ours), since there are A - 1 times as many
    of the second.
    """
    owners = len(distances)
    same = jnp.eye(owners, dtype=bool)
    apart = jnp.maximum(margin - distances, 0.0) ** 2
    return jnp.mean(jnp.diagonal(distances) ** 2) + jnp.sum(jnp.where(same, 0.0, apart)) / (owners * (owners - 1))


def siamese(network: Model, *, margin: Array | float = 1.0, learning_rate: float = 1e-3) -> Procedure:
    """Training of a Siamese network; a step is one update by Adam, the result the parameters.

    The evidence is representatives [A, T, R, H, W, C] of A simulated owners over T rounds, in [-1, 1]. Each step draws
    two different rounds and compares all owners of the first with all owners of the second. The info is
    ``SiameseInfo``.

    ``init`` raises ValueError for other shapes, and for fewer than two owners or rounds.
    """
    optimizer = optax.adam(learning_rate)

    def init(key: Array, representatives: Array) -> Position:
        _check_representatives(representatives)
        params = network.init(key)
        return Position(params, optimizer.init(params))

    def step(key: Array, position: Position, representatives: Array) -> tuple[Position, SiameseInfo]:
        owners, rounds = representatives.shape[:2]
        first, second = jax.random.choice(key, rounds, (2,), replace=False)

        def distances(params: PyTree) -> Array:
            pair = jnp.stack([representatives[:, first], representatives[:, second]])
            return euclidean(*embed(network, params, pair))

        before = distances(position.values)
        position, loss = descend(lambda params: contrastive_loss(distances(params), margin), optimizer, position)
        same = jnp.mean(jnp.diagonal(before))
        different = (jnp.sum(before) - owners * same) / (owners * (owners - 1))
        return position, SiameseInfo(loss, same, different)

    return Procedure(init, step, lambda position, representatives: position.values)


def train_siamese(
    key: Array,
    network: Model,
    representatives: Array,
    *,
    steps: int,
    margin: Array | float = 1.0,
    learning_rate: float = 1e-3,
) -> PyTree:
    """Train a Siamese network for ``steps`` -> its parameters; see ``siamese``, which also runs in parts."""
    _check_representatives(representatives)
    procedure = siamese(network, margin=margin, learning_rate=learning_rate)
    return run_procedure(key, procedure, representatives, steps)


def siamese_distances(network: Model, params: PyTree, first: Array, second: Array) -> Array:
    """The distances of the clients of two rounds by their representatives [K, R, H, W, C] -> [K, K]."""
    return euclidean(embed(network, params, first), embed(network, params, second))


def cosine_distances(first: Array, second: Array) -> Array:
    """One minus the cosine of raw updates [K, D] of two rounds -> [K, K]; 1 if an update is zero. A baseline."""

    def unit(updates: Array) -> Array:
        norms = jnp.linalg.norm(updates, axis=1, keepdims=True)
        return updates / jnp.where(norms > 0, norms, 1.0)

    return 1.0 - unit(first) @ unit(second).T


def label_distances(first: Array, second: Array) -> Array:
    """Half the L1 distance of label distributions, from counts [K, classes] of two rounds -> [K, K]. A baseline.

    Counts are divided by their sum, so the number of samples has no influence; no samples are the zero distribution.
    """

    def shares(counts: Array) -> Array:
        totals = jnp.sum(counts, axis=1, keepdims=True)
        return counts / jnp.where(totals > 0, totals, 1)

    return 0.5 * jnp.sum(jnp.abs(shares(first)[:, None] - shares(second)[None]), axis=-1)


def link(rng: np.random.Generator, distances: Array | np.ndarray) -> np.ndarray:
    """Match the clients of two rounds one to one with the least sum of distances [K, K] -> int64 [K].

    Entry i is the client of the second round that is linked to client i of the first. Ties are broken at random by
    ``rng``: an assignment that prefers low numbers would be right by accident if both rounds have the same order. A NaN
    counts as the largest distance. Raises ValueError if the distances are not a square matrix.
    """
    from scipy.optimize import linear_sum_assignment

    costs = np.asarray(distances, np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1]:
        raise ValueError(f"distances.shape={costs.shape}: expected [K, K]")
    finite = costs[np.isfinite(costs)]
    costs = np.where(np.isfinite(costs), costs, 1.0 + (finite.max() if finite.size else 0.0))
    rows, columns = rng.permutation(len(costs)), rng.permutation(len(costs))
    taken, given = linear_sum_assignment(costs[rows][:, columns])
    assignment = np.empty(len(costs), np.int64)
    assignment[rows[taken]] = columns[given]
    return assignment


def linking_accuracy(assignment: np.ndarray, truth: np.ndarray) -> float:
    """The share of K clients that were linked correctly; chance is 1/K. Both are int [K], as ``link`` returns them."""
    assignment, truth = np.asarray(assignment), np.asarray(truth)
    if assignment.shape != truth.shape or assignment.ndim != 1:
        raise ValueError(f"assignment.shape={assignment.shape}: expected [K] as truth, {truth.shape}")
    return float(np.mean(assignment == truth))


def _check_representatives(representatives: Array) -> None:
    if representatives.ndim != 6:
        raise ValueError(f"representatives.shape={representatives.shape}: expected [A, T, R, H, W, C]")
    owners, rounds = representatives.shape[:2]
    if owners < 2 or rounds < 2:
        raise ValueError(f"representatives.shape={representatives.shape}: expected at least 2 owners and 2 rounds")
