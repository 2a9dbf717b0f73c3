"""The verdict on a claim: its criteria, what overrules them, and the reasons that are given."""

import pytest

from experiments.reproduction.claims import Claim
from experiments.reproduction.verdicts import judge
from gan_leak.evaluation.criteria import parse_criterion
from gan_leak.reports.reproduction_results import NEAREST_VARIANT
from gan_leak.runs.federated.rows import interval


def rows_of(**scores):
    roles = {"row": "attack", "passive": "control", "undefended": "reference"}
    return [
        {"name": name, "role": roles[name], "metrics": {"leakage_score": interval(values)}, "seeds": len(values)}
        for name, values in scores.items()
    ]


CLAIM = Claim(
    "It works.",
    parse_criterion("leakage_score.low > passive.leakage_score.mean"),
    parse_criterion("leakage_score.mean > undefended.leakage_score.mean"),
    "",
)


@pytest.mark.parametrize(
    ("score", "verdict", "holds"),
    [(0.9, "reproduced", [True]), (0.4, "partly", [False, True]), (0.1, "not reproduced", [False, False])],
)
def test_the_reasons_are_those_that_decide(score, verdict, holds):
    """The criterion for partly says nothing more once the whole one is met."""
    row, passive, undefended = rows_of(row=[score] * 3, passive=[0.5] * 3, undefended=[0.2] * 3)
    found = judge("6", NEAREST_VARIANT, CLAIM, row, {"passive": passive, "undefended": undefended})
    assert (found["verdict"], found["holds"]) == (verdict, holds)
    assert [line.endswith(": yes") for line in found["because"]] == holds
    assert (found["row"], found["controls"]) == ("row", ["passive"])
    assert "measure" not in found


def test_another_measure_is_shown_with_its_control():
    row, passive, undefended = rows_of(row=[0.9] * 3, passive=[0.5] * 3, undefended=[0.2] * 3)
    beside = {"passive": passive, "undefended": undefended}
    found = judge("6", NEAREST_VARIANT, CLAIM, row, beside, measure="psnr")
    assert (found["measure"], found["control_measure"]) == ("psnr", "control_psnr")


def test_a_criterion_that_asks_for_a_row_that_there_is_not_is_refused():
    (row,) = rows_of(row=[0.9] * 3)
    with pytest.raises(ValueError, match=r"'passive\.leakage_score\.mean' was not measured"):
        judge("6", NEAREST_VARIANT, CLAIM, row, {})


def test_a_row_with_a_diverged_seed_is_not_reproduced():
    """However well the others did: what is left would be a choice."""
    metrics = {"leakage_score": interval([0.9, 0.8, None])}
    row = {"name": "row", "role": "attack", "metrics": metrics, "seeds": 3, "diverged": 1}
    claim = Claim("It works.", *[parse_criterion("leakage_score.mean >= 0.3")] * 2, "")
    verdict = judge("1", NEAREST_VARIANT, claim, row, {})
    assert verdict["verdict"] == "not reproduced"
    assert "no seed diverged, of 3 did 1: no" in verdict["because"]
    whole = {**row, "diverged": 0}
    assert judge("1", NEAREST_VARIANT, claim, whole, {})["verdict"] == "reproduced"


@pytest.mark.parametrize("lost", ["row", "passive"])
def test_a_claim_whose_leakage_cannot_be_measured_is_not_measurable(lost):
    """Whatever the criterion makes of missing numbers: neither reproduced nor not."""
    metrics = {name: {"leakage_score": interval([0.0] * 3)} for name in ("row", "passive")}
    counts = {name: {"seeds": 3, "diverged": 0, "not_measurable": 0} for name in metrics}
    metrics[lost], counts[lost]["not_measurable"] = {"leakage_score": interval([None] * 3)}, 3
    row, passive = (
        {"name": name, "role": role, "metrics": metrics[name], **counts[name]}
        for name, role in (("row", "attack"), ("passive", "control"))
    )
    text = "leakage_score.high < 0.1 and passive.leakage_score.high < 0.1"
    claim = Claim("Nothing leaks.", parse_criterion(text), parse_criterion("leakage_score.low < 0.1"), "")
    verdict = judge("12", NEAREST_VARIANT, claim, row, {"passive": passive})
    assert verdict["verdict"] == "not measurable"
    assert verdict["because"][-1] == f"leakage can be measured for {lost}: no"
    # A criterion that does not ask for what is missing is judged as ever.
    other = Claim("It learns.", *[parse_criterion("model_accuracy.low > 0.5")] * 2, "")
    learnt = row | {"metrics": {**row["metrics"], "model_accuracy": interval([0.9] * 3)}}
    assert judge("12", NEAREST_VARIANT, other, learnt, {"passive": passive})["verdict"] == "reproduced"
