"""What the accountant says against closed forms, the published figures, and itself."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.collaboration import RoundHyperParameters, selective_upload
from gan_leak.defenses import (
    dp_sgd_epsilon,
    dp_sgd_schedule,
    local_gaussian_epsilon,
    noise_multiplier_for,
    parse_composition,
    sparse_vector_charged,
    sparse_vector_epsilon,
    upload_of,
)
from gan_leak.types import Upload
from reference import dp_sgd as reference

# Of TensorFlow Privacy's MNIST tutorial: noise multiplier, epochs, and the epsilon it reports at delta 1e-5.
TUTORIAL = [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)]


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (20.0, 100), (10.0, 1000), (2.0, 30)])
@pytest.mark.parametrize("delta", [1e-3, 1e-8])
def test_without_sampling_it_is_the_exact_gaussian_mechanism(noise, steps, delta):
    """At probability 1 the steps are one Gaussian mechanism: an upper bound, and tight to a thousandth."""
    exact = reference.gaussian_epsilon(noise, steps, delta)
    loss = dp_sgd_epsilon(noise, 1.0, steps, delta)
    assert exact * (1 - 1e-6) <= loss.epsilon <= exact * 1.001
    assert loss.epsilon < loss.cross_check < 1.4 * exact


@pytest.mark.parametrize(("noise", "epochs", "reported"), TUTORIAL)
def test_the_published_mnist_recipe(noise, epochs, reported):
    """60,000 images, batch 256: the accountant of its time, step by step, and today's tighter ones."""
    probability, batches = 256 / 60000, epochs * 60000 // 256
    classical = reference.classical_rdp_epsilon(noise, probability, batches, 1e-5)
    assert classical == pytest.approx(reported, rel=0.01)
    loss = dp_sgd_epsilon(noise, probability, batches, 1e-5)
    assert 0.7 * classical < loss.epsilon < loss.cross_check < classical


def test_what_is_promised_is_said():
    """The unit, the neighbouring relation, delta and the method travel with the number."""
    loss = dp_sgd_epsilon(2.0, 0.01, 100, 1e-6)
    assert (loss.unit, loss.neighboring_relation, loss.delta) == ("record", "add or remove one", 1e-6)
    assert loss.method == "PLD"
    loss = sparse_vector_epsilon(1.0, 0.1, 1000)
    assert (loss.unit, loss.delta, loss.cross_check) == ("update", 0.0, None)
    assert "sensitivity" in loss.neighboring_relation


@pytest.mark.parametrize(
    ("costlier", "cheaper"),
    [
        ({"noise_multiplier": 0.8}, {"noise_multiplier": 1.5}),
        ({"steps": 60}, {"steps": 40}),
        ({"sampling_probability": 0.04}, {"sampling_probability": 0.01}),
        ({"delta": 1e-6}, {"delta": 1e-4}),
    ],
)
def test_epsilon_is_monotone(costlier, cheaper):
    """More noise and a larger delta cost less, more steps and larger lots cost more, by either method."""
    middle = {"noise_multiplier": 1.0, "sampling_probability": 0.02, "steps": 50, "delta": 1e-5}
    most, some, least = (dp_sgd_epsilon(**(middle | change)) for change in (costlier, {}, cheaper))
    assert most.epsilon > some.epsilon > least.epsilon > 0
    assert most.cross_check > some.cross_check > least.cross_check > 0


@pytest.mark.parametrize("noise", [0.0, 1e-9, 0.0099])
def test_without_noise_nothing_is_promised(noise):
    """And with next to none, where the accountants would overflow."""
    loss = dp_sgd_epsilon(noise, 0.1, 10, 1e-5)
    assert loss.epsilon == loss.cross_check == math.inf


def test_without_steps_nothing_is_lost():
    """Even without noise."""
    assert dp_sgd_epsilon(0.0, 0.1, 0, 1e-5).epsilon == 0
    assert noise_multiplier_for(1.0, 1e-5, 0.1, 0) == 0


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.3])
def test_little_noise_is_accounted_for_on_a_coarser_grid(noise):
    """Without sampling the exact figure is known, up to 54,000 here: a bound from above, to a thousandth."""
    exact = reference.gaussian_epsilon(noise, 10, 1e-5)
    assert exact <= dp_sgd_epsilon(noise, 1.0, 10, 1e-5).epsilon <= exact * 1.001


@pytest.mark.parametrize(("epsilon", "probability", "steps"), [(0.5, 0.064, 160), (2.0, 0.05, 400), (2.0, 1.0, 100)])
def test_the_calibrated_noise_is_enough_and_hardly_more(epsilon, probability, steps):
    """It costs at most the epsilon asked for; half a percent less noise costs more."""
    noise = noise_multiplier_for(epsilon, 1e-5, probability, steps)
    assert dp_sgd_epsilon(noise, probability, steps, 1e-5).epsilon <= epsilon
    assert dp_sgd_epsilon(0.995 * noise, probability, steps, 1e-5).epsilon > epsilon
    if probability == 1:
        assert reference.gaussian_epsilon(noise, steps, 1e-5) == pytest.approx(epsilon, rel=1e-3)


def test_a_huge_epsilon_takes_the_least_noise():
    """A multiplier below 0.01 is not accounted for."""
    assert noise_multiplier_for(1e12, 1e-5, 1.0, 1) == 0.01


@pytest.mark.parametrize(
    ("samples", "batch_size", "epochs", "expected"),
    [(1000, 64, 100, (0.064, 1600)), (64, 64, 2, (1.0, 2)), (20, 64, 3, (1.0, 3)), (0, 64, 3, (1.0, 0))],
)
def test_the_schedule_is_that_of_the_mechanism(samples, batch_size, epochs, expected):
    """Probability and steps of whole and partial epochs, of small participants and of those without data."""
    assert dp_sgd_schedule(samples, batch_size, epochs) == pytest.approx(expected)


@pytest.mark.parametrize(("samples", "batch_size"), [(1000, 64), (3, 1), (1_000_000, 7), (5, 5), (1, 1)])
def test_the_sampling_probability_is_no_smaller_than_that_drawn_with(samples, batch_size):
    """A record is drawn where a multiple of 2^-23 is below a float32: with a probability that may exceed the ratio."""
    ratio = np.asarray(jnp.minimum(1.0, batch_size / jnp.maximum(jnp.asarray(samples), 1)))
    uniform = np.arange(2**23, dtype=np.float64) / 2**23
    drawn = np.mean(uniform < float(ratio))
    probability, _ = dp_sgd_schedule(samples, batch_size, 1)
    assert probability == drawn >= batch_size / samples


@pytest.mark.parametrize(("norm", "deviation", "rounds"), [(1.0, 2.0, 1), (0.5, 5.0, 30), (2.0, 0.5, 3)])
def test_the_local_epsilon_is_that_of_two_norms(norm, deviation, rounds):
    """Exact for any two updates of the norm, which are up to two norms apart; one norm would promise too much."""
    loss = local_gaussian_epsilon(norm, deviation, 1e-5, rounds)
    exact = reference.gaussian_epsilon(deviation / (2 * norm), rounds, 1e-5)
    assert exact <= loss.epsilon <= exact * 1.001
    assert loss.epsilon > 1.5 * reference.gaussian_epsilon(deviation / norm, rounds, 1e-5)
    assert (loss.unit, loss.neighboring_relation) == ("participant", "replace all data of one participant")


def test_without_noise_or_rounds_the_local_epsilon_is_infinite_or_zero():
    assert local_gaussian_epsilon(1.0, 0.0, 1e-5, 1).epsilon == math.inf
    assert local_gaussian_epsilon(1.0, 0.0, 1e-5, 0).epsilon == 0


def test_an_audit_of_clipped_and_noised_uploads():
    """Opposite updates of any length: the best test of which one was sent stays within epsilon, and just so."""
    transform = upload_of(parse_composition("clipping+gaussian"), selective_upload("largest"))
    norm, deviation, delta, draws = 0.5, 1.0, 0.01, 100_000
    numbers = RoundHyperParameters(0.1, defense={"update_clipping_norm": norm, "gaussian_deviation": deviation})

    def sent(key, sign):
        upload = Upload(jnp.asarray([300.0 * sign, 0.0]), jnp.ones(2, bool))
        return transform.apply(key, upload, transform.init(()), params=(), hyperparameters=numbers)[0].values[0]

    keys = jax.random.split(jax.random.key(0), 2 * draws).reshape(2, draws)
    first, second = (
        np.asarray(jax.jit(jax.vmap(lambda key, sign=sign: sent(key, sign)))(own))
        for own, sign in zip(keys, (1.0, -1.0), strict=True)
    )

    def leaked(epsilon):
        """The delta that the likelihood ratio test reaches at this epsilon."""
        threshold = epsilon * deviation**2 / (2 * norm)
        return np.mean(first > threshold) - math.exp(epsilon) * np.mean(second > threshold)

    epsilon = local_gaussian_epsilon(norm, deviation, delta, 1).epsilon
    # Six standard errors of a share.
    noise = 6 * math.sqrt(delta / draws) * (1 + math.exp(epsilon / 2))
    assert leaked(epsilon) == pytest.approx(delta, abs=noise)
    assert leaked(0.8 * epsilon) > delta + noise


def test_the_sparse_vector_total_of_the_paper():
    """epsilon/c = 0.1 with every parameter of the classifier uploaded: 10,550.6 an epoch (Hitaj et al. 2017)."""
    assert sparse_vector_epsilon(0.1, 1.0, 105506).epsilon == pytest.approx(10550.6)
    assert sparse_vector_epsilon(0.1, 0.1, 105506, uploads=3).epsilon == pytest.approx(0.1 * 10551 * 3)
    assert sparse_vector_epsilon(math.inf, 0.1, 100).epsilon == math.inf
    assert sparse_vector_epsilon(math.inf, 0.1, 100, uploads=0).epsilon == 0
    assert sparse_vector_charged(0.1, 52000) == pytest.approx(5200)
    assert sparse_vector_charged(math.inf, 0) == 0
    assert sparse_vector_charged(0.1, 105506) == pytest.approx(sparse_vector_epsilon(0.1, 1.0, 105506).epsilon)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dp_sgd_epsilon(-1.0, 0.1, 1, 1e-5), "noise_multiplier=-1.0: expected a finite number of at least 0"),
        (lambda: dp_sgd_epsilon(math.inf, 0.1, 1, 1e-5), "noise_multiplier=inf: expected a finite"),
        (lambda: dp_sgd_epsilon(math.nan, 0.1, 1, 1e-5), "noise_multiplier=nan: expected a finite"),
        (lambda: dp_sgd_epsilon(1.0, 0.0, 1, 1e-5), "sampling_probability=0.0: expected a number in (0, 1]"),
        (lambda: dp_sgd_epsilon(1.0, 1.1, 1, 1e-5), "sampling_probability=1.1: expected a number in (0, 1]"),
        (lambda: dp_sgd_epsilon(1.0, 0.1, -1, 1e-5), "steps=-1: expected at least 0"),
        (lambda: dp_sgd_epsilon(1.0, 0.1, 1, 0.0), "delta=0.0: expected a number above 0 and below 1"),
        (lambda: dp_sgd_epsilon(1.0, 0.1, 1, 1.0), "delta=1.0: expected a number above 0 and below 1"),
        (lambda: noise_multiplier_for(0.0, 1e-5, 0.1, 1), "epsilon=0.0: expected a finite number above 0"),
        (lambda: noise_multiplier_for(math.inf, 1e-5, 0.1, 1), "epsilon=inf: expected a finite number above 0"),
        (lambda: noise_multiplier_for(1.0, 0.2, 0.1, 2), "delta=0.2: expected below 0.19, the probability that"),
        (lambda: noise_multiplier_for(1.0, 2.0, 0.1, 2), "delta=2.0: expected a number above 0 and below 1"),
        (lambda: sparse_vector_epsilon(0.0, 0.1, 10), "epsilon_per_release=0.0: expected a number above 0"),
        (lambda: sparse_vector_epsilon(1.0, 1.5, 10), "upload_fraction=1.5: expected a number in (0, 1]"),
        (lambda: sparse_vector_epsilon(1.0, 0.1, 0), "coordinates=0: expected at least 1"),
        (lambda: sparse_vector_epsilon(1.0, 0.1, 10, -1), "uploads=-1: expected at least 0"),
        (lambda: sparse_vector_charged(-1.0, 3), "epsilon_per_release=-1.0: expected a number above 0"),
        (lambda: sparse_vector_charged(1.0, -3), "releases=-3: expected at least 0"),
        (lambda: local_gaussian_epsilon(0.0, 1.0, 1e-5, 1), "clipping_norm=0.0: expected a finite number above 0"),
        (lambda: local_gaussian_epsilon(math.inf, 1.0, 1e-5, 1), "clipping_norm=inf: expected a finite number above 0"),
        (lambda: local_gaussian_epsilon(1.0, -0.1, 1e-5, 1), "noise_deviation=-0.1: expected a finite number of at"),
        (lambda: local_gaussian_epsilon(1.0, 1.0, 1e-5, -1), "rounds=-1: expected at least 0"),
        (lambda: local_gaussian_epsilon(1.0, 1.0, 0.0, 1), "delta=0.0: expected a number above 0 and below 1"),
        (lambda: dp_sgd_schedule(10, 0, 1), "batch_size=0: expected at least 1"),
        (lambda: dp_sgd_schedule(-1, 1, 1), "samples=-1: expected at least 0"),
        (lambda: dp_sgd_schedule(1, 1, -1), "epochs=-1: expected at least 0"),
    ],
)
def test_wrong_numbers_are_refused_in_one_line(call, message):
    """Name, value and what is expected."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_importing_the_defences_loads_no_accountant():
    """It takes a second and is needed once a run at most."""
    probe = "import sys, gan_leak.defenses; print('dp_accounting' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    assert output.stdout.strip() == "False"
