"""Criteria of a reproduction: they are written before the run and evaluated on measures over several seeds.

A criterion is a text such as

    leakage_score.low > 0.1 and judge_accuracy.mean >= 0.5 and leakage_score.low > passive.leakage_score.high

A report shows it unchanged. ``metric.mean``, ``metric.low`` and ``metric.high`` are numbers of the judged row;
``row.metric.mean`` and so on are numbers of another row. They are connected by ``and``, ``or``, ``not``, comparisons,
``+ - *`` and numbers. No part of a criterion is executed as Python.
"""

from __future__ import annotations

import ast
import enum
import keyword
import math
import operator
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from scipy.special import stdtrit

STATISTICS = ("mean", "low", "high")

# The range of each metric. An interval may reach beyond it: reports cut it at the range, and verdicts use it uncut,
# since a lower end below 0 means too few seeds.
RANGES: Mapping[str, tuple[float, float]] = {
    "leakage_score": (0.0, 1.0),
    "late_leakage_score": (0.0, 1.0),
    "readable_share": (0.0, 1.0),
    "judge_accuracy": (0.0, 1.0),
    "model_accuracy": (0.0, 1.0),
    "nearest_neighbour_share": (0.0, 1.0),
    "coverage": (0.0, 1.0),
    "l1_to_nearest": (0.0, 2.0),
    "ssim_to_nearest": (-1.0, 1.0),
    "diversity": (0.0, math.inf),
    **dict.fromkeys(
        (f"{role}{name}" for role in ("", "control_") for name in ("recovered", "label_right", "identified")),
        (0.0, 1.0),
    ),
    **dict.fromkeys(("class_recovered", "blank_recovered"), (0.0, 1.0)),
    **dict.fromkeys(
        ("re_identified", "control_re_identified", "class_re_identified", "re_identified_of_others"), (0.0, 1.0)
    ),
    **dict.fromkeys(
        ("ssim", "control_ssim", "class_ssim", "blank_ssim", "ssim_by_range", "ssim_of_others", "published_ssim"),
        (-1.0, 1.0),
    ),
    **dict.fromkeys(
        (
            f"{space}client_{name}"
            for space in ("", "embedding_")
            for name in ("identified", "identified_pooled", "auc")
        ),
        (0.0, 1.0),
    ),
    **dict.fromkeys(("as_another_client", "as_outsider", "category_accuracy", "source_accuracy", "linked"), (0.0, 1.0)),
}

# Each level of nesting needs a character, so a text of this length is never too deep to evaluate.
_LONGEST_TEXT = 700
_LEAST_DIGITS = 3
_MOST_DIGITS = 17

_COMPARISONS: Mapping[type[ast.cmpop], tuple[str, Callable[[float, float], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_ARITHMETIC: Mapping[type[ast.operator], tuple[str, Callable[[float, float], float]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
}
_SIGNS: Mapping[type[ast.unaryop], tuple[str, Callable[[float], float]]] = {
    ast.UAdd: ("+", operator.pos),
    ast.USub: ("-", operator.neg),
}

Lookup: TypeAlias = Mapping[str, float | None]


class Verdict(enum.StrEnum):
    """The verdict on a claim; it equals its text, and JSON holds the text."""

    REPRODUCED = "reproduced"
    PARTLY = "partly"
    NOT_REPRODUCED = "not reproduced"
    NOT_MEASURABLE = "not measurable"


class Interval(NamedTuple):
    """A metric over seeds or victims: mean, ends of the 95% interval, and the value of each, NaN if it has none."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Criterion:
    """A parsed criterion: its text, the names in it, and the syntax tree for the evaluation."""

    text: str
    names: tuple[str, ...] = field(compare=False)
    tree: ast.expr = field(compare=False, repr=False)


class Reason(NamedTuple):
    """A comparison with measured numbers: its text, which ends in yes or no, and whether it holds."""

    text: str
    holds: bool


def summarise(values: Iterable[float | None]) -> Interval:
    """Return the mean over seeds and its two-sided 95% Student-t interval.

    None, NaN and infinities are seeds without a number: they are NaN in ``values``, and the mean and the interval
    ignore them. One number gives a mean and no interval (NaN); no number gives neither. Equal numbers have an
    interval of width 0. The ends are not cut at the metric's range, see ``RANGES``.
    """
    seeds = tuple(_number_or_nan(value) for value in values)
    known = [value for value in seeds if not math.isnan(value)]
    if not known:
        return Interval(math.nan, math.nan, math.nan, seeds)
    mean = statistics.fmean(known)
    if len(known) == 1:
        return Interval(mean, math.nan, math.nan, seeds)
    half = float(stdtrit(len(known) - 1, 0.975)) * statistics.stdev(known) / math.sqrt(len(known))
    return Interval(mean, mean - half, mean + half, seeds)


def measurements(
    judged: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, float | None]:
    """Return the numbers for criteria by name: those of the judged row, and of the other rows.

    judged: by metric, ``Interval`` or a mapping with "mean", "low" and "high". others: the same for each row beside it.

    Raises ValueError if the name of a metric or a row cannot be written in a criterion.
    """
    found = {}
    for prefix, row in [("", judged), *((f"{name}.", row) for name, row in (others or {}).items())]:
        for metric, interval in row.items():
            for part in [*filter(None, [prefix[:-1]]), metric]:
                if not part.isidentifier() or keyword.iskeyword(part):
                    raise ValueError(
                        f"name={part!r}: expected letters, digits and underscores, to be used in a criterion"
                    )
            numbers = interval._asdict() if isinstance(interval, Interval) else interval
            found.update({f"{prefix}{metric}.{statistic}": numbers[statistic] for statistic in STATISTICS})
    return found


def parse_criterion(text: str) -> Criterion:
    """Read a criterion.

    Raises ValueError, in one line with the text and its wrong part, for anything but comparisons
    (``< <= > >=``, also chained) of sums, differences and products of numbers and names, joined by ``and``, ``or`` and
    ``not``.
    """
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"criterion of {len(text)} characters: expected at most {_LONGEST_TEXT}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        names: dict[str, None] = {}
        _check_truth(tree, names)
    except _RefusalError as refusal:
        raise ValueError(f"criterion={text!r}: {refusal}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise ValueError(f"criterion={text!r}: cannot be read, {reason}") from None
    return Criterion(text, tuple(names), tree)


def evaluate_criterion(criterion: Criterion, lookup: Lookup) -> bool:
    """Return whether the numbers meet the criterion.

    lookup: the numbers by name, see ``measurements``; None counts as NaN. A comparison with NaN does not hold, so a
    missing number does not support a claim. ``not`` reverses this, as in Python.

    Raises ValueError if a name in the criterion is missing, even if the outcome does not depend on it.
    """
    return _truth(criterion.tree, _known(criterion, lookup))


def explain(criterion: Criterion, lookup: Lookup) -> list[Reason]:
    """Put the measured numbers beside each comparison: "leakage_score.low 0.41 > 0.1: yes".

    All comparisons are listed in the order of the text; ``not`` is not applied to them. Numbers have at least three
    digits, and more if the answer would look wrong without them. Raises ValueError as ``evaluate_criterion`` does.
    """
    return _explained(criterion.tree, _known(criterion, lookup))


def reason(statement: str, holds: bool) -> Reason:
    """Return the reason for a statement: its text and the answer."""
    return Reason(f"{statement}: {'yes' if holds else 'no'}", holds)


def decide(reproduced_if: Criterion, partly_if: Criterion, lookup: Lookup) -> Verdict:
    """Return the verdict on a claim. Raises ValueError if a name in a criterion is missing."""
    reproduced, partly = (evaluate_criterion(criterion, lookup) for criterion in (reproduced_if, partly_if))
    if reproduced:
        return Verdict.REPRODUCED
    return Verdict.PARTLY if partly else Verdict.NOT_REPRODUCED


class _RefusalError(Exception):
    """The error for invalid parts of a criterion."""


def _check_truth(node: ast.expr, names: dict[str, None]) -> None:
    """Refuse nodes without a truth value, and collect the names in the order of their first use."""
    match node:
        case ast.BoolOp():
            for part in node.values:
                _check_truth(part, names)
        case ast.UnaryOp(op=ast.Not()):
            _check_truth(node.operand, names)
        case ast.Compare():
            for comparison in node.ops:
                if type(comparison) not in _COMPARISONS:
                    raise _RefusalError(f"{ast.unparse(node)!r}: expected a comparison by < <= > >=")
            for side in (node.left, *node.comparators):
                _check_number(side, names)
        case _:
            raise _RefusalError(f"{ast.unparse(node)!r} is no comparison: expected < <= > >=, joined by and, or, not")


def _check_number(node: ast.expr, names: dict[str, None]) -> None:
    match node:
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            _check_number(node.left, names)
            _check_number(node.right, names)
        case ast.UnaryOp() if type(node.op) in _SIGNS:
            _check_number(node.operand, names)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            if not math.isfinite(_as_float(value)):
                raise _RefusalError("a number is too large")
        case ast.Attribute() | ast.Name():
            names[_checked_name(node)] = None
        case _:
            raise _RefusalError(f"{ast.unparse(node)!r}: expected a number, a name, or + - * of them")


def _checked_name(node: ast.expr) -> str:
    name = ast.unparse(node)
    parts = name.split(".")
    # An attribute may belong to any expression: only dotted names pass.
    dotted = all(part.isidentifier() for part in parts)
    if not dotted or len(parts) not in (2, 3) or parts[-1] not in STATISTICS:
        ends = "|".join(STATISTICS)
        raise _RefusalError(f"{name!r}: expected a name as metric.{ends} or row.metric.{ends}")
    return name


def _known(criterion: Criterion, lookup: Lookup) -> dict[str, float]:
    for name in criterion.names:
        if name not in lookup:
            available = ", ".join(sorted(lookup)) or "nothing"
            raise ValueError(f"criterion={criterion.text!r}: {name!r} was not measured; there is {available}")
    return {name: math.nan if (value := lookup[name]) is None else float(value) for name in criterion.names}


def _truth(node: ast.expr, known: Mapping[str, float]) -> bool:
    match node:
        case ast.BoolOp():
            combine = all if isinstance(node.op, ast.And) else any
            return combine(_truth(part, known) for part in node.values)
        case ast.UnaryOp():
            return not _truth(node.operand, known)
    assert isinstance(node, ast.Compare)
    return _holds(node, [_value(side, known) for side in (node.left, *node.comparators)])


def _holds(node: ast.Compare, values: list[float]) -> bool:
    return all(_COMPARISONS[type(op)][1](values[at], values[at + 1]) for at, op in enumerate(node.ops))


def _value(node: ast.expr, known: Mapping[str, float]) -> float:
    match node:
        case ast.BinOp():
            return _ARITHMETIC[type(node.op)][1](_value(node.left, known), _value(node.right, known))
        case ast.UnaryOp():
            return _SIGNS[type(node.op)][1](_value(node.operand, known))
        case ast.Constant(value=int() | float() as value):
            return float(value)
    return known[ast.unparse(node)]


def _explained(node: ast.expr, known: Mapping[str, float]) -> list[Reason]:
    match node:
        case ast.BoolOp():
            return [reason for part in node.values for reason in _explained(part, known)]
        case ast.UnaryOp():
            return _explained(node.operand, known)
    assert isinstance(node, ast.Compare)
    return [_explained_comparison(node, known)]


def _explained_comparison(node: ast.Compare, known: Mapping[str, float]) -> Reason:
    sides = (node.left, *node.comparators)
    values = [_value(side, known) for side in sides]
    outcome = _holds(node, values)
    # 0.1004 > 0.1 must not be printed as 0.1 > 0.1: digits are added until the printed text agrees with the answer.
    digits = _LEAST_DIGITS
    while digits < _MOST_DIGITS and _holds(node, [_printed(value, digits) for value in values]) != outcome:
        digits += 1
    texts = [_with_values(side, known, digits) for side in sides]
    for at, comparison in enumerate(node.ops):
        texts[at + 1] = f"{_COMPARISONS[type(comparison)][0]} {texts[at + 1]}"
    return reason(" ".join(texts), outcome)


def _with_values(node: ast.expr, known: Mapping[str, float], digits: int) -> str:
    """Write one side of a comparison with the numbers after the names, and the result of a calculation."""
    text = _with_names(node, known, digits)
    if isinstance(node, ast.BinOp):
        text = text[1:-1]  # the parentheses around the whole
    unsigned = node
    while isinstance(unsigned, ast.UnaryOp):
        unsigned = unsigned.operand
    calculated = isinstance(node, ast.BinOp | ast.UnaryOp) and not isinstance(unsigned, ast.Constant)
    return f"({text} = {_shown(_value(node, known), digits)})" if calculated else text


def _with_names(node: ast.expr, known: Mapping[str, float], digits: int) -> str:
    match node:
        case ast.BinOp():
            sides = (_with_names(side, known, digits) for side in (node.left, node.right))
            return f"({f' {_ARITHMETIC[type(node.op)][0]} '.join(sides)})"
        case ast.UnaryOp():
            return f"{_SIGNS[type(node.op)][0]}{_with_names(node.operand, known, digits)}"
        case ast.Constant():
            return repr(node.value)
    name = ast.unparse(node)
    return f"{name} {_shown(known[name], digits)}"


def _shown(value: float, digits: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}g}"


def _printed(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _number_or_nan(value: float | None) -> float:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else math.nan
