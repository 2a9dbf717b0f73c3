"""What the views of pictures compare: each set of images is described once, for all views."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from gan_leak.evaluation.fidelity import flatten
from gan_leak.evaluation.judge import Judge, judge_outputs
from gan_leak.evaluation.views import edges, principal_components

# By name, an array with a leading axis of images.
Description = dict[str, np.ndarray]
Describe = Callable[[np.ndarray], Description]
Name = TypeVar("Name", bound=Hashable)


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

    def unreduced(images: np.ndarray) -> tuple[Description, Description]:
        logits, features = (np.asarray(output) for output in judge_outputs(judge, np.asarray(images, np.float32)))
        spaces = {"pixels": flatten(images), "edges": edges(images), "judge": features}
        return spaces, {"features": features, "logits": logits}

    spaces, outputs = unreduced(gallery)
    reduce = {name: principal_components(features) for name, features in spaces.items()}

    def describe(images: np.ndarray) -> Description:
        spaces, outputs = unreduced(images)
        return {name: reduce[name](features) for name, features in spaces.items()} | outputs

    return DescribedGallery(describe, {name: reduce[name](features) for name, features in spaces.items()} | outputs)


def describe_sets(describe: Describe, sets: Mapping[Name, np.ndarray]) -> dict[Name, Description]:
    """Describe sets of images [-, H, W, C] by name, all at once: many small batches would take longer."""
    if not sets:
        return {}
    ends = np.cumsum([len(images) for images in sets.values()])[:-1]
    whole = describe(np.concatenate([np.asarray(images, np.float32) for images in sets.values()]))
    parts = {name: np.split(values, ends) for name, values in whole.items()}
    return {name: {key: part[place] for key, part in parts.items()} for place, name in enumerate(sets)}
