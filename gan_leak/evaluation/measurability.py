"""Measurability of leakage: tests of the views before they score a reconstruction.

With few private or few fresh images, a view may not tell real images of the class from the baselines. Such a view is
left out. The other views must give a low score to pictures that leak nothing, a high score to real images of the class
that no participant owns, and a higher one to copies of the private images. Otherwise no score is reported, since a low
score would look like safety.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from gan_leak.evaluation.views import LEAST_STANDARD_ERRORS, Images, View, is_blind, on_scale, score

NOT_MEASURABLE = "not measurable"
LEAST_WORKING_VIEWS = 2
# Of the product of the views; 0.7 of the smallest view admits about the same classes.
LEAST_HELD_OUT_SCORE = 0.6
# Nothing leaks more than copies of the private images do.
LEAST_COPIES_SCORE = 0.9
# Half of the allowed score, because other pictures of the same kind score slightly more.
MOST_CONTROL_SCORE = 0.05
_IMAGES_OF_A_CONTROL = 100


def score_text(score: float | None) -> str:
    """The score as text, with two decimals.

    >>> score_text(0.125), score_text(None)
    ('0.12', 'not measurable')
    """
    return NOT_MEASURABLE if score is None else f"{score:.2f}"


def combined(scores: Iterable[float]) -> float:
    """The leakage score from those of the views in [0, 1]: their product.

    The smallest would count several faults as one: a coarse picture that is half right in every view would score 0.5.

    >>> combined([0.5, 1.0, 0.5])
    0.25
    """
    return math.prod(scores)


class Measurability(NamedTuple):
    """The tested views of the leakage score.

    deciding: the names of the working views; blind: the others. raised_by: the controls that raised the zero of the
    scale. reason: why the score is not measurable, or None.
    """

    deciding: tuple[str, ...]
    blind: tuple[str, ...]
    raised_by: tuple[str, ...]
    reason: str | None

    def notes(self) -> tuple[str, ...]:
        """Notes on the score, one a line; empty if every view works and no control has a score."""
        notes = []
        if self.reason is not None:
            notes.append(f"The leakage score is {NOT_MEASURABLE}: {self.reason}.")
        if self.blind:
            notes.append(
                f"The leakage score uses these views: {', '.join(self.deciding) or 'none'}. Left out: "
                f"{', '.join(self.blind)}, because fresh real images and the baselines differ there by less than "
                f"{LEAST_STANDARD_ERRORS:g} standard errors."
            )
        if self.raised_by:
            notes.append(f"The zero of the leakage score is raised to these controls: {', '.join(self.raised_by)}.")
        return tuple(notes)


def examine(
    views: Mapping[str, View],
    *,
    private: Images,
    held_out: Mapping[str, Images],
    controls: Mapping[str, Images],
) -> tuple[dict[str, View], Measurability]:
    """Test the views on sets of images whose score is known, by name.

    private: the victims' images of the class. held_out: real images of it that no participant owns and that define no
    scale. controls: pictures that leak nothing. A control with a score raises the zero of every view, as a baseline
    does. Returns the views with these zeros.
    """
    medians = {
        name: {control: float(np.median(view.values(images))) for control, images in controls.items()}
        for name, view in views.items()
    }
    views = dict(views)
    raised_by: tuple[str, ...] = ()
    while True:
        deciding = tuple(name for name, view in views.items() if not is_blind(view))
        if len(deciding) < LEAST_WORKING_VIEWS:
            break
        failing = tuple(
            control
            for control in controls
            if min(on_scale(views[name], medians[name][control]) for name in deciding) > MOST_CONTROL_SCORE
        )
        if not failing:
            break
        raised_by += failing
        views = {
            name: view._replace(zero=max(view.zero, *(medians[name][control] for control in failing)))
            for name, view in views.items()
        }
    blind = tuple(name for name in views if name not in deciding)
    reason = _reason({name: views[name] for name in deciding}, private, held_out)
    return views, Measurability(deciding, blind, raised_by, reason)


def _reason(views: Mapping[str, View], private: Images, held_out: Mapping[str, Images]) -> str | None:
    if len(views) < LEAST_WORKING_VIEWS:
        return (
            f"{len(views)} of the views can tell fresh real images of the class from the baselines, expected at least "
            f"{LEAST_WORKING_VIEWS}; more private or more fresh images help"
        )
    if all(view.of_judge for view in views.values()):
        return (
            f"the working views ({', '.join(views)}) all come from the judge, against which pictures can be optimized"
        )
    tests = [(f"real images of the class ({name})", images, LEAST_HELD_OUT_SCORE) for name, images in held_out.items()]
    for name, images, least in (*tests, ("copies of the private images", private, LEAST_COPIES_SCORE)):
        real = combined(score(view, images) for view in views.values())
        if real < least:
            return f"{name} score {real:.2f}, expected at least {least}"
    return None


def plain_controls(gallery: np.ndarray, labels: np.ndarray, target_class: int) -> dict[str, np.ndarray]:
    """Pictures that need no private data and leak nothing, by name, from a gallery [M, H, W, C] of classes [M].

    Blank pictures, noise, averages, and real images of each other class.
    """
    shape = gallery.shape[1:]
    others = gallery[labels != target_class]
    single = {
        "black": np.full(shape, -1.0),
        "grey": np.zeros(shape),
        "white": np.ones(shape),
        "average of all images": gallery.mean(axis=0),
        "average of other classes": others.mean(axis=0),
    }
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, (_IMAGES_OF_A_CONTROL, *shape))
    return {
        **{name: picture[None].astype(np.float32) for name, picture in single.items()},
        "noise": noise.astype(np.float32),
        **{
            f"real images of class {label}": gallery[labels == label][:_IMAGES_OF_A_CONTROL]
            for label in np.unique(labels[labels != target_class])
        },
    }
