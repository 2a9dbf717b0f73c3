"""Rows of a reproduction from batches of runs: numbers with intervals, and promises of privacy."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gan_leak.config import RunConfig
from gan_leak.evaluation.criteria import summarise
from gan_leak.evaluation.leakage import Leakage, measure_leakage
from gan_leak.runs.federated.batch_files import BatchResult
from gan_leak.runs.federated.measurement import InstrumentSource, build_comparison
from gan_leak.runs.federated.privacy import PrivacyPlan, privacy_fields, privacy_note, promise_of
from gan_leak.runs.federated.setup import Images, prepare_data
from gan_leak.runs.inversion.model import Inversions, invert_all_classes
from gan_leak.settings import encoded_values, replace, settings_of

# The leakage score from which pictures are readable: that of the criteria of most claims.
READABLE_SCORE = 0.3
DEFINITIONS: Mapping[str, str] = {
    "late_leakage_score": "Mean leakage score of the evaluations in the last third of the rounds.",
    "readable_share": f"Share of all evaluations with a leakage score of at least {READABLE_SCORE:g}.",
}


def interval(values: Iterable[float | None]) -> dict[str, Any]:
    """Mean, 95% interval and values over seeds as strict JSON; None for a missing number."""
    summary = summarise(values)
    fields = {name: _number(getattr(summary, name)) for name in ("mean", "low", "high")}
    return {**fields, "values": [_number(value) for value in summary.values]}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def metrics_over(records: Sequence[Mapping[str, Any] | None], **more: Sequence[float | None]) -> dict[str, Any]:
    """Each measure of leakage as an interval over seeds. records: a ``Leakage`` as dictionary, or None."""
    # All measures, even if every seed diverged: a criterion may name any of them, and then gets NaN.
    metrics = {
        name: interval(None if record is None else record[name] for record in records)
        for name in Leakage._fields
        if name != "leakage_by_representation"
    }
    return {**{name: interval(values) for name, values in more.items()}, **metrics}


def not_measurable(metrics: Mapping[str, Any]) -> int:
    """The number of seeds that drew pictures and whose leakage score could not be measured."""
    pairs = zip(metrics["leakage_score"]["values"], metrics["judge_accuracy"]["values"], strict=True)
    return sum(score is None and judged is not None for score, judged in pairs)


def attack_row(name: str, role: str, batch: BatchResult, differences: Mapping[str, Any] | None = None) -> dict:
    """The row of a batch: the last measurements of its lanes, as intervals over the lanes.

    One generator swings between evaluations, so the row also has the measures of ``over_evaluations``.
    """
    last = [lane[-1] for lane in batch.records]
    metrics = metrics_over(
        [record["leakage"] for record in last],
        model_accuracy=[record["model_accuracy"] for record in last],
        **{name: [over_evaluations(lane)[name] for lane in batch.records] for name in DEFINITIONS},
    )
    return {
        "name": name,
        "role": role,
        "rounds": batch.rounds[-1],
        "seeds": len(last),
        "metrics": metrics,
        "differences": dict(differences or {}),
        "diverged": sum(record["diverged"] for record in last),
        "not_measurable": not_measurable(metrics),
    }


def over_evaluations(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The measures of ``DEFINITIONS`` from the evaluations of one run, in order; None without a measured one."""
    scores = {record["round"]: score for record in records if (score := _score_of(record)) is not None}
    late = [score for round, score in scores.items() if 3 * round > 2 * records[-1]["round"]]
    readable = [score >= READABLE_SCORE for score in scores.values()]
    return {"late_leakage_score": _mean(late), "readable_share": _mean(readable)}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def reference_row(name: str, batch: BatchResult, reference: str) -> dict:
    """The row of a reference of a batch, such as its untrained generator."""
    measured = [comparison.get(reference) for comparison in batch.comparison]
    metrics = metrics_over(measured)
    counts = {"seeds": len(measured), "not_measurable": not_measurable(metrics)}
    return {"name": name, "role": "reference", **counts, "metrics": metrics}


def differences_between(paper: RunConfig, used: RunConfig, not_stated: Collection[str] = ()) -> dict[str, list[object]]:
    """The hyperparameters in which a configuration differs from the paper: [paper's value, used value] by name.

    not_stated: those that the paper leaves open. They are always named, with None as the paper's value.
    """
    left, right = encoded_values(paper), encoded_values(used)
    return {
        name: [None if name in not_stated else left[name], right[name]]
        for name, setting in settings_of(RunConfig).items()
        if setting.effect == "training" and (name in not_stated or left[name] != right[name])
    }


def privacy_entries(name: str, config: RunConfig, batch: BatchResult) -> list[dict[str, Any]]:
    """The promise of a batch's defense to the worst participant, over one round and over the run."""
    plan = PrivacyPlan(config, tuple(batch.samples), batch.coordinates, 0.0)
    one = promise_of(plan, np.ones(len(batch.samples), int))
    whole = promise_of(plan)
    if one is None or whole is None:
        return []
    victim = whole.participant or 0
    releases = float(np.mean([[record["uploaded"][victim] for record in lane] for lane in batch.records]))
    return [
        {
            "name": name,
            "mechanism": privacy_fields(plan)["mechanism"],
            "epsilon_per_round": _number(one.loss.epsilon),
            "epsilon_total": _number(whole.loss.epsilon),
            "delta": whole.loss.delta,
            "unit": whole.loss.unit,
            "note": f"{privacy_note(plan, releases)} Noise in floating point is for research.",
        }
    ]


def accuracy_rows(batch: BatchResult, threshold: float) -> dict[str, dict[str, Any]]:
    """Leakage below and above an accuracy of the shared model: for each seed the mean over such evaluations.

    Returns the metrics by the names "at or above" and "below". A seed without such an evaluation, or whose leakage
    cannot be measured, has the value None.
    """
    rows: dict[str, list[float | None]] = {"at or above": [], "below": []}
    for lane in batch.records:
        for name, values in rows.items():
            scores = [
                record["leakage"]["leakage_score"]
                for record in lane
                if _score_of(record) is not None and (record["model_accuracy"] >= threshold) == (name == "at or above")
            ]
            values.append(_mean(scores))
    return {name: {"leakage_score": interval(values)} for name, values in rows.items()}


def _score_of(record: Mapping[str, Any]) -> float | None:
    return (record["leakage"] or {}).get("leakage_score")


def leakage_at_accuracy(batch: BatchResult, accuracies: Sequence[float | None]) -> list[float | None]:
    """For each lane the leakage score at its first evaluation with at least its accuracy, None if there is none."""
    found: list[float | None] = []
    for lane, accuracy in zip(batch.records, accuracies, strict=True):
        scores = [
            record["leakage"]["leakage_score"]
            for record in lane
            if _score_of(record) is not None and accuracy is not None and record["model_accuracy"] >= accuracy
        ]
        found.append(scores[0] if scores else None)
    return found


def inversion_metrics(
    kind: str,
    models: int,
    configs: Sequence[RunConfig],
    instrument_source: InstrumentSource,
    *,
    samples: int,
    epochs: int,
    steps: int,
) -> tuple[Inversions, dict[str, Any]]:
    """Measure model inversion by the measures of the GAN attack: pictures of each class by ``models`` networks.

    configs: one for each class; one participant owns all data. samples: the number of training images, 0 = all. The
    images that score 0 include no untrained generator. Returns the pictures and the metrics: leakage as intervals over
    the classes, accuracy as an interval over the networks.
    """
    configs = [replace(config, samples_per_participant=samples) for config in configs]
    data = prepare_data(configs[0])
    train = Images(np.asarray(data.federation.inputs[0]), np.asarray(data.federation.labels[0]))
    found = invert_all_classes(kind, models, train, data.test, len(configs), epochs=epochs, steps=steps)
    measured = []
    for config in configs:
        data = prepare_data(config)
        references, _ = build_comparison(config, data, instrument_source(data), None)
        measured.append(measure_leakage(references, found.pictures[:, config.attack.target_class])._asdict())
    return found, metrics_over(measured, model_accuracy=found.accuracies)
