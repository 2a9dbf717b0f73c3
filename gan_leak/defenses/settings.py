"""The settings of the defenses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gan_leak.defenses.composition import claim_of, parse_composition
from gan_leak.defenses.contract import ROUND_STAGES
from gan_leak.defenses.registry import DEFENSES, in_stages
from gan_leak.settings import FLAT, Bounds, at_least, option, settings_of

_PROMISING = tuple(defense.name for defense in DEFENSES if defense.claim is not None)
_SOLVED_FOR = {defense.name: defense.claim.solved_for for defense in DEFENSES if defense.claim is not None}

# The hyperparameters of all defenses of the registry that act in a round.
DefenseHyperParameters: Any = dataclasses.make_dataclass(
    "DefenseHyperParameters",
    [
        (
            parameter.name,
            type(parameter.default),
            option(
                parameter.default,
                parameter.help,
                bounds=parameter.bounds,
                kind="traced",
                defenses=(defense.name,),
                solved_for=parameter.name == _SOLVED_FOR.get(defense.name),
                later=parameter.later,
            ),
        )
        for defense in in_stages(*ROUND_STAGES)
        for parameter in defense.hyperparameters
    ],
    frozen=True,
    # Workers are sent configurations, and pickle looks the class up in its module.
    namespace={"__module__": __name__},
)


@dataclasses.dataclass(frozen=True)
class DefenseConfig:
    """The defenses and their strengths."""

    kind: str = option(
        "none",
        "Defenses: 'none' or some of "
        f"{', '.join(defense.name for defense in in_stages(*ROUND_STAGES))}, joined by '+', or ',' except in sweeps. "
        "'dp_sgd' replaces local training (Abadi et al. 2016), 'sparse_vector' replaces the upload criterion (Shokri "
        "and Shmatikov 2015), 'secure_aggregation' the average at the server (Bonawitz et al. 2017). The others change "
        "the update, from left to right, before the selection.",
        check=parse_composition,
        name="defense",
    )
    hyperparameters: DefenseHyperParameters = dataclasses.field(default_factory=DefenseHyperParameters, metadata=FLAT)
    delta: float = option(
        1e-5,
        "DP-SGD: the delta of the reported epsilon, in the summary, report.html, config.json and metrics.jsonl "
        "(Abadi et al. 2016).",
        bounds=Bounds(0, 1, lowest_included=False),
        kind="host",
        defenses=_PROMISING,
    )
    target_epsilon: float = option(
        0.0,
        "Epsilon budget of a participant for the whole run. It decides, at delta, "
        f"{' or '.join(f'{parameter} ({name})' for name, parameter in _SOLVED_FOR.items())}, which must keep their "
        "defaults. 0 = no target.",
        bounds=at_least(0),
        kind="host",
        defenses=_PROMISING,
        later=True,
    )


def defense_hyperparameters(config: DefenseConfig) -> dict[str, float]:
    """The hyperparameters of the chosen defenses by name, for ``RoundHyperParameters.defense``."""
    chosen = parse_composition(config.kind)
    return {
        parameter.name: getattr(config.hyperparameters, parameter.name)
        for defense in chosen
        for parameter in defense.hyperparameters
    }


def check_defense(config: DefenseConfig, settings: Mapping[str, float]) -> None:
    """Raise ValueError for settings that exclude each other; settings: all traced settings of the run by name."""
    for defense in parse_composition(config.kind):
        defense.check(settings)
    if not config.target_epsilon:
        return
    claim = claim_of(config.kind)
    if claim is None:
        names = " or ".join(map(repr, sorted(_PROMISING)))
        raise ValueError(f"target_epsilon={config.target_epsilon}: expected with defense {names}, not {config.kind!r}")
    default, given = settings_of(DefenseHyperParameters)[claim.solved_for].default, settings[claim.solved_for]
    if given != default:
        raise ValueError(
            f"target_epsilon={config.target_epsilon}: expected {claim.solved_for} left at {default}, not {given}, "
            "since the target decides it"
        )
