"""The report of a run: one HTML page that needs nothing else to be read, sent or printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gan_leak.reports.html import (
    cell,
    definitions_list,
    figure,
    flattened,
    label,
    notes_panel,
    page,
    rank,
    section,
    settings_table,
    summary_cards,
    table,
)


def render_report(
    *,
    title: str,
    summary: Mapping[str, str],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Mapping[str, Any]],
    figures: Mapping[str, bytes],
    definitions: Mapping[str, str],
    notes: Sequence[str],
    privacy: Mapping[str, Any] | None = None,
) -> str:
    """Writes a run as one self-contained HTML page, without scripts and without anything fetched from elsewhere.

    summary: the few figures of the headline. config, environment: shown exactly as they are, nested or not.
    records: one a round, as in metrics.jsonl; those with "leakage" fill the table of evaluations. comparison: a row of
    metrics for each set of images, the first one stands out. figures: PNG bytes by caption. definitions: what a metric
    means, by its name. notes: what the reader must know first, shown under the headline. privacy: what the defense
    promises over the whole run, shown exactly. Measured numbers show three
    significant digits, missing and non-finite ones "n/a"; every text is escaped.

    Raises ValueError if a figure is not PNG.
    """
    sections = (
        summary_cards(summary),
        notes_panel(notes),
        section("How much leaked", _metrics_table("images", comparison, "numbers comparison")),
        section("Pictures", "".join(figure(caption, png) for caption, png in figures.items())),
        section("Evaluations over the rounds", _metrics_table("round", _evaluations(records), "numbers")),
        section("What the defense promises", settings_table(privacy or {})),
        section("What the numbers mean", definitions_list(definitions)),
        section("Configuration", settings_table(config)),
        section("Environment", settings_table(environment)),
    )
    return page(title, sections)


def _evaluations(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        str(record["round"]): {
            "model_accuracy": record.get("model_accuracy"),
            "mean_training_loss": _mean(record.get("losses") or ()),
            **({"epsilon_spent": record["privacy"]["epsilon"]} if record.get("privacy") else {}),
            **record["leakage"],
        }
        for record in records
        if record.get("leakage")
    }


def _metrics_table(corner: str, rows: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    """Writes a row for each name, a column for each metric that any of them has."""
    flat = {name: dict(flattened(row, ": ")) for name, row in rows.items()}
    found = list(dict.fromkeys(column for row in flat.values() for column in row))
    # A row that lacks a whole group of metrics (None) must not add a column for the group.
    groups = {column.partition(": ")[0] for column in found if ": " in column}
    columns = sorted((column for column in found if column not in groups), key=rank)
    if not columns:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(cell(row.get(column)) for column in columns)}</tr>\n'
        for name, row in flat.items()
    )
    return table([label(column) for column in (corner, *columns)], body, kind)


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
