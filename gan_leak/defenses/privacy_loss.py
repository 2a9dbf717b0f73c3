"""Two upper bounds on the epsilon of the composed Poisson-subsampled Gaussian mechanism, computed on the host.

The mechanism (Abadi et al. 2016, "Deep Learning with Differential Privacy"): with noise multiplier z and sampling
probability q, a step releases a draw from P = (1 - q) N(0, z^2) + q N(1, z^2) with the record, and from Q = N(0, z^2)
without it. ``renyi_epsilon`` bounds its Renyi divergences. ``privacy_loss_epsilon`` composes the
distribution of the privacy loss log(P / Q), which is tighter. Neither holds for q = 1, where the exact Gaussian
mechanism is known.

Rounding errors. A Fourier transform has an absolute error of about 1e-16 for each step. After 1e7 steps this exceeds a
delta of 1e-10, and the computed epsilon may be too small. Here the distribution is tilted first, so that losses near
epsilon are likely. The error is then relative to delta, and a bound on it is added to delta.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.optimize
import scipy.signal
import scipy.special

# Most points of a distribution, of one step and of all steps; a transform takes a fraction of a second.
_MOST_POINTS = 2**20
# Noise of one step that is further below its mean is moved to this number of deviations.
_DEVIATIONS_BELOW = 10.0
# The probability outside the window of the transform after tilting; it is added to delta.
_OUTSIDE = 1e-13
# The relative rounding error for each step, for a sum of terms that are each exact to a few units.
_ROUNDING = 64 * np.finfo(np.float64).eps / 2
_ORDERS = (*range(2, 65), *sorted({round(64 * 1.05**step) for step in range(1, 115)}))


class _Losses(NamedTuple):
    """The distribution of a privacy loss: values [M] from ``interval * first`` on and the logarithms of their masses.

    at_infinity: the mass of an infinite loss.
    """

    interval: float
    first: int
    values: np.ndarray
    logs: np.ndarray
    at_infinity: float

    def log_moment(self, tilt: float) -> float:
        """The logarithm of the moment generating function."""
        exponents = self.logs + tilt * self.values
        largest = float(np.max(exponents))
        return largest + math.log(float(np.sum(np.exp(exponents - largest))))


@functools.lru_cache(maxsize=4096)
def renyi_divergences(noise_multiplier: float, sampling_probability: float) -> tuple[np.ndarray, np.ndarray]:
    """Orders [A] and an upper bound on the Renyi divergence of one step at each [A].

    At integer orders in closed form (Mironov, Talwar and Zhang 2019, arXiv 1908.10530, section 3.3). The terms of the
    binomial that sum to one are left out, so every term is positive and small divergences do not cancel.
    """
    q, orders = sampling_probability, np.array(_ORDERS)
    if q == 1.0:
        return orders, orders / (2.0 * noise_multiplier**2)
    counts = np.arange(2, orders[-1] + 1)
    exponents = counts * (counts - 1) / (2.0 * noise_multiplier**2)
    own = counts * (math.log(q) - math.log1p(-q)) + exponents + np.log(-np.expm1(-exponents))
    own -= scipy.special.gammaln(counts + 1)
    log_factorials = scipy.special.gammaln(np.arange(orders[-1] + 1) + 1)
    logs = [
        log_factorials[order]
        + order * math.log1p(-q)
        + scipy.special.logsumexp(own[: order - 1] - log_factorials[order - 2 :: -1])
        for order in orders
    ]
    return orders, np.logaddexp(0.0, logs) / (orders - 1)


def renyi_epsilon(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> float:
    """An upper bound on epsilon by Renyi differential privacy (Mironov 2017; Balle et al. 2020, Theorem 21)."""
    orders, divergences = renyi_divergences(noise_multiplier, sampling_probability)
    # Covers rounding in each term and in the factorials of large orders.
    return _epsilon_from_divergence(orders, steps * (divergences * (1.0 + 1e-9) + _ROUNDING), delta)


def _epsilon_from_divergence(orders: np.ndarray, divergences: np.ndarray, delta: float) -> float:
    epsilons = divergences + np.log1p(-1.0 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(epsilons)))


def privacy_loss_epsilon(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> float:
    """An upper bound on epsilon by the distribution of the privacy loss, for a sampling probability below 1.

    The worse of adding and removing a record. Losses are put on a grid so that the distribution dominates the true one
    (Doroshenko et al. 2022, "Connect the Dots"), and composed by a Fourier transform (Koskela et al. 2020; Gopi et al.
    2021) of the distribution tilted towards epsilon (Alghamdi et al. 2023, "The Saddle-Point Method in Differential
    Privacy"). The parts outside the transform and the rounding errors are added to delta.
    """
    mechanism = noise_multiplier, sampling_probability
    rough = renyi_epsilon(*mechanism, steps, delta)
    while True:
        interval = _interval(*mechanism, steps, rough)
        epsilon = _worse_epsilon(*mechanism, steps, delta, interval)
        # With little noise, Renyi divergences overestimate epsilon many times, and the grid for it is too coarse.
        if epsilon > rough / 4.0 or _interval(*mechanism, steps, epsilon) == interval:
            return epsilon
        rough = epsilon


def _worse_epsilon(
    noise_multiplier: float, sampling_probability: float, steps: int, delta: float, interval: float
) -> float:
    # The probability beyond is added to delta. Rounded, so that many numbers of steps share one distribution.
    outcomes = 4.0 ** math.ceil(math.log(1e6 * steps / delta, 4.0))
    removed, added = (
        _losses(noise_multiplier, sampling_probability, interval, outcomes, added=added) for added in (False, True)
    )
    epsilon = _composed_epsilon(removed, steps, delta, 0.0)
    return max(epsilon, _composed_epsilon(added, steps, delta, epsilon))


def _interval(noise_multiplier: float, sampling_probability: float, steps: int, epsilon: float) -> float:
    """A power of two, small against the deviation of a step and epsilon, but large enough to compute."""
    deviation = sampling_probability * math.sqrt(math.expm1(min(noise_multiplier**-2, 100.0)))
    deviation = min(deviation, math.sqrt(sampling_probability) / noise_multiplier)
    fine = min(deviation / 25.0, max(epsilon, 1e-3 * deviation) / 2000.0)
    range_of_step = 25.0 / noise_multiplier + 0.5 / noise_multiplier**2
    coarse = max(20.0 * deviation * math.sqrt(steps), range_of_step) / _MOST_POINTS
    return 2.0 ** math.floor(math.log2(max(fine, coarse)))


def _loss_at(noise: np.ndarray, noise_multiplier: float, sampling_probability: float) -> np.ndarray:
    """The privacy loss log(P / Q) at an outcome; increasing."""
    return np.logaddexp(
        math.log1p(-sampling_probability),
        math.log(sampling_probability) + (2.0 * noise - 1.0) / 2 / noise_multiplier**2,
    )


def _outcome_at(losses: np.ndarray, noise_multiplier: float, sampling_probability: float) -> np.ndarray:
    """The outcome with a privacy loss, the inverse of ``_loss_at``; -inf for losses below all."""
    small, large = np.minimum(losses, 1.0), np.maximum(losses, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.log1p(np.maximum(np.expm1(small) / sampling_probability, -1.0))
    far = large - math.log(sampling_probability) + np.log1p((sampling_probability - 1.0) * np.exp(-large))
    return noise_multiplier**2 * np.where(losses < 1.0, near, far) + 0.5


def _between(edges: np.ndarray) -> np.ndarray:
    """The standard normal probability between each two edges, precise in both tails."""
    low, high = edges[:-1], edges[1:]
    mirrored = low > 0
    return np.where(
        mirrored,
        scipy.special.ndtr(-low) - scipy.special.ndtr(-high),
        scipy.special.ndtr(high) - scipy.special.ndtr(low),
    )


class _Intervals(NamedTuple):
    """The true loss of one step over the intervals between points of a grid.

    probabilities: of each, under the distribution in the numerator of the loss. excess: the difference between each and
    its value if all of it had the loss of the left end. below, above: the probabilities outside.
    """

    probabilities: np.ndarray
    excess: np.ndarray
    below: float
    above: float


def _of_removing(grid: np.ndarray, noise_multiplier: float, sampling_probability: float) -> _Intervals:
    """The loss log(P / Q) under P."""
    z, q = noise_multiplier, sampling_probability
    edges = _outcome_at(grid, z, q)
    without, present = _between(edges / z), _between((edges - 1.0) / z)

    def mixture(of_without: float, of_present: float) -> float:
        return float((1.0 - q) * scipy.special.ndtr(of_without / z) + q * scipy.special.ndtr(of_present / z))

    with np.errstate(over="ignore", invalid="ignore"):
        excess = q * present - (q + np.expm1(grid[:-1])) * without
    below, above = mixture(edges[0], edges[0] - 1.0), mixture(-edges[-1], 1.0 - edges[-1])
    return _Intervals((1.0 - q) * without + q * present, excess, below, above)


def _of_adding(grid: np.ndarray, noise_multiplier: float, sampling_probability: float) -> _Intervals:
    """The loss log(Q / P) under Q."""
    z, q = noise_multiplier, sampling_probability
    edges = _outcome_at(-grid[::-1], z, q)
    without, present = _between(edges / z)[::-1], _between((edges - 1.0) / z)[::-1]
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(grid[:-1])
        excess = (q * ratio - np.expm1(grid[:-1])) * without - q * ratio * present
    below, above = scipy.special.ndtr(-edges[-1] / z), scipy.special.ndtr(edges[0] / z)
    return _Intervals(without, excess, float(below), float(above))


@functools.lru_cache(maxsize=64)
def _losses(
    noise_multiplier: float, sampling_probability: float, interval: float, outcomes: float, *, added: bool
) -> _Losses:
    """The loss of one step on a grid that dominates the true loss, for removing a record or for adding one.

    The probability of each interval under either distribution is kept and moved to its two ends. Outcomes less likely
    than one in ``outcomes`` are moved to infinity.
    """
    far = noise_multiplier * math.sqrt(2.0 * math.log(outcomes))
    near = noise_multiplier * _DEVIATIONS_BELOW
    ends = np.array([-far, near] if added else [-near, 1.0 + far])
    low, high = sorted((-1.0 if added else 1.0) * _loss_at(ends, noise_multiplier, sampling_probability))
    first = math.floor(low / interval)
    grid = interval * np.arange(first, max(math.ceil(high / interval), first + 1) + 1)
    found = (_of_adding if added else _of_removing)(grid, noise_multiplier, sampling_probability)
    # If values overflow, the whole interval is rounded up, which is safe.
    right = np.nan_to_num(found.excess / -math.expm1(-interval), nan=np.inf)
    right = np.clip(right, 0.0, found.probabilities)
    masses = np.zeros(len(grid))
    masses[1:] += right
    masses[:-1] += found.probabilities - right
    masses[0] += found.below
    with np.errstate(divide="ignore"):
        return _Losses(interval, first, grid, np.log(masses), found.above)


def _composed_epsilon(losses: _Losses, steps: int, delta: float, least: float) -> float:
    """Epsilon at ``delta`` after ``steps`` such losses, by a transform of the tilted distribution.

    If epsilon is at most ``least``, the result may be any number up to ``least``.
    """
    delta += math.expm1(steps * math.log1p(-losses.at_infinity))
    if delta <= 0.0:
        return math.inf
    tilt, bound = _best_tilt(losses, steps, delta)
    if bound <= least:
        return bound
    log_scale = losses.log_moment(tilt)
    tilted = np.exp(losses.logs + tilt * losses.values - log_scale)
    start, window = _window(losses, tilted, tilt, steps)
    if window > 4 * _MOST_POINTS:
        return bound
    probabilities, error = _self_convolved(tilted, steps, start - steps * losses.first, window)
    ends = losses.interval * (start + np.arange(window))
    # At the upper ends of a window the true probabilities are too small for a float.
    weights = np.exp(np.clip(steps * log_scale - tilt * ends, -700.0, 700.0))
    decay = math.exp(-losses.interval)
    # Sums of positive terms from the largest loss down: first of discounted masses, then of their deltas.
    discounted = scipy.signal.lfilter([0.0, 1.0], [1.0, -decay], (probabilities * weights)[::-1])
    deltas = -math.expm1(-losses.interval) * np.cumsum(discounted)[::-1]
    deltas = deltas * (1.0 + _ROUNDING * steps) + weights * (error + 2.0 * _OUTSIDE)
    return min(bound, _crossing(ends, deltas, delta))


def _best_tilt(losses: _Losses, steps: int, delta: float) -> tuple[float, float]:
    """The tilt whose moment bounds epsilon best, and that bound."""

    def bound(log_tilt: float) -> float:
        tilt = math.exp(log_tilt)
        divergence = steps * (losses.log_moment(tilt) / tilt + _ROUNDING)
        return _epsilon_from_divergence(np.array([1.0 + tilt]), np.array([divergence]), delta)

    found = scipy.optimize.minimize_scalar(bound, bounds=(-7.0, 16.0), method="bounded", options={"xatol": 0.05})
    return math.exp(found.x), float(found.fun)


def _window(losses: _Losses, tilted: np.ndarray, tilt: float, steps: int) -> tuple[int, int]:
    """The range of the sum of ``steps`` tilted losses, up to ``_OUTSIDE`` on either side -> (first index, length)."""
    mean = float(np.dot(tilted, losses.values))
    deviation = math.sqrt(max(float(np.dot(tilted, np.square(losses.values - mean))), losses.interval**2 / 4))
    typical = math.sqrt(-2.0 * math.log(_OUTSIDE) / steps) / deviation

    def reach(side: float, order: float) -> float:
        """The Chernoff bound at an order; every order is valid."""
        growth = losses.log_moment(tilt + side * order) - losses.log_moment(tilt) - side * order * mean
        return (steps * growth - math.log(_OUTSIDE)) / order

    below, above = (min(reach(side, share * typical) for share in (0.25, 0.5, 1.0, 2.0)) for side in (-1.0, 1.0))
    first = math.floor((steps * mean - below) / losses.interval)
    last = math.ceil((steps * mean + above) / losses.interval)
    return first, scipy.fft.next_fast_len(last - first + 2, real=True)


def _self_convolved(probabilities: np.ndarray, times: int, start: int, length: int) -> tuple[np.ndarray, float]:
    """The ``times``-fold convolution at ``start`` to ``start + length`` and a bound on the sum of its errors.

    The parts outside are folded in.
    """
    folded = np.bincount(np.arange(len(probabilities)) % length, weights=probabilities, minlength=length)
    transform = scipy.fft.rfft(folded)
    sizes = np.minimum(np.abs(transform), 1.0)
    # Most frequencies vanish in the power.
    left = sizes > 10.0 ** (-250.0 / times)
    sizes, angles = sizes[left], np.angle(transform[left])
    power = np.zeros_like(transform)
    power[left] = sizes**times * np.exp(1j * times * angles)
    error = _ROUNDING * times * math.log2(length + 2) * math.sqrt(2.0 * float(np.sum(sizes ** (2 * (times - 1)))))
    convolved = np.roll(scipy.fft.irfft(power, length), -(start % length))
    return np.maximum(convolved, 0.0), error


def _crossing(losses: np.ndarray, deltas: np.ndarray, delta: float) -> float:
    """The least epsilon with the curve [M] at most ``delta``; chords in e^epsilon bound it between the points."""
    enough = np.flatnonzero(deltas <= delta)
    if not len(enough):
        return math.inf
    index = int(enough[0])
    if index == 0:
        return max(0.0, float(losses[0]))
    before, after = deltas[index - 1], deltas[index]
    share = (before - delta) / (before - after)
    return max(0.0, float(losses[index - 1] + math.log1p(share * math.expm1(losses[index] - losses[index - 1]))))
