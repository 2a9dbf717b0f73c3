"""The verdict on a claim: its criteria applied to a row of measures, with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.reproduction.claims import Claim
from gan_leak.evaluation.criteria import Reason, Verdict, decide, explain, measurements, reason


def judge(
    name: str,
    variant: str,
    claim: Claim,
    row: Mapping[str, Any],
    beside: Mapping[str, Mapping[str, Any]],
    *,
    measure: str | None = None,
) -> dict[str, Any]:
    """Judge a row by the criteria of a claim; returns the verdict in the format of ``check_results``.

    name, variant: the setting in the report, and the variant of the row. row: as in the results of a reproduction.
    beside: the rows for criteria by name; its controls are listed with the verdict. measure: the measure that the
    report shows instead of the leakage score, with ``control_<measure>`` of the same row as its control.

    A row with a diverged seed is not reproduced, since the other seeds would be a selection. A claim on a leakage score
    that cannot be measured, of this or another row, is not measurable. Raises ValueError if a number in a criterion was
    not measured.
    """
    verdict, reasons = _decide(claim, row, beside)
    shown = {"measure": measure, "control_measure": f"control_{measure}"} if measure else {}
    return {
        "name": name,
        "claim": claim.claim,
        "variant": variant,
        "verdict": str(verdict),
        "reproduced_if": claim.reproduced_if.text,
        "partly_if": claim.partly_if.text,
        "because": [reason.text for reason in reasons],
        "holds": [reason.holds for reason in reasons],
        "row": row["name"],
        "controls": [other["name"] for other in beside.values() if other["role"] == "control"],
        **shown,
    }


def _decide(
    claim: Claim, row: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]
) -> tuple[Verdict, list[Reason]]:
    lookup = measurements(row["metrics"], {name: other["metrics"] for name, other in beside.items()})
    verdict = decide(claim.reproduced_if, claim.partly_if, lookup)
    diverged = row.get("diverged", 0)
    if diverged:
        verdict = Verdict.NOT_REPRODUCED
    decisive = [claim.reproduced_if] if verdict is Verdict.REPRODUCED else [claim.reproduced_if, claim.partly_if]
    reasons = [one for criterion in decisive for one in explain(criterion, lookup)]
    if diverged:
        reasons.append(reason(f"no seed diverged, of {row['seeds']} did {diverged}", False))
    if unmeasured := _unmeasured(claim, row, beside):
        verdict = Verdict.NOT_MEASURABLE
        reasons.append(reason(f"leakage can be measured for {', '.join(unmeasured)}", False))
    return verdict, list(dict.fromkeys(reasons))


def _unmeasured(claim: Claim, row: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of compared rows whose leakage score has no interval because it is not measurable."""
    asked = [name.split(".") for name in claim.names]
    rows = {"": row, **beside}
    compared = dict.fromkeys("" if len(name) == 2 else name[0] for name in asked if "leakage_score" in name)
    return [
        rows[name]["name"]
        for name in compared
        if rows[name].get("not_measurable", 0) and rows[name]["metrics"]["leakage_score"]["low"] is None
    ]
