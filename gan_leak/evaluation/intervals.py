"""Intervals by bootstrap over victims, and p-values by permutation of the victims.

The victim is the unit: pictures of one victim come from one attack and are not independent of each other. All functions
take one number, or one row of a table, for each of K victims.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.special import ndtr, stdtrit

from gan_leak.evaluation.criteria import Interval

RESAMPLES = 10_000
# All permutations up to this number of clients (40,320), a sample beyond it.
MOST_CLIENTS_EXACT = 8
SAMPLED_PERMUTATIONS = 20_000
# Numbers that differ by less, relative to the largest, are equal: sums in another order round differently.
TIE_TOLERANCE = 1e-6


def bootstrap_interval(values: np.ndarray, *, seed: int) -> Interval:
    """The mean of one number for each victim [K] and its 95% bootstrap interval.

    Victims with NaN have no number and do not count. With one number there is no interval (NaN), and with none there is
    no mean either. The ends are expanded percentiles, see ``_tail``. They lie between the least and the largest value,
    so equal values have an interval of width 0. Galleries count as given: the interval is for other victims like these.
    To decide whether a rate is above chance, use ``permutation_p_value``.
    """
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(math.nan, math.nan, math.nan, tuple(values.tolist()))
    low, high = _ends(known[_resamples(len(known), seed)].mean(axis=1), len(known))
    return Interval(float(known.mean()), low, high, tuple(values.tolist()))


def bootstrap_score(values: np.ndarray, ceiling: np.ndarray, floor: float, *, seed: int) -> Interval:
    """The mean of the values [K] on the scale from the floor (0) to the mean of the ceiling [K] (1), with 95% interval.

    The same victims are drawn for values and ceiling, since some victims are easier to identify than others. A draw
    whose ceiling does not exceed the floor counts as an infinity with the sign of its value, so it widens the interval.
    ``values`` of the interval are those of the victims on the common scale.

    Raises ValueError if the mean of the ceiling is not above the floor.
    """
    values, ceiling = np.asarray(values, np.float64), np.asarray(ceiling, np.float64)
    length = float(ceiling.mean()) - floor
    if not length > 0.0:
        raise ValueError(f"ceiling={floor + length:g}: expected above the floor, {floor:g}")
    drawn = _resamples(len(values), seed)
    above, lengths = values[drawn].mean(axis=1) - floor, ceiling[drawn].mean(axis=1) - floor
    scores = np.where(lengths > 0.0, above / np.where(lengths > 0.0, lengths, 1.0), np.copysign(np.inf, above))
    low, high = _ends(scores, len(values))
    on_scale = (values - floor) / length
    return Interval(float(values.mean() - floor) / length, low, high, tuple(on_scale.tolist()))


def permutation_p_value(table: np.ndarray, *, victims: np.ndarray | None = None, seed: int) -> float:
    """The p-value of the hypothesis that pictures are not nearer to their victim's images than by chance.

    table: row i of [V, K] holds the mean distances of the pictures of victim i to the images of each client. victims:
    the client of each row, int [V]; None: all in their order, so V = K, and the diagonal is tested.

    Rows and columns must come from different images, so that all entries are alike under the hypothesis. The statistic
    is the sum over victims of the distance to the client that a permutation assigns. The p-value is the share of
    permutations whose sum is at most that of the identity, which is one of them. So a number that is added to a row
    (pictures of one victim are brighter) or, if all are victims, to a column (all pictures resemble one client) changes
    nothing, and a table without differences has the p-value 1. Up to 8 clients all permutations count, so the least
    p-value is 1 / K! if all are victims. Beyond that a sample with this seed and the identity count, and the least
    p-value is 1 / 20,001.

    Raises ValueError if the table has another shape or is not finite.
    """
    table = np.asarray(table, np.float64)
    if table.ndim != 2 or not np.all(np.isfinite(table)):
        raise ValueError(f"table of shape {table.shape}: expected finite distances [V, K]")
    clients = table.shape[1]
    victims = np.arange(clients) if victims is None else np.asarray(victims)
    if len(table) != len(victims):
        raise ValueError(f"table of shape {table.shape}: expected finite distances [{len(victims)}, K]")
    rows = np.arange(len(victims))
    if clients <= MOST_CLIENTS_EXACT:
        permutations = np.array(list(itertools.permutations(range(clients))))
    else:
        sampled = np.tile(np.arange(clients), (SAMPLED_PERMUTATIONS, 1))
        sampled = np.random.default_rng(seed).permuted(sampled, axis=1)
        permutations = np.concatenate([np.arange(clients)[None], sampled])
    sums = table[rows, permutations[:, victims]].sum(axis=1)
    tolerance = TIE_TOLERANCE * float(np.abs(table).sum(axis=1).max(initial=0.0))
    return float(np.mean(sums <= table[rows, victims].sum() + tolerance))


def _resamples(count: int, seed: int) -> np.ndarray:
    """Victims drawn with replacement: indices [R, count]."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def _ends(resampled: np.ndarray, count: int) -> tuple[float, float]:
    if count < 2:
        return math.nan, math.nan
    tail = _tail(count)
    # Without interpolation, which cannot handle infinities.
    low, high = np.quantile(resampled, [tail, 1.0 - tail], method="inverted_cdf")
    return float(low), float(high)


def _tail(count: int) -> float:
    """The probability beyond each end: less than 2.5%, since a bootstrap of few units is too narrow.

    Expanded percentile interval (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"): for normal values
    the ends are those of Student's t interval. With 10 victims plain percentiles would cover only about 90%.
    """
    return float(ndtr(math.sqrt(count / (count - 1)) * stdtrit(count - 1, 0.025)))
