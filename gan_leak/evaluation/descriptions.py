"""What the views of pictures compare: each set of images is described once, for all views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from gan_leak.evaluation.fidelity import flatten
from gan_leak.evaluation.judge import Judge, judge_outputs
from gan_leak.evaluation.views import edges, principal_components

# By name, an array with a leading axis of images.
Description = dict[str, np.ndarray]
Describe = Callable[[np.ndarray], Description]


class DescribedGallery(NamedTuple):
    """Real images of all classes as descriptions.

    describe: images [M, H, W, C] -> ``pixels``, ``edges`` and ``judge`` [M, D] along the principal components of the
    gallery, ``features`` [M, 128] and ``logits`` [M, K + 1] of the judge. own: the description of the gallery.
    """

    describe: Describe
    own: Description


def describe_gallery(judge: Judge, gallery: np.ndarray) -> DescribedGallery:
    """Describe a gallery of real images [M, H, W, C] of all classes.

    Independent of the partition and of the target class, so all runs on one data set can share it.
    """

    def unreduced(images: np.ndarray) -> Description:
        logits, features = (np.asarray(output) for output in judge_outputs(judge, np.asarray(images, np.float32)))
        spaces = {"pixels": flatten(images), "edges": edges(images), "judge": features}
        return {**spaces, "features": features, "logits": logits}

    def reduced(description: Description) -> Description:
        return description | {name: reduce(description[name]) for name, reduce in along_components.items()}

    own = unreduced(gallery)
    along_components = {name: principal_components(own[name]) for name in ("pixels", "edges", "judge")}
    return DescribedGallery(lambda images: reduced(unreduced(images)), reduced(own))


def describe_sets(describe: Describe, sets: Mapping[str, np.ndarray]) -> dict[str, Description]:
    """Describe sets of images [-, H, W, C] by name, all at once: many small batches would take longer."""
    if not sets:
        return {}
    ends = np.cumsum([len(images) for images in sets.values()])[:-1]
    whole = describe(np.concatenate([np.asarray(images, np.float32) for images in sets.values()]))
    parts = {name: np.split(values, ends) for name, values in whole.items()}
    return {name: {key: part[place] for key, part in parts.items()} for place, name in enumerate(sets)}
