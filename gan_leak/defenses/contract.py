"""The contract of a defense: in which stages it works, how it is built, its numbers, and what it promises.

A defense is one file, which ends in a ``Defense``, and one line in ``gan_leak.defenses.registry``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gan_leak.defenses.accounting import PrivacyLoss
from gan_leak.settings import Bounds
from gan_leak.types import Array, PyTree, TransformInfo, Upload, UploadTransform

LOCAL_TRAINING = "local training"
UPLOAD = "upload"
SELECTION = "selection"
AGGREGATION = "aggregation"
GRADIENT = "gradient"
FEATURES = "features"
# Those of the main job, in the order in which they act.
ROUND_STAGES = (LOCAL_TRAINING, UPLOAD, SELECTION, AGGREGATION)
STAGES = (*ROUND_STAGES, GRADIENT, FEATURES)


class HyperParameter(NamedTuple):
    """A number of a defense, which a sweep may vary: a setting of the main job with a flag of its own.

    name: of the setting. default: in the main job; its type is that of the flag. help: for people, with the source.
    bounds: what it may be. neutral: the number that changes nothing, None where there is none. later: whether run
    directories of earlier versions lack it, which had the default.
    """

    name: str
    default: float
    help: str
    bounds: Bounds
    neutral: float | None = 0.0
    later: bool = True


class Exposure(NamedTuple):
    """What a promise depends on: how much of a run each participant takes part in, and under which numbers.

    sizes: records of each participant. protected: the participants that the promise is for. rounds: int [P], in how
    many rounds each takes part; planned_rounds: of the run. coordinates: shared parameters, 0 where the claim does not
    count them. delta: at which epsilon is reported. numbers: all traced settings of the run by name.
    """

    sizes: tuple[int, ...]
    protected: tuple[int, ...]
    rounds: np.ndarray
    planned_rounds: int
    batch_size: int
    local_epochs: int
    coordinates: int
    delta: float
    numbers: Mapping[str, float]


class Promise(NamedTuple):
    """The worst promise to a participant that is protected.

    participant: whose it is, None where nobody is protected; then epsilon is infinite. rounds: in how many of them it
    takes part. sampling_probability, steps: of local training, None where nothing is sampled.
    """

    loss: PrivacyLoss
    participant: int | None
    rounds: int
    sampling_probability: float | None = None
    steps: int | None = None


class Claim(NamedTuple):
    """What a defense promises, in words, and how much.

    mechanism: its name. sensitivity: by how much one unit changes what the noise is added to. unit: what two
    neighboring inputs differ in, a record or a whole update. noise_added_by: who adds the noise. against: from whom the
    unit is protected. covers: what is released under the promise, and what is not. total: how rounds add up.

    promise: ``(exposure) -> Promise``, to the participant that is worst off. solved_for: the hyperparameter that a
    target for epsilon decides; solve: ``(exposure, target) -> value`` of it. details: ``(exposure, promise) ->`` more
    fields of a report, as strict JSON. note: ``(exposure, promise, releases a round) ->`` the details in a sentence.
    counts_coordinates: whether the promise depends on the number of shared parameters.
    """

    mechanism: str
    sensitivity: str
    unit: str
    noise_added_by: str
    against: str
    covers: str
    total: str
    promise: Callable[[Exposure], Promise]
    solved_for: str
    solve: Callable[[Exposure, float], float]
    details: Callable[[Exposure, Promise], dict[str, Any]]
    note: Callable[[Exposure, Promise, float], str]
    counts_coordinates: bool = False


def any_numbers(numbers: Mapping[str, float]) -> None:
    """No numbers exclude each other."""


class Defense(NamedTuple):
    """A defense as the binaries see it.

    name: in ``--defense`` and ``--defenses``. stages: where it works, of ``STAGES``; at most one of ``ROUND_STAGES``.
    build: from its hyperparameters, in their order, each a number or a traced scalar, to what its stages take: a
    ``LocalTraining`` (local training), an ``Aggregator`` (aggregation), an ``UploadTransform`` (all others).
    hyperparameters: its numbers; in the stages gradient and features it has exactly one, the strength. claim: what it
    promises, None for nothing. check: raises ValueError for numbers of a run, by name of their setting, that exclude
    each other. aliases: other names of it.
    """

    name: str
    stages: tuple[str, ...]
    build: Callable[..., Any]
    hyperparameters: tuple[HyperParameter, ...]
    claim: Claim | None = None
    check: Callable[[Mapping[str, float]], None] = any_numbers
    aliases: tuple[str, ...] = ()


def no_promise(unit: str, exposure: Exposure) -> Promise:
    """The promise where nobody is protected: an epsilon of 0 would be true, and read as a strong one."""
    return Promise(PrivacyLoss(math.inf, exposure.delta, unit, "none", "none"), None, exposure.planned_rounds)


def stateless(change: Callable[[Array, Upload], Upload]) -> UploadTransform:
    """The ``UploadTransform`` without state that changes an upload by ``change(key, upload) -> upload``."""

    def init(params: PyTree) -> tuple[()]:
        return ()

    def apply(
        key: Array, upload: Upload, state: PyTree, *, params: PyTree, hyperparameters: Any, **extra: Any
    ) -> tuple[Upload, PyTree, TransformInfo]:
        changed = change(key, upload)
        return changed, state, TransformInfo(jnp.sum(changed.mask).astype(jnp.int32))

    return UploadTransform(init, apply)


def noise(scale: Array | float, draw: Callable[[Array, tuple[int, ...]], Array]) -> UploadTransform:
    """The ``UploadTransform`` that adds ``scale * draw(key, shape)`` to every value sent; others stay zero."""

    def change(key: Array, upload: Upload) -> Upload:
        added = scale * draw(key, upload.values.shape)
        return Upload(jnp.where(upload.mask, upload.values + added, 0.0), upload.mask)

    return stateless(change)
