"""Model inversion: Fredrikson, Jha and Ristenpart (CCS 2015), section 5, Algorithm 1 (MI-FACE), with exact gradients.

Hitaj et al. 2017, section 9.1, run it against a trained classifier as the baseline of their attack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.procedure import Procedure
from gan_leak.types import Array, Model, ModelView, PyTree


class ModelInversionInfo(NamedTuple):
    """Cost [] and confidence [] = 1 - cost of the returned image, and the number of steps taken, int32 []."""

    cost: Array
    confidence: Array
    steps: Array


class _Path(NamedTuple):
    """The state of the descent: current image, best image, and the confidences of the last ``patience`` images."""

    image: Array
    gradient: Array
    best_image: Array
    best_confidence: Array
    recent_confidences: Array
    steps: Array
    finished: Array


def clip_to_range(image: Array) -> Array:
    """Clip an image of any shape to [-1, 1], the range of images here."""
    return jnp.clip(image, -1.0, 1.0)


def gaussian_smoothing(standard_deviation: float) -> Callable[[Array], Array]:
    """A ``process`` that blurs images [H, W, C] with a Gaussian (in pixels) and clips them to [-1, 1].

    Fredrikson et al. denoise in another way, by non-local means and sharpening, and only for a stacked denoising
    autoencoder. The kernel reaches three standard deviations; beyond an edge the edge pixel repeats. Every step blurs,
    so the blur accumulates until the gradient balances it.

    Raises ValueError for a standard deviation that is not positive and finite.
    """
    if not 0 < standard_deviation < math.inf:
        raise ValueError(f"standard_deviation={standard_deviation}: expected a positive finite number")
    radius = max(1, math.ceil(3 * standard_deviation))
    weights = [math.exp(-0.5 * (offset / standard_deviation) ** 2) for offset in range(-radius, radius + 1)]

    def blur(image: Array, axis: int) -> Array:
        padding = [(0, 0)] * image.ndim
        padding[axis] = (radius, radius)
        padded = jnp.pad(image, padding, mode="edge")
        shifted = (
            weight * jax.lax.slice_in_dim(padded, index, index + image.shape[axis], axis=axis)
            for index, weight in enumerate(weights)
        )
        return sum(shifted, jnp.zeros_like(image)) / sum(weights)

    def process(image: Array) -> Array:
        return clip_to_range(blur(blur(image, 0), 1))

    return process


class InversionTarget(NamedTuple):
    """The input of a model inversion: the model, the class int [], and the start image [H, W, C] in [-1, 1]."""

    view: ModelView
    target_class: Array | int
    start: Array


class ModelInversion(NamedTuple):
    """The image [H, W, C] of the lowest cost on the path, the start included, and its diagnostics."""

    image: Array
    info: ModelInversionInfo


def model_inversion(
    classifier: Model,
    *,
    learning_rate: Array | float = 0.4,
    patience: int = 100,
    confidence: Array | float = 0.99,
    process: Callable[[Array], Array] = clip_to_range,
) -> Procedure:
    """Search for the image to which the model gives the target class with most confidence, by gradient descent.

    The evidence is an ``InversionTarget``, the result a ``ModelInversion``. Minimizes
    c(x) = 1 - softmax(classifier(x))[target_class] by x <- process(x - learning_rate * gradient of c). It is finished
    when c is not below the largest of its last ``patience`` (beta) values, or when the target has at least
    ``confidence``. The paper's gamma is a cost, 1 - confidence. The number of steps is the paper's alpha, 5000 there.

    start: the paper's zero image is black, which is -1 here. The gradient is proportional to the target's confidence.
    For a class with almost no confidence at the start it nearly vanishes; a higher rate or another start may help.
    learning_rate: the paper's lambda is 0.1 for pixels in [0, 1]. Twice the range makes the gradient half as large and
    the distance twice as long, so 0.4 gives the same steps here.
    patience: static. Until that many values exist, cost alone does not stop the descent.
    process: image [H, W, C] -> image [H, W, C], applied after every step. Fredrikson et al. denoise and sharpen here
    for one of their three models; see ``gaussian_smoothing``.

    Under ``vmap`` over target classes, starts or models, a finished lane stays unchanged. All hyperparameters but
    ``patience`` may be traced. Nothing is random.

    Raises ValueError for hyperparameters out of range and a start that is not an image in [-1, 1], unless they are
    traced. A traced target class beyond the classifier's outputs gives a confidence of NaN and returns the start.
    """
    _check_scalars(
        {
            "learning_rate": (learning_rate, lambda number: 0 < number < np.inf, "a positive finite number"),
            "patience": (patience, lambda number: number >= 1, "at least 1"),
            "confidence": (confidence, lambda number: 0 < number <= 1, "a number in (0, 1]"),
        }
    )

    def evaluate(image: Array, target: InversionTarget) -> tuple[Array, Array]:
        params, target_class = target.view.params, target.target_class
        return jax.value_and_grad(lambda image: _confidence(classifier, params, image, target_class))(image)

    def init(key: Array, target: InversionTarget) -> _Path:
        _check_target(target, classifier)
        start = jnp.asarray(target.start)
        value, gradient = evaluate(start, target)
        recent = jnp.full(patience, -jnp.inf, value.dtype).at[0].set(value)
        return _Path(start, gradient, start, value, recent, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def step(key: Array, path: _Path, target: InversionTarget) -> tuple[_Path, Array]:
        # The cost falls along the gradient of the confidence.
        image = process(path.image + learning_rate * path.gradient)
        new_path = _next_path(path, image, *evaluate(image, target), enough=confidence)
        return new_path, 1 - new_path.best_confidence

    def extract(path: _Path, target: InversionTarget) -> ModelInversion:
        info = ModelInversionInfo(1 - path.best_confidence, path.best_confidence, path.steps)
        return ModelInversion(path.best_image, info)

    return Procedure(init, step, extract, lambda path: path.finished)


def _next_path(path: _Path, image: Array, confidence: Array, gradient: Array, *, enough: Array | float) -> _Path:
    """The path after one more image: its best image, recent confidences, and whether it is finished."""
    # Confidences are compared, not costs: the cost of a tiny confidence is rounded to 1 and would seem constant.
    improved = confidence > jnp.min(path.recent_confidences)
    better = confidence > path.best_confidence
    slot = (path.steps + 1) % path.recent_confidences.size
    return _Path(
        image,
        gradient,
        jnp.where(better, image, path.best_image),
        jnp.where(better, confidence, path.best_confidence),
        path.recent_confidences.at[slot].set(confidence),
        path.steps + 1,
        # Negated, so that a NaN stops the descent.
        ~improved | (confidence >= enough),
    )


def _confidence(classifier: Model, params: PyTree, image: Array, target_class: Array | int) -> Array:
    """The probability [] of a class for an image [H, W, C]; NaN if there is no such class."""
    probabilities = jax.nn.softmax(classifier.apply(params, image[None])[0])
    return probabilities.at[target_class].get(mode="fill", fill_value=jnp.nan)


def _check_scalars(scalars: Mapping[str, tuple[Array | float, Callable[[float], bool], str]]) -> None:
    """Raise ValueError for a value that is not a scalar or, unless it is traced, not accepted."""
    for name, (value, accepts, expected) in scalars.items():
        if jnp.shape(value) != ():
            raise ValueError(f"{name}.shape={jnp.shape(value)}: expected a single number; vmap takes several")
        # As a Python number, since under jit even a comparison of constants is traced.
        if not isinstance(value, jax.core.Tracer) and not accepts(float(np.asarray(value))):
            raise ValueError(f"{name}={value}: expected {expected}")


def _check_target(target: InversionTarget, classifier: Model) -> None:
    view, target_class, start = target
    _check_scalars({"target_class": (target_class, lambda number: number >= 0, "at least 0")})
    if start.ndim != 3:
        raise ValueError(f"start.shape={start.shape}: expected [H, W, C]")
    if not jnp.issubdtype(start.dtype, jnp.floating):
        raise ValueError(f"start.dtype={start.dtype}: expected floating point in [-1, 1]")
    if not isinstance(start, jax.core.Tracer):
        values = np.asarray(start)
        if not np.all(np.abs(values) <= 1):
            raise ValueError(f"start from {values.min()} to {values.max()}: expected values in [-1, 1]")
    outputs = jax.eval_shape(classifier.apply, view.params, start[None]).shape[-1]
    if not isinstance(target_class, jax.core.Tracer) and np.asarray(target_class) >= outputs:
        raise ValueError(f"target_class={target_class}: expected 0 to {outputs - 1}, one of the classifier's outputs")
