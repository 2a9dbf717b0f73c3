"""What the defense promise over a whole run, as (epsilon, delta); numbers on the host, nothing traced.

``dp-accounting`` and the parts of SciPy are loaded by the first function that needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gan_leak.collaboration.selection import fraction_to_count

ADD_OR_REMOVE_ONE = "add or remove one"
# With less noise, epsilon is in the thousands for a single step and the accountants overflow.
LEAST_NOISE_MULTIPLIER = 0.01
BOUNDED_UPDATES = "updates that differ by at most the sensitivity in every coordinate"


class PrivacyLoss(NamedTuple):
    """An (epsilon, delta) promise: of which mechanism, for which neighboring inputs, computed how.

    unit: what two neighboring inputs differ in. cross_check: epsilon at the same delta by a second method, which is
    not smaller, or None where ``method`` is a closed form.
    """

    epsilon: float
    delta: float
    unit: str
    neighboring_relation: str
    method: str
    cross_check: float | None = None


def sparse_vector_epsilon(
    epsilon_per_release: float, upload_fraction: float, coordinates: int, uploads: int = 1
) -> PrivacyLoss:
    """The pure-DP total of the sparse vector technique over ``uploads`` uploads of one participant.

    One upload releases at most ``c = fraction_to_count(upload_fraction, coordinates)`` coordinates, each with the
    budget ``epsilon_per_release``, and costs ``c * epsilon_per_release`` (Dwork and Roth 2014, Theorem 3.27; the
    epsilon per epoch of Shokri and Shmatikov 2015); uploads add up (McSherry 2009). A participant uploads once a round.
    The neighbors are two updates that differ by at most the sensitivity in every coordinate: whether two data sets
    that differ in a record, or altogether, are such neighbors is for the bound on the update to ensure, not for this
    sum.

    Raises ValueError for an epsilon or a fraction not above 0, a fraction above 1 and counts below 1 or 0.
    """
    _check_positive("epsilon_per_release", epsilon_per_release, or_infinite=True)
    if not 0.0 < upload_fraction <= 1.0:
        raise ValueError(f"upload_fraction={upload_fraction}: expected a number in (0, 1]")
    _check_count("coordinates", coordinates, 1)
    _check_count("uploads", uploads, 0)
    most_releases = int(fraction_to_count(upload_fraction, coordinates))
    epsilon = epsilon_per_release * most_releases * uploads if uploads else 0.0
    return PrivacyLoss(epsilon, 0.0, "update", BOUNDED_UPDATES, "sequential composition of releases")


def sparse_vector_charged(epsilon_per_release: float, releases: int) -> float:
    """What was charged for the releases that were made: ``epsilon_per_release * releases``, as the sources count.

    A figure to compare runs by, not a promise: it depends on the data, and a search that ends without a release has
    answered its queries all the same, for up to one further ``epsilon_per_release``. The promise is
    ``sparse_vector_epsilon``.

    Raises ValueError for an epsilon not above 0 and for releases below 0.
    """
    _check_positive("epsilon_per_release", epsilon_per_release, or_infinite=True)
    _check_count("releases", releases, 0)
    return epsilon_per_release * releases if releases else 0.0


def dp_sgd_schedule(samples: int, batch_size: int, epochs: int) -> tuple[float, int]:
    """The sampling probability and the number of steps of ``dp_sgd`` over ``epochs`` epochs, all rounds together.

    The probability is the one with which ``dp_sgd`` draws: of a multiple of 2^-23 below a ratio in float32.

    Raises ValueError for a batch size below 1 and for negative samples or epochs.
    """
    _check_count("samples", samples, 0)
    _check_count("batch_size", batch_size, 1)
    _check_count("epochs", epochs, 0)
    ratio = float(np.float32(batch_size) / np.float32(max(samples, 1)))
    return min(1.0, math.ceil(ratio * 2**23) / 2**23), epochs * -(-samples // batch_size)


def dp_sgd_epsilon(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> PrivacyLoss:
    """The epsilon of DP-SGD after ``steps`` steps: the Poisson-subsampled Gaussian mechanism, composed.

    Per record, under adding or removing one, with noise of ``noise_multiplier`` times the clipping norm on the sum of
    the clipped gradients. Of two upper bounds the smaller one, which ``method`` names: "PLD", by the distribution of
    the privacy loss, or "RDP", by Renyi differential privacy at integer orders; ``cross_check`` is the other. With
    sampling probability 1 the first is that of one "Gaussian" mechanism, exact (Balle and Wang 2018, Theorem 8).
    Infinite without noise and, as a bound, with a noise multiplier below 0.01; 0 without steps.

    Raises ValueError for a negative or infinite noise multiplier, a sampling probability not in (0, 1], negative steps
    and a delta not in (0, 1).
    """
    if not 0.0 <= noise_multiplier < math.inf:
        raise ValueError(f"noise_multiplier={noise_multiplier}: expected a finite number of at least 0")
    _check_sampling(sampling_probability, steps, delta)
    from gan_leak.defenses.privacy_loss import privacy_loss_epsilon, renyi_epsilon

    exact = sampling_probability == 1.0
    bounds = {"Gaussian" if exact else "PLD": 0.0, "RDP": 0.0}
    if steps and noise_multiplier < LEAST_NOISE_MULTIPLIER:
        bounds = dict.fromkeys(bounds, math.inf)
    elif steps:
        tighter = _gaussian_epsilon if exact else privacy_loss_epsilon
        mechanism = noise_multiplier, sampling_probability, steps, delta
        bounds = dict(zip(bounds, (tighter(*mechanism), renyi_epsilon(*mechanism)), strict=True))
    method, other = sorted(bounds, key=lambda name: bounds[name])
    return PrivacyLoss(bounds[method], delta, "record", ADD_OR_REMOVE_ONE, method, bounds[other])


def noise_multiplier_for(epsilon: float, delta: float, sampling_probability: float, steps: int) -> float:
    """The least noise multiplier with which ``steps`` steps of DP-SGD cost at most ``epsilon``, to four digits.

    The inverse of ``dp_sgd_epsilon``: with it that is at most ``epsilon``, with the next smaller number of four
    significant digits it is more. At least 0.01, and 0 without steps.

    Raises ValueError as it does, for an epsilon that is not a finite number above 0, and for a delta of at least the
    probability that a given record is ever drawn: with such a delta, publishing every drawn record would pass as
    private.
    """
    _check_positive("epsilon", epsilon)
    _check_sampling(sampling_probability, steps, delta)
    if steps == 0:
        return 0.0
    ever_drawn = -math.expm1(steps * math.log1p(-sampling_probability)) if sampling_probability < 1 else 1.0
    if delta >= ever_drawn:
        raise ValueError(
            f"delta={delta}: expected below {ever_drawn:.3g}, the probability that a given record is ever drawn"
        )
    found: dict[int, float] = {}

    def excess(index: int) -> float:
        """By what factor, as a logarithm, the noise at a place on the grid costs too much."""
        if index not in found:
            spent = dp_sgd_epsilon(_four_digits(index), sampling_probability, steps, delta).epsilon
            # Finite, so that one can interpolate; above 0 exactly where too much is spent.
            ratio = math.log(min(max(spent / epsilon, 1e-9), 1e9))
            found[index] = max(ratio, 1e-12) if spent > epsilon else min(ratio, 0.0)
        return found[index]

    return _four_digits(_first_without_excess(excess, _likely_place(epsilon, delta, sampling_probability, steps)))


def _four_digits(index: int) -> float:
    """The numbers of four significant digits from 0.01 on, in order."""
    decade, place = divmod(index, 9000)
    return float(f"{1000 + place}e{decade - 5}")


def _likely_place(epsilon: float, delta: float, sampling_probability: float, steps: int) -> int:
    """Where on the grid of ``_four_digits`` the noise is in the limit of many steps (Bu et al. 2020, Corollary 5.4)."""
    from_delta = math.sqrt(-2.0 * math.log(delta))
    mean = max(2.0 * epsilon / (from_delta + math.sqrt(from_delta**2 + 2.0 * epsilon)), 1e-8)
    for _ in range(8):
        # Epsilon grows with the mean at least in proportion and at most as its square.
        mean *= (epsilon / _gaussian_epsilon(1.0, 1.0, mean**2, delta)) ** 0.6
    noise = math.sqrt(steps) / mean
    if sampling_probability < 1.0:
        noise = 1.0 / math.sqrt(math.log1p((mean / sampling_probability) ** 2 / steps))
    decade = math.floor(math.log10(max(noise, LEAST_NOISE_MULTIPLIER)))
    return max(0, (decade + 2) * 9000 + round(noise / 10.0**decade * 1000) - 1000)


def _first_without_excess(excess: Callable[[int], float], guess: int) -> int:
    """The first place from which on a decreasing function is not above 0, looked for from a guess on; at least 0."""
    low = high = guess
    stride = 4
    while excess(high) > 0:
        low, high, stride = high, high + stride, stride * 4
    while low > 0 and excess(low) <= 0:
        low, high, stride = max(low - stride, 0), low, stride * 4
    if excess(low) <= 0:
        return low
    halve = False
    while high - low > 1:
        share = 0.5 if halve else excess(low) / (excess(low) - excess(high))
        middle = min(max(low + math.ceil(share * (high - low)), low + 1), high - 1)
        before = high - low
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        # Where interpolation has moved one end only, and by little, halving moves the other.
        halve = high - low > before / 2
    return high


def _gaussian_epsilon(noise_multiplier: float, sampling_probability: float, steps: float, delta: float) -> float:
    """The exact epsilon of the Gaussian mechanism that unsampled steps are together, rounded up."""
    import dp_accounting

    mean = math.sqrt(steps) / noise_multiplier
    if mean < 1e-9:
        # The difference of two equal numbers to a float.
        return math.inf
    # A smaller delta makes up for rounding in the difference of two probabilities, the factor for that in its root.
    with np.errstate(divide="ignore"):
        epsilon = dp_accounting.get_epsilon_gaussian(1.0 / mean, delta * (1.0 - 1e-9 - 1e-13 / mean))
    return float(epsilon) * (1.0 + 1e-12) + 1e-12


def _check_positive(name: str, value: float, *, or_infinite: bool = False) -> None:
    if not (0.0 < value < math.inf or (or_infinite and value == math.inf)):
        raise ValueError(f"{name}={value}: expected a {'' if or_infinite else 'finite '}number above 0")


def _check_count(name: str, value: int, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name}={value}: expected at least {least}")


def _check_sampling(sampling_probability: float, steps: int, delta: float) -> None:
    if not 0.0 < sampling_probability <= 1.0:
        raise ValueError(f"sampling_probability={sampling_probability}: expected a number in (0, 1]")
    _check_count("steps", steps, 0)
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta={delta}: expected a number above 0 and below 1")
