"""The contract of a defense: its stages, how it is built, its hyperparameters, and its privacy claims.

A defense is one file that ends in a ``Defense``, and one line in ``gan_leak.defenses.registry``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gan_leak.defenses.accounting import PrivacyLoss
from gan_leak.settings import Bounds
from gan_leak.types import Array, PyTree, RoundHyperParameters, TransformInfo, Upload, UploadTransform

LOCAL_TRAINING = "local training"
UPLOAD = "upload"
SELECTION = "selection"
AGGREGATION = "aggregation"
GRADIENT = "gradient"
FEATURES = "features"
# The stages of the main job, in the order in which they act.
ROUND_STAGES = (LOCAL_TRAINING, UPLOAD, SELECTION, AGGREGATION)
STAGES = (*ROUND_STAGES, GRADIENT, FEATURES)


class HyperParameter(NamedTuple):
    """A number of a defense: a setting of the main job, with its own flag, that a sweep may vary.

    name: of the setting. default: in the main job; its type is that of the flag. help: text of the flag, with source.
    bounds: allowed values. neutral: the value that changes nothing, None if there is none. later: whether run
    directories of earlier versions lack it; those runs had the default.
    """

    name: str
    default: float
    help: str
    bounds: Bounds
    neutral: float | None = 0.0
    later: bool = True


class Exposure(NamedTuple):
    """The parts of a run that a promise depends on.

    sizes: records of each participant. protected: the participants that the promise is for. rounds: int [P], the number
    of rounds that each takes part in. planned_rounds: of the run. coordinates: number of shared parameters, 0 if the
    claim does not count them. delta: of the reported epsilon. settings: all traced settings of the run by name.
    """

    sizes: tuple[int, ...]
    protected: tuple[int, ...]
    rounds: np.ndarray
    planned_rounds: int
    batch_size: int
    local_epochs: int
    coordinates: int
    delta: float
    settings: Mapping[str, float]


class Promise(NamedTuple):
    """The weakest promise to a protected participant.

    participant: its number, None if no participant is protected; then epsilon is infinite. rounds: the number of rounds
    that it takes part in. sampling_probability, steps: of local training, None without sampling.
    """

    loss: PrivacyLoss
    participant: int | None
    rounds: int
    sampling_probability: float | None = None
    steps: int | None = None


class Claim(NamedTuple):
    """The privacy claim of a defense, in words and in numbers.

    mechanism: its name. sensitivity: the largest change, by one unit, of the values that get noise. unit: the
    difference between two neighboring inputs, a record or a whole update. noise_added_by: the party that adds the
    noise. against: the parties that the unit is protected from. covers: the values that the promise covers, and those
    that it does not. total: the composition over rounds.

    promise: ``(exposure) -> Promise``, the weakest of all participants. solved_for: the hyperparameter that a target
    for epsilon decides. solve: ``(exposure, target) -> value`` of it. details: ``(exposure, promise) ->`` more fields
    of a report, as strict JSON. note: ``(exposure, promise, releases per round) ->`` the details in a sentence.
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
    details: Callable[[Exposure, Promise], dict[str, str | float | None]]
    note: Callable[[Exposure, Promise, float], str]
    counts_coordinates: bool = False


class Secrecy(NamedTuple):
    """The claim of a defense that hides values and adds no noise, in words: it has no epsilon.

    mechanism: its name. hides: the values that are hidden. against: the parties that they are hidden from. reveals: the
    values that those parties still learn. broken_by: known attacks, and what stops them.
    """

    mechanism: str
    hides: str
    against: str
    reveals: str
    broken_by: str


def accept_all(settings: Mapping[str, float]) -> None:
    """Accept all settings: none exclude each other."""


class Defense(NamedTuple):
    """A defense: an entry of the registry.

    name: in ``--defense`` and ``--defenses``. stages: of ``STAGES``; at most one of ``ROUND_STAGES``.
    build: takes the hyperparameters in their order, each a number or a traced scalar. It returns a ``LocalTraining``
    (local training), an ``Aggregator`` (aggregation) or an ``UploadTransform`` (all other stages).
    hyperparameters: in the stages gradient and features exactly one, the strength. claim: its privacy claim in numbers,
    None without one. check: raises ValueError for traced settings of a run, by name, that exclude each other. aliases:
    its other names. aggregation: in the stage aggregation, the setting ``aggregation`` whose result it computes; empty
    means any. secrecy: its claim of what it hides, None without one.
    """

    name: str
    stages: tuple[str, ...]
    build: Callable[..., Any]
    hyperparameters: tuple[HyperParameter, ...]
    claim: Claim | None = None
    check: Callable[[Mapping[str, float]], None] = accept_all
    aliases: tuple[str, ...] = ()
    aggregation: str = ""
    secrecy: Secrecy | None = None


def no_promise(unit: str, exposure: Exposure) -> Promise:
    """The promise if no participant is protected: epsilon is infinite, since 0 would look like strong privacy."""
    return Promise(PrivacyLoss(math.inf, exposure.delta, unit, "none", "none"), None, exposure.planned_rounds)


def stateless(change: Callable[[Array, Upload], Upload]) -> UploadTransform:
    """An ``UploadTransform`` without state that applies ``change(key, upload) -> upload``."""

    def init(params: PyTree) -> tuple[()]:
        return ()

    def apply(
        key: Array,
        upload: Upload,
        state: PyTree,
        *,
        params: PyTree,
        hyperparameters: RoundHyperParameters,
        **extra: Any,
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
