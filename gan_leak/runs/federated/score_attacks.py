"""Attacks on the leakage score of one class: impostors without private images, and degraded private images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gan_leak.config import RunConfig
from gan_leak.data import load, to_float
from gan_leak.evaluation.impostors import DEGRADATIONS, IMPOSTORS, Knowledge, degrade
from gan_leak.evaluation.leakage import References, leakage_score, nearest_neighbour_share, scores_by_view
from gan_leak.runs.federated.measurability import untrained_images
from gan_leak.runs.federated.measurement import Instruments, build_comparison
from gan_leak.runs.federated.setup import AttackData
from gan_leak.runs.storage.integrity import RefusedError

Row = dict[str, Any]
Pictures = Mapping[str, np.ndarray]


class ScoreAttacks(NamedTuple):
    """The scores of one class, and the pictures of each impostor's best variant [count, H, W, C] by kind.

    references: rows of copies and of held-out images. impostors: a row for each kind. degradations: a row for each
    kind, with lists of strengths and of scores.
    """

    references: list[Row]
    impostors: list[Row]
    degradations: list[Row]
    pictures: dict[str, np.ndarray]


def other_data_sets(dataset: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A bundled data set of other things, float32 [M, H, W, C] of the shape [H, W, C]: faces beside digits.

    Beside any other data set than MNIST it is MNIST. Raises ValueError if its package is not installed.
    """
    name = "orl_faces" if dataset == "mnist" else "mnist"
    images = to_float(load(name, image_size=shape[0]).test_images)
    return {name: np.repeat(images, shape[-1], axis=-1) if shape[-1] > 1 else images}


def knowledge_of(
    config: RunConfig, data: AttackData, instruments: Instruments, others: Mapping[str, np.ndarray]
) -> Knowledge:
    """What the adversary of a run has: no image of the target class. The untrained generator is another one."""
    untrained = untrained_images(config.data.image_size, data.private.shape[-1], 2 * config.seed + 1)
    return Knowledge(data.own_classes, untrained, others, instruments.judge, config.attack.target_class)


def attack_score(
    config: RunConfig,
    data: AttackData,
    instruments: Instruments,
    others: Mapping[str, np.ndarray],
    *,
    count: int,
    report: Callable[[str], None],
) -> ScoreAttacks:
    """Score ``count`` pictures of every variant of every impostor, and private images under every degradation.

    The best variant of a kind counts, as an attacker would choose. report: called with a line for each kind.

    Raises RefusedError if the leakage of the class is not measurable.
    """
    size = config.data.image_size, data.private.shape[-1]
    references, _ = build_comparison(config, data, instruments, untrained_images(*size, 2 * config.seed))
    name = data.class_names[config.attack.target_class]
    if references.measurability.reason is not None:
        raise RefusedError(f"target_classes: class {name} is not measurable: {references.measurability.reason}")
    knowledge = knowledge_of(config, data, instruments, others)
    known = {"class": name}
    impostors, pictures = [], {}
    for place, (kind, impostor) in enumerate(IMPOSTORS.items()):
        variants = impostor.make(np.random.default_rng((config.seed, place)), knowledge, count)
        scored = {variant: _score(references, images) for variant, images in variants.items()}
        best = max(scored, key=lambda variant: _strength(scored[variant]))
        row = {**known, "kind": kind, "variant": best, "variants": len(variants), **scored[best]}
        row["smallest_view"] = max(row["smallest_view"] for row in scored.values())
        row["looks_like_the_class"] = nearest_neighbour_share(references, variants[best])
        row["shows_class"] = impostor.shows_class
        impostors.append(row)
        pictures[kind] = variants[best]
        report(f"class {name}, {kind}: {row['score']:.2f} ({best})")
    private = data.private[:count]
    degradations = [
        {**known, "kind": kind, "strengths": list(strengths)}
        | {"scores": [_score(references, degrade(private, kind, strength))["score"] for strength in strengths]}
        for kind, strengths in DEGRADATIONS.items()
    ]
    held_out = {"copies": private, "held out": data.fresh[1::2], **data.unowned}
    rows = [{**known, "kind": kind, **_score(references, images)} for kind, images in held_out.items()]
    return ScoreAttacks(rows, impostors, degradations, pictures)


def _strength(row: Row) -> tuple[float, ...]:
    """The order of variants: by score, and of equal scores the one that passes in more views."""
    views = [value for value in row["views"].values() if value is not None]
    return row["score"], row["smallest_view"], sum(views)


def _score(references: References, images: np.ndarray) -> Row:
    by_view = scores_by_view(references, images)
    smallest = min(value for value in by_view.values() if value is not None)
    return {"score": leakage_score(references, by_view), "smallest_view": smallest, "views": by_view}
