"""The report of a run: one HTML page that needs nothing else to be read, sent or printed."""

from __future__ import annotations

import base64
import json
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

_NOT_AVAILABLE = "n/a"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# The order in which a table shows its columns; others follow as they come.
_METRIC_ORDER = (
    "model_accuracy",
    "mean_training_loss",
    "leakage_score",
    "leakage_by_representation",
    "judge_accuracy",
    "nearest_neighbour_share",
    "l1_to_nearest",
    "ssim_to_nearest",
    "coverage",
    "diversity",
)
_LABELS = {
    "leakage_by_representation": "leakage by",
    "nearest_neighbour_share": "nearest-neighbour share",
    "l1_to_nearest": "L1 to nearest private",
    "ssim_to_nearest": "SSIM to nearest private",
}

_STYLE = """
:root { color-scheme: light dark;
  --page: #ffffff; --text: #1b1f24; --soft: #57606a; --line: #d5dae0; --panel: #f5f7f9; --accent: #b34700;
  --note: #fff4e5; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --text: #e4e8ec; --soft: #9aa4af; --line: #343b43; --panel: #1d2228; --accent: #ff9d5c;
  --note: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
.summary { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 0; }
.summary div { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem .95rem; }
.summary dt { color: var(--soft); font-size: .83rem; }
.summary dd { margin: .15rem 0 0; font-size: 1.35rem; font-weight: 600; line-height: 1.25; }
.summary div:first-child dd { color: var(--accent); }
.notes { background: var(--note); border-left: .3rem solid var(--accent); border-radius: .3rem; margin: 1.2rem 0 0;
  padding: .7rem 1.1rem; }
.notes h2 { border: 0; font-size: 1rem; margin: 0; padding: 0; }
.notes ul { margin: .2rem 0 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .42rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; line-height: 1.25; vertical-align: bottom;
  border-bottom-width: 2px; }
th:first-child { text-align: left; font-weight: 600; }
.numbers table { font-size: .8rem; }
.numbers th, .numbers td { padding: .38rem .4rem; }
.comparison tbody th { min-width: 10.5rem; }
.comparison tbody tr:first-child { background: var(--panel); font-weight: 600; }
.missing { color: var(--soft); }
.settings td { text-align: left; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
.settings th { width: 40%; font-weight: 400; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0 2.2rem; }
figure img { display: block; max-width: min(100%, 47rem); height: auto; margin: 0 auto; background: #ffffff;
  border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; }
figcaption { color: var(--soft); font-size: .92rem; margin: .6rem auto 0; max-width: 48rem; text-align: center; }
.definitions dt { font-weight: 600; margin-top: .8rem; }
.definitions dd { margin: .1rem 0 0; max-width: 50rem; }
@media print {
  :root { color-scheme: light; --page: #ffffff; --text: #000000; --soft: #444444; --line: #bbbbbb;
  --panel: #f5f5f5; --accent: #8a3700; --note: #ffffff; }
  @page { margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .numbers table { font-size: 7pt; } .numbers th, .numbers td { padding: .15rem .2rem; }
  .comparison tbody th { min-width: 7rem; }
  .wide { overflow: visible; }
  h2 { break-after: avoid; } figure, tr, .summary div, .notes, .definitions div { break-inside: avoid; }
  figure img { max-height: 200mm; padding: 0; border: 0; }
}
"""


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
) -> str:
    """Writes a run as one self-contained HTML page, without scripts and without anything fetched from elsewhere.

    summary: the few figures of the headline. config, environment: shown exactly as they are, nested or not.
    records: one a round, as in metrics.jsonl; those with "leakage" fill the table of evaluations. comparison: a row of
    metrics for each set of images, the first one stands out. figures: PNG bytes by caption. definitions: what a metric
    means, by its name. notes: what the reader must know first, shown under the headline. Measured numbers show three
    significant digits, missing and non-finite ones "n/a"; every text is escaped.

    Raises ValueError if a figure is not PNG.
    """
    sections = (
        _summary(summary),
        _notes(notes),
        _section("How much leaked", _metrics_table("images", comparison, "numbers comparison")),
        _section("Pictures", "".join(_figure(caption, png) for caption, png in figures.items())),
        _section("Evaluations over the rounds", _metrics_table("round", _evaluations(records), "numbers")),
        _section("What the numbers mean", _definitions(definitions)),
        _section("Configuration", _settings(config)),
        _section("Environment", _settings(environment)),
    )
    # The policy makes the browser refuse what the page promises not to do.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{''.join(sections)}</body>\n</html>\n"
    )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}</section>\n" if content else ""


def _summary(summary: Mapping[str, str]) -> str:
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_number(value))}</dd></div>\n" for name, value in summary.items()
    )
    return f'<dl class="summary">\n{cards}</dl>\n' if cards else ""


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    return f'<aside class="notes">\n<h2>Notes</h2>\n<ul>\n{items}</ul>\n</aside>\n' if items else ""


def _figure(caption: str, png: bytes) -> str:
    if not png.startswith(_PNG_SIGNATURE):
        raise ValueError(f"figures[{caption!r}]={png[:8]!r}...: expected the bytes of a PNG file")
    source = base64.b64encode(png).decode("ascii")
    text = escape(caption)
    return (
        f'<figure>\n<img alt="{text}" src="data:image/png;base64,{source}">\n'
        f"<figcaption>{text}</figcaption>\n</figure>\n"
    )


def _definitions(definitions: Mapping[str, str]) -> str:
    items = "".join(
        f"<div><dt>{escape(_label(name))}</dt><dd>{escape(meaning)}</dd></div>\n"
        for name, meaning in definitions.items()
    )
    return f'<dl class="definitions">\n{items}</dl>\n' if items else ""


def _settings(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_exact(value))}</td></tr>\n'
        for name, value in _flattened(values, ".")
    )
    return f'<table class="settings">\n<tbody>\n{rows}</tbody>\n</table>\n' if rows else ""


def _evaluations(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        str(record["round"]): {
            "model_accuracy": record.get("model_accuracy"),
            "mean_training_loss": _mean(record.get("losses") or ()),
            **record["leakage"],
        }
        for record in records
        if record.get("leakage")
    }


def _metrics_table(corner: str, rows: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    """Writes a row for each name, a column for each metric that any of them has."""
    flat = {name: dict(_flattened(row, ": ")) for name, row in rows.items()}
    found = list(dict.fromkeys(column for row in flat.values() for column in row))
    # A row that lacks a whole group of metrics (None) must not add a column for the group.
    groups = {column.partition(": ")[0] for column in found if ": " in column}
    columns = sorted((column for column in found if column not in groups), key=_rank)
    if not columns:
        return ""
    heads = "".join(f'<th scope="col">{escape(_label(column))}</th>' for column in (corner, *columns))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(row.get(column)) for column in columns)}</tr>\n'
        for name, row in flat.items()
    )
    table = f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"
    return f'<div class="wide {kind}">\n{table}</div>\n'


def _rank(column: str) -> int:
    name = column.partition(": ")[0]
    return _METRIC_ORDER.index(name) if name in _METRIC_ORDER else len(_METRIC_ORDER)


def _cell(value: Any) -> str:
    text = _number(value)
    return f'<td class="missing">{text}</td>' if text == _NOT_AVAILABLE else f"<td>{escape(text)}</td>"


def _label(name: str) -> str:
    head, separator, rest = name.partition(": ")
    return _LABELS.get(head, head.replace("_", " ")) + separator.replace(":", "") + rest.replace("_", " ")


def _flattened(values: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: Any) -> str:
    """Writes a measured value: three significant digits, integers whole."""
    if value is None:
        return _NOT_AVAILABLE
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return f"{number:#.3g}".removesuffix(".") if math.isfinite(number) else _NOT_AVAILABLE


def _exact(value: Any) -> str:
    """Writes a setting so that it could be given again."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
