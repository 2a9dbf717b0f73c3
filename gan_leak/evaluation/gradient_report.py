"""The report of attacks on one gradient: a row of measures for every setting, and what was drawn of which images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from gan_leak.evaluation.drawing import Row, framed_tiles, grid_png
from gan_leak.evaluation.html import cell, definitions_list, figure, half_width, page, section, settings_table, table

_MOST_SHOWN = 16
_MEASURES = {
    "ssim": "SSIM with a uniform window of 7 pixels, of images in their full range.",
    "success": "The share of images with an SSIM of at least 0.6.",
    "psnr": "10 log10(peak^2 / mean squared error) in dB; 100 where nothing differs.",
    "label_accuracy": "The share of images whose label is told.",
    "rmse": "The root of the mean squared difference in grey levels, which the group of GRNN reports as MSE.",
    "group_psnr": "10 log10(255^2 / that root), which the same group reports as PSNR.",
}


def render_gradient_inversion(
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, np.ndarray],
    originals: np.ndarray,
    environment: Mapping[str, Any],
) -> str:
    """Writes attacks on one gradient as one self-contained HTML page.

    rows: by setting, with ``name`` and intervals. pictures, originals: [M, H, W, C] in [0, 1], in the same order.
    environment: as in config.json, with the settings under ``config``.
    """
    body = "".join(
        f'<tr><th scope="row">{escape(row["name"])}</th>{"".join(cell(_shown(row[name])) for name in _MEASURES)}</tr>\n'
        for row in rows
    )
    drawn = gradient_figure(pictures, originals)
    caption = "The first private images, and what the gradient gave away of them."
    others = {name: value for name, value in environment.items() if name != "config"}
    sections = (
        section("Means over participants, with 95% intervals", table(["", *_MEASURES], body, "numbers")),
        section("Pictures", figure(caption, drawn, half_width(caption, drawn))),
        section("What the numbers mean", definitions_list(_MEASURES)),
        section("Settings", settings_table(environment["config"])),
        section("Environment", settings_table(others)),
    )
    return page("Attacks on one gradient", sections)


def gradient_figure(pictures: Mapping[str, np.ndarray], originals: np.ndarray) -> bytes:
    """A row of tiles for the originals and for each setting, images in [0, 1], as PNG."""
    named = {"private": originals, **pictures}
    rows = [
        Row(name, "#1F4E9E" if index else "#000000", framed_tiles(2.0 * images[:_MOST_SHOWN] - 1.0), 6 if index else 0)
        for index, (name, images) in enumerate(named.items())
    ]
    return grid_png(rows, "Attacks on one gradient")


def _shown(measured: Mapping[str, Any]) -> str:
    mean, low, high = (measured[name] for name in ("mean", "low", "high"))
    return f"{mean:.3g}" if low is None or np.isnan(low) else f"{mean:.3g} ({low:.3g}-{high:.3g})"
