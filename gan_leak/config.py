"""The configuration of a run: the single source of flags, help texts and config.json.

Each part is defined in the package that it configures. ``gan_leak.settings`` describes the metadata of a setting and
all that is derived from it.
"""

from __future__ import annotations

import dataclasses

from gan_leak.attacks.insider.settings import AttackConfig
from gan_leak.collaboration.aggregation import AGGREGATORS
from gan_leak.collaboration.settings import FederationConfig, check_federation
from gan_leak.data.settings import DataConfig
from gan_leak.defenses.composition import aggregator_of, parse_composition
from gan_leak.defenses.contract import AGGREGATION, LOCAL_TRAINING
from gan_leak.defenses.settings import DefenseConfig, check_defense
from gan_leak.evaluation.settings import EvaluationConfig
from gan_leak.performance import PerformanceOptions
from gan_leak.settings import FLAT, SEEDS, at_least, check_values, make, option, traced_values


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One federated run with an inside adversary, from data to report."""

    seed: int = option(
        0, "Seed of everything random in the run.", bounds=SEEDS, kind="host", effect="chance", per_lane=True
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig, metadata=FLAT)
    attack: AttackConfig = dataclasses.field(default_factory=AttackConfig, metadata=FLAT)
    federation: FederationConfig = dataclasses.field(default_factory=FederationConfig, metadata=FLAT)
    defense: DefenseConfig = dataclasses.field(default_factory=DefenseConfig, metadata=FLAT)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig, metadata=FLAT)
    checkpoint_interval: int = option(
        10, "Rounds between checkpoints.", bounds=at_least(1), kind="host", effect="observation"
    )
    performance: PerformanceOptions = dataclasses.field(default_factory=PerformanceOptions)


def make_config(**settings: object) -> RunConfig:
    """The configuration with these settings, by the names of their flags, and defaults for the rest.

    Raises TypeError for an unknown setting. Values are not checked; see ``validate``.

    >>> make_config(rounds=5, attack="passive").federation.rounds
    5
    """
    return make(RunConfig, **settings)


def validate(config: RunConfig) -> None:
    """Check every value that can be checked without the data, whether or not it has an effect.

    Raises ValueError with the name, the value and the allowed values.
    """
    check_values(config)
    check_defense(config.defense, traced_values(config))
    check_federation(config.federation)
    _check_aggregation(config)
    _check_normalization(config)


def _check_normalization(config: RunConfig) -> None:
    """Raise ValueError for BatchNorm with a local training that computes the gradient of each record alone."""
    normalization, kind = config.federation.normalization, config.defense.kind
    if normalization != "none" and any(LOCAL_TRAINING in defense.stages for defense in parse_composition(kind)):
        raise ValueError(
            f"normalization={normalization!r}: expected 'none' with defense {kind!r}, for which a record's gradient "
            "must not depend on others"
        )


def _check_aggregation(config: RunConfig) -> None:
    """Raise ValueError for a defense of the aggregation that does not fit the federation."""
    kind, federation = config.defense.kind, config.federation
    chosen = parse_composition(kind)
    for defense in chosen:
        if AGGREGATION in defense.stages and defense.aggregation not in ("", federation.aggregation):
            raise ValueError(
                f"defense={kind!r}: expected with aggregation {defense.aggregation!r}, not {federation.aggregation!r}"
            )
    aggregator = aggregator_of(chosen, AGGREGATORS[federation.aggregation]())
    if federation.schedule != "synchronous" and not aggregator.sequential:
        raise ValueError(f"defense={kind!r}: expected with schedule 'synchronous', not {federation.schedule!r}")
