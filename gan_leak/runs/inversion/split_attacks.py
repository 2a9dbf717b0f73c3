"""The attacks on split inference by name: the knowledge of each adversary, and how it reconstructs inputs.

A new attack is its procedure in ``gan_leak.attacks.split``, a function here, and one entry of ``SPLIT_ATTACKS``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from gan_leak.attacks.optimizers import TrainingData
from gan_leak.attacks.procedure import Procedure
from gan_leak.attacks.split.inverse_network import inverse_network
from gan_leak.attacks.split.model_reconstruction import reconstructed_model
from gan_leak.attacks.split.regularized_likelihood import regularized_likelihood
from gan_leak.attacks.split.shadow_model import shadow_model
from gan_leak.models.layered import SplitModel, inverse_network_for, shadow_network_for
from gan_leak.runs.inversion.split import SplitData, Victim, WhiteBoxHyperParameters, predict_in_batches, train
from gan_leak.runs.storage.resumable import Lanes, SavedProgress, lane_keys, run_in_parts
from gan_leak.types import Array, Model, PyTree, SplitView

QUERIES = ("same set", "same distribution", "random noise")
SHADOWS = (
    "same set, same structure",
    "other set, same structure",
    "same set, other structure",
    "other set, other structure",
)
_QUERY_FREE = WhiteBoxHyperParameters(500, 0.1, 2.0)


class SplitTask(NamedTuple):
    """One row of attacks on split inference. An entry of ``SPLIT_ATTACKS`` uses only what its adversary knows.

    split: the layer after which the network is split. parts, params: its two parts, and the parameters of both.
    query: the client, ``(key, inputs [B, ...]) -> features``. features: those to invert [M, ...]. knowledge: one value
    of the attack's ``knowledge``. epochs: of a training. iterations: of a descent, 0 for the attack's default.
    total_variation: its weight in the white box, None for that of the split.
    """

    victim: Victim
    split: str
    parts: SplitModel
    params: PyTree
    data: SplitData
    query: Callable[[Array, Any], Array]
    features: Array
    knowledge: str
    epochs: int
    iterations: int = 0
    total_variation: float | None = None


class SplitAttack(NamedTuple):
    """One published attack on split inference.

    knowledge: kinds of knowledge of the adversary, a row each. check: ``check(victim name, split)`` raises ValueError
    for a split that the attack has no network for. run: reconstructs the inputs [M, H, W, C] of a task's features.
    """

    name: str
    citation: str
    knowledge: tuple[str, ...]
    check: Callable[[str, str], object]
    run: Callable[[Array, SplitTask, SavedProgress], Array]


def white_box(
    client: Model,
    params: PyTree,
    features: Array,
    shape: tuple[int, ...],
    hyperparameters: WhiteBoxHyperParameters,
    progress: SavedProgress,
) -> Array:
    """Reconstruct the inputs [M, H, W, C] of features [M, ...], all in one program."""
    return run_in_parts(
        # Nothing is random.
        lane_keys(jax.random.key(0), len(features)),
        _likelihood(client, tuple(shape), hyperparameters._replace(iterations=0)),
        SplitView(features, params),
        steps=hyperparameters.iterations,
        unit="iteration",
        progress=progress,
        lanes=Lanes(evidence=SplitView._make((0, None))),
    )


@functools.lru_cache(maxsize=16)
def _likelihood(client: Model, shape: tuple[int, int, int], hyperparameters: WhiteBoxHyperParameters) -> Procedure:
    # Return the same object each time, so that JAX reuses its compiled programs.
    return regularized_likelihood(
        client,
        shape,
        learning_rate=hyperparameters.learning_rate,
        total_variation=hyperparameters.total_variation,
        magnitude=hyperparameters.magnitude,
    )


def black_box(
    key: Array,
    victim: Victim,
    split: str,
    query: Callable[[Array, Any], Array],
    data: SplitData,
    knowledge: str,
    features: Array,
    *,
    epochs: int,
    progress: SavedProgress,
) -> Array:
    """Reconstruct inputs by an inverse network that is trained on queries. knowledge: one of ``QUERIES``.

    ``query(key, inputs) -> features``, as the client sends them.
    """
    decoder = inverse_network_for(victim.name, split)
    key, pairs = _queried(key, query, data, knowledge)
    procedure = inverse_network(decoder, samples=len(pairs.samples[0]))
    params = train(key, procedure, pairs, epochs=epochs, progress=progress)
    return jax.jit(decoder.apply)(params, features)


def _queried(
    key: Array, query: Callable[[Array, Any], Array], data: SplitData, knowledge: str
) -> tuple[Array, TrainingData]:
    """The adversary's inputs with their features, as the client sends them, and a fresh key."""
    inputs = {"same set": data.own[0], "same distribution": data.others[0]}.get(knowledge)
    key, key_noise, key_query = jax.random.split(key, 3)
    if inputs is None:
        inputs = np.asarray(jax.random.normal(key_noise, data.own[0].shape))
    return key, TrainingData((inputs, predict_in_batches(key_query, query, inputs)))


def query_free(
    key: Array,
    victim: Victim,
    split: str,
    parts: SplitModel,
    params: PyTree,
    data: SplitData,
    knowledge: str,
    features: Array,
    *,
    epochs: int,
    progress: SavedProgress,
    iterations: int = 0,
) -> Array:
    """Reconstruct inputs by inverting a shadow model of the client. knowledge: one of ``SHADOWS``."""
    whose, structure = knowledge.split(", ")
    shadow = parts.client if structure == "same structure" else shadow_network_for(victim.name, split)
    known = data.own if whose == "same set" else data.others
    procedure = shadow_model(shadow, parts.cloud, samples=len(known[1]))
    own = train(key, procedure, TrainingData(known, params), epochs=epochs, progress=progress)
    hyperparameters = _QUERY_FREE._replace(iterations=iterations or _QUERY_FREE.iterations)
    return white_box(shadow, own, features, victim.network.input_shape, hyperparameters, progress._replace(path=None))


def _white_box_of(task: SplitTask) -> WhiteBoxHyperParameters:
    hyperparameters = task.victim.white_box.get(task.split, task.victim.other)
    weight = hyperparameters.total_variation if task.total_variation is None else task.total_variation
    return hyperparameters._replace(iterations=task.iterations or hyperparameters.iterations, total_variation=weight)


def _run_white_box(key: Array, task: SplitTask, progress: SavedProgress) -> Array:
    shape = task.victim.network.input_shape
    return white_box(task.parts.client, task.params, task.features, shape, _white_box_of(task), progress)


def _run_model_reconstruction(key: Array, task: SplitTask, progress: SavedProgress) -> Array:
    key, pairs = _queried(key, task.query, task.data, task.knowledge)
    procedure = reconstructed_model(task.parts.client, samples=len(pairs.samples[0]))
    own = train(key, procedure, pairs, epochs=task.epochs, progress=progress)
    shape = task.victim.network.input_shape
    # The training is kept in the file; the descent would be refused there as another computation.
    later = progress._replace(path=None)
    return white_box(task.parts.client, own, task.features, shape, _white_box_of(task), later)


def _run_black_box(key: Array, task: SplitTask, progress: SavedProgress) -> Array:
    return black_box(
        key,
        task.victim,
        task.split,
        task.query,
        task.data,
        task.knowledge,
        task.features,
        epochs=task.epochs,
        progress=progress,
    )


def _run_query_free(key: Array, task: SplitTask, progress: SavedProgress) -> Array:
    return query_free(
        key,
        task.victim,
        task.split,
        task.parts,
        task.params,
        task.data,
        task.knowledge,
        task.features,
        epochs=task.epochs,
        progress=progress,
        iterations=task.iterations,
    )


_PAPER = "He, Zhang and Lee 2019, Model Inversion Attacks against Collaborative Inference"
SPLIT_ATTACKS: dict[str, SplitAttack] = {
    attack.name: attack
    for attack in (
        SplitAttack("white_box", f"{_PAPER}, section 4", ("",), lambda victim, split: None, _run_white_box),
        SplitAttack("black_box", f"{_PAPER}, section 5", QUERIES, inverse_network_for, _run_black_box),
        SplitAttack(
            "model_reconstruction",
            f"{_PAPER}, Table 8",
            QUERIES,
            lambda victim, split: None,
            _run_model_reconstruction,
        ),
        SplitAttack("query_free", f"{_PAPER}, section 6", SHADOWS, shadow_network_for, _run_query_free),
    )
}
