"""Leakage over the settings of a sweep, as PNG bytes.

Matplotlib is imported inside the functions, as in ``drawing``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gan_leak.evaluation.criteria import RANGES
from gan_leak.evaluation.measurability import NOT_MEASURABLE
from gan_leak.reports.drawing import CHART_DPI, or_gap, png

MOST_PANELS = 12
_PANELS_IN_A_ROW = 3
_DARK = 0.6


def surface_figure(rows: Sequence[Mapping[str, Any]], *, metric: str = "leakage_score") -> bytes:
    """Draw the mean of a metric over two swept fields as a map with its numbers, a panel for each value of the others.

    rows: each with "cell", its value of every swept field, the same fields in all rows, and "metrics", where the metric
    has "mean", "low" and "high". The last field is on the horizontal axis, the one before it on the vertical axis. A
    cell without a number shows "n/a", or "not measurable" if its leakage cannot be measured; one without a row is
    empty.

    Raises ValueError if there is no row, if fewer than two fields are swept, or if there would be more than 12 panels.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    fields = list(rows[0]["cell"]) if rows else []
    if len(fields) < 2:
        raise ValueError(f"swept={fields}: expected at least two fields")
    values = {field: list(dict.fromkeys(row["cell"][field] for row in rows)) for field in fields}
    panels = list(itertools.product(*(values[field] for field in fields[:-2])))
    if len(panels) > MOST_PANELS:
        raise ValueError(f"{len(panels)} panels: expected at most {MOST_PANELS}")
    by_cell = {
        tuple(row["cell"].values()): {**(row["metrics"].get(metric) or {}), "missing": _missing(row, metric)}
        for row in rows
    }
    down, across = (values[field] for field in fields[-2:])
    columns = min(len(panels), _PANELS_IN_A_ROW)
    lines = -(-len(panels) // columns)
    size = (columns * (1.6 + 1.0 * len(across)), lines * (1.3 + 0.62 * len(down)))
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=size, dpi=CHART_DPI, facecolor="white", layout=layout)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        measured = [[by_cell.get((*panel, y, x)) for x in across] for y in down]
        _draw_map(axes, measured, metric)
        axes.set_xticks(range(len(across)), [str(value) for value in across], fontsize=8.5)
        axes.set_yticks(range(len(down)), [str(value) for value in down], fontsize=8.5)
        axes.set_xlabel(fields[-1].replace("_", " "), fontsize=9.5)
        axes.set_ylabel(fields[-2].replace("_", " "), fontsize=9.5)
        title = ", ".join(f"{field} {value}" for field, value in zip(fields, panel, strict=False)).replace("_", " ")
        axes.set_title(title, fontsize=9.5, loc="left", parse_math=False)
    return png(figure, CHART_DPI)


def _draw_map(axes: Any, measured: Sequence[Sequence[Mapping[str, Any] | None]], metric: str) -> None:
    means = np.array([[or_gap((cell or {}).get("mean")) for cell in line] for line in measured])
    low, high = RANGES.get(metric, (-math.inf, math.inf))
    known = means[np.isfinite(means)]
    low = low if math.isfinite(low) else float(known.min(initial=0.0))
    high = high if math.isfinite(high) else float(known.max(initial=low + 1.0))
    axes.imshow(means, cmap="Oranges", vmin=low, vmax=high, origin="lower", aspect="auto")
    for (y, x), mean in np.ndenumerate(means):
        cell = measured[y][x]
        if cell is None:
            continue
        dark = (mean - low) / (high - low) > _DARK
        text = cell["missing"] if math.isnan(mean) else f"{mean:.2f}{_half_width(cell)}"
        axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "#222222")


def _missing(row: Mapping[str, Any], metric: str) -> str:
    measurable = metric != "leakage_score" or not row.get("not_measurable")
    return "n/a" if measurable else NOT_MEASURABLE.replace(" ", "\n")


def _half_width(cell: Mapping[str, Any]) -> str:
    half = (or_gap(cell.get("high")) - or_gap(cell.get("low"))) / 2
    return "" if math.isnan(half) else f"\n\u00b1 {half:.2f}"
