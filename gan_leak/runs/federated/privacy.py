"""The promise of a run's defense over all rounds and after each round, and the noise that a target needs.

A promise holds for every participant with records except an adversary that attacks: it also trains on fakes, and it
knows its own records. Participants differ in the number of their records. The promise is that of the worst participant,
and names it. It holds against every observer of the uploads. It does not cover the losses and norms in metrics.jsonl,
which are computed without noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from gan_leak.collaboration.schedule import draw_cohort
from gan_leak.config import RunConfig
from gan_leak.defenses import claim_of, parse_composition
from gan_leak.defenses.contract import Exposure, Promise
from gan_leak.defenses.promises import NOTHING_COVERED
from gan_leak.runs.federated.setup import AttackData, build_experiment
from gan_leak.settings import replace, traced_values
from gan_leak.types import Array

_ROUNDS_DRAWN_TOGETHER = 256

# Called after each round with its cohort, None for all participants; see ``privacy_meter``.
PrivacyMeter = Callable[[np.ndarray | None], dict[str, float | None]]


class PrivacyPlan(NamedTuple):
    """The planned defense of a run.

    config: the settings, where the noise that meets ``target_epsilon`` replaces the target. sizes: records of each
    participant. coordinates: shared parameters, 0 if no defense counts them. target_epsilon: as given, 0 = none.
    """

    config: RunConfig
    sizes: tuple[int, ...]
    coordinates: int
    target_epsilon: float


def plan_privacy(config: RunConfig, data: AttackData) -> PrivacyPlan:
    """Plan the defense of a run, and solve for the noise if ``target_epsilon`` is set.

    Raises ValueError if no noise meets the target, or if there is no participant to protect.
    """
    return solve_for_noise(PrivacyPlan(config, *counts_for_privacy(config, data), config.defense.target_epsilon))


def counts_for_privacy(config: RunConfig, data: AttackData) -> tuple[tuple[int, ...], int]:
    """The records of each participant, and the number of shared parameters (0 if the claim does not count them)."""
    sizes = tuple(np.asarray(data.federation.sizes).tolist())
    claim = claim_of(config.defense.kind)
    if claim is None or not claim.counts_coordinates:
        return sizes, 0
    experiment = build_experiment(replace(config, target_epsilon=0.0), data)
    params = jax.eval_shape(experiment.classifier.init, jax.random.key(0))
    return sizes, sum(leaf.size for leaf in jax.tree.leaves(params))


def solve_for_noise(plan: PrivacyPlan) -> PrivacyPlan:
    """The plan in whose configuration the noise, to four digits, replaces the target epsilon."""
    target, claim = plan.config.defense.target_epsilon, claim_of(plan.config.defense.kind)
    if not target or claim is None:
        return plan
    if not _protected(plan):
        raise ValueError(f"target_epsilon={target}: expected a participant with records other than the adversary")
    solved = claim.solve(_exposure(plan, _all_rounds(plan)), target)
    return _changed(plan, **{"target_epsilon": 0.0, claim.solved_for: solved})


def promise_of(plan: PrivacyPlan, rounds: np.ndarray | None = None) -> Promise | None:
    """The promise over the whole planned run; None without a claim.

    rounds: in how many rounds each participant took part [P]; None counts all rounds for all participants, since a
    participant may be drawn for every cohort.
    """
    claim = claim_of(plan.config.defense.kind)
    return None if claim is None else claim.promise(_exposure(plan, _all_rounds(plan) if rounds is None else rounds))


def privacy_note(plan: PrivacyPlan, releases: float) -> str:
    """The promise over the whole planned run in a sentence, empty without a claim. releases: number in one round."""
    claim, promise = claim_of(plan.config.defense.kind), promise_of(plan)
    return "" if claim is None or promise is None else claim.note(_exposure(plan, _all_rounds(plan)), promise, releases)


def participations(config: RunConfig, key: Array, participants: int, rounds: int) -> np.ndarray:
    """The number of rounds, of the first ``rounds``, in which each participant takes part [P]. key: of the cohorts."""
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
    """Build ``spend(cohort)``, which is called after each round and returns the privacy loss of the run so far.

    taken: in how many rounds each participant took part before [P]. The result holds epsilon and delta, the worst
    participant, and in how many rounds it took part. Cohorts do not depend on records, so that the epsilon holds for
    the rounds so far.
    """
    counts = np.array(taken)

    def spend(cohort: np.ndarray | None) -> dict[str, float | None]:
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
    """The promise over the whole planned run as strict JSON, None for an infinite epsilon; empty without a defense.

    ``without_promise`` names the defenses without any claim, and ``secrecy`` holds the claims of those that hide
    values. Without another claim, these are the only fields.
    """
    kind, promise = plan.config.defense.kind, promise_of(plan)
    claim, chosen = claim_of(kind), parse_composition(kind)
    silent = ", ".join(defense.name for defense in chosen if defense.claim is None and defense.secrecy is None)
    hiding = [defense.secrecy._asdict() for defense in chosen if defense.secrecy is not None]
    named: dict[str, Any] = {
        **({"without_promise": silent} if silent else {}),
        **({"secrecy": hiding} if hiding else {}),
    }
    if promise is None or claim is None:
        return named
    loss = promise.loss
    return {
        "mechanism": claim.mechanism,
        "epsilon": finite_or_none(loss.epsilon),
        "delta": loss.delta,
        "unit": loss.unit,
        "neighboring_relation": loss.neighboring_relation,
        "bound": claim.sensitivity,
        "noise_added_by": claim.noise_added_by,
        "against": claim.against,
        "total": claim.total,
        "accountant": loss.method,
        "second_bound_on_epsilon": None if loss.cross_check is None else finite_or_none(loss.cross_check),
        "covers": claim.covers if promise.participant is not None else NOTHING_COVERED,
        "worst_participant": promise.participant,
        "records": None if promise.participant is None else plan.sizes[promise.participant],
        "rounds": promise.rounds,
        "target_epsilon": plan.target_epsilon or None,
        **claim.details(_exposure(plan, _all_rounds(plan)), promise),
        **named,
    }


def finite_or_none(value: float) -> float | None:
    """A number as strict JSON; None if it is not finite."""
    return float(value) if math.isfinite(value) else None


def _exposure(plan: PrivacyPlan, rounds: np.ndarray) -> Exposure:
    config = plan.config
    return Exposure(
        plan.sizes,
        tuple(_protected(plan)),
        rounds,
        config.federation.rounds,
        config.federation.batch_size,
        config.federation.local_epochs,
        plan.coordinates,
        config.defense.delta,
        traced_values(config),
    )


def _protected(plan: PrivacyPlan) -> list[int]:
    attacker = plan.config.attack.adversary if plan.config.attack.kind != "none" else None
    return [index for index, size in enumerate(plan.sizes) if size and index != attacker]


def _changed(plan: PrivacyPlan, **fields: float) -> PrivacyPlan:
    return plan._replace(config=replace(plan.config, **fields))


def _all_rounds(plan: PrivacyPlan) -> np.ndarray:
    return np.full(len(plan.sizes), plan.config.federation.rounds)
