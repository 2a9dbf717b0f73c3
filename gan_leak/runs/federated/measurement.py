"""The measurement of a run: its keys, the judge of its data, and the references for its reconstructions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.config import RunConfig
from gan_leak.evaluation.descriptions import DescribedGallery, describe_gallery
from gan_leak.evaluation.judge import Judge, load_or_train_judge
from gan_leak.evaluation.leakage import References, build_references, measure_leakage
from gan_leak.runs.federated.setup import AttackData
from gan_leak.types import Array, Model, PyTree, RoundAttack

# Few enough that the patches of a convolution stay in the processor's cache.
_ACCURACY_BATCH = 32
# Of each other class.
_CONTROL_IMAGES = 100


class Instruments(NamedTuple):
    """The judge of a data set and its described gallery; all runs on the data set share them."""

    judge: Judge
    described_gallery: DescribedGallery


InstrumentSource = Callable[[AttackData], Instruments]


class RunKeys(NamedTuple):
    """The keys of a run, by purpose."""

    init: Array
    rounds: Array
    latents: Array
    prior: Array
    cohorts: Array


def run_keys(seed: int) -> RunKeys:
    """The keys of the run with this seed."""
    return RunKeys(*jax.random.split(jax.random.key(seed), 5))


def make_instrument_source(show: Callable[[str], None]) -> InstrumentSource:
    """Build ``instruments(data)``, which trains or loads the judge of a data set once. It reports this to ``show``."""
    made: dict[tuple[str, int], Instruments] = {}

    def instruments(data: AttackData) -> Instruments:
        # The judge's pool and the gallery are functions of the data set and the size of the pool.
        key = (data.fingerprint, len(data.judge_pool.labels))
        if key not in made:
            show("judge: loading, or training it on images that no participant owns ...")
            judge = load_or_train_judge(*data.judge_pool, *data.judge_test, len(data.class_names))
            tested = len(data.judge_test.labels)
            show(f"judge: accuracy {judge.test_accuracy:.4f} on {tested} images it was not trained on")
            made[key] = Instruments(judge, describe_gallery(judge, data.gallery.images))
        return made[key]

    return instruments


def build_comparison(
    config: RunConfig, data: AttackData, instruments: Instruments, untrained: np.ndarray | None
) -> tuple[References, dict[str, dict[str, Any]]]:
    """The references for leakage, and the measures of images that score one and of images that score zero, by name.

    untrained: reconstructions of the attack before its first step [M, H, W, C]; None for an attack without any.
    """
    prior = {**data.own_classes, **data.common_knowledge}
    if untrained is not None:
        prior["untrained generator"] = untrained
    references = build_references(
        instruments.judge,
        target_class=config.attack.target_class,
        private=data.private,
        fresh=data.fresh[::2],
        held_out={"fresh": data.fresh[1::2], **data.unowned},
        gallery=data.gallery.images,
        gallery_labels=data.gallery.labels,
        prior=prior,
        controls={
            f"test images of class {label}": data.judge_test.images[data.judge_test.labels == label][:_CONTROL_IMAGES]
            for label in range(len(data.class_names))
            if label != config.attack.target_class
        },
        described_gallery=instruments.described_gallery,
    )
    # The first half of the fresh images defines a score of 1, so only the second half is measured.
    rows = {"fresh real images": data.fresh[1::2]}
    if untrained is not None:
        rows["untrained generator"] = untrained
    if data.own_classes:
        rows["adversary's own classes"] = np.concatenate(list(data.own_classes.values()))
    return references, {name: measure_leakage(references, images)._asdict() for name, images in rows.items()}


def reconstruct(attack: RoundAttack, key: Array, state: PyTree, count: int) -> np.ndarray:
    """Reconstructions [count, H, W, C] of the attack from its state."""
    return np.asarray(_jitted_reconstruct(attack, key, state, count))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _jitted_reconstruct(attack: RoundAttack, key: Array, state: PyTree, count: int) -> Array:
    return attack.reconstruct(key, state, count)


def model_accuracy(model: Model, params: PyTree, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images [N, H, W, C] whose label [N] the model predicts; the fake class is never right.

    The batches are even samples of the images, for models with BatchNorm; the last is completed from the first images.
    """
    return int(_correct(model, params, images, labels)) / len(labels)


@functools.partial(jax.jit, static_argnums=0)
def _correct(model: Model, params: PyTree, images: Array, labels: Array) -> Array:
    batches = -(-len(labels) // _ACCURACY_BATCH)
    places = jnp.arange(batches * _ACCURACY_BATCH).reshape(_ACCURACY_BATCH, batches).T

    def right(batch: Array) -> Array:
        chosen = batch % len(labels)
        predicted = jnp.argmax(model.apply(params, images[chosen]), axis=1)
        return jnp.sum((predicted == labels[chosen]) & (batch < len(labels)))

    return jnp.sum(jax.lax.map(right, places))
