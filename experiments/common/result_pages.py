"""Pages of results: JSON with the numbers of a page, and Markdown that is generated only from this JSON.

A page is an object with these fields:

    title, text        what was measured; ``text`` is a list of paragraphs
    commands           the command lines that wrote the result files
    version, versions  of gan_leak, and of the libraries by name
    machine, date      where and when; ``date`` is YYYY-MM-DD
    seeds              a list of whole numbers, empty where the commands state them
    transcribed        "" if the numbers were read from result files, else the document that they were copied from
    tables             a list of tables

A table has ``title``, ``caption``, ``spread`` (the meaning of numbers in parentheses, or ""), ``columns``, ``rows`` and
``notes`` (paragraphs below it). A column has ``title``, ``measure`` and ``digits`` (decimals, or the unit "seconds" or
"bytes"); with ``baseline`` that measure follows after a slash. A row has ``name`` and its measures, of which a table
may show some only. A measure is a number, a text, null, a list of these, or an object with ``mean``, ``low`` and
``high``.
"""

from __future__ import annotations

import bisect
import json
import math
import pathlib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gan_leak.evaluation.criteria import RANGES

WIDTH = 120
MISSING = "n/a"
_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_PAGE_FIELDS: Mapping[str, type] = {
    "title": str,
    "text": list,
    "commands": list,
    "version": str,
    "versions": dict,
    "machine": str,
    "date": str,
    "seeds": list,
    "transcribed": str,
    "tables": list,
}
_TABLE_FIELDS: Mapping[str, type] = {
    "title": str,
    "caption": str,
    "spread": str,
    "columns": list,
    "rows": list,
    "notes": list,
}
_UNITS = {
    "seconds": ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s")),
    "bytes": ((2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB")),
}
_MARKER = re.compile(r"<!-- results/(?P<page>[a-z0-9_]+): (?P<measures>[a-z0-9_, ]+) -->\n(?P<table>(?:\|.*\n)*)")


class Embedded(NamedTuple):
    """A generated table in another document: its present text from the marker on, and the expected text."""

    marker: str
    found: str
    expected: str


def check_name(name: str) -> str:
    """Return the name of a page; raise ValueError if it is not a lower-case file name."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"name={name}: expected lower-case letters, digits and single underscores")
    return name


def read_page(path: pathlib.Path) -> dict[str, Any]:
    """Read the JSON of a page; raise ValueError in one line if it is invalid."""
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected the JSON of a results page ({error})") from None
    check_page(page, str(path))
    return page


def page_bytes(page: Mapping[str, Any]) -> bytes:
    """The JSON of a page: a line for each row, so that a difference shows the rows that changed."""
    tables = []
    for table in page["tables"]:
        rows = ",\n".join("    " + json.dumps(row, allow_nan=False, ensure_ascii=False) for row in table["rows"])
        head = json.dumps({**table, "rows": []}, indent=1, allow_nan=False, ensure_ascii=False)
        tables.append(textwrap.indent(head, "  ").replace('"rows": []', f'"rows": [\n{rows}\n   ]', 1))
    head = json.dumps({**page, "tables": []}, indent=1, allow_nan=False, ensure_ascii=False)
    return (head.replace('"tables": []', '"tables": [\n' + ",\n".join(tables) + "\n ]", 1) + "\n").encode()


def check_page(page: Any, where: str) -> None:
    """Raise ValueError, with the place in one line, for a page that lacks a field or has one of another type.

    The same for a row without a measure that its table shows, and for two rows of one name.
    """
    _check_fields(page, _PAGE_FIELDS, where)
    for place, table in enumerate(page["tables"]):
        here = f"{where}: tables[{place}]"
        _check_fields(table, _TABLE_FIELDS, here)
        shown = [column.get(key) for column in table["columns"] for key in ("measure", "baseline") if key in column]
        names = [row.get("name") for row in table["rows"]]
        for row in table["rows"]:
            if missing := [measure for measure in shown if measure not in row]:
                raise ValueError(f"{here}: the row {row.get('name')!r} lacks {missing[0]!r}, which the table shows")
            if names.count(row.get("name")) > 1:
                raise ValueError(f"{here}: the row {row['name']!r} is there twice")


def _check_fields(value: Any, fields: Mapping[str, type], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind):
            raise ValueError(f"{where}: expected {name!r} of type {kind.__name__}")
    if unknown := sorted(value.keys() - fields.keys()):
        raise ValueError(f"{where}: {unknown[0]!r} is no field, expected {', '.join(fields)}")


def merged(present: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """A page with the rows of both pages, and of two rows of one name that of ``found``; words are those of ``found``.

    Tables belong together by their titles. Raises ValueError in one line if the numbers of ``present`` were transcribed
    or are of another version of gan_leak.
    """
    if origin := present["transcribed"]:
        raise ValueError(f"merge=True: expected a page of result files, found one transcribed from {origin}")
    versions = tuple(page["version"] for page in (present, found))
    if len(set(versions)) > 1:
        raise ValueError(f"merge=True: expected numbers of one version of gan_leak, found {' and '.join(versions)}")
    tables = {table["title"]: table for table in present["tables"]}
    for table in found["tables"]:
        old = tables.get(table["title"], {"rows": (), "notes": ()})
        rows = {row["name"]: row for row in (*old["rows"], *table["rows"])}
        notes = list(dict.fromkeys([*old["notes"], *table["notes"]]))
        tables[table["title"]] = {**table, "rows": list(rows.values()), "notes": notes}
    return {
        **found,
        "commands": list(dict.fromkeys([*present["commands"], *found["commands"]])),
        "versions": {
            name: " and ".join(
                dict.fromkeys(page["versions"][name] for page in (present, found) if name in page["versions"])
            )
            for name in {**present["versions"], **found["versions"]}
        },
        "machine": "; ".join(dict.fromkeys([*present["machine"].split("; "), *found["machine"].split("; ")])),
        "date": max(present["date"], found["date"]),
        "seeds": sorted({*present["seeds"], *found["seeds"]}),
        "tables": list(tables.values()),
    }


def page_markdown(name: str, page: Mapping[str, Any]) -> str:
    """The Markdown of a page, in lines of at most 120 characters."""
    blocks = [
        f"# {page['title']}",
        f"<!-- Written by `python -m experiments.results` from {name}.json. Do not edit. -->",
        *map(_wrapped, page["text"]),
        _wrapped(_provenance(page)),
        *(["\n".join(_command_lines(page["commands"]))] if page["commands"] else []),
    ]
    for table in page["tables"]:
        spread = f"In parentheses: {table['spread']}." if table["spread"] else ""
        blocks.append(f"## {table['title']}")
        blocks += [_wrapped(text) for text in [f"{table['caption']} {spread}".strip()] if text]
        blocks += _tables(table["columns"], table["rows"])
        blocks += map(_wrapped, table["notes"])
    return "\n\n".join(blocks) + "\n"


def index_markdown(pages: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown of the list of all pages."""
    lines = ["# Results", "", "<!-- Written by `python -m experiments.results`. Do not edit. -->", ""]
    lines += _wrapped(
        "Each page is made of the JSON file of the same name. `python -m experiments.results --help` says how a page "
        "is made of the directories of new runs."
    ).splitlines()
    lines += ["", "| page | version | numbers |", "|---|---|---|"]
    for name, page in pages.items():
        origin = "transcribed" if page["transcribed"] else "read from result files"
        lines.append(f"| [{page['title']}]({name}.md) | {page['version']} | {origin} |")
    return "\n".join(lines) + "\n"


def embedded_tables(text: str, pages: Mapping[str, Mapping[str, Any]]) -> Iterator[Embedded]:
    """The generated tables of a document: those under ``<!-- results/<page>: <measure>, <measure> -->``.

    A marker takes the first table of a page and shows these measures of it. Raises ValueError for a page or a measure
    that there is not, and for more measures than fit into a line.
    """
    for match in _MARKER.finditer(text):
        marker = match[0].split("\n")[0]
        if match["page"] not in pages:
            raise ValueError(f"{marker}: expected one of the pages {', '.join(pages)}")
        table = pages[match["page"]]["tables"][0]
        columns = {column["measure"]: column for column in table["columns"]}
        chosen = [measure.strip() for measure in match["measures"].split(",")]
        if unknown := [measure for measure in chosen if measure not in columns]:
            raise ValueError(f"{marker}: {unknown[0]!r} is no column, expected some of {', '.join(columns)}")
        parts = _tables([columns[measure] for measure in chosen], table["rows"])
        if len(parts) > 1:
            raise ValueError(f"{marker}: expected fewer measures, which fit into lines of {WIDTH} characters")
        yield Embedded(marker, match[0], f"{marker}\n{parts[0]}\n")


def cell(value: Any, digits: int | str, measure: str = "") -> str:
    """A measure as text; an interval is cut to the range of its measure."""
    if value is None or isinstance(value, str):
        return value or MISSING
    if isinstance(value, list):
        return " / ".join(cell(part, digits, measure) for part in value)
    if not isinstance(value, Mapping):
        return _number(value, digits)
    if value["mean"] is None:
        return MISSING
    if value["low"] is None:
        return _number(value["mean"], digits)
    lowest, highest = RANGES.get(measure, (-math.inf, math.inf))
    low, high = max(value["low"], lowest), min(value["high"], highest)
    to = "-" if low >= 0.0 else " to "
    return f"{_number(value['mean'], digits)} ({_number(low, digits)}{to}{_number(high, digits)})"


def _number(value: float, digits: int | str) -> str:
    if isinstance(digits, int):
        return f"{value:,.{digits}f}"
    # To three digits, in the largest unit of which there is one at least.
    size, unit = next((unit for unit in reversed(_UNITS[digits]) if value >= 0.9995 * unit[0]), _UNITS[digits][0])
    return f"{value / size:.3g} {unit}"


def _provenance(page: Mapping[str, Any]) -> str:
    plural = "s" if len(page["seeds"]) > 1 else ""
    seeds = f", seed{plural} {_listed(page['seeds'])}" if page["seeds"] else ""
    libraries = ", ".join(f"{name} {version}" for name, version in page["versions"].items())
    measured = f"Measured with version {page['version']} on {page['date']}{seeds}. Machine: {page['machine']}."
    measured += f" Libraries: {libraries}." if libraries else ""
    if page["transcribed"]:
        measured += (
            f" The numbers are transcribed from {page['transcribed']}: the result files of these commands were not "
            "kept. A new run of the commands and `python -m experiments.results` replace them."
        )
    return measured


def _listed(values: Sequence[Any]) -> str:
    return " and ".join(filter(None, (", ".join(map(str, values[:-1])), str(values[-1]))))


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def _command_lines(commands: Sequence[str]) -> list[str]:
    lines = []
    for command in commands:
        parts = textwrap.wrap(command, WIDTH - 8, break_long_words=False, break_on_hyphens=False)
        lines += [f"    {'  ' if place else ''}{part} \\" for place, part in enumerate(parts)]
        lines[-1] = lines[-1].removesuffix(" \\")
    return lines


def _tables(columns: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table in as few parts as possible, of similar width, each with the names of the rows."""
    names = ["", *(row["name"] for row in rows)]
    filled = [[column["title"], *(_column_cell(column, row) for row in rows)] for column in columns]
    fewest = len(_packed(names, filled, WIDTH))
    width = bisect.bisect_left(range(WIDTH), True, key=lambda width: len(_packed(names, filled, width)) == fewest)
    return ["\n".join(_lines([names, *part])) for part in _packed(names, filled, width)]


def _packed(names: list[str], columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """The columns in groups that fit into lines of this width beside the names, at least one in each."""
    parts: list[list[list[str]]] = [[]]
    for column in columns:
        if parts[-1] and max(map(len, _lines([names, *parts[-1], column]))) > width:
            parts.append([])
        parts[-1].append(column)
    return parts


def _lines(columns: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in zip(*columns, strict=True)]
    return [lines[0].replace("|  |", "| |"), "|---" * len(columns) + "|", *lines[1:]]


def _column_cell(column: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    # What a verdict judges is named by its row.
    measure = row.get("measure", "") if column["measure"] == "measured" else column["measure"]
    shown = cell(row[column["measure"]], column["digits"], measure)
    if "baseline" not in column:
        return shown
    baseline = row[column["baseline"]]
    # The interval of a baseline is in the JSON.
    mean = baseline["mean"] if isinstance(baseline, Mapping) else baseline
    return f"{shown} / {cell(mean, column['digits'], column['baseline'])}"
