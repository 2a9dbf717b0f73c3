"""Shared parts of all reports: one self-contained HTML page, its style, and its elements.

Every function takes plain text and escapes it, except where a parameter is called ``sections`` or ends in ``content``.
"""

from __future__ import annotations

import base64
import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

NOT_AVAILABLE = "n/a"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# The order in which a table shows its columns; others follow as they come.
_METRIC_ORDER = (
    "model_accuracy",
    "mean_training_loss",
    "leakage_score",
    "late_leakage_score",
    "readable_share",
    "leakage_by_representation",
    "judge_accuracy",
    "nearest_neighbour_share",
    "l1_to_nearest",
    "ssim_to_nearest",
    "coverage",
    "diversity",
)
_LABELS = {
    "late_leakage_score": "leakage score of the last third",
    "readable_share": "evaluations of 0.3 or more",
    "leakage_by_representation": "leakage by",
    "nearest_neighbour_share": "nearest-neighbor share",
    "l1_to_nearest": "L1 to nearest private",
    "ssim_to_nearest": "SSIM to nearest private",
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "ssim_by_range": "SSIM by range",
    "psnr_of_others": "PSNR of others",
    "ssim_of_others": "SSIM of others",
    "published_psnr": "published PSNR",
    "published_ssim": "published SSIM",
    "control_psnr": "control PSNR",
    "control_ssim": "control SSIM",
    "class_psnr": "PSNR of the class mean",
    "class_ssim": "SSIM of the class mean",
    "re_identified": "re-identified",
    "re_identified_of_others": "re-identified of others",
    "control_re_identified": "control re-identified",
    "class_re_identified": "re-identified by class mean",
    "class_recovered": "recovered by class mean",
    "blank_psnr": "PSNR of a black picture",
    "blank_ssim": "SSIM of a black picture",
    "blank_recovered": "recovered by black picture",
    "rmse": "root mean square error",
    "group_psnr": "PSNR as GRNN reports it",
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
.sound { display: inline-block; margin: .4rem 1.2rem .4rem 0; } .sound figcaption { margin: 0; text-align: left; }
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


def page(title: str, sections: Sequence[str], style: str = "") -> str:
    """Write a whole page without scripts and external files; style: additional rules."""
    # The policy makes the browser block scripts and requests.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    written = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{''.join(sections)}</body>\n</html>\n"
    )
    # A path may hold bytes that are no UTF-8, and must not keep a report from being written.
    return written.encode("utf-8", "backslashreplace").decode()


def section(heading: str, content: str, identifier: str = "", aside_content: str = "") -> str:
    """Write a section, or nothing if it has no content; aside_content is in the line of the heading."""
    anchor = f' id="{escape(identifier)}"' if identifier else ""
    return f"<section{anchor}>\n<h2>{escape(heading)}{aside_content}</h2>\n{content}</section>\n" if content else ""


def summary_cards(summary: Mapping[str, str]) -> str:
    """Write the numbers of the headline, a card for each."""
    cards = "".join(card(name, escape(number(value))) for name, value in summary.items())
    return f'<dl class="summary">\n{cards}</dl>\n' if cards else ""


def card(name: str, content: str) -> str:
    """Write one card of the headline."""
    return f"<div><dt>{escape(name)}</dt><dd>{content}</dd></div>\n"


def table(heads: Sequence[str], content: str, kind: str) -> str:
    """Write a table that scrolls if it is wider than the page; content: its rows."""
    cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    rows = f"<table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{content}</tbody>\n</table>\n"
    return f'<div class="wide {kind}">\n{rows}</div>\n'


def notes_panel(notes: Sequence[str]) -> str:
    """Write the notes of a report."""
    items = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    return f'<aside class="notes">\n<h2>Notes</h2>\n<ul>\n{items}</ul>\n</aside>\n' if items else ""


def figure(caption: str, png: bytes, width: int | None = None) -> str:
    """Write a picture with its caption, at most ``width`` CSS pixels wide. Raises ValueError if it is not PNG."""
    _check_png(caption, png)
    source = base64.b64encode(png).decode("ascii")
    text = escape(caption)
    size = f' width="{width}"' if width else ""
    return (
        f'<figure>\n<img alt="{text}"{size} src="data:image/png;base64,{source}">\n'
        f"<figcaption>{text}</figcaption>\n</figure>\n"
    )


def audio(caption: str, wav: bytes) -> str:
    """Write a player of a WAV file below its caption."""
    source = base64.b64encode(wav).decode("ascii")
    return (
        f'<figure class="sound">\n<figcaption>{escape(caption)}</figcaption>\n'
        f'<audio controls src="data:audio/wav;base64,{source}"></audio>\n</figure>\n'
    )


def half_width(caption: str, png: bytes) -> int:
    """Return half the width of a picture in pixels. Raises ValueError if it is not PNG."""
    _check_png(caption, png)
    return max(1, int.from_bytes(png[16:20], "big") // 2)


def definitions_list(definitions: Mapping[str, str]) -> str:
    """Write the definitions of metrics by name."""
    items = "".join(
        f"<div><dt>{escape(label(name))}</dt><dd>{escape(meaning)}</dd></div>\n"
        for name, meaning in definitions.items()
    )
    return f'<dl class="definitions">\n{items}</dl>\n' if items else ""


def settings_table(values: Mapping[str, Any]) -> str:
    """Write settings unrounded, one in each row; they may be nested."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(exact(value))}</td></tr>\n'
        for name, value in flattened(values, ".")
    )
    return f'<table class="settings">\n<tbody>\n{rows}</tbody>\n</table>\n' if rows else ""


def rank(column: str) -> int:
    """Return the position of a column among the metrics."""
    name = column.partition(": ")[0]
    return _METRIC_ORDER.index(name) if name in _METRIC_ORDER else len(_METRIC_ORDER)


def cell(value: Any) -> str:
    """Write a measured value as a cell of a table."""
    text = number(value)
    return f'<td class="missing">{text}</td>' if text == NOT_AVAILABLE else f"<td>{escape(text)}</td>"


def label(name: str) -> str:
    """Return the name of a metric as tables and headings show it."""
    head, separator, rest = name.partition(": ")
    return _LABELS.get(head, head.replace("_", " ")) + separator.replace(":", "") + rest.replace("_", " ")


def flattened(values: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of every leaf, with names joined by the separator."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value


def number(value: Any) -> str:
    """Write a measured value: three significant digits, integers whole."""
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    try:
        measured = float(value)
    except (TypeError, ValueError):
        return str(value)
    return f"{measured:#.3g}".removesuffix(".") if math.isfinite(measured) else NOT_AVAILABLE


def exact(value: Any) -> str:
    """Write a setting unrounded, so that it can be used again."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)


def _check_png(caption: str, png: bytes) -> None:
    if not png.startswith(_PNG_SIGNATURE):
        raise ValueError(f"figures[{caption!r}]={png[:8]!r}...: expected the bytes of a PNG file")
