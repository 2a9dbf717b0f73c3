"""The contract of a defense: in which stages it works, how it is built, its numbers, and what it promises.

A defense is one file, which ends in a ``Defense``, and one line in ``gan_leak.defenses.registry``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from gan_leak.types import Array, PyTree, TransformInfo, Upload, UploadTransform

LOCAL_TRAINING = "local training"
UPLOAD = "upload"
SELECTION = "selection"
AGGREGATION = "aggregation"
GRADIENT = "gradient"
FEATURES = "features"
# Those of the main job come first, in the order in which they act.
STAGES = (LOCAL_TRAINING, UPLOAD, SELECTION, AGGREGATION, GRADIENT, FEATURES)


class HyperParameter(NamedTuple):
    """A number of a defense, which a sweep may vary: a setting of the main job with a flag of its own.

    name: of the setting. default: in the main job; its type is that of the flag. help: for people, with the source.
    least, most: its bounds; open_least, open_most: whether the bound itself is excluded. or_infinite: whether inf is
    allowed. neutral: the number that changes nothing, None where there is none. later: whether run directories of
    earlier versions lack it, which had the default.
    """

    name: str
    default: float
    help: str
    least: float = 0.0
    open_least: bool = False
    most: float = math.inf
    open_most: bool = False
    or_infinite: bool = False
    neutral: float | None = 0.0
    later: bool = True


class Claim(NamedTuple):
    """What a defense promises.

    mechanism: its name. sensitivity: by how much one unit changes what the noise is added to. unit: what two
    neighboring inputs differ in, a record or a whole update. noise_added_by: who adds the noise. against: from whom the
    unit is protected. covers: what is released under the promise, and what is not. total: how rounds add up.
    solved_for: the hyperparameter that a target for epsilon decides.
    """

    mechanism: str
    sensitivity: str
    unit: str
    noise_added_by: str
    against: str
    covers: str
    total: str
    solved_for: str


class Defense(NamedTuple):
    """A defense as the binaries see it.

    name: in ``--defense`` and ``--defenses``. stages: where it works, of ``STAGES``. build: from its hyperparameters,
    in their order, each a number or a traced scalar, to what its stages take: a ``LocalTraining`` (local training), an
    ``Aggregator`` (aggregation), an ``UploadTransform`` (all others). hyperparameters: its numbers; in the stages
    gradient and features it has exactly one, the strength. claim: what it promises, None for nothing. aliases: other
    names of it.
    """

    name: str
    stages: tuple[str, ...]
    build: Callable[..., Any]
    hyperparameters: tuple[HyperParameter, ...]
    claim: Claim | None = None
    aliases: tuple[str, ...] = ()


def expected_number(parameter: HyperParameter) -> str:
    """The numbers that are allowed, in words: 'above 0', 'at least 0', 'from 0 to below 1'."""
    least = f"{parameter.least:g}"
    if math.isfinite(parameter.most):
        start = f"above {least}" if parameter.open_least else f"from {least}"
        words = f"{start} to {'below ' if parameter.open_most else ''}{parameter.most:g}"
    else:
        words = f"above {least}" if parameter.open_least else f"at least {least}"
    words = f"a whole number {words}" if _is_whole(parameter) else words
    return f"{words}, or inf" if parameter.or_infinite else words


def is_allowed(parameter: HyperParameter, value: float) -> bool:
    """Whether the hyperparameter may have this value on the host."""
    if not math.isfinite(value):
        return parameter.or_infinite and value == math.inf
    above = value > parameter.least if parameter.open_least else value >= parameter.least
    below = value < parameter.most if parameter.open_most else value <= parameter.most
    return above and below and not (_is_whole(parameter) and value % 1)


def check_number(parameter: HyperParameter, value: float) -> None:
    """Raises ValueError, with name, value and what is expected, for a number that is not allowed."""
    if not is_allowed(parameter, value):
        raise ValueError(f"{parameter.name}={value}: expected {expected_number(parameter)}")


def _is_whole(parameter: HyperParameter) -> bool:
    return type(parameter.default) is int


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
