"""The report of split inference: a row of measures for every attack beside the published ones, and what each drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from gan_leak.evaluation.drawing import Row, framed_tiles, grid_png
from gan_leak.evaluation.html import cell, figure, half_width, page, section, settings_table, table

_MOST_SHOWN = 10
_HEADS = ("", "PSNR", "SSIM", "published", "PSNR of others", "SSIM of others", "SSIM by range", "accuracy")


def render_split_inference(
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, np.ndarray],
    originals: np.ndarray,
    environment: Mapping[str, Any],
) -> str:
    """Writes the attacks on split inference as one self-contained HTML page.

    rows: by attack, with ``name``, measures, and what was published. pictures, originals: [M, H, W, C] in [-1, 1].
    environment: as in config.json, with the settings under ``config``.
    """
    body = "".join(f'<tr><th scope="row">{escape(row["name"])}</th>{_cells(row)}</tr>\n' for row in rows)
    caption = "The first test image of every class, and what each attack drew of it."
    drawn = reconstructions_figure(pictures, originals)
    sections = (
        section("How near the pictures come", table(list(_HEADS), body, "numbers")),
        section("Pictures", figure(caption, drawn, half_width(caption, drawn))),
        section("Settings", settings_table(environment["config"])),
        section(
            "Environment", settings_table({name: value for name, value in environment.items() if name != "config"})
        ),
    )
    return page("Split inference", sections)


def reconstructions_figure(pictures: Mapping[str, np.ndarray], originals: np.ndarray) -> bytes:
    """A row of tiles for the originals and for each attack, as PNG."""
    named = {"original": originals, **pictures}
    rows = [
        Row(name, "#000000" if index == 0 else "#1F4E9E", framed_tiles(images[:_MOST_SHOWN]), 6 if index else 0)
        for index, (name, images) in enumerate(named.items())
    ]
    return grid_png(rows, "Split inference")


def _cells(row: Mapping[str, Any]) -> str:
    published = "" if row["published"] is None else "{:.2f} / {:.4f}".format(*row["published"])
    values = (
        f"{row['psnr']:.2f}",
        f"{row['ssim']:.4f}",
        published,
        _interval(row["psnr_of_all"], 2),
        _interval(row["ssim_of_all"], 4),
        f"{row['ssim_by_range']:.4f}",
        f"{row['accuracy']:.3f}",
    )
    return "".join(cell(value) for value in values)


def _interval(measured: Mapping[str, Any], digits: int) -> str:
    mean, low, high = (measured[name] for name in ("mean", "low", "high"))
    return f"{mean:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
