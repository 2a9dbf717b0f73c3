"""What runs promise: the worst over participants, after every round, by cohorts, and with noise solved for a target."""

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_leak.config import make_config, validate
from gan_leak.defenses import dp_sgd_epsilon, dp_sgd_schedule, sparse_vector_epsilon
from gan_leak.reports.privacy import privacy_summary
from gan_leak.runs.federated import train
from gan_leak.runs.federated.measurement import run_keys
from gan_leak.runs.federated.privacy import (
    NOTHING_COVERED,
    PrivacyPlan,
    participations,
    privacy_fields,
    privacy_meter,
    promise_of,
    solve_for_noise,
)
from gan_leak.runs.storage.integrity import DIGEST, sealed_json
from gan_leak.settings import replace
from reference.quick import draw_nothing, small_run, use_linear_networks
from reference.whole_run import measured, run

DP_SGD = make_config(defense="dp_sgd", rounds=3, batch_size=10, local_epochs=2, adversary=1)
SPARSE = make_config(defense="sparse_vector", rounds=3, upload_bound=0.001, upload_fraction=0.1, adversary=1)


def plan(config, sizes, coordinates=1000):
    return PrivacyPlan(config, tuple(sizes), coordinates, config.defense.target_epsilon)


def each_epsilon(config, sizes, rounds):
    """By participant, in a loop, with neither order nor shortcut."""
    found = []
    for size, count in zip(sizes, rounds, strict=True):
        probability, steps = dp_sgd_schedule(size, config.federation.batch_size, config.federation.local_epochs)
        noise, delta = config.defense.hyperparameters.noise_multiplier, config.defense.delta
        found.append(dp_sgd_epsilon(noise, probability, steps * count, delta).epsilon)
    return found


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(10, 200), st.integers(0, 5)), min_size=2, max_size=6))
def test_the_promise_is_the_worst_over_participants(participants):
    """Of different sizes, and who took part in different numbers of rounds."""
    sizes, rounds = map(list, zip(*participants, strict=True))
    config = replace(DP_SGD, attack="none")
    promise = promise_of(plan(config, sizes), np.array(rounds))
    expected = each_epsilon(config, sizes, rounds)
    assert promise.loss.epsilon == pytest.approx(max(expected), rel=1e-3)
    assert expected[promise.participant] == pytest.approx(promise.loss.epsilon, rel=1e-3)
    assert promise.rounds == rounds[promise.participant]


def test_an_attacking_adversary_and_the_empty_are_left_out():
    """The adversary here would be the worst off; without an attack it is a participant like the others."""
    sizes = (40, 10, 0, 90)
    promise = promise_of(plan(DP_SGD, sizes))
    assert promise.participant == 0
    assert promise.loss.epsilon == each_epsilon(DP_SGD, [40], [3])[0]
    assert promise.sampling_probability == pytest.approx(0.25)
    assert promise.steps == 3 * 2 * 4
    assert promise_of(plan(replace(DP_SGD, attack="none"), sizes)).participant == 1


@pytest.mark.parametrize("config", [DP_SGD, SPARSE])
def test_where_only_the_adversary_owns_records_nothing_is_promised(config):
    """An epsilon of 0 would read as a strong promise."""
    fields = privacy_fields(plan(config, (0, 10)))
    assert (fields["epsilon"], fields["worst_participant"], fields["covers"]) == (None, None, NOTHING_COVERED)
    assert privacy_summary(fields)["covered"] == NOTHING_COVERED
    with pytest.raises(ValueError, match=r"target_epsilon=3\.0: expected a participant with records"):
        solve_for_noise(plan(replace(config, target_epsilon=3.0), (0, 10)))


def test_the_sparse_vector_promises_its_sum():
    """A tenth of 1,000 coordinates, three times, at 100 each."""
    fields = privacy_fields(plan(SPARSE, (40, 10)))
    assert fields["epsilon"] == 100 * 100.0 * 3
    assert (fields["delta"], fields["unit"], fields["sampling"]) == (0.0, "update", "none")
    assert "sensitivity" in fields["neighboring_relation"]
    assert (fields["uploads"], fields["most_releases_per_upload"]) == (3, 100)


def test_without_a_defense_there_is_no_promise():
    assert promise_of(plan(make_config(), (5, 5))) is None
    assert privacy_fields(plan(make_config(), (5, 5))) == {}
    assert privacy_summary({}) == {}


def test_defenses_that_promise_nothing_say_so_and_take_nothing_from_one_that_does():
    """Pruning after DP-SGD is post-processing; clipping and noise alone are no promise of a number."""
    fields = privacy_fields(plan(replace(DP_SGD, defense="dp_sgd+pruning"), (40, 10)))
    assert fields == {**privacy_fields(plan(DP_SGD, (40, 10))), "without_promise": "pruning"}
    assert privacy_summary(fields)["no promise by"] == "pruning, measured against attacks only"
    heuristic = plan(make_config(defense="clipping+gaussian"), (40, 10))
    assert promise_of(heuristic) is None
    assert privacy_fields(heuristic) == {"without_promise": "clipping, gaussian"}
    assert privacy_summary(privacy_fields(heuristic)) == {
        "no promise by": "clipping, gaussian, measured against attacks only"
    }


def test_a_promise_says_on_what_it_rests():
    """Sensitivity, who adds the noise, against whom, and how rounds add up."""
    lines = privacy_summary(privacy_fields(plan(DP_SGD, (40, 10))))
    assert "clipping_norm" in lines["bound"]
    assert lines["noise added by"].startswith("each participant")
    assert lines["protects against"] == "everybody who sees the uploads"
    assert lines["total over the run"].startswith("composition")


@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_without_noise_epsilon_is_none_in_json_and_infinite_in_words(noise):
    fields = privacy_fields(plan(replace(DP_SGD, noise_multiplier=noise), (40, 10)))
    assert fields["epsilon"] is None
    assert privacy_summary(fields)["epsilon"] == "infinite, no guarantee"
    json.dumps(fields, allow_nan=False)


def test_what_is_spent_grows_to_what_is_promised():
    """Round by round, the last one exactly; a continued run counts on from where it was."""
    whole = plan(DP_SGD, (40, 10, 90))
    spend = privacy_meter(whole, np.zeros(3, int))
    spent = [spend(None) for _ in range(3)]
    assert [entry["epsilon"] for entry in spent] == [each_epsilon(DP_SGD, [40], [count])[0] for count in (1, 2, 3)]
    assert spent[-1]["epsilon"] == privacy_fields(whole)["epsilon"]
    assert [entry["rounds"] for entry in spent] == [1, 2, 3]
    assert privacy_meter(whole, np.full(3, 2))(None) == spent[-1]


def test_by_cohorts_the_rounds_of_each_are_counted():
    """The counts are those of the draws; the promise for the whole run holds for any draws."""
    config = replace(DP_SGD, participants_per_round=2, rounds=300)
    key = run_keys(0).cohorts
    counts = participations(config, key, 5, 300)
    assert counts.sum() == 2 * 300
    assert not np.array_equal(counts, participations(config, run_keys(1).cohorts, 5, 300))
    halves = participations(config, jax.random.clone(key), 5, 299)
    assert sorted((counts - halves).tolist()) == [0, 0, 0, 1, 1]
    assert participations(DP_SGD, key, 5, 7).tolist() == [7] * 5
    spend = privacy_meter(plan(config, (40, 10, 40, 40, 40)), np.zeros(5, int))
    spend(np.array([0, 2]))
    entry = spend(np.array([2, 3]))
    assert (entry["participant"], entry["rounds"]) == (2, 2)
    assert promise_of(plan(config, (40, 10, 40, 40, 40))).rounds == 300


@pytest.mark.parametrize("target", [0.7, 3.0, 12.0])
def test_a_target_is_met_and_hardly_missed(target):
    """By the participant that is worst off at that noise, of several."""
    config = replace(DP_SGD, target_epsilon=target)
    settled = solve_for_noise(plan(config, (40, 10, 61, 200)))
    assert settled.config.defense.target_epsilon == 0.0
    assert settled.target_epsilon == target
    noise = settled.config.defense.hyperparameters.noise_multiplier
    assert promise_of(settled).loss.epsilon <= target
    less = replace(settled.config, noise_multiplier=0.995 * noise)
    assert promise_of(settled._replace(config=less)).loss.epsilon > target
    assert settled.config == replace(DP_SGD, noise_multiplier=noise)
    assert f"for target_epsilon={target:g}" in privacy_summary(privacy_fields(settled))["noise multiplier"]


@pytest.mark.parametrize("target", [0.3, 7.0, 1e6])
def test_a_target_is_met_by_the_sparse_vector_too(target):
    """C releases a round, each with the same budget."""
    settled = solve_for_noise(plan(replace(SPARSE, target_epsilon=target), (40, 10)))
    budget = np.float32(settled.config.defense.hyperparameters.epsilon_per_release)
    assert target * 0.998 < sparse_vector_epsilon(float(budget), 0.1, 1000, 3).epsilon <= target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_epsilon": -1.0}, "target_epsilon=-1.0: expected a finite number of at least 0"),
        ({"target_epsilon": math.inf}, "target_epsilon=inf: expected a finite number"),
        ({"target_epsilon": math.nan}, "target_epsilon=nan: expected a finite number"),
        ({"target_epsilon": 3.0, "defense": "none"}, "target_epsilon=3.0: expected with defense 'dp_sgd' or"),
        ({"target_epsilon": 3.0, "noise_multiplier": 2.0}, "target_epsilon=3.0: expected noise_multiplier left at 1.0"),
        (
            {"target_epsilon": 3.0, "defense": "sparse_vector", "upload_bound": 0.1, "epsilon_per_release": 1.0},
            "target_epsilon=3.0: expected epsilon_per_release left at 100.0",
        ),
    ],
)
def test_conflicts_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        validate(replace(DP_SGD, **changes))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("epsilon", "shown"), [(1.23401, "1.235"), (1.234, "1.234"), (19.4713, "19.48"), (0.0, "0")])
def test_epsilon_is_shown_rounded_up(epsilon, shown):
    fields = {**privacy_fields(plan(DP_SGD, (40, 10))), "epsilon": epsilon}
    assert privacy_summary(fields)["epsilon"] == shown


# Whole runs.


@pytest.fixture
def config(stripes, monkeypatch):
    use_linear_networks(monkeypatch)
    draw_nothing(monkeypatch)
    settings = {"samples_per_participant": 40, "checkpoint_interval": 2, "generator_width": 8}
    return small_run(stripes, defense="dp_sgd", noise_multiplier=2.0, delta=1e-4, **settings)


@pytest.fixture
def quiet(config):
    """Without an attack, whose measurement takes most of the time."""
    return replace(config, attack="none", evaluation_interval=4)


def expected_epsilon(config, rounds, size=40):
    probability, steps = dp_sgd_schedule(size, config.federation.batch_size, config.federation.local_epochs)
    return dp_sgd_epsilon(
        config.defense.hyperparameters.noise_multiplier, probability, steps * rounds, config.defense.delta
    ).epsilon


@pytest.mark.slow
def test_a_run_reports_its_promise_everywhere(config, tmp_path, capsys):
    """Summary, report, config.json, and what each round has cost; 40 records in lots of 16, three steps a round."""
    assert run(config, tmp_path / "run") == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["privacy"]
    assert stored["epsilon"] == expected_epsilon(config, 4)
    assert {name: stored[name] for name in ("delta", "unit", "neighboring_relation", "sampling", "steps")} == {
        "delta": 1e-4,
        "unit": "record",
        "neighboring_relation": "add or remove one",
        "sampling": "Poisson",
        "steps": 12,
    }
    assert stored["sampling_probability"] == pytest.approx(0.4)
    assert stored["accountant"] == "PLD"
    assert [record["privacy"]["epsilon"] for record in measured(tmp_path / "run")] == [
        expected_epsilon(config, rounds) for rounds in (1, 2, 3, 4)
    ]
    page = (tmp_path / "run" / "report.html").read_text()
    shown = capsys.readouterr().err
    for text in ("Poisson, probability 0.4, 12 steps", "record, add or remove one", "0.0001", "PLD"):
        assert text in page
        assert text in shown
    assert page.count("What the defense promises") == 1
    assert "epsilon spent" not in shown


def test_an_undefended_run_promises_nothing(quiet, tmp_path):
    assert run(replace(quiet, defense="none", rounds=1), tmp_path / "run") == 0
    assert "privacy" not in json.loads((tmp_path / "run" / "config.json").read_text())
    assert "privacy" not in measured(tmp_path / "run")[0]
    assert "What the defense promises" not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_run_behind_defenses_without_a_promise_reports_that(quiet, tmp_path, capsys):
    """Each by its own strength; no epsilon is spent, and the norm of what was trained is not that of what is sent."""
    changes = {"defense": "clipping,gaussian", "update_clipping_norm": 0.1, "gaussian_deviation": 1e-4, "rounds": 1}
    assert run(replace(quiet, **changes), tmp_path / "run") == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["privacy"] == {"without_promise": "clipping, gaussian"}
    assert stored["config"]["defense"] == "clipping,gaussian"
    assert "privacy" not in measured(tmp_path / "run")[0]
    for shown in (capsys.readouterr().err, (tmp_path / "run" / "report.html").read_text()):
        assert "clipping, gaussian, measured against attacks only" in shown


@pytest.mark.slow
def test_a_run_behind_secure_aggregation_trains_as_without_it_and_says_what_is_hidden(quiet, tmp_path, capsys):
    """Losses and norms are those of plain averaging up to the encoding; there is no epsilon."""
    changes = {"defense": "none", "aggregation": "average", "schedule": "synchronous", "rounds": 2}
    assert run(replace(quiet, **changes), tmp_path / "plain") == 0
    assert run(replace(quiet, **changes | {"defense": "secure_aggregation"}), tmp_path / "secure") == 0
    plain, secure = (measured(tmp_path / name) for name in ("plain", "secure"))
    for left, right in zip(plain, secure, strict=True):
        assert right["losses"] == pytest.approx(left["losses"], rel=1e-4)
        assert right["update_norms"] == pytest.approx(left["update_norms"], rel=1e-4)
    # The second round starts from the decoded average.
    assert secure[0]["losses"] != pytest.approx(secure[1]["losses"], rel=1e-2)
    stored = json.loads((tmp_path / "secure" / "config.json").read_text())
    [secrecy] = stored["privacy"]["secrecy"]
    assert secrecy["mechanism"] == "secure aggregation"
    for shown in (capsys.readouterr().err, (tmp_path / "secure" / "report.html").read_text()):
        assert "Pasquini" in shown


@pytest.mark.slow
@pytest.mark.parametrize("cohorts", [False, True])
def test_an_interrupted_run_counts_on(quiet, tmp_path, monkeypatch, cohorts):
    """Also by cohorts, where the counts are drawn again."""
    changes = {"participants_per_round": 2, "participant_classes": "0;2,3;1", "batch_size": 8} if cohorts else {}
    config = replace(quiet, checkpoint_interval=1, **changes)
    run(config, tmp_path / "whole")
    show = train.show_record

    def interrupt(display, record):
        show(display, record)
        if record["round"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "show_record", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "parts")
    assert run(config, tmp_path / "parts", resume=True) == 0
    whole = measured(tmp_path / "whole")
    assert measured(tmp_path / "parts") == whole
    for record in whole if cohorts else ():
        entry = record["privacy"]
        taken = [entry["participant"] in other["participants"] for other in whole[: record["round"]]]
        assert entry["rounds"] == sum(taken)


@pytest.mark.slow
def test_a_target_is_run_with_and_continued(quiet, tmp_path, monkeypatch):
    """The bits are those of a run with that noise as a flag."""
    quiet = replace(quiet, noise_multiplier=1.0, target_epsilon=5.0)
    run(quiet, tmp_path / "target")
    stored = json.loads((tmp_path / "target" / "config.json").read_text())
    assert stored["config"]["target_epsilon"] == 5.0
    assert 4.9 < stored["privacy"]["epsilon"] <= 5.0
    noise = stored["privacy"]["noise_multiplier"]
    del stored[DIGEST]
    assert noise != 1.0
    given = replace(quiet, noise_multiplier=noise, target_epsilon=0.0)
    run(given, tmp_path / "given")
    assert measured(tmp_path / "target") == measured(tmp_path / "given")
    train.close(train.prepare(quiet, tmp_path / "target", True))
    stored["privacy"]["noise_multiplier"] = noise * 2
    (tmp_path / "target" / "config.json").write_bytes(sealed_json("config.json", stored))
    with pytest.raises(ValueError, match=f"holds a run with noise_multiplier={noise * 2}") as error:
        train.prepare(quiet, tmp_path / "target", True)
    assert "\n" not in str(error.value)
    stored["privacy"] = [1]
    (tmp_path / "target" / "config.json").write_bytes(sealed_json("config.json", stored))
    with pytest.raises(ValueError, match=r"the section 'privacy' of config\.json is damaged"):
        train.prepare(quiet, tmp_path / "target", True)


@pytest.mark.slow
def test_a_directory_from_before_the_promise_can_be_continued(quiet, tmp_path):
    """Neither the section nor the flag was there."""
    quiet = replace(quiet, rounds=2)
    run(quiet, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    del stored["privacy"], stored["config"]["target_epsilon"], stored[DIGEST]
    (tmp_path / "run" / "config.json").write_bytes(sealed_json("config.json", stored))
    assert run(quiet, tmp_path / "run", resume=True) == 0
    assert "What the defense promises" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(ValueError, match=r"target_epsilon was 0\.0, now 9\.0"):
        train.prepare(replace(quiet, noise_multiplier=1.0, target_epsilon=9.0), tmp_path / "run", True)


@pytest.mark.slow
def test_a_run_that_diverges_tells_what_was_spent(quiet, tmp_path, monkeypatch, capsys):
    """Up to the rounds that are kept, and that the round of divergence is not covered."""
    is_finite = train.is_finite
    monkeypatch.setattr(train, "is_finite", lambda record: is_finite(record) and record["round"] < 3)
    assert run(quiet, tmp_path / "run") == 1
    assert [record["privacy"]["epsilon"] for record in measured(tmp_path / "run")] == [
        expected_epsilon(quiet, rounds) for rounds in (1, 2)
    ]
    shown = capsys.readouterr().err
    assert "No promise of privacy covers that round." in shown
    assert "by taking part in 2 rounds" in shown


@pytest.mark.slow
def test_the_sparse_vector_reports_too(quiet, tmp_path, capsys):
    """Of 5 classes of 1,024 pixels and a bias: a tenth of 5,125 coordinates, four times."""
    changes = {"defense": "sparse_vector", "upload_bound": 0.01, "upload_fraction": 0.1, "target_epsilon": 50.0}
    assert run(replace(quiet, noise_multiplier=1.0, **changes), tmp_path / "run") == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["privacy"]
    assert stored["most_releases_per_upload"] == round(0.1 * 5 * 1025)
    assert 49.9 < stored["epsilon"] <= 50.0
    spent = [record["privacy"]["epsilon"] for record in measured(tmp_path / "run")]
    assert spent == pytest.approx([stored["epsilon"] * count / 4 for count in (1, 2, 3, 4)])
    assert "for target_epsilon=50" in capsys.readouterr().err
