"""The promises of the defenses over a whole run, as (epsilon, delta). Computed on the host; nothing is traced.

``dp-accounting`` and SciPy are imported by the first function that needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gan_leak.collaboration.selection import fraction_to_count

ADD_OR_REMOVE_ONE = "add or remove one"
REPLACE_ALL_DATA = "replace all data of one participant"
# With less noise, epsilon is in the thousands after one step, and the accountants overflow.
LEAST_NOISE_MULTIPLIER = 0.01
BOUNDED_UPDATES = "updates that differ by at most the sensitivity in every coordinate"


class PrivacyLoss(NamedTuple):
    """An (epsilon, delta) promise, with its neighboring inputs and its method of computation.

    unit: the difference between two neighboring inputs. cross_check: epsilon at the same delta by a second method, not
    smaller; None if ``method`` is a closed form.
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
    epsilon per epoch of Shokri and Shmatikov 2015). The costs of uploads add up (McSherry 2009). A participant uploads
    once per round. Neighbors are two updates that differ by at most the sensitivity in every coordinate. Whether two
    data sets, different in one record or completely, give such updates depends on the bound on the update.

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
    """The cost of the releases that were made: ``epsilon_per_release * releases``, counted as in the sources.

    It serves to compare runs and is not a promise: it depends on the data. Also, a search that ends without a release
    has answered its queries, for up to one further ``epsilon_per_release``. The promise is ``sparse_vector_epsilon``.

    Raises ValueError for an epsilon not above 0 and for releases below 0.
    """
    _check_positive("epsilon_per_release", epsilon_per_release, or_infinite=True)
    _check_count("releases", releases, 0)
    return epsilon_per_release * releases if releases else 0.0


def dp_sgd_schedule(samples: int, batch_size: int, epochs: int) -> tuple[float, int]:
    """The sampling probability and the number of steps of ``dp_sgd`` over ``epochs`` epochs, all rounds together.

    The probability is that of the draws in ``dp_sgd``: a multiple of 2^-23 is below a ratio in float32.

    Raises ValueError for a batch size below 1 and for negative samples or epochs.
    """
    _check_count("samples", samples, 0)
    _check_count("batch_size", batch_size, 1)
    _check_count("epochs", epochs, 0)
    ratio = float(np.float32(batch_size) / np.float32(max(samples, 1)))
    return min(1.0, math.ceil(ratio * 2**23) / 2**23), epochs * -(-samples // batch_size)


def dp_sgd_epsilon(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> PrivacyLoss:
    """The epsilon of DP-SGD after ``steps`` steps: the Poisson-subsampled Gaussian mechanism, composed.

    Per record, under adding or removing one. The noise on the sum of clipped gradients is ``noise_multiplier`` times
    the clipping norm. The result is the smaller of two upper bounds, named by ``method``; ``cross_check`` is the other:
    "PLD", from the distribution of the privacy loss, and "RDP", from Renyi differential privacy at integer orders. With
    sampling probability 1, "Gaussian" replaces "PLD"; it is exact (Balle and Wang 2018, Theorem 8). The result is
    infinite with a noise multiplier below 0.01 and 0 without steps.

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


def local_gaussian_epsilon(clipping_norm: float, noise_deviation: float, delta: float, rounds: int) -> PrivacyLoss:
    """The local epsilon of a participant that clips its update and adds Gaussian noise, over ``rounds`` uploads.

    The unit is all data of the participant (user level), against everybody who sees its uploads, the server included.
    The upload is the update clipped to an L2 norm of ``clipping_norm`` plus N(0, noise_deviation^2) on every
    coordinate: the defenses ``clipping+gaussian``, in this order. Neighbors are any two data sets of the participant,
    in all rounds: their clipped updates differ by at most twice the norm. So the rounds are the Gaussian mechanism with
    noise multiplier noise_deviation / (2 clipping_norm), composed (Balle and Wang 2018, Theorem 8). Selection of
    coordinates after the noise is post-processing; one before it is not covered, since the server sees which values
    were left out. The rounds that the participant takes part in must not depend on its data. Noise in floating point is
    for research.

    >>> local_gaussian_epsilon(1.0, 20.0, 1e-5, 10).unit
    'participant'

    Raises ValueError for a norm that is not a finite number above 0, a deviation that is not a finite number of at
    least 0, rounds below 0, and a delta that is not between 0 and 1.
    """
    _check_positive("clipping_norm", clipping_norm)
    if not 0.0 <= noise_deviation < math.inf:
        raise ValueError(f"noise_deviation={noise_deviation}: expected a finite number of at least 0")
    _check_count("rounds", rounds, 0)
    # Rounds run in float32, which may round the noise down and the norm up.
    noise = min(noise_deviation, float(np.float32(noise_deviation)))
    norm = max(clipping_norm, float(np.float32(clipping_norm)))
    loss = dp_sgd_epsilon(noise / (2.0 * norm), 1.0, rounds, delta)
    return loss._replace(unit="participant", neighboring_relation=REPLACE_ALL_DATA)


def noise_multiplier_for(epsilon: float, delta: float, sampling_probability: float, steps: int) -> float:
    """The least noise multiplier with which ``steps`` steps of DP-SGD cost at most ``epsilon``, to four digits.

    The inverse of ``dp_sgd_epsilon``: that is at most ``epsilon`` with this multiplier, and more with the next smaller
    number of four significant digits. The result is at least 0.01, and 0 without steps.

    Raises ValueError as ``dp_sgd_epsilon`` does, for an epsilon that is not a finite number above 0, and for a delta of
    at least the probability that a given record is ever drawn. With such a delta, publishing every drawn record would
    count as private.
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
        """The logarithm of the spent epsilon over the allowed one, for the noise at an index of the grid."""
        if index not in found:
            spent = dp_sgd_epsilon(_four_digits(index), sampling_probability, steps, delta).epsilon
            # Finite for the interpolation, and above 0 exactly if too much is spent.
            ratio = math.log(min(max(spent / epsilon, 1e-9), 1e9))
            found[index] = max(ratio, 1e-12) if spent > epsilon else min(ratio, 0.0)
        return found[index]

    return _four_digits(_first_without_excess(excess, _likely_place(epsilon, delta, sampling_probability, steps)))


def _four_digits(index: int) -> float:
    """The grid of numbers with four significant digits, from 0.01 on."""
    decade, place = divmod(index, 9000)
    return float(f"{1000 + place}e{decade - 5}")


def _likely_place(epsilon: float, delta: float, sampling_probability: float, steps: int) -> int:
    """The index on the grid of ``_four_digits`` in the limit of many steps (Bu et al. 2020, Corollary 5.4)."""
    from_delta = math.sqrt(-2.0 * math.log(delta))
    mean = max(2.0 * epsilon / (from_delta + math.sqrt(from_delta**2 + 2.0 * epsilon)), 1e-8)
    for _ in range(8):
        # Epsilon grows at least linearly and at most quadratically with the mean.
        mean *= (epsilon / _gaussian_epsilon(1.0, 1.0, mean**2, delta)) ** 0.6
    noise = math.sqrt(steps) / mean
    if sampling_probability < 1.0:
        noise = 1.0 / math.sqrt(math.log1p((mean / sampling_probability) ** 2 / steps))
    decade = math.floor(math.log10(max(noise, LEAST_NOISE_MULTIPLIER)))
    return max(0, (decade + 2) * 9000 + round(noise / 10.0**decade * 1000) - 1000)


def _first_without_excess(excess: Callable[[int], float], guess: int) -> int:
    """The first index >= 0 at which a decreasing function is not above 0; the search starts at ``guess``."""
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
        # If interpolation reduced the interval by less than half, the next step halves it.
        halve = high - low > before / 2
    return high


def _gaussian_epsilon(noise_multiplier: float, sampling_probability: float, steps: float, delta: float) -> float:
    """The exact epsilon of the Gaussian mechanism composed of steps without sampling, rounded up."""
    import dp_accounting

    mean = math.sqrt(steps) / noise_multiplier
    if mean < 1e-9:
        # In floating point the two probabilities would be equal.
        return math.inf
    # The smaller delta covers rounding in the difference of two probabilities, the final factor that in its root.
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
