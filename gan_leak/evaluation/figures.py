"""The pictures of a run, as PNG bytes: what was reconstructed, how it came about, and the curves over the rounds.

Matplotlib is imported inside the functions and used without pyplot: no global state, no display. The colours are
those of Okabe and Ito (2008), told apart under every common colour blindness.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_BLACK, _BLUE, _VERMILION, _GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
_PARTICIPANT_COLOURS = (_BLUE, "#E69F00", _GREEN, "#CC79A7", "#56B4E9", _VERMILION)
_PARTICIPANT_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MOST_PAIRS = 30
_MOST_ROUNDS = 12

# A power of two, so that pixels to inches and back is exact and every picture pixel stays a whole block of pixels.
_GRID_DPI = 256
_CURVES_DPI = 200
_TILE_PIXELS = 128
_TILE_GAP = 8
_GROUP_GAP = 28
_MARGIN = 28
_BAR_PIXELS = 8
_LEAST_GRID_WIDTH = 640
_LABEL_POINTS = 8.0
_TITLE_POINTS = 9.5
_FRAME = 176
# No image shows it by chance, so that a broken pixel never passes for a dark one.
_BROKEN_PIXEL = (255, 0, 255)


class _Row(NamedTuple):
    """One row of a grid; tiles are uint8 [m, h, w, 3], gap is the space above in pixels, bar a stroke in the colour."""

    label: str
    colour: str
    tiles: np.ndarray
    gap: int
    bar: bool = True


class _Curve(NamedTuple):
    label: str
    colour: str
    style: Any
    marker: str
    width: float
    points: list[tuple[int, float]]


def reconstructions_figure(
    reconstructions: np.ndarray, nearest_private: np.ndarray, *, columns: int = 10, title: str = ""
) -> bytes:
    """Draws each reconstruction under the private image nearest to it, as Figure 6 of Hitaj et al. (2017), as PNG.

    reconstructions, nearest_private: float [M, H, W, C] in [-1, 1], C 1 or 3; the first 30 pairs are drawn. Values
    beyond the range are clipped, those that are not finite are drawn in magenta.

    Raises ValueError if the shapes are not of this form or differ, if there is no pair, or if ``columns`` is below 1.
    """
    found = _checked_images("reconstructions", reconstructions)
    private = _checked_images("nearest_private", nearest_private)
    if found.shape != private.shape:
        raise ValueError(f"nearest_private.shape={private.shape}: expected that of reconstructions, {found.shape}")
    _check_positive("columns", columns)
    rows = []
    for start in range(0, min(len(found), _MOST_PAIRS), columns):
        chosen = slice(start, min(start + columns, _MOST_PAIRS))
        rows.append(_Row("private", _BLUE, _tiles(private[chosen]), _GROUP_GAP if start else 0))
        rows.append(_Row("reconstruction", _VERMILION, _tiles(found[chosen]), _TILE_GAP))
    return _grid_png(rows, title)


def evolution_figure(images_by_round: Mapping[int, np.ndarray], *, most_columns: int = 10, title: str = "") -> bytes:
    """Draws what fixed latents became over the rounds, one row a round and one column a latent, as PNG.

    images_by_round: float [m, H, W, C] in [-1, 1] for each round, C 1 or 3, all of one shape. The first
    ``most_columns`` latents and at most 12 evenly chosen rounds are drawn, among them the first and the last.

    Raises ValueError if there is no round, if the shapes are not of this form or differ between rounds, or if
    ``most_columns`` is below 1.
    """
    if not images_by_round:
        raise ValueError("images_by_round={}: expected the images of at least one round")
    _check_positive("most_columns", most_columns)
    images = {
        number: _checked_images(f"images_by_round[{number}]", images_by_round[number])
        for number in sorted(images_by_round)
    }
    rounds = list(images)
    for number in rounds:
        if images[number].shape != images[rounds[0]].shape:
            raise ValueError(
                f"images_by_round[{number}].shape={images[number].shape}: "
                f"expected that of round {rounds[0]}, {images[rounds[0]].shape}"
            )
    shown = [rounds[index] for index in _evenly_chosen(len(rounds), _MOST_ROUNDS)]
    rows = [
        _Row(f"round {number}", _BLACK, _tiles(images[number][:most_columns]), _TILE_GAP if place else 0, bar=False)
        for place, number in enumerate(shown)
    ]
    return _grid_png(rows, title)


def curves_figure(records: Sequence[Mapping[str, Any]], *, title: str = "Training and leakage") -> bytes:
    """Draws accuracy and leakage over the rounds, and below them every participant's training loss, as PNG.

    records: one a round, as in metrics.jsonl. A value that an evaluation could not tell (None, NaN) is a gap in its
    curve; rounds without an evaluation are none.

    Raises ValueError if there is no record.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not records:
        raise ValueError("records=[]: expected the record of at least one round")
    ordered = sorted(records, key=lambda record: record["round"])
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(6.6, 5.6), dpi=_CURVES_DPI, facecolor="white", layout=layout)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.35, 1.0))
    if title:
        upper.set_title(title, fontsize=11, fontweight="bold", loc="left", pad=26, parse_math=False)
    _draw_panel(upper, _score_curves(ordered), "share or score")
    upper.set_ylim(-0.03, 1.03)
    _draw_losses(lower, ordered)
    lower.set_xlabel("round", fontsize=9.5)
    _set_round_axis(lower, ordered)
    return _png(figure, _CURVES_DPI)


def _checked_images(name: str, value: np.ndarray) -> np.ndarray:
    images = np.asarray(value)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"{name}.shape={images.shape}: expected [M, H, W, C], none of them 0 and C 1 or 3")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name}.dtype={images.dtype}: expected floating point in [-1, 1]")
    return images


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")


def _evenly_chosen(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def _tiles(images: np.ndarray) -> np.ndarray:
    """Turns float [m, H, W, C] into framed uint8 [m, h, w, 3], enlarged by a whole factor."""
    scale = max(1, _TILE_PIXELS // max(images.shape[1:3]))
    broken = ~np.isfinite(images).all(axis=3)
    levels = np.rint((np.clip(np.where(np.isfinite(images), images, 0.0), -1.0, 1.0) + 1.0) * 127.5)
    coloured = np.broadcast_to(levels, (*images.shape[:3], 3)).astype(np.uint8)
    coloured[broken] = _BROKEN_PIXEL
    enlarged = coloured.repeat(scale, axis=1).repeat(scale, axis=2)
    return np.pad(enlarged, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=_FRAME)


def _grid_png(rows: Sequence[_Row], title: str) -> bytes:
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    _, tile_height, tile_width, _ = rows[0].tiles.shape
    columns = max(len(row.tiles) for row in rows)
    labels_end = _MARGIN + max(_text_pixels(row.label, _LABEL_POINTS) for row in rows)
    left = labels_end + 2 * _TILE_GAP + (_BAR_PIXELS + _TILE_GAP if any(row.bar for row in rows) else 0)
    width = max(left + columns * (tile_width + _TILE_GAP) - _TILE_GAP + _MARGIN, _LEAST_GRID_WIDTH)
    heading = _wrapped(title, width - 2 * _MARGIN, _TITLE_POINTS)
    line_height = round(1.3 * _TITLE_POINTS * _GRID_DPI / 72)
    top = _MARGIN + (heading.count("\n") + 1) * line_height + _TILE_GAP if heading else _MARGIN
    height = top + sum(row.gap + tile_height for row in rows) + _MARGIN

    figure = Figure(figsize=(width / _GRID_DPI, height / _GRID_DPI), dpi=_GRID_DPI, facecolor="white")
    canvas = np.full((height, width, 3), 255, np.uint8)
    if heading:
        style: dict[str, Any] = {"fontsize": _TITLE_POINTS, "fontweight": "bold", "linespacing": 1.3}
        figure.text(_MARGIN / width, 1 - _MARGIN / height, heading, va="top", parse_math=False, **style)
    y = top
    for row in rows:
        y += row.gap
        if row.bar:
            bar = slice(left - _TILE_GAP - _BAR_PIXELS, left - _TILE_GAP)
            canvas[y : y + tile_height, bar] = np.rint(255 * np.asarray(to_rgb(row.colour)))
        for column, tile in enumerate(row.tiles):
            x = left + column * (tile_width + _TILE_GAP)
            canvas[y : y + tile_height, x : x + tile_width] = tile
        place = (labels_end / width, 1 - (y + tile_height / 2) / height)
        figure.text(*place, row.label, ha="right", va="center", fontsize=_LABEL_POINTS, color=row.colour)
        y += tile_height
    figure.figimage(canvas, 0, 0, origin="upper")
    return _png(figure, _GRID_DPI)


def _text_pixels(text: str, points: float) -> int:
    from matplotlib.textpath import TextPath

    return int(np.ceil(TextPath((0, 0), text, size=points).get_extents().x1 * _GRID_DPI / 72))


def _wrapped(text: str, pixels: int, points: float) -> str:
    per_character = 0.69 * points * _GRID_DPI / 72
    return textwrap.fill(text, max(1, int(pixels / per_character)))


def _score_curves(records: Sequence[Mapping[str, Any]]) -> list[_Curve]:
    evaluated = [record for record in records if record.get("leakage")]
    with_accuracy = [record for record in records if _is_number(record.get("model_accuracy")) or record.get("leakage")]

    def leakage(name: str) -> list[tuple[int, float]]:
        return [(record["round"], _or_gap(record["leakage"].get(name))) for record in evaluated]

    accuracy = [(record["round"], _or_gap(record.get("model_accuracy"))) for record in with_accuracy]
    return [
        _Curve("leakage score", _VERMILION, "-", "o", 2.2, leakage("leakage_score")),
        _Curve("judge accuracy", _BLUE, "--", "s", 1.4, leakage("judge_accuracy")),
        _Curve("nearest-neighbour share", _GREEN, "-.", "^", 1.4, leakage("nearest_neighbour_share")),
        _Curve("model accuracy", _BLACK, ":", "D", 1.4, accuracy),
    ]


def _draw_losses(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rounds = [record["round"] for record in records]
    count = max(len(record.get("losses") or ()) for record in records)
    losses = np.full((count, len(records)), np.nan)
    for column, record in enumerate(records):
        for participant, loss in enumerate(record.get("losses") or ()):
            losses[participant, column] = _or_gap(loss)
    losses[~(losses > 0)] = np.nan
    if np.isfinite(losses).any():
        axes.set_yscale("log")
        # Twos and fives as well, or a range within one decade shows a single label.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _draw_panel(axes, list(_loss_curves(rounds, losses)), "training loss (log)")


def _loss_curves(rounds: Sequence[int], losses: np.ndarray) -> Iterator[_Curve]:
    """Yields a curve for each participant; a crowd too large to name gets thin grey ones under its median."""
    points = [list(zip(rounds, row, strict=True)) for row in losses.tolist()]
    if len(losses) <= len(_PARTICIPANT_COLOURS):
        for index, (colour, style) in enumerate(zip(_PARTICIPANT_COLOURS, _PARTICIPANT_STYLES, strict=True)):
            if index < len(points):
                yield _Curve(f"participant {index}", colour, style, ".", 1.4, points[index])
        return
    yield _Curve("median", _BLUE, "-", ".", 1.8, list(zip(rounds, map(_median, losses.T), strict=True)))
    for index, curve in enumerate(points):
        label = "_unnamed" if index else f"each of {len(losses)} participants"
        yield _Curve(label, "#B5B5B5", "-", ".", 0.6, curve)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _draw_panel(axes: Any, curves: Sequence[_Curve], label: str) -> None:
    axes.set_ylabel(label, fontsize=9.5)
    axes.grid(True, color="#E2E2E2", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#888888")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawn = [curve for curve in curves if any(np.isfinite(value) for _, value in curve.points)]
    for order, curve in enumerate(drawn):
        # Small rather than none: a point between two gaps has no line to show it.
        size = float(np.clip(120 / len(curve.points), 1.2, 4.0))
        style = {"linestyle": curve.style, "marker": curve.marker, "markersize": size, "linewidth": curve.width}
        axes.plot(
            *zip(*curve.points, strict=True), color=curve.colour, label=curve.label, zorder=3 - 0.01 * order, **style
        )
    if drawn:
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.3, "handlelength": 2.2}
        axes.legend(ncols=4, fontsize=8, frameon=False, columnspacing=1.2, handletextpad=0.6, **place)
    else:
        axes.text(
            0.5,
            0.5,
            "nothing measured",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color="#666666",
            backgroundcolor="w",
        )


def _set_round_axis(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = records[0]["round"], records[-1]["round"]
    space = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - space, last + space)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _is_number(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def _or_gap(value: Any) -> float:
    return float(value) if _is_number(value) else float("nan")


def _png(figure: Any, dpi: int) -> bytes:
    buffer = io.BytesIO()
    # Without the version of Matplotlib the same picture has the same bytes after an upgrade that draws alike.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
