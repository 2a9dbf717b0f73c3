"""The report of a sweep: the map of the leakage, and a row of measures for every cell."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from gan_leak.evaluation.leakage import DEFINITIONS
from gan_leak.reports.drawing import BLACK, GROUP_GAP, TILE_GAP, Row, framed_tiles, grid_png
from gan_leak.reports.galleries import interval_figure
from gan_leak.reports.html import (
    cell,
    definitions_list,
    figure,
    half_width,
    label,
    notes_panel,
    page,
    section,
    settings_table,
    table,
)
from gan_leak.reports.rows import ROWS_STYLE, rows_table
from gan_leak.reports.surfaces import MOST_PANELS, surface_figure

_MOST_ROWS = 40
_TILES = 10
_CAPTIONS = {
    "intervals": "Leakage score of every cell, with 95% intervals over seeds.",
    "reconstructions": f"The last reconstructions of each seed; of many cells and seeds only the first {_MOST_ROWS}.",
    "surface": "Mean leakage score over the last two swept settings; below it, half the width of its 95% interval.",
}
_COUNTED = {"diverged": "diverged", "not_measurable": "have no leakage score, because it is not measurable"}


def sweep_files(
    rows: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
    pictures: Mapping[str, Sequence[tuple[int, float | None, np.ndarray]]],
) -> dict[str, bytes]:
    """Draw a sweep: the files of its report by name, report.html last.

    rows: as in the results of a reproduction, one for each finished cell, with the value of every swept setting as
    "cell" and the guarantee of the cell as "privacy"; at least one row. environment: as in config.json. pictures: of
    each cell the seeds, their scores and their last reconstructions [M, H, W, C].
    """
    swept = rows[0]["cell"]
    figures = {"intervals": interval_figure(rows)}
    panels = len({tuple(row["cell"].values())[:-2] for row in rows})
    if len(swept) > 1 and panels <= MOST_PANELS:
        figures["surface"] = surface_figure(rows)
    figures["reconstructions"] = reconstructions_figure(pictures)
    counts = {count: sum(row[count] for row in rows) for count in _COUNTED}
    page = render_sweep(
        title=f"Sweep of {', '.join(swept) or 'one setting'}",
        rows=rows,
        pictures={_CAPTIONS[name]: picture for name, picture in figures.items()},
        definitions=DEFINITIONS,
        settings=environment["config"],
        environment={name: value for name, value in environment.items() if name not in ("config", "privacy")},
        notes=[f"{count} runs {_COUNTED[name]}." for name, count in counts.items() if count],
    )
    return {**{f"{name}.png": picture for name, picture in figures.items()}, "report.html": page.encode()}


def reconstructions_figure(pictures: Mapping[str, Sequence[tuple[int, float | None, np.ndarray]]]) -> bytes:
    """Draw the last reconstructions of the first cells and seeds, a row for each seed with its score, as PNG.

    pictures: as in ``sweep_files``.
    """
    seeds = max(1, _MOST_ROWS // len(pictures))
    rows = [
        Row(
            f"{f'{cell}, ' if len(pictures) > 1 else ''}seed {seed}: {'n/a' if score is None else f'{score:.2f}'}",
            BLACK,
            framed_tiles(images[:_TILES]),
            TILE_GAP if place else GROUP_GAP,
            bar=False,
        )
        for cell, of_cell in itertools.islice(pictures.items(), _MOST_ROWS)
        for place, (seed, score, images) in enumerate(of_cell[:seeds])
    ]
    return grid_png(rows, "Last reconstructions and their leakage scores")


def render_sweep(
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, bytes],
    definitions: Mapping[str, str],
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    """Write a sweep as one self-contained HTML page.

    rows: as in the results of a reproduction, one for each finished cell, with its guarantee as "privacy". pictures:
    PNG bytes by caption. settings: the flags as given. definitions: the meaning of each metric by name. notes: shown
    first.

    Raises ValueError if a picture is not PNG.
    """
    gallery = "".join(figure(caption, png, half_width(caption, png)) for caption, png in pictures.items())
    sections = (
        notes_panel(notes),
        section("Leakage", gallery),
        section("Cells: means and 95% intervals over seeds", rows_table(rows)),
        section("What the defense promises", _promises(rows)),
        section("What the numbers mean", definitions_list(definitions)),
        section("Settings", settings_table(settings)),
        section("Environment", settings_table(environment)),
    )
    return page(title, sections, ROWS_STYLE)


def _promises(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the guarantee of each cell with a defense, one in each row."""
    found = {row["name"]: row["privacy"] for row in rows if row.get("privacy")}
    columns = list(dict.fromkeys(name for promise in found.values() for name in promise))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_promise_cell(promise.get(name)) for name in columns)}</tr>\n'
        for name, promise in found.items()
    )
    return table(["", *map(label, columns)], body, "texts") if body else ""


def _promise_cell(value: Any) -> str:
    return cell(value) if isinstance(value, float | None) else f"<td>{escape(str(value))}</td>"
