"""From batches to rows: intervals as strict JSON, promises of privacy worked out by hand, accuracy against leakage."""

import json
import math

import numpy as np
import pytest

from gan_leak.config import make_config
from gan_leak.defenses import dp_sgd_epsilon
from gan_leak.evaluation.criteria import Verdict, decide, measurements, parse_criterion
from gan_leak.evaluation.leakage import Leakage
from gan_leak.evaluation.measurability import Measurability
from gan_leak.runs.federated.batch_files import BatchResult
from gan_leak.runs.federated.rows import (
    accuracy_rows,
    attack_row,
    differences_between,
    interval,
    leakage_at_accuracy,
    metrics_over,
    over_evaluations,
    privacy_entries,
    reference_row,
)
from gan_leak.settings import replace

METRICS = {name for name in Leakage._fields if name != "leakage_by_representation"}


def leakage(score):
    return Leakage(score, {"pixels": score}, 0.9, 0.8, 0.1, 0.7, 0.6, 0.5)._asdict()


def record(round, accuracy, score, uploaded=(5, 5)):
    return {
        "round": round,
        "model_accuracy": accuracy,
        "leakage": None if score is None else leakage(score),
        "uploaded": list(uploaded),
        "diverged": score is None,
    }


def batch_of(*lanes, comparison=None, samples=(1000, 1000), coordinates=1000):
    return BatchResult(
        rounds=[entry["round"] for entry in lanes[0]],
        records=[list(lane) for lane in lanes],
        comparison=comparison or [{} for _ in lanes],
        pictures=np.zeros(0),
        private=np.zeros(0),
        judge={"test_accuracy": 0.99, "test_images": 100},
        samples=list(samples),
        coordinates=coordinates,
        measurability=[Measurability(("pixels", "edges"), (), (), None)._asdict() for _ in lanes],
        seconds=1.0,
    )


def strict(value):
    return json.loads(json.dumps(value, allow_nan=False))


def test_an_interval_is_mean_and_t_interval_over_seeds():
    # Standard deviation 1 over 3 seeds: 4.3027 / sqrt(3) on either side.
    found = interval([1.0, 2.0, 3.0])
    assert found["values"] == [1.0, 2.0, 3.0]
    assert found["mean"] == pytest.approx(2.0)
    assert found["low"] == pytest.approx(2 - 2.4841, abs=1e-3)
    assert found["high"] == pytest.approx(2 + 2.4841, abs=1e-3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None, math.nan], {"mean": None, "low": None, "high": None, "values": [None, None]}),
        ([], {"mean": None, "low": None, "high": None, "values": []}),
        ([0.5], {"mean": 0.5, "low": None, "high": None, "values": [0.5]}),
        ([None, 0.5, math.inf], {"mean": 0.5, "low": None, "high": None, "values": [None, 0.5, None]}),
        ([0.5, None, 0.5], {"mean": 0.5, "low": 0.5, "high": 0.5, "values": [0.5, None, 0.5]}),
        ([np.float32(0.5)], {"mean": 0.5, "low": None, "high": None, "values": [0.5]}),
    ],
)
def test_where_there_is_no_number_an_interval_has_none(values, expected):
    """And no NaN, which strict JSON cannot hold; nor NumPy's numbers."""
    assert strict(interval(values)) == expected


def test_metrics_are_intervals_over_seeds_of_every_measure():
    metrics = strict(metrics_over([leakage(0.2), None, leakage(0.4)], model_accuracy=[0.7, 0.1, 0.9]))
    assert set(metrics) == METRICS | {"model_accuracy"}
    assert metrics["leakage_score"]["values"] == [0.2, None, 0.4]
    assert metrics["leakage_score"]["mean"] == pytest.approx(0.3)
    assert metrics["diversity"]["mean"] == 0.5
    assert metrics["model_accuracy"]["values"] == [0.7, 0.1, 0.9]


def test_a_setting_whose_every_seed_diverged_gets_a_verdict():
    """A criterion may ask for any measure; without a number, none counts in favour."""
    metrics = metrics_over([None, None], model_accuracy=[0.1, 0.1])
    assert set(metrics) == METRICS | {"model_accuracy"}
    lookup = measurements(metrics, {"passive": metrics})
    reproduced = parse_criterion("leakage_score.mean >= 0.3 and leakage_score.low > passive.leakage_score.mean")
    assert decide(reproduced, parse_criterion("leakage_score.mean < 0.1"), lookup) == Verdict.NOT_REPRODUCED


def test_the_row_of_a_batch_tells_its_last_evaluation():
    lanes = [record(5, 0.1, 0.0), record(10, 0.8, 0.4)], [record(5, 0.1, 0.0), record(10, 0.9, 0.6)]
    row = strict(attack_row("6 (a)", "attack", batch_of(*lanes), {"rounds": [40, 10]}))
    assert (row["name"], row["role"], row["rounds"], row["seeds"]) == ("6 (a)", "attack", 10, 2)
    assert row["metrics"]["leakage_score"]["values"] == [0.4, 0.6]
    assert row["metrics"]["model_accuracy"]["values"] == [0.8, 0.9]
    assert row["differences"] == {"rounds": [40, 10]}
    assert row["metrics"]["readable_share"]["values"] == [0.5, 0.5]
    assert (row["diverged"], row["not_measurable"]) == (0, 0)
    assert attack_row("6 (a)", "control", batch_of(*lanes))["differences"] == {}


def test_the_measures_over_all_evaluations():
    """By hand: rounds 5 to 7 of 7 are the last third of the rounds; what was not measured does not count."""
    scores = [0.9, 0.0, 0.31, 0.1, 0.2, None, 0.6]
    records = [record(round, 0.5, score) for round, score in enumerate(scores, start=1)]
    found = over_evaluations(records)
    assert found == {"late_leakage_score": pytest.approx(0.4), "readable_share": 0.5}
    assert over_evaluations(records[5:6]) == {"late_leakage_score": None, "readable_share": None}


UNMEASURED = record(10, 0.8, 0.0) | {"leakage": leakage(None)}


def test_a_seed_that_cannot_be_measured_is_counted_and_has_no_score():
    """Neither 0, nor diverged; its other measures count."""
    lanes = [record(10, 0.8, 0.4)], [UNMEASURED], [record(10, 0.8, None)]
    row = strict(attack_row("6 (a)", "attack", batch_of(*lanes)))
    assert row["metrics"]["leakage_score"]["values"] == [0.4, None, None]
    assert row["metrics"]["judge_accuracy"]["values"] == [0.9, 0.9, None]
    assert (row["diverged"], row["not_measurable"]) == (1, 1)


def test_evaluations_that_cannot_be_measured_are_no_numbers_at_an_accuracy():
    lanes = [UNMEASURED, record(20, 0.9, 0.5)], [UNMEASURED, UNMEASURED]
    batch = batch_of(*lanes)
    assert accuracy_rows(batch, 0.7)["at or above"]["leakage_score"]["values"] == [0.5, None]
    assert leakage_at_accuracy(batch, [0.7, 0.7]) == [0.5, None]


def test_the_row_of_a_reference_is_over_the_same_lanes():
    comparison = [{"untrained generator": leakage(0.0)}, {"untrained generator": leakage(0.1)}]
    batch = batch_of([record(1, 0.1, 0.5)], [record(1, 0.1, 0.5)], comparison=comparison)
    row = strict(reference_row("untrained", batch, "untrained generator"))
    assert (row["role"], row["seeds"]) == ("reference", 2)
    assert row["metrics"]["leakage_score"]["values"] == [0.0, 0.1]
    absent = strict(reference_row("own", batch, "adversary's own classes"))
    assert absent["metrics"]["leakage_score"]["values"] == [None, None]


def test_differences_are_those_that_change_what_is_run():
    paper = make_config(upload_bound=math.inf)
    used = replace(
        paper,
        learning_rate=0.5,
        upload_bound=0.001,
        # How long it is trained counts, who is lucky and how often it is looked at do not.
        rounds=7,
        seed=3,
        evaluation_interval=1,
        evaluation_samples=2,
        checkpoint_interval=1,
    )
    assert strict(differences_between(paper, used)) == {
        "learning_rate": [0.05, 0.5],
        "upload_bound": ["inf", 0.001],
        "rounds": [100, 7],
    }
    assert differences_between(used, used) == {}
    assert differences_between(paper, used, {"rounds", "seed"})["rounds"] == [None, 7]


# What a defence promises.

SPARSE = make_config(
    defense="sparse_vector", epsilon_per_release=100.0, upload_fraction=0.1, upload_bound=1e-3, rounds=40
)


def test_without_a_defence_nothing_is_promised():
    assert privacy_entries("6 (a)", make_config(), batch_of([record(1, 0.5, 0.5)])) == []


def test_sparse_vector_costs_its_budget_for_every_release_it_may_make():
    """Of 105,707 coordinates a tenth, 10,571, at 100 each: 1,057,100 a round; charged are those of the victim."""
    lanes = [record(20, 0.5, 0.5, (90, 7)), record(40, 0.5, 0.5, (110, 7))], [record(40, 0.5, 0.5, (100, 7))] * 2
    (entry,) = strict(privacy_entries("14 (b)", SPARSE, batch_of(*lanes, coordinates=105_707)))
    assert entry["name"] == "14 (b)"
    assert (entry["mechanism"], entry["unit"], entry["delta"]) == ("sparse vector", "update", 0.0)
    assert entry["epsilon_per_round"] == 1_057_100.0
    assert entry["epsilon_total"] == 40 * 1_057_100.0
    assert "100 for each of at most 10,571 releases a round; 10,000 charged a round for those made" in entry["note"]


def test_what_is_promised_is_promised_to_a_victim():
    """Participant 0, or 1 where 0 is the adversary."""
    lane = [record(40, 0.5, 0.5, (3, 8))]
    config = replace(SPARSE, adversary=0, target_class=7)
    (entry,) = privacy_entries("", config, batch_of(lane))
    assert " 800 charged" in entry["note"]
    (entry,) = privacy_entries("", SPARSE, batch_of(lane))
    assert " 300 charged" in entry["note"]


def test_no_noise_is_no_promise():
    """Written as None, since strict JSON has no infinity."""
    config = replace(SPARSE, epsilon_per_release=math.inf)
    (entry,) = strict(privacy_entries("", config, batch_of([record(40, 0.5, 0.5)])))
    assert (entry["epsilon_per_round"], entry["epsilon_total"]) == (None, None)
    assert "at most 100 releases" in entry["note"]
    config = make_config(defense="dp_sgd", noise_multiplier=0.0)
    (entry,) = strict(privacy_entries("", config, batch_of([record(40, 0.5, 0.5)])))
    assert (entry["epsilon_per_round"], entry["epsilon_total"]) == (None, None)


def test_dp_sgd_costs_its_steps():
    """1,000 records of the victim in lots of 64: 16 steps an epoch, sampled with probability 0.064."""
    config = make_config(
        defense="dp_sgd", noise_multiplier=2.0, clipping_norm=1.0, batch_size=64, local_epochs=2, rounds=3, delta=1e-4
    )
    batch = batch_of([record(3, 0.5, 0.5)], samples=(1000, 77))
    (entry,) = strict(privacy_entries("DP-SGD", config, batch))
    assert (entry["mechanism"], entry["unit"], entry["delta"]) == ("DP-SGD", "record", 1e-4)
    assert entry["epsilon_per_round"] == pytest.approx(dp_sgd_epsilon(2.0, 0.064, 32, 1e-4).epsilon)
    assert entry["epsilon_total"] == pytest.approx(dp_sgd_epsilon(2.0, 0.064, 96, 1e-4).epsilon)
    assert 0 < entry["epsilon_per_round"] < entry["epsilon_total"] < 10
    assert "sampling probability 0.064, 96 steps" in entry["note"]


# Leakage against accuracy.

CLIMBING = [record(1, 0.3, 0.0), record(2, 0.7, 0.1), record(3, 0.8, 0.4), record(4, 0.9, 0.6)]
NEVER_GOOD = [record(1, 0.3, 0.2), record(2, 0.5, None), record(3, 0.6, 0.4), record(4, 0.7, 0.0)]


def test_leakage_is_split_at_an_accuracy():
    """Means over the evaluations of a seed; the threshold itself is above; what diverged is left out."""
    rows = strict(accuracy_rows(batch_of(CLIMBING, NEVER_GOOD), 0.8))
    assert set(rows) == {"at or above", "below"}
    assert rows["at or above"]["leakage_score"]["values"] == [pytest.approx(0.5), None]
    assert rows["below"]["leakage_score"]["values"] == [pytest.approx(0.05), pytest.approx(0.2)]


def test_leakage_at_an_accuracy_is_that_of_the_first_evaluation_that_reaches_it():
    batch = batch_of(CLIMBING, NEVER_GOOD)
    assert leakage_at_accuracy(batch, [0.75, 0.6]) == [0.4, 0.4]
    assert leakage_at_accuracy(batch, [0.3, 0.4]) == [0.0, 0.4]
    assert leakage_at_accuracy(batch, [0.95, 0.7]) == [None, 0.0]
