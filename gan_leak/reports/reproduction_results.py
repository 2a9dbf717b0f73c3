"""The format of the results of a reproduction as JSON data, and its check."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from gan_leak.evaluation.criteria import STATISTICS, Verdict

FORMAT = 1
PAPER_VARIANT = "the paper's hyper-parameters"
NEAREST_VARIANT = "nearest setting that works"
ROLES = ("attack", "control", "reference")

_Check: TypeAlias = Callable[[Any, str], None]


def check_results(results: Any) -> None:
    """Check the results of a reproduction.

    Unknown keys are allowed: results may hold more than a report shows.

    Raises ValueError with one line that names the place, the value and what was expected there: for a missing key, a
    value of another type, an unknown role, verdict or format, two figures or two rows of one name, and a verdict
    about a row that its figure does not have.
    """
    _RESULTS(results, "results")
    _check_different([entry["figure"] for entry in results["figures"]], "results.figures", "figure")
    for place, entry in enumerate(results["figures"]):
        where = f"results.figures[{place}]"
        names = [row["name"] for row in entry.get("rows", ())]
        _check_different(names, f"{where}.rows", "name")
        for number, verdict in enumerate(entry.get("verdicts", ())):
            for name in (verdict["row"], *verdict.get("controls", ())):
                if name not in names:
                    raise ValueError(f"{where}.verdicts[{number}]: {name!r} is none of its rows, {names}")
            reasons, held = len(verdict["because"]), len(verdict.get("holds", verdict["because"]))
            if held != reasons:
                raise ValueError(f"{where}.verdicts[{number}].holds: {held} answers, expected {reasons}")


def _check_different(names: Sequence[str], where: str, key: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: {key}={name!r} occurs more than once")


def _a(kind: type | tuple[type, ...], expected: str) -> _Check:
    def check(value: Any, where: str) -> None:
        # Python counts True as a number, JSON does not.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{where}={value!r}: expected {expected}")

    return check


def _one_of(choices: Sequence[Any]) -> _Check:
    def check(value: Any, where: str) -> None:
        if value not in choices:
            raise ValueError(f"{where}={value!r}: expected one of {', '.join(map(str, choices))}")

    return check


def _list_of(part: _Check, length: int | None = None) -> _Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or length not in (None, len(value)):
            raise ValueError(f"{where}={value!r}: expected a list{f' of {length}' if length else ''}")
        for place, entry in enumerate(value):
            part(entry, f"{where}[{place}]")

    return check


def _mapping_of(part: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise ValueError(f"{where}={value!r}: expected a mapping from names")
        for name, entry in value.items():
            part(entry, f"{where}.{name}")

    return check


def _fields(required: Mapping[str, _Check], optional: Mapping[str, _Check] | None = None) -> _Check:
    def check(value: Any, where: str) -> None:
        _mapping_of(_anything)(value, where)
        for name, part in required.items():
            if name not in value:
                raise ValueError(f"{where}: {name!r} is missing, there is {', '.join(value) or 'nothing'}")
            part(value[name], f"{where}.{name}")
        for name, part in (optional or {}).items():
            if name in value:
                part(value[name], f"{where}.{name}")

    return check


def _anything(value: Any, where: str) -> None:
    del value, where


_text = _a(str, "a text")
_text_or_none = _a((str, type(None)), "a text or None")
_whole = _a(numbers.Integral, "a whole number")
_number = _a((numbers.Real, type(None)), "a number or None")
_truth = _one_of((True, False))

_METRIC = _fields({name: _number for name in STATISTICS}, {"values": _list_of(_number)})
_ROW = _fields(
    {"name": _text, "role": _one_of(ROLES), "metrics": _mapping_of(_METRIC)},
    {
        **{count: _number for count in ("rounds", "seeds", "diverged", "not_measurable")},
        "differences": _mapping_of(_list_of(_anything, 2)),
    },
)
_VERDICT = _fields(
    {
        "name": _text,
        "variant": _text,
        "verdict": _one_of(tuple(Verdict)),
        "reproduced_if": _text,
        "partly_if": _text,
        "because": _list_of(_text),
        "row": _text,
    },
    {
        "claim": _text,
        "holds": _list_of(_truth),
        "controls": _list_of(_text),
        "measure": _text,
        "control_measure": _text,
    },
)
_PRIVACY = _fields(
    {"name": _text, "mechanism": _text},
    {
        "epsilon_per_round": _number,
        "epsilon_total": _number,
        "delta": _number,
        "unit": _text_or_none,
        "note": _text_or_none,
    },
)
_FIGURE = _fields(
    {"figure": _text, "title": _text, "claim": _text},
    {
        "setup": _text,
        "seconds": _number,
        "verdicts": _list_of(_VERDICT),
        "rows": _list_of(_ROW),
        "privacy": _list_of(_PRIVACY),
        "notes": _list_of(_text),
        "error": _text_or_none,
    },
)
_RESULTS = _fields(
    {
        "format": _one_of((FORMAT,)),
        "version": _text,
        "scale": _text,
        "num_seeds": _whole,
        "command": _text,
        "environment": _mapping_of(_anything),
        "seconds": _number,
        "definitions": _mapping_of(_text),
        "judges": _mapping_of(_fields({"test_accuracy": _number, "test_images": _number})),
        "figures": _list_of(_FIGURE),
    }
)
