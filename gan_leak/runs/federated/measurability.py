"""Measurability of one class: the leakage scores of copies, held-out images and controls."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from gan_leak.config import RunConfig
from gan_leak.evaluation.leakage import leakage_score, scores_by_view
from gan_leak.evaluation.measurability import plain_controls
from gan_leak.models import dcgan_generator, sample_images
from gan_leak.runs.federated.measurement import Instruments, build_comparison
from gan_leak.runs.federated.setup import AttackData
from gan_leak.types import Array

_UNTRAINED_IMAGES = 300
_BATCH_SIZE = 100


def measurability_row(config: RunConfig, data: AttackData, instruments: Instruments) -> dict[str, Any]:
    """The target class with its number of private images, and the scores of copies, held-out images and controls.

    Where there are enough images, the controls differ from those that defined the scale.
    """
    size = config.data.image_size, data.private.shape[-1]
    references, _ = build_comparison(config, data, instruments, untrained_images(*size, 2 * config.seed))
    controls = {
        **plain_controls(data.judge_test.images[::-1], data.judge_test.labels[::-1], config.attack.target_class),
        "untrained generator": untrained_images(*size, 2 * config.seed + 1),
    }

    measurable = references.measurability.reason is None

    def score(images: np.ndarray) -> float | None:
        return leakage_score(references, scores_by_view(references, images)) if measurable else None

    scores = [score(images) for images in controls.values()]
    held_out = [score(images) for images in (data.fresh[1::2], *data.unowned.values())]
    return {
        "class": data.class_names[config.attack.target_class],
        "private_images": len(data.private),
        "deciding": list(references.measurability.deciding),
        "raised_by": list(references.measurability.raised_by),
        "not_measurable": references.measurability.reason,
        "copies": score(data.private),
        "held_out": min(value for value in held_out if value is not None) if measurable else None,
        "highest_control": max(value for value in scores if value is not None) if measurable else None,
    }


@functools.cache
def untrained_images(image_size: int, channels: int, seed: int) -> np.ndarray:
    """Pictures [300, H, W, C] of a DCGAN generator before its first step."""
    generator = dcgan_generator(image_size, channels)

    @jax.jit
    def draw(key: Array) -> Array:
        key_init, key_samples = jax.random.split(key)
        return sample_images(generator, generator.init(key_init), key_samples, _UNTRAINED_IMAGES, _BATCH_SIZE)

    return np.asarray(draw(jax.random.key(seed)))
