"""Verdicts as a report shows them: counts, an overview with scores, and the criteria with their reasons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gan_leak.evaluation.criteria import Verdict
from gan_leak.reports.drawing import or_gap
from gan_leak.reports.html import NOT_AVAILABLE, card, label, table
from gan_leak.reports.reproduction_results import NEAREST_VARIANT, PAPER_VARIANT
from gan_leak.reports.rows import SCORE, measured_text

# A badge must be read without color, by its sign and its word.
_SIGNS = {Verdict.REPRODUCED: "✓", Verdict.PARTLY: "◐", Verdict.NOT_REPRODUCED: "✗", Verdict.NOT_MEASURABLE: "?"}


def verdict_cards(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Write a card for each variant, with the number of verdicts of each kind."""
    cards = []
    for variant in _variants(verdicts):
        of_variant = [Verdict(verdict["verdict"]) for verdict in verdicts if verdict["variant"] == variant]
        kinds = [verdict for verdict in Verdict if verdict != Verdict.NOT_MEASURABLE or verdict in of_variant]
        counts = "".join(_badge(verdict, f"{of_variant.count(verdict)} ") for verdict in kinds)
        cards.append(card(variant, counts))
    return "".join(cards)


def verdict_overview(entries: Sequence[Mapping[str, Any]], anchors: Sequence[str], headings: Sequence[str]) -> str:
    """Write the table of verdicts: a row for each setting, a column for each variant.

    entries: as in the results of a reproduction. anchors, headings: of the section of each entry, which its row links.
    """
    if not entries:
        return ""
    variants = _variants(verdict for entry in entries for verdict in entry.get("verdicts", ()))
    heads = ["figure", "the paper's claim", "setting", *(f"measured, {variant}" for variant in variants)]
    body = "".join(
        _overview_rows(f'<a href="#{escape(anchor)}">{escape(heading)}</a>', entry, variants)
        for entry, anchor, heading in zip(entries, anchors, headings, strict=True)
    )
    return (
        table([*heads, "best control"], body, "overview")
        + '<p class="explained">Measured: the leakage score, or the named measure: mean, and in parentheses its '
        "two-sided 95% Student-t interval over seeds or over images, cut at the range of the measure. Best control: "
        "the control with the highest mean; for attacks on single images, the score of the same pictures against "
        "images that the attack has not seen.</p>\n"
    )


def verdict_details(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Write each criterion once, followed by its verdicts with their reasons."""
    groups: dict[tuple[str, str], list[str]] = {}
    for verdict in verdicts:
        holds = verdict.get("holds") or [None] * len(verdict["because"])
        reasons = "".join(map(_reason, verdict["because"], holds))
        groups.setdefault((verdict["reproduced_if"], verdict["partly_if"]), []).append(
            f"<div><h4>{escape(verdict['name'])} {_badge(verdict['verdict'])}</h4>\n"
            f"<p>{escape(verdict['variant'])}</p>\n<ul>\n{reasons}</ul></div>\n"
        )
    return "".join(
        f'<dl class="criteria">\n{_criterion("reproduced if", whole)}{_criterion("partly if", part)}</dl>\n'
        f'<div class="verdicts">\n{"".join(cards)}</div>\n'
        for (whole, part), cards in groups.items()
    )


def _overview_rows(name: str, entry: Mapping[str, Any], variants: Sequence[str]) -> str:
    verdicts = entry.get("verdicts", ())
    settings = list(dict.fromkeys(verdict["name"] for verdict in verdicts))
    span = f' rowspan="{len(settings)}"' if len(settings) > 1 else ""
    if entry.get("error") is not None:
        name += ' <span class="badge stopped">✗ stopped</span>'
    claimed = f'<th scope="rowgroup"{span}>{name}</th><td class="claimed"{span}>{escape(entry["claim"])}</td>'
    lines = [_setting_cells(entry, setting, variants) for setting in settings]
    if not lines:
        lines = [f'<td class="missing" colspan="{len(variants) + 2}">not judged</td>']
    rows = [f'<tr class="first">{claimed}{lines[0]}</tr>\n', *(f"<tr>{line}</tr>\n" for line in lines[1:])]
    return "".join(rows)


def _setting_cells(entry: Mapping[str, Any], setting: str, variants: Sequence[str]) -> str:
    verdicts = [verdict for verdict in entry["verdicts"] if verdict["name"] == setting]
    cells = [f'<td class="setting">{escape(setting)}</td>']
    for variant in variants:
        scores = "".join(
            _score(_row(entry, verdict["row"]), verdict.get("measure", SCORE)) + _badge(verdict["verdict"])
            for verdict in verdicts
            if verdict["variant"] == variant
        )
        cells.append(f"<td>{scores}</td>" if scores else f'<td class="missing">{NOT_AVAILABLE}</td>')
    return "".join(cells) + _control_cell(entry, verdicts)


def _control_cell(entry: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]) -> str:
    first = verdicts[0]
    if "control_measure" in first:
        return f"<td>{_score(_row(entry, first['row']), first['control_measure'])}</td>"
    named = dict.fromkeys(name for verdict in verdicts for name in verdict.get("controls", ()))
    known = [row for row in map(lambda name: _row(entry, name), named) if math.isfinite(_mean_score(row))]
    if not known:
        return f'<td class="missing">{NOT_AVAILABLE}</td>'
    best = max(known, key=_mean_score)
    return f'<td>{_score(best)}<span class="beside">{escape(best["name"])}</span></td>'


def _row(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(row for row in entry["rows"] if row["name"] == name)


def _mean_score(row: Mapping[str, Any]) -> float:
    return or_gap(row["metrics"].get(SCORE, {}).get("mean"))


def _score(row: Mapping[str, Any], metric: str = SCORE) -> str:
    named = "" if metric == SCORE else f' <span class="beside">{escape(label(metric))}</span>'
    return f'<span class="score">{measured_text(metric, row)}</span>{named} '


def _criterion(name: str, text: str) -> str:
    return f"<div><dt>{name}</dt><dd><code>{escape(text)}</code></dd></div>\n"


def _reason(text: str, holds: bool | None) -> str:
    kind = "" if holds is None else f' class="{"yes" if holds else "no"}"'
    return f"<li{kind}>{escape(text)}</li>\n"


def _badge(verdict: str, count: str = "") -> str:
    kind = Verdict(verdict)
    return f'<span class="badge {kind.replace(" ", "-")}">{count}{_SIGNS[kind]} {kind}</span>'


def _variants(verdicts: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the variants: the paper's own, then the nearest that works, then others in the order of the entries."""
    found = dict.fromkeys(verdict["variant"] for verdict in verdicts)
    known = [variant for variant in (PAPER_VARIANT, NEAREST_VARIANT) if variant in found]
    return [*known, *(variant for variant in found if variant not in known)]
