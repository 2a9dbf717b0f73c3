"""Pictures of several runs, as PNG bytes: tables of images, leakage by accuracy, intervals over seeds.

Matplotlib is imported inside the functions, as in ``drawing``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gan_leak.evaluation.criteria import RANGES, STATISTICS
from gan_leak.evaluation.measurability import NOT_MEASURABLE
from gan_leak.reports.drawing import (
    BLACK,
    BLUE,
    CHART_DPI,
    SERIES_COLORS,
    SERIES_STYLES,
    TILE_GAP,
    VERMILION,
    Row,
    checked_images,
    draw_axes,
    even_tiles,
    framed_tiles,
    grid_png,
    is_number,
    or_gap,
    png,
    wrapped,
    write_nothing_measured,
)
from gan_leak.reports.reproduction_results import ROLES

# "We noticed that G starts producing good results as soon as the accuracy of the model reaches 80%" (Hitaj et al. 2017,
# section 9.3).
GOOD_FROM_ACCURACY = 0.8

_SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_ROLE_COLORS = dict(zip(ROLES, (VERMILION, BLUE, "#6B6B6B"), strict=True))
_ROLE_MARKERS = dict(zip(ROLES, ("o", "D", "s"), strict=True))
# Widths of text, at the 256 pixels an inch that ``wrapped`` counts in.
_LABEL_PIXELS = 620
_LEGEND_PIXELS = 1450
_TITLE_PIXELS = 1600
_SHORT_NAME = 36


def picture_table(
    rows: Mapping[str, Sequence[np.ndarray | None]], column_labels: Sequence[str], *, title: str
) -> bytes:
    """Draw a table of single images with the labels of its rows on the left and those of its columns on top, as PNG.

    rows: for each label an image or None for every column; an image is float [H, W, C] in [-1, 1], C 1 or 3, and may
    differ in size and color from its neighbors: each is enlarged by a whole factor to about the same size and
    centered. None leaves a pale, empty place. Values beyond the range are clipped, broken pixels become magenta.
    The layouts of Hitaj et al. (2017) are such tables: figure 5 has a row for each digit and a column for each attack,
    8 and 11 a column for each setting, 9 and 10 are film strips with a column for each round.

    Raises ValueError if there is no row, no column or no image at all, if a row has not one entry for every column, or
    if an image is not of this form.
    """
    if not rows or not column_labels:
        raise ValueError(f"rows of {list(rows)}, column_labels={list(column_labels)}: expected at least one of each")
    tiles = {label: [_tile(label, at, image) for at, image in enumerate(row)] for label, row in rows.items()}
    for label, row in tiles.items():
        if len(row) != len(column_labels):
            raise ValueError(
                f"rows[{label!r}] has {len(row)} images: expected {len(column_labels)}, one for each column"
            )
    shapes = [tile.shape for row in tiles.values() for tile in row if tile is not None]
    if not shapes:
        raise ValueError("rows hold no image: expected at least one that is not None")
    height, width = (max(sides) for sides in list(zip(*shapes, strict=True))[:2])
    drawn = [
        Row(label, BLACK, even_tiles(row, height, width), TILE_GAP if place else 0, bar=False)
        for place, (label, row) in enumerate(tiles.items())
    ]
    return grid_png(drawn, title, column_labels)


def leakage_against_accuracy_figure(
    series: Mapping[str, Sequence[Sequence[tuple[float | None, float | None]]]], *, title: str = ""
) -> bytes:
    """Draw the leakage score against the accuracy of the model at each evaluation, a line for each seed, as PNG.

    series: for each setting, for each seed the pairs (model accuracy, leakage score) in the order of the rounds. A pair
    with None or NaN is left out. A vertical line marks the 80% from which the paper reports good pictures.

    Raises ValueError if there is no setting.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import PercentFormatter

    if not series:
        raise ValueError("series={}: expected at least one setting")
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    names = [wrapped(name, _LEGEND_PIXELS, 8.5) for name in series]
    columns = 2 if max(map(len, names)) <= _SHORT_NAME else 1
    height = 4.2 + 0.2 * (sum(name.count("\n") + 1 for name in names) / columns)
    figure = Figure(figsize=(6.6, height), dpi=CHART_DPI, facecolor="white", layout=layout)
    axes = figure.subplots()
    draw_axes(axes)
    axes.set_xlabel("model accuracy", fontsize=9.5)
    axes.set_ylabel("leakage score", fontsize=9.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.axvline(GOOD_FROM_ACCURACY, color="#666666", linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
    note: dict[str, Any] = {
        "ha": "right",
        "va": "top",
        "fontsize": 8.5,
        "color": "#444444",
        "backgroundcolor": "w",
        "zorder": 1.6,
    }
    axes.text(GOOD_FROM_ACCURACY - 0.012, 1.0, "the paper: good from 80%", **note)
    drawn = [
        _draw_setting(axes, *setting, place) for place, setting in enumerate(zip(names, series.values(), strict=True))
    ]
    if any(drawn):
        style = {"fontsize": 8.5, "frameon": False, "columnspacing": 1.6, "handlelength": 2.4}
        for text in figure.legend(loc="outside lower left", ncols=columns, **style).get_texts():
            text.set_parse_math(False)
    else:
        write_nothing_measured(axes)
    _write_title(figure, title)
    return png(figure, CHART_DPI)


def interval_figure(rows: Sequence[Mapping[str, Any]], *, metric: str = "leakage_score", title: str = "") -> bytes:
    """Draw a metric of each row as its mean, its 95% interval and a small dot for every seed, as PNG.

    rows: as in the results of a reproduction, each with "name", "role" (attack, control or reference) and "metrics",
    where the metric has "mean", "low", "high" and "values". What is missing or not a number is not drawn. A row
    without a number shows "n/a", or "not measurable" if its leakage cannot be measured. An interval that reaches beyond
    the range of the metric ends in an arrow.

    Raises ValueError if there is no row, or a role is none of these.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not rows:
        raise ValueError("rows=[]: expected at least one row")
    for row in rows:
        if row["role"] not in ROLES:
            raise ValueError(f"role={row['role']!r} of {row['name']!r}: expected one of {', '.join(ROLES)}")
    labels = [wrapped(row["name"], _LABEL_PIXELS, 8.0) for row in rows]
    lines = sum(max(2.2, 1.0 + label.count("\n") + 0.8) for label in labels)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(6.6, 1.1 + 0.16 * lines), dpi=CHART_DPI, facecolor="white", layout=layout)
    axes = figure.subplots()
    draw_axes(axes)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"{metric.replace('_', ' ')}: mean, 95% interval over seeds, single seeds", fontsize=9.5)
    low, high = RANGES.get(metric, (-math.inf, math.inf))
    for place, row in enumerate(rows):
        missing = NOT_MEASURABLE if metric == "leakage_score" and row.get("not_measurable") else "n/a"
        _draw_interval(axes, place, row["role"], row["metrics"].get(metric) or {}, (low, high), missing)
    if math.isfinite(low) and math.isfinite(high):
        axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set(color=_ROLE_COLORS[row["role"]], parse_math=False)
    axes.tick_params(axis="y", length=0)
    _draw_roles(figure, [role for role in ROLES if any(row["role"] == role for row in rows)])
    _write_title(figure, title)
    return png(figure, CHART_DPI)


def _tile(label: str, place: int, image: np.ndarray | None) -> np.ndarray | None:
    if image is None:
        return None
    single = np.asarray(image)
    if single.ndim != 3:
        raise ValueError(f"rows[{label!r}][{place}].shape={single.shape}: expected [H, W, C]")
    return framed_tiles(checked_images(f"rows[{label!r}][{place}]", single[None]))[0]


def _draw_setting(axes: Any, name: str, seeds: Sequence[Sequence[tuple[Any, Any]]], place: int) -> bool:
    """Draw the lines of one setting and return whether there was anything to draw."""
    lines = [[pair for pair in points if is_number(pair[0]) and is_number(pair[1])] for points in seeds]
    style = {
        "color": SERIES_COLORS[place % len(SERIES_COLORS)],
        "marker": _SERIES_MARKERS[place % len(_SERIES_MARKERS)],
        # Beyond the colors, line styles tell the settings apart.
        "linestyle": SERIES_STYLES[place // len(SERIES_COLORS) % len(SERIES_STYLES)],
        "linewidth": 0.9,
        "markersize": 3.8,
        "markeredgewidth": 0.0,
        "alpha": 0.85,
    }
    # A name that starts with an underscore would be left out of the legend.
    labels = itertools.chain([f"\u200b{name}"], itertools.repeat("_unnamed"))
    for points, label in zip(filter(None, lines), labels, strict=False):
        axes.plot(*np.asarray(points, float).T, label=label, **style)
    return any(lines)


def _draw_interval(
    axes: Any, place: int, role: str, measured: Mapping[str, Any], limits: tuple[float, float], missing: str
) -> None:
    color = _ROLE_COLORS[role]
    seeds = [value for value in measured.get("values", ()) if is_number(value)]
    mean, low, high = (or_gap(measured.get(statistic)) for statistic in STATISTICS)
    if not seeds and math.isnan(mean):
        style = {"ha": "left", "va": "center", "fontsize": 8.5, "color": "#666666"}
        axes.text(0.01, place, missing, transform=axes.get_yaxis_transform(), **style)
        return
    if not math.isnan(low) and not math.isnan(high):
        inside = np.clip([low, high], *limits)
        axes.plot(inside, [place, place], color=color, linewidth=2.0, solid_capstyle="butt", zorder=2)
        for end, beyond, arrow in zip(inside, (low < limits[0], high > limits[1]), ("<", ">"), strict=True):
            axes.plot(end, place, color=color, marker=arrow if beyond else "|", markersize=7, zorder=2, clip_on=False)
    # Below the interval, where neither it nor the mean hides them.
    below = np.full(len(seeds), place + 0.27)
    axes.plot(seeds, below, "o", color=color, markersize=3.2, markeredgewidth=0, alpha=0.65, clip_on=False)
    if not math.isnan(mean):
        marker = {"marker": _ROLE_MARKERS[role], "markersize": 7.5, "markeredgecolor": "white", "markeredgewidth": 0.8}
        axes.plot(mean, place, color=color, zorder=3, clip_on=False, **marker)


def _draw_roles(figure: Any, roles: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_ROLE_COLORS[role], marker=_ROLE_MARKERS[role], linewidth=2.0, markersize=6, label=role)
        for role in roles
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(roles), fontsize=8.5, frameon=False)


def _write_title(figure: Any, title: str) -> None:
    lines = wrapped(title, _TITLE_PIXELS, 11.0, weight="bold")
    if lines:
        figure.suptitle(lines, fontsize=11, fontweight="bold", x=0.02, ha="left", parse_math=False)
