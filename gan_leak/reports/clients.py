"""Pictures of user-level leakage: one client in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gan_leak.reports.drawing import BLACK, Row, framed_tiles, grid_png

_MOST_CLASSES = 6


class LabeledImages(NamedTuple):
    """Images [M, H, W, C] in [-1, 1] of one client, and their classes int [M]."""

    images: np.ndarray
    labels: np.ndarray


def clients_figure(clients: Sequence[int], kinds: Mapping[str, Sequence[LabeledImages]]) -> bytes:
    """For each client an image of each class (six at most) of every kind, such as its private images; PNG.

    kinds: by name, an entry for each client. A class of which there is no image stays gray.
    """
    classes = np.unique(np.concatenate([own.labels for kind in kinds.values() for own in kind]))[:_MOST_CLASSES]
    rows = []
    for place, client in enumerate(clients):
        shown = np.concatenate([one_of_each(kind[place], classes) for kind in kinds.values()])
        rows.append(Row(f"client {client}", BLACK, framed_tiles(shown), 2, bar=False))
    return grid_png(rows, f"From the left, {len(classes)} classes each: {', '.join(kinds)}")


def one_of_each(own: LabeledImages, classes: np.ndarray) -> np.ndarray:
    """The first image of each class [C, H, W, C], gray where there is none."""
    found = np.zeros((len(classes), *own.images.shape[1:]), np.float32)
    for place, label in enumerate(classes):
        members = own.images[own.labels == label]
        if len(members):
            found[place] = members[0]
    return found
