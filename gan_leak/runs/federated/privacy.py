"""What the defense of a run promises: over all of its rounds, after some of them, and with how much noise.

A promise holds for every participant with records except an adversary that attacks, which trains on fakes beside its
records and sees them anyway. Participants differ in the number of their records. The promise is the worst one, and
says whose it is. It holds against everybody who sees the uploads. It does not cover the losses and norms in
metrics.jsonl, which are computed without noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gan_leak.collaboration.schedule import draw_cohort
from gan_leak.config import RunConfig
from gan_leak.defenses import (
    PrivacyLoss,
    dp_sgd_epsilon,
    dp_sgd_schedule,
    noise_multiplier_for,
    sparse_vector_epsilon,
)
from gan_leak.defenses.accounting import LEAST_NOISE_MULTIPLIER
from gan_leak.runs.federated.setup import AttackData, build_experiment
from gan_leak.settings import replace
from gan_leak.types import Array

NOTHING_COVERED = "nothing: only the adversary owns records"
_COVERED = {
    "dp_sgd": "the uploads of every participant but an adversary that attacks; not the losses and norms in the metrics",
    "sparse_vector": "uploaded values within upload_bound, as published, of every participant but an adversary that "
    "attacks; not the losses and norms in the metrics",
}
MECHANISMS = {"dp_sgd": "DP-SGD", "sparse_vector": "sparse vector"}
_ROUNDS_DRAWN_TOGETHER = 256

# Called after each round with who took part in it, None for all; see ``privacy_meter``.
PrivacyMeter = Callable[[np.ndarray | None], dict[str, Any]]
_epsilon_of = functools.lru_cache(maxsize=1024)(dp_sgd_epsilon)


class PrivacyPlan(NamedTuple):
    """The defense of a run as planned.

    config: with the noise that ``target_epsilon`` asks for in the place of the target. sizes: records of each
    participant. coordinates: shared parameters, 0 where no defense counts them. target_epsilon: as given, 0 = none.
    """

    config: RunConfig
    sizes: tuple[int, ...]
    coordinates: int
    target_epsilon: float


class Promise(NamedTuple):
    """The worst promise to a participant that is protected.

    participant: whose it is, None where nobody is protected; then epsilon is infinite. rounds: in how many of them it
    takes part. sampling_probability, steps: of DP-SGD, else None.
    """

    loss: PrivacyLoss
    participant: int | None
    rounds: int
    sampling_probability: float | None = None
    steps: int | None = None


def plan_privacy(config: RunConfig, data: AttackData) -> PrivacyPlan:
    """Solves for the noise that ``target_epsilon`` asks for, if it does.

    Raises ValueError where no noise can meet the target, or nobody is protected by it.
    """
    return settle(PrivacyPlan(config, *counts_for_privacy(config, data), config.defense.target_epsilon))


def counts_for_privacy(config: RunConfig, data: AttackData) -> tuple[tuple[int, ...], int]:
    """The records of each participant, and the parameters that they share where the defense counts them, else 0."""
    sizes = tuple(np.asarray(data.federation.sizes).tolist())
    if config.defense.kind != "sparse_vector":
        return sizes, 0
    experiment = build_experiment(replace(config, target_epsilon=0.0), data)
    params = jax.eval_shape(experiment.classifier.init, jax.random.key(0))
    return sizes, sum(leaf.size for leaf in jax.tree.leaves(params))


def settle(plan: PrivacyPlan) -> PrivacyPlan:
    """The plan with the noise for its target, to four digits, in the place of the target in its configuration."""
    target = plan.config.defense.target_epsilon
    if not target:
        return plan
    if not _protected(plan):
        raise ValueError(f"target_epsilon={target}: expected a participant with records other than the adversary")
    solve = _with_release_budget if plan.config.defense.kind == "sparse_vector" else _with_least_noise
    return solve(_changed(plan, target_epsilon=0.0), target)


def promise_of(plan: PrivacyPlan, rounds: np.ndarray | None = None) -> Promise | None:
    """The promise over the whole planned run, or for the ``rounds`` [P] that each took part in; None without a defense.

    Where cohorts are drawn, a participant may be drawn for every round, so that a plan counts all rounds for all.
    """
    config = plan.config
    taken = _all_rounds(plan) if rounds is None else rounds
    if config.defense.kind == "dp_sgd":
        return _dp_sgd_promise(plan, taken)
    if config.defense.kind == "sparse_vector":
        return _sparse_vector_promise(plan, taken)
    return None


def participations(config: RunConfig, key: Array, participants: int, rounds: int) -> np.ndarray:
    """In how many of the first ``rounds`` rounds each participant takes part -> [P]; key: of the cohorts."""
    if not config.federation.participants_per_round:
        return np.full(participants, rounds)

    def draw(round: Array) -> Array:
        return draw_cohort(jax.random.fold_in(key, round), participants, config.federation.participants_per_round)

    counts = np.zeros(participants, int)
    drawn = jax.jit(jax.vmap(draw))
    for start in range(0, rounds, _ROUNDS_DRAWN_TOGETHER):
        cohorts = drawn(np.arange(start, start + _ROUNDS_DRAWN_TOGETHER))[: rounds - start]
        counts += np.bincount(np.asarray(cohorts).ravel(), minlength=participants)
    return counts


def privacy_meter(plan: PrivacyPlan, taken: np.ndarray) -> PrivacyMeter:
    """Builds ``spend(cohort)``: called after each round with who took part in it, what the run has cost so far.

    taken: in how many rounds each took part before [P]. The result holds epsilon and delta, of which participant they
    are, and in how many rounds so far that one took part. Who takes part does not depend on anybody's records, so that
    the epsilon holds for the rounds that there were.
    """
    counts = np.array(taken)

    def spend(cohort: np.ndarray | None) -> dict[str, Any]:
        counts[slice(None) if cohort is None else cohort] += 1
        spent = promise_of(plan, counts)
        assert spent is not None
        return {
            "epsilon": finite_or_none(spent.loss.epsilon),
            "delta": spent.loss.delta,
            "participant": spent.participant,
            "rounds": spent.rounds,
        }

    return spend


def privacy_fields(plan: PrivacyPlan) -> dict[str, Any]:
    """The promise over the whole planned run as strict JSON, None for an infinite epsilon; empty without a defense."""
    config, promise = plan.config, promise_of(plan)
    if promise is None:
        return {}
    loss = promise.loss
    fields = {
        "mechanism": MECHANISMS[config.defense.kind],
        "epsilon": finite_or_none(loss.epsilon),
        "delta": loss.delta,
        "unit": loss.unit,
        "neighboring_relation": loss.neighbouring_relation,
        "accountant": loss.method,
        "second_bound_on_epsilon": None if loss.cross_check is None else finite_or_none(loss.cross_check),
        "covers": _COVERED[config.defense.kind] if promise.participant is not None else NOTHING_COVERED,
        "worst_participant": promise.participant,
        "records": None if promise.participant is None else plan.sizes[promise.participant],
        "rounds": promise.rounds,
        "target_epsilon": plan.target_epsilon or None,
    }
    if config.defense.kind == "dp_sgd":
        return {
            **fields,
            "sampling": "Poisson",
            "sampling_probability": promise.sampling_probability,
            "steps": promise.steps,
            "noise_multiplier": config.defense.noise_multiplier,
            "clipping_norm": config.defense.clipping_norm,
        }
    per_round = sparse_vector_epsilon(1.0, config.federation.upload_fraction, plan.coordinates).epsilon
    return {
        **fields,
        "sampling": "none",
        "sampling_probability": None,
        "steps": None,
        "uploads": promise.rounds,
        "most_releases_per_upload": int(per_round),
        "epsilon_per_release": finite_or_none(config.defense.epsilon_per_release),
        "sensitivity": config.defense.sensitivity,
    }


def finite_or_none(value: float) -> float | None:
    """A number as strict JSON: None where it is infinite."""
    return float(value) if math.isfinite(value) else None


def _four_digits(value: float, step: int) -> float:
    """A number that lies ``step`` units of the fourth significant digit from a value rounded to four digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{(round(value / unit) + step) * unit:.3e}")


def _protected(plan: PrivacyPlan) -> list[int]:
    attacker = plan.config.attack.adversary if plan.config.attack.kind != "none" else None
    return [index for index, size in enumerate(plan.sizes) if size and index != attacker]


def _dp_sgd_promise(plan: PrivacyPlan, rounds: np.ndarray) -> Promise:
    config = plan.config
    # Rounds run in float32, where the noise may be a little less.
    noise = min(config.defense.noise_multiplier, float(np.float32(config.defense.noise_multiplier)))
    costliest: dict[tuple[float, int], int] = {}
    for index in _protected(plan):
        probability, steps = dp_sgd_schedule(
            plan.sizes[index], config.federation.batch_size, config.federation.local_epochs
        )
        costliest.setdefault((probability, steps * int(rounds[index])), index)
    if not costliest:
        return _no_promise("record", config)
    loss, (probability, steps) = _worst(noise, _undominated(costliest), config.defense.delta)
    index = costliest[probability, steps]
    return Promise(loss, index, int(rounds[index]), probability, steps)


def _no_promise(unit: str, config: RunConfig) -> Promise:
    # Where nobody is protected an epsilon of 0 would be true, and read as a strong promise.
    return Promise(PrivacyLoss(math.inf, config.defense.delta, unit, "none", "none"), None, config.federation.rounds)


def _undominated(schedules: Mapping[tuple[float, int], int]) -> list[tuple[float, int]]:
    """The schedules (probability, steps) that no other exceeds in both, in which epsilon grows."""
    kept: list[tuple[float, int]] = []
    for probability, steps in sorted(schedules, reverse=True):
        if not kept or steps > kept[-1][1]:
            kept.append((probability, steps))
    return kept


def _worst(noise: float, schedules: Sequence[tuple[float, int]], delta: float) -> tuple[PrivacyLoss, tuple[float, int]]:
    """The largest epsilon of all schedules and the schedule that it is of.

    Renyi divergences bound each in a moment, so that few need more than that.
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


def _with_least_noise(plan: PrivacyPlan, target: float) -> PrivacyPlan:
    noise = 0.0
    # Who is the worst off depends a little on the noise.
    worst = _dp_sgd_promise(_changed(plan, noise_multiplier=1.0), _all_rounds(plan))
    while noise == 0.0 or worst.loss.epsilon > target:
        assert worst.sampling_probability is not None
        assert worst.steps is not None
        wanted = noise_multiplier_for(target, plan.config.defense.delta, worst.sampling_probability, worst.steps)
        # The next number where float32 makes the noise a little less.
        noise = max(wanted, _four_digits(noise, 1))
        plan = _changed(plan, noise_multiplier=noise)
        worst = _dp_sgd_promise(plan, _all_rounds(plan))
    return plan


def _sparse_vector_promise(plan: PrivacyPlan, rounds: np.ndarray) -> Promise:
    config, protected = plan.config, _protected(plan)
    if not protected:
        return _no_promise("update", config)
    index = max(protected, key=lambda index: rounds[index])
    # Rounds run in float32, where the budget may be a little more.
    budget = max(config.defense.epsilon_per_release, float(np.float32(config.defense.epsilon_per_release)))
    loss = sparse_vector_epsilon(budget, config.federation.upload_fraction, plan.coordinates, int(rounds[index]))
    return Promise(loss, index, int(rounds[index]))


def _with_release_budget(plan: PrivacyPlan, target: float) -> PrivacyPlan:
    config = plan.config
    releases = sparse_vector_epsilon(
        1.0, config.federation.upload_fraction, plan.coordinates, config.federation.rounds
    ).epsilon
    budget = float(f"{target / releases:.3e}")
    while _sparse_vector_promise(_changed(plan, epsilon_per_release=budget), _all_rounds(plan)).loss.epsilon > target:
        budget = _four_digits(budget, -1)
    return _changed(plan, epsilon_per_release=budget)


def _changed(plan: PrivacyPlan, **fields: Any) -> PrivacyPlan:
    return plan._replace(config=replace(plan.config, **fields))


def _all_rounds(plan: PrivacyPlan) -> np.ndarray:
    return np.full(len(plan.sizes), plan.config.federation.rounds)
