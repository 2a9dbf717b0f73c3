"""Tables of measures with intervals, and the style of their reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gan_leak.evaluation.criteria import RANGES, STATISTICS
from gan_leak.evaluation.measurability import NOT_MEASURABLE
from gan_leak.reports.drawing import or_gap
from gan_leak.reports.html import NOT_AVAILABLE, cell, label, number, rank, table

SCORE = "leakage_score"
_DASH = "\N{EN DASH}"

ROWS_STYLE = """
:root { --good: #0b5a36; --good-page: #dcf3e6; --half: #6b4a00; --half-page: #fdefcb; --bad: #8a2400;
  --bad-page: #fbe0d8; --control: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --good: #8fe0b5; --good-page: #12382a; --half: #f3cf7a;
  --half-page: #3b2f0e; --bad: #ffab91; --bad-page: #43201a; --control: #6cb8ea; } }
body { max-width: 78rem; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .15em; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
h2 .time { color: var(--soft); float: right; font-size: .83rem; font-weight: 400; padding: .35rem 0 0 1rem; }
.lead, .explained { color: var(--soft); max-width: 58rem; }
.lead { margin: -.7rem 0 1.4rem; }
.explained { font-size: .87rem; margin: .7rem 0 0; }
.claim { border-left: .25rem solid var(--line); margin: .9rem 0; max-width: 58rem; padding: .1rem 0 .1rem 1rem; }
.claim p { margin: .2rem 0; } .claim p + p { color: var(--soft); }
.summary { grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); }
.summary div:first-child dd { color: inherit; }
.summary .badge { display: table; font-size: .77rem; margin-top: .3rem; padding: .08rem .5rem; }
.badge { border: 1px solid currentcolor; border-radius: 1rem; display: inline-block; font-size: .8rem;
  font-weight: 600; line-height: 1.3; padding: .08rem .6rem; white-space: nowrap; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.badge.reproduced { background: var(--good-page); color: var(--good); }
.badge.not-measurable { background: var(--panel); color: var(--soft); }
.badge.partly { background: var(--half-page); color: var(--half); }
.badge.not-reproduced, .badge.stopped { background: var(--bad-page); color: var(--bad); }
.interval, .beside { color: var(--soft); display: block; font-size: .92em; font-weight: 400; white-space: nowrap; }
.beside { white-space: normal; }
.overview table { min-width: 60rem; }
.overview th, .overview td { text-align: left; }
.overview tbody tr > * { border-bottom-style: dotted; }
.overview tbody tr.first > * { border-top: 1px solid var(--line); }
.overview .claimed { max-width: 24rem; min-width: 15rem; }
.overview .setting { white-space: nowrap; font-weight: 600; }
.overview .badge { margin-top: .25rem; }
.score { font-size: 1.05rem; font-weight: 600; }
.verdicts { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.verdicts div { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; break-inside: avoid;
  padding: .7rem .9rem; }
.verdicts h4 { display: flex; flex-wrap: wrap; font-size: .95rem; gap: .2rem .6rem; margin: 0; }
.verdicts h4 .badge { margin-left: auto; }
.verdicts p { color: var(--soft); font-size: .87rem; margin: 0; }
.verdicts ul { font-size: .83rem; list-style: none; margin: .5rem 0 0; padding: 0; }
.verdicts li { font-variant-numeric: tabular-nums; padding: .1rem 0 .1rem 1.3rem; text-indent: -1.3rem; }
.verdicts li::before { content: "·"; display: inline-block; text-indent: 0; width: 1.3rem; }
.verdicts li.yes::before { color: var(--good); content: "✓"; }
.verdicts li.no::before { color: var(--bad); content: "✗"; }
.criteria { font-size: .87rem; margin: 1.2rem 0 .7rem; }
.criteria div { display: flex; flex-wrap: wrap; gap: 0 .7rem; }
.criteria dt { color: var(--soft); flex: 0 0 7rem; } .criteria dd { flex: 1 1 20rem; margin: 0; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em; }
.measured tbody th { min-width: 13rem; }
.measured tr.control { background: var(--panel); }
.measured tr.control > :first-child { box-shadow: inset .25rem 0 var(--control); font-weight: 400; }
.measured tr.attack > :first-child { box-shadow: inset .25rem 0 var(--accent); }
.measured tr.reference > * { color: var(--soft); font-weight: 400; }
.measured tbody th { padding-left: .8rem; }
.role { color: var(--soft); display: block; font-size: .92em; font-weight: 400; }
.control .role { color: var(--control); }
.texts td, .texts th { text-align: left; }
.differences { max-width: 58rem; }
.gallery { align-items: flex-start; display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; margin-top: 1.2rem; }
.gallery figure { margin: 0; max-width: 100%; } .gallery img { max-width: 100%; padding: 0; }
.gallery figcaption { contain: inline-size; margin: .6rem 0 0; text-align: left; }
.error { background: var(--bad-page); border-left: .3rem solid var(--bad); border-radius: .3rem; margin: 1rem 0;
  padding: .7rem 1.1rem; white-space: pre-wrap; }
.remarks { font-size: .92rem; max-width: 58rem; padding-left: 1.2rem; }
@media (max-width: 40rem) { body { padding: 1.2rem .9rem 3rem; } h2 .time { float: none; display: block; padding: 0; } }
@media print {
  :root { --good: #0b5a36; --good-page: #ffffff; --half: #6b4a00; --half-page: #ffffff; --bad: #8a2400;
    --bad-page: #ffffff; --control: #004f7c; }
  body { max-width: none; } .overview table { min-width: 0; font-size: 7.5pt; }
  .measured tbody th, .overview .claimed { min-width: 0; } .interval { white-space: normal; }
}
"""


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the measures of each row with their intervals; rows: as in the results of a reproduction."""
    metrics = sorted(dict.fromkeys(metric for row in rows for metric in row["metrics"]), key=rank)
    counted = [count for count in ("rounds", "seeds") if any(count in row for row in rows)]
    body = []
    for row in rows:
        name = f'{escape(row["name"])} <span class="role">{row["role"]}</span>'
        measured = "".join(f"<td>{measured_text(metric, row)}</td>" for metric in metrics)
        counts = "".join(cell(row.get(count)) for count in counted)
        body.append(f'<tr class="{row["role"]}"><th scope="row">{name}</th>{counts}{measured}</tr>\n')
    heads = ["", *counted, *map(label, metrics)]
    return table(heads, "".join(body), "numbers measured") if body else ""


def measured_text(metric: str, row: Mapping[str, Any]) -> str:
    """Write the mean of a metric with its interval, cut at its range, and the number of seeds if some lack it."""
    measured = row["metrics"].get(metric)
    mean, low, high = (or_gap((measured or {}).get(statistic)) for statistic in STATISTICS)
    if math.isnan(mean):
        missing = NOT_MEASURABLE if metric == SCORE and row.get("not_measurable") else NOT_AVAILABLE
        return f'<span class="missing">{missing}</span>'
    least, most = RANGES.get(metric, (-math.inf, math.inf))
    write = _decimals if metric in RANGES else number
    ends = [write(min(max(end, least), most)) for end in (low, high)]
    shown = NOT_AVAILABLE if NOT_AVAILABLE in ends else (" to " if low < 0 and least < 0 else _DASH).join(ends)
    values = (measured or {}).get("values", ())
    known = sum(math.isfinite(or_gap(value)) for value in values)
    few = f' <span class="interval">{known} of {len(values)} seeds</span>' if known < len(values) else ""
    return f'{write(mean)} <span class="interval">({shown})</span>{few}'


def _decimals(value: float) -> str:
    """Write a metric of a known range with as many decimals as its neighbors, so that they are easy to compare."""
    return NOT_AVAILABLE if math.isnan(value) else f"{value:.3f}"
