"""Shared parts of all pictures: colors, tiles, grids of labeled rows, panels with axes, and PNG bytes.

Matplotlib is imported inside the functions and used without pyplot: no global state, no display. The colors are
those of Okabe and Ito (2008), distinguishable with every common color blindness.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
SERIES_COLORS = (BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", VERMILION)
SERIES_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))

CHART_DPI = 200
TILE_GAP = 8
GROUP_GAP = 28

# A power of two, so that pixels to inches and back is exact and every picture pixel stays a whole block of pixels.
_GRID_DPI = 256
_TILE_PIXELS = 128
_MARGIN = 28
_BAR_PIXELS = 8
_LEAST_GRID_WIDTH = 640
_MOST_LABEL_PIXELS = 420
_LABEL_POINTS = 8.0
_FEW_LINES = 2
_TITLE_POINTS = 9.5
_LINE_SPACING = 1.3
_FRAME = 176
_PALE = 243
# No image shows it by chance, so that a broken pixel never passes for a dark one.
_BROKEN_PIXEL = (255, 0, 255)


class Row(NamedTuple):
    """One row of a grid; tiles are uint8 [m, h, w, 3], gap is the space above in pixels, bar a stroke in the color."""

    label: str
    color: str
    tiles: np.ndarray
    gap: int
    bar: bool = True


def checked_images(name: str, value: np.ndarray) -> np.ndarray:
    """Return float images [M, H, W, C]; raises ValueError for any other shape or type."""
    images = np.asarray(value)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"{name}.shape={images.shape}: expected [M, H, W, C], none of them 0 and C 1 or 3")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name}.dtype={images.dtype}: expected floating point in [-1, 1]")
    return images


def framed_tiles(images: np.ndarray) -> np.ndarray:
    """Turn float [m, h, w, c] in [-1, 1] into framed uint8 [m, h, w, 3], enlarged by a whole factor.

    Values beyond the range are clipped, those that are not finite become magenta.
    """
    scale = max(1, _TILE_PIXELS // max(images.shape[1:3]))
    broken = ~np.isfinite(images).all(axis=3)
    levels = np.rint((np.clip(np.where(np.isfinite(images), images, 0.0), -1.0, 1.0) + 1.0) * 127.5)
    colored = np.broadcast_to(levels, (*images.shape[:3], 3)).astype(np.uint8)
    colored[broken] = _BROKEN_PIXEL
    enlarged = colored.repeat(scale, axis=1).repeat(scale, axis=2)
    return np.pad(enlarged, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=_FRAME)


def even_tiles(tiles: Sequence[np.ndarray | None], height: int, width: int) -> np.ndarray:
    """Center tiles [h, w, 3] on cells of one size, uint8 [m, height, width, 3]; None gives a pale cell."""
    cells = np.full((len(tiles), height, width, 3), 255, np.uint8)
    for cell, tile in zip(cells, tiles, strict=True):
        if tile is None:
            cell[:] = _PALE
        else:
            top, left = (height - tile.shape[0]) // 2, (width - tile.shape[1]) // 2
            cell[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return cells


def grid_png(rows: Sequence[Row], title: str, column_labels: Sequence[str] = ()) -> bytes:
    """Draw rows of tiles of one size under each other, each beside its label, and labels of columns above, as PNG."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    _, tile_height, tile_width, _ = rows[0].tiles.shape
    line_height = round(_LINE_SPACING * _LABEL_POINTS * _GRID_DPI / 72)
    labels = [wrapped(row.label, _MOST_LABEL_PIXELS, _LABEL_POINTS) for row in rows]
    heights = [max(tile_height, line_height * (label.count("\n") + 1)) for label in labels]
    pitch, heads = _columns(tile_width, column_labels)
    labels_end = _MARGIN + max(_text_pixels(label.splitlines(), _LABEL_POINTS) for label in labels)
    left = labels_end + 2 * TILE_GAP + (_BAR_PIXELS + TILE_GAP if any(row.bar for row in rows) else 0)
    width = max(left + max(len(row.tiles) for row in rows) * pitch - TILE_GAP + _MARGIN, _LEAST_GRID_WIDTH)
    heading = wrapped(title, width - 2 * _MARGIN, _TITLE_POINTS, weight="bold")
    top = _MARGIN + _block_pixels([heading], _TITLE_POINTS) + _block_pixels(heads, _LABEL_POINTS)
    height = top + sum(row.gap for row in rows) + sum(heights) + _MARGIN

    figure = Figure(figsize=(width / _GRID_DPI, height / _GRID_DPI), dpi=_GRID_DPI, facecolor="white")
    canvas = np.full((height, width, 3), 255, np.uint8)

    def write(x: float, y: float, text: str, points: float, **style: Any) -> None:
        place = (x / width, 1 - y / height)
        figure.text(*place, text, fontsize=points, linespacing=_LINE_SPACING, parse_math=False, **style)

    write(_MARGIN, _MARGIN, heading, _TITLE_POINTS, va="top", fontweight="bold")
    for column, head in enumerate(heads):
        # One line at a time: otherwise labels with different letters would have different heights.
        for above, line in enumerate(reversed(head.splitlines())):
            x = left + column * pitch + (pitch - TILE_GAP) // 2
            write(x, top - TILE_GAP - above * line_height, line, _LABEL_POINTS, ha="center")
    y = top
    for row, label, row_height in zip(rows, labels, heights, strict=True):
        y += row.gap
        upper = y + (row_height - tile_height) // 2
        if row.bar:
            bar = slice(left - TILE_GAP - _BAR_PIXELS, left - TILE_GAP)
            canvas[upper : upper + tile_height, bar] = np.rint(255 * np.asarray(to_rgb(row.color)))
        for column, tile in enumerate(row.tiles):
            x = left + column * pitch + (pitch - TILE_GAP - tile_width) // 2
            canvas[upper : upper + tile_height, x : x + tile_width] = tile
        write(labels_end, y + row_height / 2, label, _LABEL_POINTS, ha="right", va="center", color=row.color)
        y += row_height
    figure.figimage(canvas, 0, 0, origin="upper")
    return png(figure, _GRID_DPI)


def wrapped(text: str, pixels: float, points: float, weight: str = "normal") -> str:
    """Break a text into lines of that many pixels, between words or within a word that is too long."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if _text_pixels([longer], points, weight) <= pixels:
            lines[-1:] = [longer]
        elif (word_pixels := _text_pixels([word], points, weight)) <= pixels:
            lines.append(word)
        else:
            lines.extend(textwrap.wrap(word, max(1, int(len(word) * pixels / word_pixels * 0.85))))
    return "\n".join(lines)


def draw_axes(axes: Any) -> None:
    """Draw the pale grid of a panel and hide its upper and right border."""
    axes.grid(True, color="#E2E2E2", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#888888")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def write_nothing_measured(axes: Any) -> None:
    """Write into an empty panel that nothing was measured."""
    style = {"ha": "center", "va": "center", "color": "#666666", "backgroundcolor": "w"}
    axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, **style)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return value is not None and bool(np.isfinite(value))


def or_gap(value: Any) -> float:
    """Return the value if it is a finite number, else NaN, which interrupts a curve."""
    return float(value) if is_number(value) else float("nan")


def png(figure: Any, dpi: int) -> bytes:
    """Return the PNG bytes of a Matplotlib figure."""
    buffer = io.BytesIO()
    # Without the version of Matplotlib the same picture has the same bytes after an upgrade that draws alike.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _columns(tile_width: int, labels: Sequence[str]) -> tuple[int, list[str]]:
    """Return the distance between columns and their wrapped labels, wider than the tiles where the labels need it."""
    words = [word for label in labels for word in label.split()]
    longest = min(_text_pixels(words, _LABEL_POINTS), _MOST_LABEL_PIXELS)
    for widening in (1.0, 1.3, 1.6):
        width = max(round(widening * tile_width), longest)
        heads = [wrapped(label, width, _LABEL_POINTS) for label in labels]
        if max((head.count("\n") + 1 for head in heads), default=1) <= _FEW_LINES:
            break
    # Labels as wide as their column would run into each other with no more than the gap between tiles.
    crowded = width > tile_width or longest > tile_width - TILE_GAP
    return width + TILE_GAP * (3 if crowded else 1), heads


def _block_pixels(texts: Sequence[str], points: float) -> int:
    """Return the height of the highest text and the gap below it; 0 if all texts are empty."""
    lines = max((text.count("\n") + 1 for text in texts if text), default=0)
    return lines * round(_LINE_SPACING * points * _GRID_DPI / 72) + TILE_GAP if lines else 0


def _text_pixels(lines: Iterable[str], points: float, weight: str = "normal") -> int:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points, weight=weight)
    # As plain text: dollar signs do not begin a formula.
    widths = [text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines if line.strip()]
    return int(np.ceil(max(widths, default=0.0) * _GRID_DPI / 72))
