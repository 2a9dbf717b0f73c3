"""Impostors: pictures that try to score without any image of the target class, and real images that are degraded.

An impostor is made from ``Knowledge``: images of other classes, pictures of an untrained generator, images of another
data set, and the judge with its parameters. It sees no image of the target class. So it leaks nothing, and its leakage
score should be near 0. Each kind comes in several variants; an attacker would choose the best.

The judge has learned the target class from images that no participant owns. Pictures that are optimized against it can
therefore show the class (``shows_class``). The leakage score says what pictures show, and not where this comes from. So
it cannot tell them from a leak: an attack that uses the judge, or other images of the class, is not measured by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter, rotate, shift

from gan_leak.evaluation.judge import Judge, judge_logits
from gan_leak.types import Array

Pictures = dict[str, np.ndarray]

# (step size, numbers of steps) of the descents against the judge, in image units of [-1, 1].
_DESCENTS = ((0.005, (200,)), (0.02, (50, 200)), (0.05, (20, 200, 800)), (0.2, (20, 200)))
_SMOOTH_DESCENTS = ((0.05, (50, 200)), (0.2, (50, 200)))
# An impostor that does not show the class should score at most this.
MOST_IMPOSTOR_SCORE = 0.2
_COARSE_PIXELS = 4
# Of this many candidates for each picture, the judge chooses one.
_CANDIDATES = 10


class Knowledge(NamedTuple):
    """All that an impostor is made from; images are float32 [-, H, W, C] in [-1, 1].

    own_classes: images of each class that the adversary owns, by name; none of the target class. untrained: pictures of
    a generator before its first step. others: images of other data sets, by name. judge: with its parameters.
    """

    own_classes: Mapping[str, np.ndarray]
    untrained: np.ndarray
    others: Mapping[str, np.ndarray]
    judge: Judge
    target_class: int


class Impostor(NamedTuple):
    """A kind of impostor.

    make: (random, knowledge, count) -> pictures float32 [count, H, W, C] in [-1, 1] of each variant, by name.
    shows_class: why its pictures may show the target class without a private image; empty if they do not.
    """

    make: Callable[[np.random.Generator, Knowledge, int], Pictures]
    shows_class: str = ""


def descend(
    judge: Judge,
    target_class: int,
    images: np.ndarray,
    *,
    steps: int,
    step_size: float,
    smoothing: np.ndarray | None = None,
) -> np.ndarray:
    """Images [M, H, W, C] after steps that raise the judge's log-probability of the target class.

    A step moves each pixel by ``step_size`` along the sign of its gradient. smoothing: a matrix [H, H]; gradients are
    multiplied by it from both sides, and a step moves the pixel of the largest product by ``step_size``.
    """
    matrix = None if smoothing is None else jnp.asarray(smoothing, jnp.float32)
    moved = _descend(
        judge.params, jnp.asarray(images, jnp.float32), matrix, steps, step_size, target_class, judge.num_classes
    )
    return np.asarray(moved)


@functools.partial(jax.jit, static_argnums=(6,))
def _descend(
    params: object,
    images: Array,
    matrix: Array | None,
    steps: Array | int,
    step_size: Array | float,
    target_class: Array | int,
    num_classes: int,
) -> Array:
    judge = Judge(params, num_classes, 0.0)

    def loss(images: Array) -> Array:
        return -jnp.sum(jax.nn.log_softmax(judge_logits(judge, images))[:, target_class])

    def step(_: int, images: Array) -> Array:
        gradient = jax.grad(loss)(images)
        if matrix is None:
            direction = jnp.sign(gradient)
        else:
            smooth = jnp.einsum("ij,bjkc,lk->bilc", matrix, gradient, matrix)
            direction = smooth / (jnp.max(jnp.abs(smooth), axis=(1, 2, 3), keepdims=True) + 1e-12)
        return jnp.clip(images - step_size * direction, -1.0, 1.0)

    return jax.lax.fori_loop(0, steps, step, images)


def _descents(
    knowledge: Knowledge,
    starts: np.ndarray,
    settings: tuple[tuple[float, tuple[int, ...]], ...],
    smoothing: np.ndarray | None = None,
) -> Pictures:
    found: Pictures = {}
    for step_size, numbers in settings:
        images, done = starts, 0
        for steps in numbers:
            images = descend(
                knowledge.judge,
                knowledge.target_class,
                images,
                steps=steps - done,
                step_size=step_size,
                smoothing=smoothing,
            )
            done = steps
            found[f"{steps} steps of {step_size:g}"] = images
    return found


def _drawn(random: np.random.Generator, images: np.ndarray, count: int) -> np.ndarray:
    return images[random.choice(len(images), count, replace=len(images) < count)].astype(np.float32)


def _own(random: np.random.Generator, knowledge: Knowledge, count: int) -> np.ndarray:
    """As many images of each own class as fit, shuffled [count, H, W, C]."""
    each = -(-count // len(knowledge.own_classes))
    images = np.concatenate([_drawn(random, images, each) for images in knowledge.own_classes.values()])
    return images[random.permutation(len(images))[:count]]


def _class_averages(knowledge: Knowledge) -> np.ndarray:
    """The average of each own class, and last their average [K + 1, H, W, C]."""
    means = np.stack([images.mean(axis=0) for images in knowledge.own_classes.values()])
    return np.concatenate([means, means.mean(axis=0, keepdims=True)]).astype(np.float32)


def _repeated(images: np.ndarray, count: int) -> np.ndarray:
    return np.resize(images, (count, *images.shape[1:])).astype(np.float32)


def _shape(knowledge: Knowledge) -> tuple[int, ...]:
    return next(iter(knowledge.own_classes.values())).shape[1:]


def _uniform(random: np.random.Generator, knowledge: Knowledge, count: int) -> np.ndarray:
    return random.uniform(-1.0, 1.0, (count, *_shape(knowledge))).astype(np.float32)


def _from_noise(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    return _descents(knowledge, _uniform(random, knowledge, count), _DESCENTS)


def _from_blank(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    return _descents(knowledge, -1 + 0.1 * np.abs(_uniform(random, knowledge, count)), _DESCENTS)


def _from_own(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    return _descents(knowledge, _own(random, knowledge, count), _DESCENTS)


def _from_untrained(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    return _descents(knowledge, _drawn(random, knowledge.untrained, count), _DESCENTS)


def _from_averages(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    averages = _class_averages(knowledge)
    found = _descents(knowledge, averages, _DESCENTS)
    overall = {f"{name}, from the average of all": images[-1:] for name, images in found.items()}
    return {name: _repeated(images, count) for name, images in (found | overall).items()}


def _smoothing(size: int, deviation: float) -> np.ndarray:
    """The matrix [H, H] of a Gaussian blur along one axis; the deviation is in pixels."""
    return gaussian_filter(np.eye(size), (deviation, 0))


def _smooth(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    size = _shape(knowledge)[0]
    smoothing = _smoothing(size, 1.5 * size / 32)
    starts = {"own": _own(random, knowledge, count), "blank": -1 + 0.1 * np.abs(_uniform(random, knowledge, count))}
    return {
        f"{start}, {name}": pictures
        for start, images in starts.items()
        for name, pictures in _descents(knowledge, images, _SMOOTH_DESCENTS, smoothing).items()
    }


def _coarse(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    size = _shape(knowledge)[0]
    blocks = np.arange(size) // (_COARSE_PIXELS * size // 32)
    averaging = (blocks[:, None] == blocks[None, :]) / np.sum(blocks == 0)
    found = _descents(knowledge, np.full((1, *_shape(knowledge)), -1.0, np.float32), _SMOOTH_DESCENTS, averaging)
    noise = np.einsum("ij,bjkc,lk->bilc", averaging, _uniform(random, knowledge, count), averaging)
    several = _descents(knowledge, noise.astype(np.float32), _SMOOTH_DESCENTS, averaging)
    best = {f"noise, {name}": _most_accepted(knowledge, images, 1) for name, images in several.items()}
    return {name: _repeated(images, count) for name, images in (found | best).items()}


def _most_accepted(knowledge: Knowledge, images: np.ndarray, count: int) -> np.ndarray:
    """The images [count, H, W, C] to which the judge gives the target class with the highest probability."""
    accepted = jax.nn.log_softmax(judge_logits(knowledge.judge, images))[:, knowledge.target_class]
    return images[np.argsort(-np.asarray(accepted), kind="stable")[:count]]


def _as_they_are(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    own = {name: _drawn(random, images, count) for name, images in knowledge.own_classes.items()}
    many = np.concatenate(list(knowledge.own_classes.values()))
    return own | {"chosen by the judge": _most_accepted(knowledge, many, count)}


def _mixtures(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    """Convex combinations of own images, with random weights."""
    found: Pictures = {}
    for parts in (2, 3, 5):
        images = np.stack([_own(random, knowledge, count * _CANDIDATES) for _ in range(parts)])
        weights = random.dirichlet(np.ones(parts), count * _CANDIDATES).T.astype(np.float32)
        mixed = np.sum(weights[..., None, None, None] * images, axis=0)
        # The brighter of two strokes, as if drawn over each other.
        drawn_over = images[:2].max(axis=0)
        found |= {f"{parts} images": mixed[:count], f"{parts} chosen": _most_accepted(knowledge, mixed, count)}
    return found | {
        "drawn over": drawn_over[:count],
        "drawn over, chosen": _most_accepted(knowledge, drawn_over, count),
    }


def _pasted(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    """Halves or quarters of different own images side by side."""
    half = _shape(knowledge)[0] // 2
    found: Pictures = {}
    for name, rows, columns in (("halves one above another", 2, 1), ("halves side by side", 1, 2), ("quarters", 2, 2)):
        pasted = _own(random, knowledge, count * _CANDIDATES)
        for row in range(rows):
            for column in range(columns):
                part = np.s_[
                    :,
                    half * row : half * (row + 1) if rows == 2 else None,
                    half * column : half * (column + 1) if columns == 2 else None,
                ]
                pasted[part] = _own(random, knowledge, count * _CANDIDATES)[part]
        found |= {name: pasted[:count], f"{name}, chosen": _most_accepted(knowledge, pasted, count)}
    return found


def _cut(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    """A half of own images of one class, the other half blank: half of an 8 is nearly a 3."""
    half = _shape(knowledge)[0] // 2
    found: Pictures = {}
    for name, images in knowledge.own_classes.items():
        left, right = _drawn(random, images, count), _drawn(random, images, count)
        left[:, :, half - 2 * half // 16 :], right[:, :, : half - 2 * half // 16] = -1.0, -1.0
        found |= {f"{name}, left": left, f"{name}, right": right}
    return found


def _mirrored(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    found: Pictures = {}
    for name, images in knowledge.own_classes.items():
        drawn = _drawn(random, images, count)
        found |= {f"{name}, left to right": drawn[:, :, ::-1], f"{name}, upside down": drawn[:, ::-1]}
    return found


def _turned(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    return {
        f"{name}, {degrees} degrees": np.clip(
            rotate(_drawn(random, images, count), degrees, axes=(1, 2), reshape=False, order=1, cval=-1.0), -1.0, 1.0
        )
        for name, images in knowledge.own_classes.items()
        for degrees in (30, 90, 180, 270)
    }


def _shifted(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    scale = _shape(knowledge)[0] / 32
    own = _own(random, knowledge, count)
    moves = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
    return {
        f"{pixels} pixels {name}": shift(own, (0, down * pixels * scale, right * pixels * scale, 0), order=1, cval=-1.0)
        for name, (down, right) in moves.items()
        for pixels in (2, 4, 8)
    }


def _averages(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    names = [*knowledge.own_classes, "all classes"]
    found = {name: _repeated(image[None], count) for name, image in zip(names, _class_averages(knowledge), strict=True)}
    for parts in (2, 5, 20):
        found[f"of {parts} images"] = np.mean([_own(random, knowledge, count) for _ in range(parts)], axis=0)
    return found


def _low_pass_noise(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    """Blurred noise with the mean and the deviation of the own images, and the same in black and white."""
    own = _own(random, knowledge, count)
    found: Pictures = {}
    for deviation in (0.5, 1.0, 2.0, 4.0, 8.0):
        blurred = gaussian_filter(random.normal(size=own.shape), (0, deviation, deviation, 0))
        noise = np.clip(own.mean() + own.std() * blurred / blurred.std(), -1.0, 1.0)
        share = np.mean(own > 0.0)
        black_and_white = np.where(blurred > np.quantile(blurred, 1.0 - share), 1.0, -1.0)
        found |= {f"{deviation:g} pixels": noise, f"{deviation:g} pixels, black and white": black_and_white}
    return {name: images.astype(np.float32) for name, images in found.items()}


def _other_data_sets(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    found = {name: _drawn(random, images, count) for name, images in knowledge.others.items()}
    negatives = {f"{name}, negative": -images for name, images in found.items()}
    chosen = {
        f"{name}, chosen by the judge": _most_accepted(knowledge, images, count)
        for name, images in knowledge.others.items()
    }
    return found | negatives | chosen


def _untrained(random: np.random.Generator, knowledge: Knowledge, count: int) -> Pictures:
    return {"drawn": _drawn(random, knowledge.untrained, count)}


_FROM_THE_JUDGE = (
    "the judge was trained on real images of the class, and its gradients can draw the class; from which start depends "
    "on rounding, so on the processor"
)

IMPOSTORS: Mapping[str, Impostor] = {
    "optimized from noise": Impostor(_from_noise, _FROM_THE_JUDGE),
    "optimized from almost blank pictures": Impostor(_from_blank, _FROM_THE_JUDGE),
    "optimized from own images": Impostor(_from_own, _FROM_THE_JUDGE),
    "optimized from an untrained generator": Impostor(_from_untrained, _FROM_THE_JUDGE),
    "optimized from averages": Impostor(_from_averages, _FROM_THE_JUDGE),
    "optimized by smooth steps": Impostor(_smooth, _FROM_THE_JUDGE),
    "optimized coarse picture, repeated": Impostor(_coarse, _FROM_THE_JUDGE),
    "own images": Impostor(_as_they_are),
    "mixtures of own images": Impostor(_mixtures),
    "pasted strokes": Impostor(_pasted),
    "cut in half": Impostor(_cut),
    "mirrored": Impostor(_mirrored),
    "turned": Impostor(_turned),
    "shifted": Impostor(_shifted),
    "averages": Impostor(_averages),
    "low-pass noise": Impostor(_low_pass_noise),
    "other data sets": Impostor(_other_data_sets),
    "untrained generator": Impostor(_untrained),
}

# Strengths of each degradation, from none on.
DEGRADATIONS: Mapping[str, tuple[float, ...]] = {
    "blur": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
    "noise": (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5),
    "shift": (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0),
    "contrast": (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0),
}


def degrade(images: np.ndarray, kind: str, strength: float) -> np.ndarray:
    """Images [M, H, W, C] under one of ``DEGRADATIONS``; strength 0 leaves them as they are.

    blur: Gaussian, its deviation in pixels at 32 x 32. noise: its standard deviation in image units, the same noise at
    all strengths. shift: to the right, in pixels at 32 x 32; the border is repeated. contrast: the share by which all
    pixels move to the mean of their image.

    Raises ValueError for an unknown kind or a negative strength.
    """
    if kind not in DEGRADATIONS:
        raise ValueError(f"kind={kind}: expected one of {', '.join(DEGRADATIONS)}")
    if strength < 0.0:
        raise ValueError(f"strength={strength}: expected at least 0")
    scale = images.shape[1] / 32
    if kind == "blur":
        changed = gaussian_filter(images, (0, strength * scale, strength * scale, 0))
    elif kind == "noise":
        changed = images + strength * np.random.default_rng(0).normal(size=images.shape)
    elif kind == "shift":
        changed = shift(images, (0, 0, strength * scale, 0), order=1, mode="nearest")
    else:
        changed = images + strength * (images.mean(axis=(1, 2, 3), keepdims=True) - images)
    return np.clip(changed, -1.0, 1.0).astype(np.float32)
