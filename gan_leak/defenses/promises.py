"""The promises of DP-SGD and the sparse vector technique over a run, to the participant with the largest epsilon.

Computed on the host; nothing is traced. The mechanisms are those of ``gan_leak.defenses.accounting``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from gan_leak.defenses.accounting import (
    LEAST_NOISE_MULTIPLIER,
    PrivacyLoss,
    dp_sgd_epsilon,
    dp_sgd_schedule,
    noise_multiplier_for,
    sparse_vector_charged,
    sparse_vector_epsilon,
)
from gan_leak.defenses.contract import Exposure, Promise, no_promise

NOTHING_COVERED = "nothing: only the adversary owns records"
_epsilon_of = functools.lru_cache(maxsize=1024)(dp_sgd_epsilon)


def dp_sgd_promise(exposure: Exposure) -> Promise:
    """The largest epsilon of a protected participant under DP-SGD."""
    # Rounds run in float32, which may round the noise down.
    given = exposure.settings["noise_multiplier"]
    noise = min(given, float(np.float32(given)))
    costliest: dict[tuple[float, int], int] = {}
    for index in exposure.protected:
        probability, steps = dp_sgd_schedule(exposure.sizes[index], exposure.batch_size, exposure.local_epochs)
        costliest.setdefault((probability, steps * int(exposure.rounds[index])), index)
    if not costliest:
        return no_promise("record", exposure)
    loss, (probability, steps) = _worst(noise, _undominated(costliest), exposure.delta)
    index = costliest[probability, steps]
    return Promise(loss, index, int(exposure.rounds[index]), probability, steps)


def least_noise_multiplier(exposure: Exposure, target: float) -> float:
    """The noise multiplier of DP-SGD, to four digits, with which the promise is at most ``target``."""
    noise = 0.0
    # The participant with the largest epsilon may depend on the noise.
    worst = dp_sgd_promise(_with_settings(exposure, noise_multiplier=1.0))
    while noise == 0.0 or worst.loss.epsilon > target:
        assert worst.sampling_probability is not None
        assert worst.steps is not None
        wanted = noise_multiplier_for(target, exposure.delta, worst.sampling_probability, worst.steps)
        # The next number, if float32 rounds the noise down.
        noise = max(wanted, _four_digits(noise, 1))
        worst = dp_sgd_promise(_with_settings(exposure, noise_multiplier=noise))
    return noise


def dp_sgd_details(exposure: Exposure, promise: Promise) -> dict[str, str | float | None]:
    """The sampling of records, and the hyperparameters of DP-SGD."""
    return {
        "sampling": "Poisson",
        "sampling_probability": promise.sampling_probability,
        "steps": promise.steps,
        "noise_multiplier": exposure.settings["noise_multiplier"],
        "clipping_norm": exposure.settings["clipping_norm"],
    }


def dp_sgd_note(exposure: Exposure, promise: Promise, releases: float) -> str:
    """The details in a sentence."""
    if promise.sampling_probability is None or promise.steps is None:
        return f"Covers {NOTHING_COVERED}."
    return (
        f"Noise multiplier {exposure.settings['noise_multiplier']:g}, clipping norm "
        f"{exposure.settings['clipping_norm']:g}, sampling probability {promise.sampling_probability:.3g}, "
        f"{promise.steps:,} steps; by {promise.loss.method}, a second bound is {promise.loss.cross_check:.3g}."
    )


def sparse_vector_promise(exposure: Exposure) -> Promise:
    """The total of the protected participant with the most rounds."""
    if not exposure.protected:
        return no_promise("update", exposure)
    index = max(exposure.protected, key=lambda index: exposure.rounds[index])
    # Rounds run in float32, which may round the budget up.
    given = exposure.settings["epsilon_per_release"]
    budget, fraction = max(given, float(np.float32(given))), exposure.settings["upload_fraction"]
    loss = sparse_vector_epsilon(budget, fraction, exposure.coordinates, int(exposure.rounds[index]))
    return Promise(loss, index, int(exposure.rounds[index]))


def largest_release_budget(exposure: Exposure, target: float) -> float:
    """The budget of one release, to four digits, with which the promise is at most ``target``."""
    fraction = exposure.settings["upload_fraction"]
    releases = sparse_vector_epsilon(1.0, fraction, exposure.coordinates, exposure.planned_rounds).epsilon
    budget = float(f"{target / releases:.3e}")
    while sparse_vector_promise(_with_settings(exposure, epsilon_per_release=budget)).loss.epsilon > target:
        budget = _four_digits(budget, -1)
    return budget


def sparse_vector_details(exposure: Exposure, promise: Promise) -> dict[str, str | float | None]:
    """The number of releases, and the hyperparameters of the technique."""
    budget = exposure.settings["epsilon_per_release"]
    return {
        "sampling": "none",
        "sampling_probability": None,
        "steps": None,
        "uploads": promise.rounds,
        "most_releases_per_upload": _most_releases(exposure),
        "epsilon_per_release": budget if math.isfinite(budget) else None,
        "sensitivity": exposure.settings["sensitivity"],
    }


def sparse_vector_note(exposure: Exposure, promise: Promise, releases: float) -> str:
    """The details in a sentence; releases: the number made per round."""
    budget = exposure.settings["epsilon_per_release"]
    return (
        f"{budget:g} for each of at most {_most_releases(exposure):,} releases a round; "
        f"{sparse_vector_charged(budget, round(releases)):,.0f} charged a round for those made. Covers only values "
        "within the bound, as published."
    )


def _most_releases(exposure: Exposure) -> int:
    return int(sparse_vector_epsilon(1.0, exposure.settings["upload_fraction"], exposure.coordinates).epsilon)


def _with_settings(exposure: Exposure, **settings: float) -> Exposure:
    return exposure._replace(settings={**exposure.settings, **settings})


def _four_digits(value: float, step: int) -> float:
    """The value rounded to four digits, plus ``step`` units of the fourth digit."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{(round(value / unit) + step) * unit:.3e}")


def _undominated(schedules: Mapping[tuple[float, int], int]) -> list[tuple[float, int]]:
    """The schedules (probability, steps) that no other exceeds in both; epsilon grows with both."""
    kept: list[tuple[float, int]] = []
    for probability, steps in sorted(schedules, reverse=True):
        if not kept or steps > kept[-1][1]:
            kept.append((probability, steps))
    return kept


def _worst(noise: float, schedules: Sequence[tuple[float, int]], delta: float) -> tuple[PrivacyLoss, tuple[float, int]]:
    """The largest epsilon of all schedules, and its schedule.

    Renyi divergences bound each quickly, so few need the slower bound.
    """
    from gan_leak.defenses.privacy_loss import renyi_epsilon

    bounded = noise >= LEAST_NOISE_MULTIPLIER
    bounds = {
        (probability, steps): renyi_epsilon(noise, probability, steps, delta) if bounded and steps else float(steps)
        for probability, steps in schedules
    }
    found: list[tuple[PrivacyLoss, tuple[float, int]]] = []
    for schedule in sorted(bounds, key=lambda schedule: -bounds[schedule]):
        if found and bounds[schedule] <= max(loss.epsilon for loss, _ in found):
            break
        found.append((_epsilon_of(noise, *schedule, delta), schedule))
    return max(found, key=lambda entry: entry[0].epsilon)
