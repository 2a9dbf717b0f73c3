"""Criteria: they mean what Python would make of them, refuse all else, and intervals are those of Student."""

import json
import math
import operator
import types

import hypothesis.strategies as st
import pytest
import scipy.stats
from hypothesis import example, given

from gan_leak.evaluation.criteria import (
    RANGES,
    Interval,
    Verdict,
    decide,
    evaluate_criterion,
    explain,
    measurements,
    parse_criterion,
    summarise,
)

NAN = math.nan
NAMES = ("score.mean", "score.low", "score.high", "passive.score.high", "passive.judge.mean")
LOOKUP = {
    "score.mean": 0.5,
    "score.low": 0.41,
    "score.high": 0.59,
    "passive.score.high": 0.3,
    "passive.judge.mean": NAN,
}

values = st.one_of(st.floats(-10, 10), st.sampled_from([0.0, 0.5, 1.0, NAN, math.inf]))
numbers = st.recursive(
    st.sampled_from(NAMES) | st.floats(0, 5).map(repr) | st.integers(0, 9).map(str),
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from("+-*"), part).map(lambda three: f"({three[0]} {three[1]} {three[2]})"),
        st.tuples(st.sampled_from("+-"), part).map("".join),
    ),
    max_leaves=4,
)
comparisons = st.tuples(
    numbers, st.lists(st.tuples(st.sampled_from(["<", "<=", ">", ">="]), numbers), min_size=1, max_size=2)
).map(lambda parts: " ".join([parts[0], *(f"{sign} {side}" for sign, side in parts[1])]))
criteria = st.recursive(
    comparisons,
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from(["and", "or"]), part).map(lambda three: f"({' '.join(three)})"),
        part.map(lambda text: f"not ({text})"),
    ),
    max_leaves=4,
).filter(lambda text: len(text) < 700)


def python_value(text, lookup):
    """What Python itself makes of the text."""
    space = {"score": types.SimpleNamespace(), "passive": types.SimpleNamespace()}
    space["passive"].score, space["passive"].judge = types.SimpleNamespace(), types.SimpleNamespace()
    for name, value in lookup.items():
        *path, last = name.split(".")
        owner = space[path[0]] if len(path) == 1 else getattr(space[path[0]], path[1])
        setattr(owner, last, value)
    return eval(text, {"__builtins__": {}}, space)


def holds(text, lookup=LOOKUP):
    return evaluate_criterion(parse_criterion(text), lookup)


@given(criteria, st.tuples(*[values] * len(NAMES)))
def test_a_criterion_means_what_it_means_in_python(text, drawn):
    lookup = dict(zip(NAMES, drawn, strict=True))
    assert holds(text, lookup) is python_value(text, lookup)


@given(comparisons, st.tuples(*[values] * len(NAMES)))
def test_an_explanation_ends_in_the_answer(text, drawn):
    lookup = dict(zip(NAMES, drawn, strict=True))
    (reason,) = explain(parse_criterion(text), lookup)
    assert reason.holds is holds(text, lookup)
    assert reason.text.endswith(": yes" if reason.holds else ": no")


@given(st.sampled_from(["<", "<=", ">", ">="]), st.floats(0, 1), st.floats(0, 1))
@example(">", 0.1004, 0.1)
@example("<=", 0.09999999, 0.1)
def test_the_digits_of_an_explanation_agree_with_its_answer(sign, left, right):
    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[sign]
    (reason,) = explain(parse_criterion(f"a.mean {sign} b.mean"), {"a.mean": left, "b.mean": right})
    comparison, answer = reason.text.split(": ")
    _, shown_left, _, _, shown_right = comparison.split()
    assert compare(float(shown_left), float(shown_right)) is (answer == "yes") is compare(left, right)


def test_explanation_puts_numbers_beside_names():
    text = "score.low > 0.1 and not (score.mean - 2 * passive.score.high >= 0.05 or passive.judge.mean < 1)"
    assert explain(parse_criterion(text), LOOKUP) == [
        ("score.low 0.41 > 0.1: yes", True),
        ("(score.mean 0.5 - (2 * passive.score.high 0.3) = -0.1) >= 0.05: no", False),
        ("passive.judge.mean n/a < 1: no", False),
    ]
    assert explain(parse_criterion("0 < score.low <= -score.high"), LOOKUP) == [
        ("0 < score.low 0.41 <= (-score.high 0.59 = -0.59): no", False)
    ]


def test_what_was_not_measured_never_counts_in_favour():
    for sign in ("<", "<=", ">", ">="):
        assert not holds(f"passive.judge.mean {sign} 0")
        assert not holds(f"passive.judge.mean {sign} passive.judge.mean")
        assert not holds(f"score.low {sign} 0", {"score.low": None})


def test_an_unknown_name_lists_what_there_is():
    for function in (evaluate_criterion, explain):
        with pytest.raises(ValueError, match=r"'active\.score\.low' was not measured; there is a\.low, score\.low"):
            # The first half decides here; a spelling mistake in the second must not wait until it does not.
            function(parse_criterion("score.low > 0 or active.score.low > 0"), {"score.low": 1.0, "a.low": 0.0})
    with pytest.raises(ValueError, match="there is nothing"):
        holds("score.low > 0", {})


def test_names_are_told_in_the_order_of_their_use():
    assert parse_criterion("b.low > a.low and a.low > c.d.high").names == ("b.low", "a.low", "c.d.high")
    assert parse_criterion(" a.low > 1") != parse_criterion("a.low > 1")
    assert parse_criterion("a.low > 1") == parse_criterion("a.low > 1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "score.low",
        "True",
        "True > 0",
        "1 + 2",
        "score.low == 1",
        "score.low != 1",
        "score.low in passive.score.low",
        "score.low is 0.5",
        "score > 1",
        "score.median > 1",
        "a.b.score.low > 1",
        "score.low > 1 / 2",
        "score.low > 2 ** 2",
        "score.low > 1 if 1 > 0 else 2 > 1",
        "(score.low > 1) > 0",
        "score.low + (1 > 0) > 0",
        "not score.low",
        "~1 > 0",
        "score.low > 'text'",
        "score.low > None",
        "score.low > 1j",
        "score.low > 1e999",
        "score.low > " + "9" * 400,
        "score[0].low > 1",
        "score().low > 1",
        "__import__('os').system.low > 1",
        "(lambda: 1) > 0",
        "[x for x in ()] > 0",
        "(x := 1) > 0",
        "f'{score.low}' > 0",
        "score.low > 1; score.low > 2",
        "score.low > 1\nscore.low > 2",
        "score.low >",
        "score.low > 1\0",
        "(" * 300,
        "-" * 800 + "1 > 0",
    ],
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="criterion") as error:
        parse_criterion(text)
    assert "\n" not in str(error.value)


def test_nesting_as_deep_as_a_text_may_be_is_evaluated():
    text = "-" * 600 + "1 > 0"
    assert holds(text) is True
    assert explain(parse_criterion(text), {}) == [(text + ": yes", True)]


def test_verdicts():
    whole, part = parse_criterion("score.low > 0.4"), parse_criterion("score.mean > 0.4")
    lookup = {"score.low": 0.41, "score.mean": 0.5}
    assert decide(whole, part, lookup) == "reproduced"
    assert decide(whole, part, {**lookup, "score.low": 0.39}) == "partly"
    assert decide(whole, part, {"score.low": 0.1, "score.mean": None}) == "not reproduced"
    assert json.dumps(Verdict.PARTLY) == '"partly"'
    with pytest.raises(ValueError, match="was not measured"):
        decide(whole, part, {"score.low": 0.41})


def test_measurements_name_the_row_judged_and_others():
    plain = {"mean": 0.1, "low": None, "high": 0.2, "values": [0.1, None]}
    found = measurements({"score": Interval(0.5, 0.4, 0.6, (0.5,))}, {"passive": {"score": plain}})
    assert found == {
        "score.mean": 0.5,
        "score.low": 0.4,
        "score.high": 0.6,
        "passive.score.mean": 0.1,
        "passive.score.low": None,
        "passive.score.high": 0.2,
    }
    for judged, others in [({"by: pixels": plain}, {}), ({}, {"6 (a)": {"score": plain}}), ({"not": plain}, {})]:
        with pytest.raises(ValueError, match="expected letters, digits and underscores"):
            measurements(judged, others)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12))
def test_the_interval_is_that_of_student(drawn):
    found = summarise(drawn)
    scale = scipy.stats.sem(drawn)
    assert found.mean == pytest.approx(sum(drawn) / len(drawn), abs=1e-9)
    if len(set(drawn)) == 1:
        assert found.low == found.mean == found.high == drawn[0]
    else:
        low, high = scipy.stats.t.interval(0.95, len(drawn) - 1, loc=found.mean, scale=scale)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert found.values == tuple(drawn)


def test_a_known_interval():
    # t(0.975, 2) = 4.302653; the standard error of 1, 2, 3 is 1 / sqrt(3).
    found = summarise([1.0, 2.0, 3.0])
    assert found[:3] == pytest.approx((2.0, 2.0 - 4.302653 / math.sqrt(3), 2.0 + 4.302653 / math.sqrt(3)), abs=1e-6)


def test_few_seeds_have_no_interval_and_silent_ones_are_left_out():
    for nothing in ([], [None, NAN, math.inf]):
        assert all(math.isnan(number) for number in summarise(nothing)[:3])
    one = summarise([None, 0.25, -math.inf])
    assert one.mean == 0.25
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert [math.isnan(value) for value in one.values] == [True, False, True]
    assert summarise([0.1, None, 0.3])[:3] == summarise([0.1, 0.3])[:3]


def test_intervals_are_not_cut_at_the_range():
    found = summarise([0.0, 0.0, 0.2])
    assert found.low < 0.0 == RANGES["leakage_score"][0]
