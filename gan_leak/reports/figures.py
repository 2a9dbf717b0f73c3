"""The pictures of a run, as PNG bytes: reconstructions, their evolution, and curves over the rounds.

Matplotlib is imported inside the functions and used without pyplot: no global state, no display. The colors are
those of Okabe and Ito (2008), distinguishable with every common color blindness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gan_leak.reports.drawing import (
    BLACK,
    BLUE,
    CHART_DPI,
    GREEN,
    GROUP_GAP,
    SERIES_COLORS,
    SERIES_STYLES,
    TILE_GAP,
    VERMILION,
    Row,
    checked_images,
    draw_axes,
    framed_tiles,
    grid_png,
    is_number,
    or_gap,
    png,
    write_nothing_measured,
)

_MOST_PAIRS = 30
_MOST_ROUNDS = 12


class _Curve(NamedTuple):
    label: str
    color: str
    style: Any
    marker: str
    width: float
    points: list[tuple[int, float]]


def reconstructions_figure(
    reconstructions: np.ndarray, nearest_private: np.ndarray, *, columns: int = 10, title: str = ""
) -> bytes:
    """Draw each reconstruction under the private image nearest to it, as Figure 6 of Hitaj et al. (2017), as PNG.

    reconstructions, nearest_private: float [M, H, W, C] in [-1, 1], C 1 or 3; the first 30 pairs are drawn. Values
    beyond the range are clipped, those that are not finite are drawn in magenta.

    Raises ValueError if the shapes are not of this form or differ, if there is no pair, or if ``columns`` is below 1.
    """
    found = checked_images("reconstructions", reconstructions)
    private = checked_images("nearest_private", nearest_private)
    if found.shape != private.shape:
        raise ValueError(f"nearest_private.shape={private.shape}: expected that of reconstructions, {found.shape}")
    _check_positive("columns", columns)
    rows = []
    for start in range(0, min(len(found), _MOST_PAIRS), columns):
        chosen = slice(start, min(start + columns, _MOST_PAIRS))
        rows.append(Row("private", BLUE, framed_tiles(private[chosen]), GROUP_GAP if start else 0))
        rows.append(Row("reconstruction", VERMILION, framed_tiles(found[chosen]), TILE_GAP))
    return grid_png(rows, title)


def evolution_figure(images_by_round: Mapping[int, np.ndarray], *, most_columns: int = 10, title: str = "") -> bytes:
    """Draw the reconstructions of fixed latents, one row for each round and one column for each latent, as PNG.

    images_by_round: float [m, H, W, C] in [-1, 1] for each round, C 1 or 3, all of one shape. The first
    ``most_columns`` latents and at most 12 evenly chosen rounds are drawn, among them the first and the last.

    Raises ValueError if there is no round, if the shapes are not of this form or differ between rounds, or if
    ``most_columns`` is below 1.
    """
    if not images_by_round:
        raise ValueError("images_by_round={}: expected the images of at least one round")
    _check_positive("most_columns", most_columns)
    images = {
        number: checked_images(f"images_by_round[{number}]", images_by_round[number])
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
        Row(f"round {number}", BLACK, framed_tiles(images[number][:most_columns]), TILE_GAP if place else 0, bar=False)
        for place, number in enumerate(shown)
    ]
    return grid_png(rows, title)


def curves_figure(records: Sequence[Mapping[str, Any]], *, title: str = "Training and leakage") -> bytes:
    """Draw accuracy and leakage over the rounds, and below them every participant's training loss, as PNG.

    records: one a round, as in metrics.jsonl. A missing value of an evaluation (None, NaN) is a gap in its curve; a
    round without an evaluation gives no gap.

    Raises ValueError if there is no record.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not records:
        raise ValueError("records=[]: expected the record of at least one round")
    ordered = sorted(records, key=lambda record: record["round"])
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(6.6, 5.6), dpi=CHART_DPI, facecolor="white", layout=layout)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.35, 1.0))
    if title:
        upper.set_title(title, fontsize=11, fontweight="bold", loc="left", pad=26, parse_math=False)
    _draw_panel(upper, _score_curves(ordered), "share or score")
    upper.set_ylim(-0.03, 1.03)
    _draw_losses(lower, ordered)
    lower.set_xlabel("round", fontsize=9.5)
    _set_round_axis(lower, ordered)
    return png(figure, CHART_DPI)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")


def _evenly_chosen(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def _score_curves(records: Sequence[Mapping[str, Any]]) -> list[_Curve]:
    evaluated = [record for record in records if record.get("leakage")]
    with_accuracy = [record for record in records if is_number(record.get("model_accuracy")) or record.get("leakage")]

    def leakage(name: str) -> list[tuple[int, float]]:
        return [(record["round"], or_gap(record["leakage"].get(name))) for record in evaluated]

    accuracy = [(record["round"], or_gap(record.get("model_accuracy"))) for record in with_accuracy]
    return [
        _Curve("leakage score", VERMILION, "-", "o", 2.2, leakage("leakage_score")),
        _Curve("judge accuracy", BLUE, "--", "s", 1.4, leakage("judge_accuracy")),
        _Curve("nearest-neighbor share", GREEN, "-.", "^", 1.4, leakage("nearest_neighbour_share")),
        _Curve("model accuracy", BLACK, ":", "D", 1.4, accuracy),
    ]


def _draw_losses(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rounds = [record["round"] for record in records]
    count = max(len(record.get("losses") or ()) for record in records)
    losses = np.full((count, len(records)), np.nan)
    for column, record in enumerate(records):
        for participant, loss in enumerate(record.get("losses") or ()):
            losses[participant, column] = or_gap(loss)
    losses[~(losses > 0)] = np.nan
    if np.isfinite(losses).any():
        axes.set_yscale("log")
        # Twos and fives as well, or a range within one decade shows a single label.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    drawn_anew = any("participants" in record for record in records)
    curves = [_median_curve(rounds, losses)] if drawn_anew else list(_loss_curves(rounds, losses))
    _draw_panel(axes, curves, "training loss (log)")


def _median_curve(rounds: Sequence[int], losses: np.ndarray) -> _Curve:
    """The median over the participants of each round; with cohorts, participants have no curves of their own."""
    return _Curve("median", BLUE, "-", ".", 1.8, list(zip(rounds, map(_median, losses.T), strict=True)))


def _loss_curves(rounds: Sequence[int], losses: np.ndarray) -> Iterator[_Curve]:
    """Yield a curve for each participant; more participants than colors get thin gray curves under their median."""
    points = [list(zip(rounds, row, strict=True)) for row in losses.tolist()]
    if len(losses) <= len(SERIES_COLORS):
        for index, (color, style) in enumerate(zip(SERIES_COLORS, SERIES_STYLES, strict=True)):
            if index < len(points):
                yield _Curve(f"participant {index}", color, style, ".", 1.4, points[index])
        return
    yield _median_curve(rounds, losses)
    for index, curve in enumerate(points):
        label = "_unnamed" if index else f"each of {len(losses)} participants"
        yield _Curve(label, "#B5B5B5", "-", ".", 0.6, curve)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _draw_panel(axes: Any, curves: Sequence[_Curve], label: str) -> None:
    axes.set_ylabel(label, fontsize=9.5)
    draw_axes(axes)
    drawn = [curve for curve in curves if any(np.isfinite(value) for _, value in curve.points)]
    for order, curve in enumerate(drawn):
        # Small rather than none: a point between two gaps has no line to show it.
        size = float(np.clip(120 / len(curve.points), 1.2, 4.0))
        style = {"linestyle": curve.style, "marker": curve.marker, "markersize": size, "linewidth": curve.width}
        axes.plot(
            *zip(*curve.points, strict=True), color=curve.color, label=curve.label, zorder=3 - 0.01 * order, **style
        )
    if drawn:
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.3, "handlelength": 2.2}
        axes.legend(ncols=4, fontsize=8, frameon=False, columnspacing=1.2, handletextpad=0.6, **place)
    else:
        write_nothing_measured(axes)


def _set_round_axis(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = records[0]["round"], records[-1]["round"]
    space = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - space, last + space)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
