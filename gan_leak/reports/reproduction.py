"""The report of a reproduction: the verdict on every claim of the papers, with its numbers and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gan_leak.reports.drawing import or_gap
from gan_leak.reports.html import (
    NOT_AVAILABLE,
    card,
    cell,
    definitions_list,
    exact,
    figure,
    half_width,
    page,
    section,
    settings_table,
    table,
)
from gan_leak.reports.reproduction_results import check_results
from gan_leak.reports.rows import ROWS_STYLE, rows_table
from gan_leak.reports.verdicts import verdict_cards, verdict_details, verdict_overview

_TITLE = "Reproduction of published attacks"


def render_reproduction(results: Mapping[str, Any], pictures: Mapping[str, Mapping[str, bytes]]) -> str:
    """Write a reproduction as one self-contained HTML page, without scripts and external files.

    results: plain JSON data as ``reproduction_results.check_results`` accepts it; skipped figures are absent.
    pictures: for the "figure" of each entry the PNG bytes by caption.

    The verdicts come first. A verdict shows the score of the row that it names as "row", and the one with the highest
    mean among the rows that it names as "controls". Intervals are cut at the range of their metric; the reasons of a
    verdict show them uncut. Missing numbers and NaN are "n/a", a leakage score that cannot be measured
    is "not measurable"; every text is escaped.

    Raises ValueError if the results are malformed, if a picture is not PNG, or if it belongs to no figure.
    """
    check_results(results)
    entries = results["figures"]
    for name in pictures:
        if name not in {entry["figure"] for entry in entries}:
            raise ValueError(
                f"pictures[{name!r}]: expected one of the figures {[entry['figure'] for entry in entries]}"
            )
    anchors = [f"experiment-{place}" for place in range(len(entries))]
    environment = {"gan_leak": results["version"], "command": results["command"], **results["environment"]}
    sections = (
        _lead(results),
        _summary(results),
        section("Verdicts", verdict_overview(entries, anchors, list(map(_heading, entries)))),
        *(
            _figure_section(anchor, entry, pictures.get(entry["figure"], {}))
            for anchor, entry in zip(anchors, entries, strict=True)
        ),
        section("Judges", _judges(results["judges"])),
        section("What the numbers mean", definitions_list(results["definitions"])),
        section("Environment", settings_table(environment)),
    )
    return page(_TITLE, sections, ROWS_STYLE)


def _lead(results: Mapping[str, Any]) -> str:
    seeds = results["num_seeds"]
    runs = "once, which gives no intervals" if seeds == 1 else f"with {seeds} seeds"
    return (
        '<p class="lead">Deep Models Under the GAN: Information Leakage from Collaborative Deep Learning (CCS 2017), '
        f"run {runs}; and later attacks on split inference and on single gradients, each on several images. Every "
        "experiment is shown with its controls, and judged by criteria that were written before the run.</p>\n"
    )


def _summary(results: Mapping[str, Any]) -> str:
    entries = results["figures"]
    verdicts = [verdict for entry in entries for verdict in entry.get("verdicts", ())]
    stopped = sum(entry.get("error") is not None for entry in entries)
    shown = f"{len(entries)}" + (f" ({stopped} stopped)" if stopped else "")
    facts = {
        "experiments": shown,
        "seeds": str(results["num_seeds"]),
        "scale": results["scale"],
        "time": _duration(results["seconds"]),
    }
    cards = "".join(card(name, escape(text)) for name, text in facts.items())
    return f'<dl class="summary">\n{verdict_cards(verdicts)}{cards}</dl>\n'


def _figure_section(anchor: str, entry: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    claim = [f"<p><b>The paper:</b> {escape(entry['claim'])}</p>"]
    if entry.get("setup"):
        claim.append(f"<p>{escape(entry['setup'])}</p>")
    rows = entry.get("rows", ())
    parts = [
        f'<div class="claim">\n{"".join(claim)}</div>\n',
        _stopped(entry.get("error")),
        verdict_details(entry.get("verdicts", ())),
        _under("Measured", rows_table(rows)),
        _under("Pictures", _gallery(pictures)),
        _under("Hyperparameters that differ from the paper", _differences(rows)),
        _under("What the defense promises", _privacy(entry.get("privacy", ()))),
        _under("Notes", "".join(f"<li>{escape(note)}</li>\n" for note in entry.get("notes", ())), "ul", "remarks"),
    ]
    time = entry.get("seconds")
    aside = f'<span class="time">{_duration(time)}</span>' if time is not None else ""
    return section(_heading(entry), "".join(parts), anchor, aside)


def _stopped(error: str | None) -> str:
    return "" if error is None else f'<aside class="error"><b>Stopped:</b> {escape(error)}</aside>\n'


def _under(heading: str, content: str, tag: str = "", kind: str = "") -> str:
    inside = f'<{tag} class="{kind}">\n{content}</{tag}>\n' if tag else content
    return f"<h3>{escape(heading)}</h3>\n{inside}" if content else ""


def _differences(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the differences from the paper, once for all rows with the same differences."""
    groups: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for row in rows:
        changes = tuple(
            (name, "not stated" if stated is None else exact(stated), exact(used))
            for name, (stated, used) in row.get("differences", {}).items()
        )
        if changes:
            groups.setdefault(changes, []).append(row["name"])
    body = []
    for changes, names in groups.items():
        joined_names = "<br>".join(map(escape, names))
        for line, texts in enumerate(changes):
            first = f'<th scope="rowgroup" rowspan="{len(changes)}">{joined_names}</th>' if line == 0 else ""
            body.append(f"<tr>{first}{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>\n")
    heads = ["rows", "hyper-parameter", "the paper", "used here"]
    return table(heads, "".join(body), "texts differences") if body else ""


def _privacy(promises: Sequence[Mapping[str, Any]]) -> str:
    columns = ("mechanism", "epsilon_per_round", "epsilon_total", "delta", "unit", "note")
    body = "".join(
        f'<tr><th scope="row">{escape(promise["name"])}</th>'
        f"{''.join(cell(promise.get(column)) for column in columns)}</tr>\n"
        for promise in promises
    )
    heads = ["", "mechanism", "ε per round", "ε total", "δ", "unit protected", "note"]
    return table(heads, body, "texts") if body else ""


def _gallery(pictures: Mapping[str, bytes]) -> str:
    # Half the pixels, so that they are sharp on dense screens and neighbors have one scale.
    shown = "".join(figure(caption, png, half_width(caption, png)) for caption, png in pictures.items())
    return f'<div class="gallery">\n{shown}</div>\n' if shown else ""


def _judges(judges: Mapping[str, Mapping[str, Any]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{cell(judge["test_accuracy"])}{cell(judge["test_images"])}</tr>\n'
        for name, judge in judges.items()
    )
    return table(["data", "test accuracy", "test images"], body, "judges") if body else ""


def _heading(entry: Mapping[str, Any]) -> str:
    numbered = entry["figure"][:1].isdigit()
    return f"Figure {entry['figure']}: {entry['title']}" if numbered else entry["title"]


def _duration(seconds: Any) -> str:
    if not math.isfinite(or_gap(seconds)):
        return NOT_AVAILABLE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
