"""Text of the privacy guarantee of a defense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Run directories of earlier versions lack them.
_WORDS = {
    "bound": "bound",
    "noise_added_by": "noise added by",
    "against": "protects against",
    "total": "total over the run",
}

_SECRECY = {
    "mechanism": "hidden by",
    "hides": "hidden",
    "against": "hidden from",
    "reveals": "not hidden",
    "broken_by": "broken by",
}


def privacy_summary(fields: Mapping[str, Any], records: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
    """The lines of a summary on the guarantees of the defenses, and on defenses without one; empty without a defense.

    fields: as in config.json, see ``gan_leak.runs.federated.privacy.privacy_fields``. records: one a round, as in
    metrics.jsonl; the last one has the epsilon spent.
    """
    silent = fields.get("without_promise")
    further = {"no promise by": f"{silent}, measured against attacks only"} if silent else {}
    for secrecy in fields.get("secrecy", ()):
        further |= {words: secrecy[name] for name, words in _SECRECY.items()}
    if "epsilon" not in fields:
        return further
    lines = {
        "epsilon": _epsilon_text(fields["epsilon"]),
        "delta": f"{fields['delta']:g}",
        "protected unit": f"{fields['unit']}, {fields['neighboring_relation']}",
        **{words: fields[name] for name, words in _WORDS.items() if name in fields},
    }
    if fields["worst_participant"] is None:
        lines["covered"] = fields["covers"]
    if fields["sampling"] == "Poisson":
        if fields["steps"] is not None:
            lines["sampling"] = f"Poisson, probability {fields['sampling_probability']:.3g}, {fields['steps']:,} steps"
        given, noise = "noise multiplier", fields["noise_multiplier"]
    else:
        lines["sampling"] = f"none, {fields['uploads']:,} uploads of at most {fields['most_releases_per_upload']:,}"
        given, noise = "epsilon per release", fields["epsilon_per_release"]
    second = fields["second_bound_on_epsilon"]
    lines["accountant"] = fields["accountant"] + ("" if second is None else f"; a second bound is {second:.4g}")
    solved = f", for target_epsilon={fields['target_epsilon']:g}" if fields["target_epsilon"] else ""
    lines[given] = ("infinite" if noise is None else f"{noise:g}") + solved
    last = records[-1].get("privacy") if records else None
    if last and last["epsilon"] != fields["epsilon"]:
        lines["epsilon spent"] = f"{_epsilon_text(last['epsilon'])}, by taking part in {last['rounds']:,} rounds"
    return lines | further


def _epsilon_text(epsilon: float | None) -> str:
    return "infinite, no guarantee" if epsilon is None else f"{_rounded_up(epsilon):g}"


def _rounded_up(value: float) -> float:
    """Four significant digits, rounded up: the shown epsilon must not be too small."""
    nearest = float(f"{value:.3e}")
    if nearest >= value:
        return nearest
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{(round(value / unit) + 1) * unit:.3e}")
