"""The picture of a results page: the first measure of each of its tables, a dot with its interval for every row.

Matplotlib is imported inside the function, as in ``gan_leak.reports.drawing``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gan_leak.evaluation.criteria import RANGES
from gan_leak.reports.drawing import BLUE, CHART_DPI, VERMILION, draw_axes, png, wrapped

_LABEL_PIXELS = 520
_LINE_INCHES = 0.16


def page_picture(page: Mapping[str, Any]) -> bytes:
    """Draw a page as PNG, a panel for each table with an interval or number in its first column.

    A column's baseline is a small gray dot. Intervals end where the range of the measure does. Raises ValueError if no
    table has a number to draw.
    """
    from matplotlib.figure import Figure

    tables = [table for table in page["tables"] if any(_interval(table, row) for row in table["rows"])]
    if not tables:
        raise ValueError("picture=True: expected a table with numbers in its first column")
    labels = [[wrapped(row["name"], _LABEL_PIXELS, 8.0) for row in table["rows"]] for table in tables]
    # A line of each label, and half a line between labels.
    lines = [np.array([label.count("\n") + 1.5 for label in of_table]) for of_table in labels]
    heights = [float(np.sum(of_table)) + 3.5 for of_table in lines]
    size = (6.6, _LINE_INCHES * sum(heights))
    figure = Figure(figsize=size, dpi=CHART_DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(len(tables), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, table, names, of_table in zip(panels, tables, labels, lines, strict=True):
        places = np.cumsum(of_table) - of_table / 2
        draw_axes(axes)
        axes.set_title(table["title"], fontsize=9, loc="left")
        axes.set_xlabel("; ".join(filter(None, (table["columns"][0]["title"], table["spread"]))), fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_yticks(places, names, fontsize=8)
        axes.set_ylim(float(np.sum(of_table)), 0)
        for place, row in zip(places, table["rows"], strict=True):
            if interval := _interval(table, row):
                mean, low, high = interval
                axes.plot([low, high], [place, place], color=BLUE, linewidth=1.2)
                axes.plot(mean, place, "o", color=VERMILION, markersize=4)
            if baseline := _interval(table, row, "baseline"):
                axes.plot(baseline[0], place, "o", color="#9A9A9A", markersize=3)
    return png(figure, CHART_DPI)


def _interval(
    table: Mapping[str, Any], row: Mapping[str, Any], key: str = "measure"
) -> tuple[float, float, float] | None:
    """The mean and the ends of a row in the first column, or None; a single number is its own interval."""
    measure = table["columns"][0].get(key, "")
    value = row.get(measure)
    if isinstance(value, Mapping):
        mean, low, high = value["mean"], value["low"], value["high"]
    else:
        mean, low, high = value, None, None
    if not isinstance(mean, int | float):
        return None
    least, most = RANGES.get(measure, (-np.inf, np.inf))
    return mean, mean if low is None else max(low, least), mean if high is None else min(high, most)
