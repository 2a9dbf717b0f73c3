"""Both bounds against the exact Gaussian mechanism, quadrature, and the accountant of dp-accounting."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_leak.defenses import dp_sgd_epsilon, noise_multiplier_for
from gan_leak.defenses.privacy_loss import privacy_loss_epsilon, renyi_divergences, renyi_epsilon
from reference import dp_sgd as reference

ALMOST_ONE = 1.0 - 1e-12


@pytest.mark.parametrize(("steps", "mean"), [(1, 0.01), (1, 5.0), (100, 1.0), (10**4, 0.3), (10**7, 0.3)])
@pytest.mark.parametrize("delta", [1e-3, 1e-10, 1e-12])
def test_nothing_is_lost_to_rounding_over_many_steps(steps, mean, delta):
    """Without sampling the exact epsilon is known. At 1e7 steps an untilted transform gives 1.75 for 1.81."""
    exact = reference.gaussian_epsilon(math.sqrt(steps) / mean, steps, delta)
    found = privacy_loss_epsilon(math.sqrt(steps) / mean, ALMOST_ONE, steps, delta)
    assert exact * (1 - 1e-7) <= found <= exact * 1.0005
    assert renyi_epsilon(math.sqrt(steps) / mean, ALMOST_ONE, steps, delta) >= exact


def delta_of_one_step(noise, probability, epsilon):
    """The worse of adding and removing a record: the integral of the positive part, on a fine grid."""
    x = np.linspace(-12 * noise, 1 + 12 * noise, 400_001)
    without = scipy.stats.norm.pdf(x / noise) / noise
    present = (1 - probability) * without + probability * scipy.stats.norm.pdf((x - 1) / noise) / noise
    pairs = ((present, without), (without, present))
    excesses = [np.maximum(first - math.exp(epsilon) * second, 0.0) for first, second in pairs]
    return max(scipy.integrate.trapezoid(excess, x) for excess in excesses)


@pytest.mark.parametrize(("noise", "probability"), [(1.0, 0.064), (0.5, 0.3), (3.0, 0.9), (0.3, 0.01)])
@pytest.mark.parametrize("delta", [1e-2, 1e-5])
def test_one_step_is_that_of_its_definition(noise, probability, delta):
    """What is found is enough, and hardly less is not."""
    found = privacy_loss_epsilon(noise, probability, 1, delta)
    assert delta_of_one_step(noise, probability, found) <= delta * (1 + 1e-6)
    assert found == 0 or delta_of_one_step(noise, probability, 0.999 * found) > delta


@pytest.mark.parametrize(
    ("noise", "probability", "steps", "delta"),
    [(1.0, 0.064, 160, 1e-5), (0.8, 0.5, 20, 1e-6), (2.0, 0.01, 1000, 1e-5), (4.0, 0.95, 50, 1e-8)],
)
def test_it_lies_between_the_bounds_of_the_library(noise, probability, steps, delta):
    """dp-accounting rounds losses down for a bound from below, and up for one from above."""
    below, above = (
        privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=probability, pessimistic_estimate=above, use_connect_dots=above
        )
        .self_compose(steps)
        .get_epsilon_for_delta(delta)
        for above in (False, True)
    )
    assert below < privacy_loss_epsilon(noise, probability, steps, delta) < above * 1.001


@pytest.mark.parametrize(("noise", "probability"), [(1.0, 0.064), (0.6, 0.5), (20.0, 1e-3), (3.0, 1.0)])
def test_divergences_are_those_of_the_definition(noise, probability):
    """Small orders by quadrature of E_Q[(P / Q)^order]."""
    orders, divergences = renyi_divergences(noise, probability)
    for order, divergence in list(zip(orders, divergences, strict=True))[:5]:
        x = np.linspace(-12 * noise, order + 12 * noise, 100_001)
        ratios = np.log1p(probability * np.expm1((2 * x - 1) / (2 * noise**2)))
        density = scipy.stats.norm.pdf(x / noise) / noise
        total = scipy.integrate.trapezoid(density * np.expm1(order * ratios), x)
        assert divergence == pytest.approx(math.log1p(total) / (order - 1), rel=1e-6)


def test_small_divergences_do_not_cancel():
    """To first order, the divergence is order (q / z)^2 / 2, far below what one plus it can tell from one."""
    orders, divergences = renyi_divergences(1e4, 1e-6)
    assert divergences[:10] == pytest.approx(orders[:10] * 1e-20 / 2, rel=1e-3)


def test_the_smaller_bound_is_reported():
    """Noise 100 and 1e7 steps, where a grid of 1e-4 gave 26.5; the true epsilon is 2.13 in the limit of many steps."""
    loss = dp_sgd_epsilon(100.0, 0.01, 10**7, 1e-12)
    limit = reference.gaussian_epsilon(1.0 / (0.01 * math.sqrt(math.expm1(1e-4) * 10**7)), 1, 1e-12)
    assert limit * 0.999 < loss.epsilon < limit * 1.002
    assert loss.epsilon == privacy_loss_epsilon(100.0, 0.01, 10**7, 1e-12)
    assert loss.cross_check == renyi_epsilon(100.0, 0.01, 10**7, 1e-12) == pytest.approx(2.22, abs=0.01)
    assert loss.method == "PLD"


def test_the_method_names_what_decided():
    """Of 1e12 steps the grid of losses is too coarse; without sampling the exact Gaussian mechanism is known."""
    loss = dp_sgd_epsilon(1e6 / 0.3, 0.9, 10**12, 1e-10)
    assert loss.method == "RDP"
    assert loss.epsilon == renyi_epsilon(1e6 / 0.3, 0.9, 10**12, 1e-10) < loss.cross_check
    loss = dp_sgd_epsilon(2.0, 1.0, 30, 1e-8)
    assert (loss.method, loss.cross_check) == ("Gaussian", renyi_epsilon(2.0, 1.0, 30, 1e-8))


@settings(max_examples=6, deadline=None)
@given(
    epsilon=st.floats(-1.0, 2.0).map(lambda power: 10.0**power),
    delta=st.floats(-10.0, -4.0).map(lambda power: 10.0**power),
    probability=st.sampled_from([0.004, 0.064, 0.5, 1.0]),
    steps=st.sampled_from([1, 16, 1600]),
)
def test_the_noise_is_the_inverse_of_epsilon(epsilon, delta, probability, steps):
    """It never costs more than was asked for, and half a percent less noise does."""
    noise = noise_multiplier_for(epsilon, delta, probability, steps)
    assert float(f"{noise:.3e}") == noise
    assert dp_sgd_epsilon(noise, probability, steps, delta).epsilon <= epsilon
    assert noise == 0.01 or dp_sgd_epsilon(0.995 * noise, probability, steps, delta).epsilon > epsilon


@settings(max_examples=12, deadline=None)
@given(
    noise=st.floats(-0.5, 1.5).map(lambda power: 10.0**power),
    probability=st.floats(-3.0, -0.01).map(lambda power: 10.0**power),
    steps=st.integers(1, 1000),
    delta=st.floats(-12.0, -2.0).map(lambda power: 10.0**power),
)
def test_the_tighter_bound_is_the_smaller_one_and_grows(noise, probability, steps, delta):
    """Wherever a run is; more steps cost more."""
    once, twice = (privacy_loss_epsilon(noise, probability, count, delta) for count in (steps, 2 * steps))
    assert once <= renyi_epsilon(noise, probability, steps, delta) * (1 + 1e-3) + 1e-9
    assert once <= twice * (1 + 1e-3) + 1e-9


def test_noise_for_a_million_steps_takes_few_evaluations(monkeypatch):
    """Each takes a fraction of a second at so many steps; a search that halves takes twenty."""
    from gan_leak.defenses import accounting

    calls = []
    epsilon = accounting.dp_sgd_epsilon
    monkeypatch.setattr(
        accounting, "dp_sgd_epsilon", lambda *mechanism: (calls.append(mechanism), epsilon(*mechanism))[1]
    )
    noise = noise_multiplier_for(1.0, 1e-10, 0.25, 10**6)
    assert len(calls) <= 8
    assert 0.995 < dp_sgd_epsilon(noise, 0.25, 10**6, 1e-10).epsilon <= 1.0
