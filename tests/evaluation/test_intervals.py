"""Intervals cover the truth as often as they say, and p-values are uniform when there is nothing to find."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy.stats import binom, kstest

from gan_leak.evaluation.intervals import (
    MOST_CLIENTS_EXACT,
    SAMPLED_PERMUTATIONS,
    bootstrap_interval,
    bootstrap_score,
    permutation_p_value,
)

TRIALS = 800


def _coverage(draw, truth, *, scale=1.0, trials=TRIALS):
    """How many of the intervals, stretched about their mean, hold the truth."""
    rng, covered = np.random.default_rng(0), 0
    for trial in range(trials):
        found = bootstrap_interval(draw(rng), seed=trial)
        low, high = (found.mean + scale * (end - found.mean) for end in (found.low, found.high))
        covered += low <= truth <= high
    return covered


def _is_95_percent(covered, slack):
    """Whether a count is likely (0.1% at either side) for a coverage within 0.95 - slack and 0.95 + slack."""
    return binom.ppf(0.001, TRIALS, 0.95 - slack) <= covered <= binom.ppf(0.999, TRIALS, min(0.95 + slack, 1.0))


def test_intervals_of_ten_normal_victims_cover_95_percent_and_no_other_width_does():
    """Half and one and a half times the width are told apart from it."""

    def draw(rng):
        return rng.normal(0.3, 0.2, 10)

    assert _is_95_percent(_coverage(draw, 0.3), 0.01)
    assert not _is_95_percent(_coverage(draw, 0.3, scale=0.5), 0.01)
    assert not _is_95_percent(_coverage(draw, 0.3, scale=1.5), 0.01)


def test_intervals_of_rates_of_victims_that_differ_cover_about_95_percent():
    """Ten pictures a victim, whose true rates differ between victims; rates are bounded and skewed."""

    def draw(rng):
        return rng.binomial(10, rng.beta(2, 6, 10)) / 10

    assert _is_95_percent(_coverage(draw, 0.25), 0.025)
    assert not _is_95_percent(_coverage(draw, 0.25, scale=0.6), 0.025)


def test_intervals_of_pictures_instead_of_victims_would_be_too_narrow():
    """The unit is the victim: a hundred pictures of ten victims are no hundred independent numbers."""

    def draw(rng):
        return np.repeat(rng.normal(0.3, 0.2, 10), 10)

    assert _coverage(draw, 0.3, trials=100) < 70


def test_few_victims():
    assert all(map(math.isnan, bootstrap_interval(np.array([]), seed=0)[:3]))
    one = bootstrap_interval(np.array([0.3, np.nan]), seed=0)
    assert one.mean == 0.3
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert bootstrap_interval(np.array([0.0, 1.0]), seed=0)[:3] == (0.5, 0.0, 1.0)
    assert bootstrap_interval(np.full(5, 0.2), seed=0)[1:3] == pytest.approx((0.2, 0.2))


def test_victims_without_a_number_do_not_count_but_are_listed():
    found = bootstrap_interval(np.array([0.1, np.nan, 0.3]), seed=1)
    assert found[:3] == bootstrap_interval(np.array([0.1, 0.3]), seed=1)[:3]
    assert found.values == pytest.approx((0.1, math.nan, 0.3), nan_ok=True)


# The score


def test_a_score_worked_out_by_hand():
    found = bootstrap_score(np.array([0.2, 0.4]), np.array([0.5, 0.7]), 0.1, seed=0)
    assert found.mean == pytest.approx(0.2 / 0.5)
    assert found.values == pytest.approx((0.1 / 0.5, 0.3 / 0.5))
    # Only the first victim, or only the second.
    assert found[1:3] == pytest.approx((0.1 / 0.4, 0.3 / 0.6))


def test_the_ceiling_scores_one_and_the_floor_zero_for_every_draw_of_victims():
    ceiling = np.array([0.9, 0.3, 0.5, 0.6])
    assert bootstrap_score(ceiling, ceiling, 0.1, seed=0)[:3] == pytest.approx((1.0, 1.0, 1.0))
    assert bootstrap_score(np.full(4, 0.1), ceiling, 0.1, seed=0)[:3] == pytest.approx((0.0, 0.0, 0.0))


def test_a_scale_without_length_is_refused():
    with pytest.raises(ValueError, match=r"^ceiling=0\.1: expected above the floor, 0\.1$"):
        bootstrap_score(np.ones(2), np.array([0.1, 0.1]), 0.1, seed=0)


def test_a_ceiling_below_the_floor_in_some_draws_widens_the_interval():
    found = bootstrap_score(np.array([0.2, 0.3]), np.array([0.0, 0.9]), 0.1, seed=0)
    assert found.high == math.inf


# The p-value


def _table(seed, clients, effect=0.0):
    table = np.random.default_rng(seed).normal(10, 1, (clients, clients))
    return table - effect * np.eye(clients)


@hypothesis.given(clients=st.integers(2, 5), seed=st.integers(0, 2**16), decimals=st.sampled_from([0, 3]))
def test_the_exact_p_value_is_that_of_a_loop(clients, seed, decimals):
    """Over all permutations; with rounded numbers there are ties, which count."""
    table = np.round(_table(seed, clients), decimals)
    own = sum(table[i, i] for i in range(clients))
    sums = [sum(table[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(clients))]
    assert permutation_p_value(table, seed=0) == pytest.approx(np.mean([value <= own + 1e-6 for value in sums]))


@hypothesis.given(seed=st.integers(0, 2**16), victims=st.permutations(range(5)), count=st.integers(1, 4))
def test_the_p_value_of_some_victims_is_that_of_a_loop_over_assignments(seed, victims, count):
    """Each victim gets a client of its own, at random among all; one victim has the share of clients as near."""
    table, victims = _table(seed, 5)[:count], victims[:count]
    own = sum(table[row, victim] for row, victim in enumerate(victims))
    sums = [
        sum(table[row, client] for row, client in enumerate(order)) for order in itertools.permutations(range(5), count)
    ]
    found = permutation_p_value(table, victims=np.array(victims), seed=0)
    assert found == pytest.approx(np.mean([value <= own + 1e-6 for value in sums]))


@pytest.mark.parametrize("clients", [MOST_CLIENTS_EXACT - 2, MOST_CLIENTS_EXACT + 1])
def test_the_p_value_is_uniform_under_the_null_and_not_else(clients):
    """Exact and sampled; with a weak effect the same test rejects."""
    trials = 300
    null = [permutation_p_value(_table(trial, clients), seed=trial) for trial in range(trials)]
    assert kstest(null, "uniform").pvalue > 0.01
    effect = [permutation_p_value(_table(trial, clients, 0.4), seed=trial) for trial in range(trials)]
    assert kstest(effect, "uniform").pvalue < 1e-4


def test_a_clear_diagonal_has_the_least_p_value():
    assert permutation_p_value(_table(0, 5, 50.0), seed=0) == pytest.approx(1 / 120)
    assert permutation_p_value(_table(0, 10, 50.0), seed=0) == pytest.approx(1 / (SAMPLED_PERMUTATIONS + 1))


@pytest.mark.parametrize("clients", [4, 10])
def test_a_table_without_identities_has_the_p_value_one(clients):
    """Equal entries; pale pictures of one victim; a client that all pictures resemble; both."""
    offsets = np.random.default_rng(0).uniform(0, 5, (2, clients))
    for table in (
        np.full((clients, clients), 0.1),
        offsets[0][:, None],
        offsets[1][None],
        offsets[0][:, None] + offsets[1],
    ):
        assert permutation_p_value(np.broadcast_to(table, (clients, clients)), seed=0) == 1.0


@hypothesis.given(seed=st.integers(0, 2**16))
def test_numbers_added_to_rows_and_columns_change_nothing(seed):
    table = _table(seed, 5, 0.5)
    rows, columns = np.random.default_rng(seed).uniform(0, 3, (2, 5))
    assert permutation_p_value(table + rows[:, None] + columns, seed=0) == permutation_p_value(table, seed=0)


@pytest.mark.parametrize("table", [np.zeros((2, 3)), np.zeros(4), np.full((2, 2), np.nan)])
def test_a_table_that_is_none_is_refused(table):
    with pytest.raises(ValueError, match=r"^table of shape .*: expected finite distances \[(V|3), K\]$"):
        permutation_p_value(table, seed=0)
