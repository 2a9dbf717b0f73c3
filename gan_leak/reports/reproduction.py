"""The report of a reproduction: what became of every claim of the paper, with the numbers and pictures behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gan_leak.evaluation.criteria import RANGES, STATISTICS, Verdict
from gan_leak.evaluation.measurability import NOT_MEASURABLE
from gan_leak.reports.drawing import or_gap
from gan_leak.reports.html import (
    NOT_AVAILABLE,
    card,
    cell,
    definitions_list,
    exact,
    figure,
    half_width,
    label,
    number,
    page,
    rank,
    section,
    settings_table,
    table,
)
from gan_leak.reports.reproduction_results import check_results

PAPER_VARIANT = "the paper's hyper-parameters"
NEAREST_VARIANT = "nearest setting that works"

_TITLE = "Reproduction of published attacks"
_SCORE = "leakage_score"
_DASH = "\N{EN DASH}"
# A badge must be read without colour, by its sign and its word.
_SIGNS = {Verdict.REPRODUCED: "✓", Verdict.PARTLY: "◐", Verdict.NOT_REPRODUCED: "✗", Verdict.NOT_MEASURABLE: "?"}
# Rows are named after their verdict and its variant; this variant is shortened there.
_SHORT_VARIANTS = {NEAREST_VARIANT: "nearest that works"}

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


def render_reproduction(results: Mapping[str, Any], pictures: Mapping[str, Mapping[str, bytes]]) -> str:
    """Writes a reproduction as one self-contained HTML page, without scripts and without anything fetched.

    results: plain JSON data as ``reproduction_results.check_results`` accepts it; figures that were not run are absent.
    pictures: for the "figure" of each entry the PNG bytes by caption.

    The verdicts stand first. A verdict shows the score of the row that it names as "row" or, without it, of the row
    called by its name and variant ("6 (a), nearest that works"), and beside it the control with the highest mean: of
    those it names as "controls", or else of those called by its name and more ("6 (a), passive"), or else of all.
    Intervals are shown within the range of their metric; the reasons of a verdict show them as they were judged.
    Missing numbers and NaN are "n/a", a leakage score that cannot be measured is "not measurable"; every text is
    escaped.

    Raises ValueError if the results are malformed, if a picture is not PNG, or if it belongs to no figure.
    """
    check_results(results)
    entries = results["figures"]
    for name in pictures:
        if name not in {entry["figure"] for entry in entries}:
            raise ValueError(
                f"pictures[{name!r}]: expected one of the figures {[entry['figure'] for entry in entries]}"
            )
    environment = {"gan_leak": results["version"], "command": results["command"], **results["environment"]}
    sections = (
        _lead(results),
        _summary(results),
        section("Verdicts", _overview(entries)),
        *(_figure_section(place, entry, pictures.get(entry["figure"], {})) for place, entry in enumerate(entries)),
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
        f"run {runs}, and the attacks on split inference and on single gradients that followed it, each on several "
        "images. Every experiment stands beside its controls and is judged by the criteria that it shows.</p>\n"
    )


def _summary(results: Mapping[str, Any]) -> str:
    entries = results["figures"]
    verdicts = [verdict for entry in entries for verdict in entry.get("verdicts", ())]
    cards = []
    for variant in _variants(verdicts):
        of_variant = [Verdict(verdict["verdict"]) for verdict in verdicts if verdict["variant"] == variant]
        kinds = [verdict for verdict in Verdict if verdict != Verdict.NOT_MEASURABLE or verdict in of_variant]
        counts = "".join(_badge(verdict, f"{of_variant.count(verdict)} ") for verdict in kinds)
        cards.append(card(variant, counts))
    stopped = sum(entry.get("error") is not None for entry in entries)
    shown = f"{len(entries)}" + (f" ({stopped} stopped)" if stopped else "")
    facts = {
        "experiments": shown,
        "seeds": str(results["num_seeds"]),
        "scale": results["scale"],
        "time": _duration(results["seconds"]),
    }
    cards.extend(card(name, escape(text)) for name, text in facts.items())
    return f'<dl class="summary">\n{"".join(cards)}</dl>\n'


def _overview(entries: Sequence[Mapping[str, Any]]) -> str:
    """Writes the table of verdicts: a row for each setting, a column for each variant."""
    if not entries:
        return ""
    variants = _variants(verdict for entry in entries for verdict in entry.get("verdicts", ()))
    heads = ["figure", "the paper's claim", "setting", *(f"measured, {variant}" for variant in variants)]
    body = "".join(_overview_rows(place, entry, variants) for place, entry in enumerate(entries))
    return (
        table([*heads, "best control"], body, "overview")
        + '<p class="explained">Measured: the leakage score, unless another measure is named; mean and two-sided 95% '
        "Student-t interval over the seeds, or over the images, shown within the range of the measure. Best control: "
        "the one with the highest mean, or what the same pictures score against images that were not seen.</p>\n"
    )


def _overview_rows(place: int, entry: Mapping[str, Any], variants: Sequence[str]) -> str:
    verdicts = entry.get("verdicts", ())
    settings = list(dict.fromkeys(verdict["name"] for verdict in verdicts))
    span = f' rowspan="{len(settings)}"' if len(settings) > 1 else ""
    name = f'<a href="#experiment-{place}">{escape(_heading(entry))}</a>'
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
        judged = [verdict for verdict in verdicts if verdict["variant"] == variant]
        scores = "".join(
            _score(_judged_row(entry, verdict), verdict.get("measure", _SCORE)) + _badge(verdict["verdict"])
            for verdict in judged
        )
        cells.append(f"<td>{scores}</td>" if scores else f'<td class="missing">{NOT_AVAILABLE}</td>')
    return "".join(cells) + _control_cell(entry, verdicts)


def _judged_row(entry: Mapping[str, Any], verdict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Finds the row that a verdict is about, see ``render_reproduction``."""
    variant = verdict["variant"]
    names = [verdict["row"]] if "row" in verdict else []
    if not names:
        names = [f"{verdict['name']}, {short}" for short in (variant, _SHORT_VARIANTS.get(variant, variant))]
    return next((row for row in entry.get("rows", ()) if row["name"] in names), None)


def _control_cell(entry: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]) -> str:
    if "control_measure" in verdicts[0]:
        return f"<td>{_score(_judged_row(entry, verdicts[0]), verdicts[0]['control_measure'])}</td>"
    controls = [row for row in entry.get("rows", ()) if row["role"] == "control"]
    named = {name for verdict in verdicts for name in verdict.get("controls", ())}
    beside = [row for row in entry.get("rows", ()) if row["name"] in named]
    own = [row for row in controls if row["name"].startswith(f"{verdicts[0]['name']}, ")]
    known = [row for row in beside or own or controls if math.isfinite(_mean_score(row))]
    if not known:
        return f'<td class="missing">{NOT_AVAILABLE}</td>'
    best = max(known, key=_mean_score)
    return f'<td>{_score(best)}<span class="beside">{escape(best["name"])}</span></td>'


def _mean_score(row: Mapping[str, Any]) -> float:
    return or_gap(row["metrics"].get(_SCORE, {}).get("mean"))


def _score(row: Mapping[str, Any] | None, metric: str = _SCORE) -> str:
    named = "" if metric == _SCORE else f' <span class="beside">{escape(label(metric))}</span>'
    measured = _measured(metric, row or {"metrics": {}})
    return f'<span class="score">{measured}</span>{named} '


def _figure_section(place: int, entry: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    claim = [f"<p><b>The paper:</b> {escape(entry['claim'])}</p>"]
    if entry.get("setup"):
        claim.append(f"<p>{escape(entry['setup'])}</p>")
    rows = entry.get("rows", ())
    parts = [
        f'<div class="claim">\n{"".join(claim)}</div>\n',
        _stopped(entry.get("error")),
        _verdicts(entry.get("verdicts", ())),
        _under("Measured", rows_table(rows)),
        _under("Pictures", _gallery(pictures)),
        _under("Where the hyper-parameters differ from the paper's", _differences(rows)),
        _under("What the defence promises", _privacy(entry.get("privacy", ()))),
        _under("Notes", "".join(f"<li>{escape(note)}</li>\n" for note in entry.get("notes", ())), "ul", "remarks"),
    ]
    time = entry.get("seconds")
    aside = f'<span class="time">{_duration(time)}</span>' if time is not None else ""
    return section(_heading(entry), "".join(parts), f"experiment-{place}", aside)


def _stopped(error: str | None) -> str:
    return "" if error is None else f'<aside class="error"><b>Stopped:</b> {escape(error)}</aside>\n'


def _under(heading: str, content: str, tag: str = "", kind: str = "") -> str:
    inside = f'<{tag} class="{kind}">\n{content}</{tag}>\n' if tag else content
    return f"<h3>{escape(heading)}</h3>\n{inside}" if content else ""


def _verdicts(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Writes each criterion once, and under it the verdicts that it gave with their reasons."""
    groups: dict[tuple[str, str], list[str]] = {}
    for verdict in verdicts:
        reasons = "".join(_reason(reason) for reason in verdict["because"])
        groups.setdefault((verdict["reproduced_if"], verdict["partly_if"]), []).append(
            f"<div><h4>{escape(verdict['name'])} {_badge(verdict['verdict'])}</h4>\n"
            f"<p>{escape(verdict['variant'])}</p>\n<ul>\n{reasons}</ul></div>\n"
        )
    return "".join(
        f'<dl class="criteria">\n{_criterion("reproduced if", whole)}{_criterion("partly if", part)}</dl>\n'
        f'<div class="verdicts">\n{"".join(cards)}</div>\n'
        for (whole, part), cards in groups.items()
    )


def _criterion(name: str, text: str) -> str:
    return f"<div><dt>{name}</dt><dd><code>{escape(text)}</code></dd></div>\n"


def _reason(text: str) -> str:
    answer = text.rpartition(": ")[2]
    kind = f' class="{answer}"' if answer in ("yes", "no") else ""
    return f"<li{kind}>{escape(text)}</li>\n"


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the measures of each row with their intervals; rows: as in the results of a reproduction."""
    metrics = sorted(dict.fromkeys(metric for row in rows for metric in row["metrics"]), key=rank)
    counted = [count for count in ("rounds", "seeds") if any(count in row for row in rows)]
    body = []
    for row in rows:
        name = f'{escape(row["name"])} <span class="role">{row["role"]}</span>'
        measured = "".join(f"<td>{_measured(metric, row)}</td>" for metric in metrics)
        counts = "".join(cell(row.get(count)) for count in counted)
        body.append(f'<tr class="{row["role"]}"><th scope="row">{name}</th>{counts}{measured}</tr>\n')
    heads = ["", *counted, *map(label, metrics)]
    return table(heads, "".join(body), "numbers measured") if body else ""


def _measured(metric: str, row: Mapping[str, Any]) -> str:
    """Writes the mean with its interval in the metric's range, and how many seeds told it if not all did."""
    measured = row["metrics"].get(metric)
    mean, low, high = (or_gap((measured or {}).get(statistic)) for statistic in STATISTICS)
    if math.isnan(mean):
        missing = NOT_MEASURABLE if metric == _SCORE and row.get("not_measurable") else NOT_AVAILABLE
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
    """Writes a metric of a known range with as many decimals as its neighbours, so that they compare at a glance."""
    return NOT_AVAILABLE if math.isnan(value) else f"{value:.3f}"


def _differences(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes what was changed, once for all rows that were changed alike."""
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
        together = "<br>".join(map(escape, names))
        for line, texts in enumerate(changes):
            first = f'<th scope="rowgroup" rowspan="{len(changes)}">{together}</th>' if line == 0 else ""
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
    # Half the pixels, so that they are sharp on dense screens and neighbours have one scale.
    shown = "".join(figure(caption, png, half_width(caption, png)) for caption, png in pictures.items())
    return f'<div class="gallery">\n{shown}</div>\n' if shown else ""


def _judges(judges: Mapping[str, Mapping[str, Any]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{cell(judge["test_accuracy"])}{cell(judge["test_images"])}</tr>\n'
        for name, judge in judges.items()
    )
    return table(["data", "test accuracy", "test images"], body, "judges") if body else ""


def _badge(verdict: str, count: str = "") -> str:
    kind = Verdict(verdict)
    return f'<span class="badge {kind.replace(" ", "-")}">{count}{_SIGNS[kind]} {kind}</span>'


def _variants(verdicts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lists the variants: the paper's own first, then the nearest that works, then others as they come."""
    found = dict.fromkeys(verdict["variant"] for verdict in verdicts)
    known = [variant for variant in (PAPER_VARIANT, NEAREST_VARIANT) if variant in found]
    return [*known, *(variant for variant in found if variant not in known)]


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
