"""The report of attacks on the leakage score: impostors with their scores, and the scores of degraded images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from gan_leak.evaluation.impostors import MOST_IMPOSTOR_SCORE
from gan_leak.evaluation.leakage import DEFINITIONS
from gan_leak.reports.drawing import (
    BLACK,
    CHART_DPI,
    GREEN,
    SERIES_COLORS,
    SERIES_STYLES,
    VERMILION,
    Row,
    draw_axes,
    framed_tiles,
    grid_png,
    png,
)
from gan_leak.reports.html import definitions_list, figure, half_width, page, section, settings_table, table
from gan_leak.reports.rows import ROWS_STYLE

_TILES = 8


def impostors_figure(rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, np.ndarray], *, title: str) -> bytes:
    """Draw a row of tiles for each impostor of one class beside its kind and its score, the highest first, as PNG.

    rows: with "kind", "score" and "shows_class"; pictures: float [M, H, W, C] in [-1, 1] by kind.
    """
    ordered = sorted(rows, key=lambda row: -row["score"])
    return grid_png(
        [
            Row(
                f"{row['kind']}: {row['score']:.2f}",
                BLACK if row["score"] <= MOST_IMPOSTOR_SCORE else VERMILION,
                framed_tiles(pictures[row["kind"]][:_TILES]),
                6,
            )
            for row in ordered
        ],
        title,
    )


def degradations_figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the score over the strength of each degradation in a panel, with a line for each class, as PNG.

    rows: with "class", "kind", "strengths" and "scores".
    """
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    drawn = Figure(figsize=(2.4 * len(kinds), 2.8), dpi=CHART_DPI, facecolor="white", layout="constrained")
    panels = drawn.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        draw_axes(axes)
        axes.set_xlabel(kind, fontsize=9.5)
        axes.set_ylim(-0.03, 1.03)
        for place, row in enumerate(row for row in rows if row["kind"] == kind):
            color = SERIES_COLORS[place % len(SERIES_COLORS)]
            style = SERIES_STYLES[place % len(SERIES_STYLES)]
            label = f"class {row['class']}"
            axes.plot(row["strengths"], row["scores"], color=color, linestyle=style, marker=".", label=label)
    panels[0].set_ylabel("leakage score", fontsize=9.5)
    panels[0].legend(fontsize=8, frameon=False)
    return png(drawn, CHART_DPI)


def scores_figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the score of each impostor in each class as a dot, beside the largest that is allowed, as PNG."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    classes = list(dict.fromkeys(row["class"] for row in rows))
    drawn = Figure(figsize=(6.6, 0.6 + 0.26 * len(kinds)), dpi=CHART_DPI, facecolor="white", layout="constrained")
    axes = drawn.subplots()
    draw_axes(axes)
    axes.set_xlabel("leakage score of the best variant; small gray: its smallest view", fontsize=8.5)
    axes.set_xlim(-0.03, 1.03)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=8.5)
    axes.invert_yaxis()
    axes.axvline(MOST_IMPOSTOR_SCORE, color=GREEN, linewidth=1.0, linestyle=(0, (4, 3)))
    for place, name in enumerate(classes):
        of_class = [row for row in rows if row["class"] == name]
        heights = [kinds.index(row["kind"]) + 0.2 * (place - (len(classes) - 1) / 2) for row in of_class]
        axes.plot([row["smallest_view"] for row in of_class], heights, "o", color="#9A9A9A", markersize=2.5)
        color = SERIES_COLORS[place % len(SERIES_COLORS)]
        axes.plot([row["score"] for row in of_class], heights, "o", color=color, markersize=5, label=f"class {name}")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return png(drawn, CHART_DPI)


def render_score_attacks(
    results: Mapping[str, Any], pictures: Mapping[str, bytes], environment: Mapping[str, Any]
) -> str:
    """Write the page. results: as in results.json; pictures: PNG bytes by caption; environment: as in config.json."""
    body = "".join(
        f'<tr><th scope="row">class {escape(row["class"])}, {escape(row["kind"])}</th>'
        f"<td>{row['score']:.2f}</td><td>{row['smallest_view']:.2f}</td>"
        f"<td>{row['looks_like_the_class']:.2f}</td><td>{escape(row['variant'])}</td>"
        f"<td>{escape(row['shows_class'] or 'no')}</td></tr>\n"
        for row in results["impostors"]
    )
    heads = ["", "leakage score", "smallest view", "nearest-neighbor share", "best variant", "can show the class"]
    shown = "".join(figure(caption, drawn, half_width(caption, drawn)) for caption, drawn in pictures.items())
    others = {name: value for name, value in environment.items() if name != "config"}
    sections = (
        section("Pictures", shown),
        section("Impostors", table(heads, body, "numbers")),
        section("What the numbers mean", definitions_list({"leakage_score": DEFINITIONS["leakage_score"]})),
        section("Settings", settings_table(environment["config"])),
        section("Environment", settings_table(others)),
    )
    return page("Attacks on the leakage score", sections, ROWS_STYLE)
