"""Pictures of user-level leakage: one client in a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gan_leak.reports.drawing import BLACK, Row, framed_tiles, grid_png

_MOST_OF_A_KIND = 6


def clients_figure(sent: Sequence[np.ndarray], representatives: np.ndarray, generated: np.ndarray) -> bytes:
    """For each client its private images [n, H, W, C], then its representatives [K, R, ...] and generated images.

    Images are in [-1, 1]; the result is PNG.
    """
    kinds: dict[str, Sequence[np.ndarray]] = {
        "private": sent,
        "representatives": list(representatives),
        "mGAN-AI": list(generated),
    }
    widths = [min(_MOST_OF_A_KIND, *(len(images) for images in kind)) for kind in kinds.values()]
    title = "Each client's " + ", ".join(f"{width} {name}" for name, width in zip(kinds, widths, strict=True))
    rows = []
    for client in range(len(sent)):
        parts = [spread(kind[client], width) for kind, width in zip(kinds.values(), widths, strict=True)]
        rows.append(Row(f"client {client}", BLACK, framed_tiles(np.concatenate(parts)), 2, bar=False))
    return grid_png(rows, f"{title} (from the left)")


def spread(images: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the images, evenly spaced, so that all classes of sorted images are shown."""
    return images[(np.arange(count) * len(images)) // count]
