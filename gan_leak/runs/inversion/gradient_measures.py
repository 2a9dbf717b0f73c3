"""Similarity of images recovered from a gradient to the originals, and the scores of controls and baselines."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gan_leak.attacks.gradient.contract import GradientInversion
from gan_leak.attacks.gradient.observation import fitted_scale, gradient_of
from gan_leak.evaluation.fidelity import (
    class_means,
    group_psnr,
    match,
    nearest,
    peak_signal_to_noise,
    re_identified,
    root_mean_square_error,
    uniform_similarity,
)
from gan_leak.runs.inversion.gradient import Victims
from gan_leak.types import GradientView, Model

# An SSIM from which a picture counts as recovered, as in the released evaluation code of GRNN's group.
SUCCESS = 0.6
# Measures that are also taken against images that the attack has not seen.
CONTROLS = ("psnr", "ssim", "recovered", "re_identified", "label_right", "identified")


class Measures(NamedTuple):
    """Similarity of each matched picture to its original [E, B].

    recovered: an SSIM of at least 0.6. re_identified: whether it correlates more with the original than with any other
    image of its class, among the attacked images and the gallery. label_right: whether the predicted label is right.
    identified: whether the nearest image of the gallery is of the right class.
    """

    psnr: np.ndarray
    ssim: np.ndarray
    recovered: np.ndarray
    re_identified: np.ndarray
    label_right: np.ndarray
    identified: np.ndarray
    rmse: np.ndarray
    group_psnr: np.ndarray


class Result(NamedTuple):
    """The images of an attack, in the order of the originals [E, B, H, W, C], and their measures.

    other_measures: the same pictures compared with images that the attack has not seen. baselines: scores [E, B] by
    name of attack-free baselines: the mean of the gallery's images of the class, and a black image.
    """

    images: np.ndarray
    measures: Measures
    other_measures: Measures
    baselines: dict[str, np.ndarray]


def shown(found: GradientInversion) -> np.ndarray:
    """The found images, cut to [0, 1], and gray where they are NaN."""
    return np.clip(np.nan_to_num(np.asarray(found.images), nan=0.5, posinf=1.0, neginf=0.0), 0.0, 1.0)


def measure(found: GradientInversion, victims: Victims) -> Result:
    """Match the found images, with a leading axis of participants, to the originals, and measure each pair."""
    images = shown(found)
    predicted_labels = np.argmax(np.asarray(found.labels), axis=-1)
    own, order = _compared(images, predicted_labels, victims.images, victims.labels, victims)
    others, _ = _compared(images, predicted_labels, victims.other_images, victims.other_labels, victims)
    drawn = np.stack([pictures[places] for pictures, places in zip(images, order, strict=True)])
    return Result(drawn, own, others, _baselines(victims))


def _baselines(victims: Victims) -> dict[str, np.ndarray]:
    shape = victims.labels.shape
    originals = victims.images.reshape(-1, *victims.images.shape[2:])
    means = class_means(victims.labels.ravel(), victims.gallery_images, victims.gallery_labels)
    found = {}
    for name, pictures in (("class", means), ("blank", np.zeros_like(originals))):
        for measure, values in zip(("psnr", "ssim", "recovered"), _likeness(pictures, originals), strict=True):
            found[f"{name}_{measure}"] = values.reshape(shape)
    known, places = _known(victims.images, victims.labels, victims)
    found["class_re_identified"] = re_identified(means, places.ravel(), victims.labels.ravel(), known).reshape(shape)
    return found


def _known(
    originals: np.ndarray, labels: np.ndarray, victims: Victims
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The candidates of a re-identification, originals and gallery with labels, and the positions of the originals."""
    images = np.concatenate([originals.reshape(-1, *originals.shape[2:]), victims.gallery_images])
    classes = np.concatenate([labels.ravel(), victims.gallery_labels])
    return (images, classes), np.arange(labels.size).reshape(labels.shape)


def _likeness(pictures: np.ndarray, originals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PSNR, SSIM and success of each pair of images [M, H, W, C] in [0, 1]."""
    left, right = 2.0 * pictures - 1.0, 2.0 * originals - 1.0
    similarity = uniform_similarity(left, right)
    return peak_signal_to_noise(left, right), similarity, similarity >= SUCCESS


def _compared(
    images: np.ndarray, predicted_labels: np.ndarray, originals: np.ndarray, labels: np.ndarray, victims: Victims
) -> tuple[Measures, list[np.ndarray]]:
    measured, orders = [], []
    known, places = _known(originals, labels, victims)
    for drawn, predicted, real, truth, place in zip(images, predicted_labels, originals, labels, places, strict=True):
        order = np.argsort(match(drawn, real))
        left, right = 2.0 * drawn[order] - 1.0, 2.0 * real - 1.0
        identities = victims.gallery_labels[nearest(drawn[order], victims.gallery_images)]
        measured.append(
            Measures(
                *_likeness(drawn[order], real),
                re_identified(drawn[order], place, truth, known),
                predicted[order] == truth,
                identities == truth,
                root_mean_square_error(left, right),
                group_psnr(left, right),
            )
        )
        orders.append(order)
    return Measures(*map(np.stack, zip(*measured, strict=True))), orders


def measured_arrays(found: GradientInversion, victims: Victims, *, labels_given: bool) -> dict[str, np.ndarray]:
    """The images of a row and all their measures by name, without ``label_right`` if labels were given."""
    result = measure(found, victims)
    measures = result.measures._asdict()
    controls = {f"control_{name}": getattr(result.other_measures, name) for name in CONTROLS}
    if labels_given:
        del measures["label_right"], controls["control_label_right"]
    return {"images": result.images, **measures, **controls, **result.baselines}


def unmeasured_arrays(
    found: GradientInversion, model: Model, view: GradientView, *, fitted: bool
) -> dict[str, np.ndarray]:
    """The images of a row with unknown originals, their labels and the final distance.

    fitted: whether the attack fitted a scale to one view without a leading axis. Then the scale is returned too.
    """
    labels = np.argmax(np.asarray(found.labels), axis=-1)
    arrays = {"images": shown(found), "labels": labels, "distance": np.asarray(found.distance)}
    if fitted:
        gradient = gradient_of(model, view.params, found.images[0], found.labels[0])
        arrays["scale"] = np.asarray(fitted_scale(gradient, view.gradient))
    return arrays
