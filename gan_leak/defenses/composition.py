"""Composition of defenses for the main job: parsing, checks, and the place of each.

Names are joined by '+' or ','. Stages act in the order of ``contract.STAGES``, defenses of an update from left to
right. The selection and truncation of coordinates follow them, and then the sum at the server.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.defenses.contract import (
    AGGREGATION,
    LOCAL_TRAINING,
    ROUND_STAGES,
    SELECTION,
    STAGES,
    UPLOAD,
    Claim,
    Defense,
)
from gan_leak.defenses.registry import find, in_stages
from gan_leak.types import (
    Aggregator,
    Array,
    FlatServer,
    LocalData,
    LocalTraining,
    Model,
    PyTree,
    RoundHyperParameters,
    TransformInfo,
    Upload,
    UploadTransform,
)


def parse_composition(text: str) -> tuple[Defense, ...]:
    """Read 'none', 'dp_sgd', 'clipping+gaussian' or 'clipping,gaussian' -> the defenses, in the order of acting.

    Raises ValueError for an unknown or repeated name, an order other than that of the stages, two defenses in a stage
    that allows one, two with privacy claims, and a change of the update before a defense of the selection.
    """
    names = [name.strip() for name in re.split("[+,]", text)]
    if names == ["none"]:
        return ()
    found = []
    for name in names:
        defense = find(name, *ROUND_STAGES)
        if defense is None:
            known = ", ".join(defense.name for defense in in_stages(*ROUND_STAGES))
            raise ValueError(f"defense={text!r}: expected none, or some of {known} joined by '+'")
        found.append(defense)
    _check_composition(text, found)
    return tuple(found)


def _check_composition(text: str, defenses: Sequence[Defense]) -> None:
    for place, defense in enumerate(defenses):
        if defense in defenses[:place]:
            raise ValueError(f"defense={text!r}: expected {defense.name} once")
    stages = [_stage_of(defense) for defense in defenses]
    for stage in (LOCAL_TRAINING, SELECTION, AGGREGATION):
        if stages.count(stage) > 1:
            named = " and ".join(defense.name for defense in defenses if _stage_of(defense) == stage)
            raise ValueError(f"defense={text!r}: expected one defense of the {stage}, not {named}")
    promising = [defense.name for defense in defenses if defense.claim is not None]
    if len(promising) > 1:
        raise ValueError(f"defense={text!r}: expected one that promises privacy, not {' and '.join(promising)}")
    if UPLOAD in stages and SELECTION in stages:
        selecting = defenses[stages.index(SELECTION)].name
        raise ValueError(
            f"defense={text!r}: expected no change of the update with {selecting}, whose claim is on the trained update"
        )
    in_order = sorted(defenses, key=lambda defense: STAGES.index(_stage_of(defense)))
    if list(defenses) != in_order:
        acting = "+".join(defense.name for defense in in_order)
        raise ValueError(f"defense={text!r}: expected the order in which they act, {acting}")


def claim_of(text: str) -> Claim | None:
    """The privacy claim of a composition, None without one. The defenses without such a claim do not change it.

    They act on values that are already released or, as aggregators, on sums of them.
    """
    claims = [defense.claim for defense in parse_composition(text) if defense.claim is not None]
    return claims[0] if claims else None


def _stage_of(defense: Defense) -> str:
    """The stage of the main job in which the defense acts."""
    return next(stage for stage in ROUND_STAGES if stage in defense.stages)


def local_training_of(defenses: Sequence[Defense], otherwise: LocalTraining) -> LocalTraining:
    """The local training of the composition, ``otherwise`` if no defense has that stage.

    Its traced hyperparameters are read, by name, from ``hyperparameters.defense``.
    """
    chosen = [defense for defense in defenses if LOCAL_TRAINING in defense.stages]
    if not chosen:
        return otherwise
    [defense] = chosen

    def train(
        key: Array,
        model: Model,
        params: PyTree,
        optimizer_steps: Array,
        data: LocalData,
        hyperparameters: RoundHyperParameters,
        *,
        epochs: int,
        batch_size: int,
    ) -> tuple[PyTree, Array, Array]:
        training = defense.build(*_hyperparameters_of(defense, hyperparameters))
        return training(
            key, model, params, optimizer_steps, data, hyperparameters, epochs=epochs, batch_size=batch_size
        )

    return train


def upload_of(defenses: Sequence[Defense], selection: UploadTransform) -> UploadTransform:
    """The transform of an update: its defenses from left to right, then the selection or the defense that replaces it.

    The key of a defense depends on its name, and the selection gets the key that it has alone. So an added defense does
    not change other random numbers. Without a defense of the update the result is the selection itself.
    """
    chosen = [defense for defense in defenses if SELECTION in defense.stages]
    last = traced(chosen[0]) if chosen else selection
    before = {defense.name: traced(defense) for defense in defenses if UPLOAD in defense.stages}
    return _one_after_another(before, last) if before else last


def _one_after_another(before: Mapping[str, UploadTransform], last: UploadTransform) -> UploadTransform:
    def init(params: PyTree) -> tuple[PyTree, ...]:
        return tuple(transform.init(params) for transform in (*before.values(), last))

    def apply(
        key: Array,
        upload: Upload,
        state: PyTree,
        *,
        params: PyTree,
        hyperparameters: RoundHyperParameters,
        **extra: Any,
    ) -> tuple[Upload, PyTree, TransformInfo]:
        keys = [jax.random.fold_in(key, zlib.crc32(name.encode())) for name in before]
        new_state = []
        for key_own, transform, own in zip((*keys, key), (*before.values(), last), state, strict=True):
            upload, own, info = transform.apply(
                key_own, upload, own, params=params, hyperparameters=hyperparameters, **extra
            )
            new_state.append(own)
        return upload, tuple(new_state), info

    return UploadTransform(init, apply)


def aggregator_of(defenses: Sequence[Defense], otherwise: Aggregator) -> Aggregator:
    """The aggregator of the composition, ``otherwise`` if no defense has that stage; see ``local_training_of``."""
    chosen = [defense for defense in defenses if AGGREGATION in defense.stages]
    if not chosen:
        return otherwise
    [defense] = chosen
    fixed: Aggregator = defense.build(*(parameter.default for parameter in defense.hyperparameters))

    def apply(
        key: Array,
        server: FlatServer,
        uploads: Upload,
        weights: Array,
        state: PyTree,
        *,
        hyperparameters: RoundHyperParameters,
        merged: Array | None = None,
        **extra: Any,
    ) -> tuple[FlatServer, PyTree, PyTree, PyTree]:
        own: Aggregator = defense.build(*_hyperparameters_of(defense, hyperparameters))
        return own.apply(key, server, uploads, weights, state, hyperparameters=hyperparameters, merged=merged, **extra)

    return fixed._replace(apply=apply)


def traced(defense: Defense) -> UploadTransform:
    """The upload transform of a defense; its hyperparameters are read, by name, from ``hyperparameters.defense``."""

    def init(params: PyTree) -> PyTree:
        return defense.build(*(parameter.default for parameter in defense.hyperparameters)).init(params)

    def apply(
        key: Array,
        upload: Upload,
        state: PyTree,
        *,
        params: PyTree,
        hyperparameters: RoundHyperParameters,
        **extra: Any,
    ) -> tuple[Upload, PyTree, TransformInfo]:
        transform = defense.build(*_hyperparameters_of(defense, hyperparameters))
        return transform.apply(key, upload, state, params=params, hyperparameters=hyperparameters, **extra)

    return UploadTransform(init, apply)


def _hyperparameters_of(defense: Defense, hyperparameters: RoundHyperParameters) -> list[Array | float]:
    return [hyperparameters.defense[parameter.name] for parameter in defense.hyperparameters]


def protect(key: Array, transform: UploadTransform, tree: PyTree) -> PyTree:
    """Apply an upload transform once to all values of a gradient or of features."""
    flat, unravel = trees.ravel(tree)
    everything = Upload(flat, jnp.ones(flat.shape, bool))
    # Outside a round there are no hyperparameters of a round.
    absent: PyTree = None
    upload, _, _ = transform.apply(key, everything, transform.init(tree), params=tree, hyperparameters=absent)
    return unravel(upload.values)
