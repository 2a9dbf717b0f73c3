"""The settings of a run that decide what is measured, and when."""

from __future__ import annotations

import dataclasses

from gan_leak.settings import at_least, option


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Interval of the measurements of leakage, and number of reconstructions in each."""

    interval: int = option(
        20,
        "Rounds between measurements of leakage.",
        bounds=at_least(1),
        kind="host",
        effect="observation",
        name="evaluation_interval",
    )
    samples: int = option(
        500,
        "Reconstructions drawn for one measurement of leakage.",
        bounds=at_least(2),
        kind="host",
        effect="observation",
        name="evaluation_samples",
    )
    fail_if_not_measurable: bool = option(
        False,
        "Exit with status 3 if the leakage score cannot be measured, as with very few private images; a single run "
        "exits before it trains.",
        kind="host",
        effect="call",
        later=True,
    )
