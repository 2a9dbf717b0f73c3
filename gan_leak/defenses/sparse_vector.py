"""The differentially private upload of Shokri and Shmatikov 2015: the sparse vector technique.

Section 5 and Figure 12 of the paper; the structure is Algorithm 3 (NumericSparse) of Dwork and Roth 2014. Where the
sources leave a choice open, ``sparse_vector`` states ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.collaboration.selection import fraction_to_count
from gan_leak.defenses.contract import SELECTION, Claim, Defense, HyperParameter
from gan_leak.defenses.promises import (
    largest_release_budget,
    sparse_vector_details,
    sparse_vector_note,
    sparse_vector_promise,
)
from gan_leak.settings import Bounds, above
from gan_leak.types import Array, PyTree, RoundHyperParameters, TransformInfo, Upload, UploadTransform

# In units of df/e, where eps = c e: sigma(8/9 eps) = 2 c df / (8/9 eps), twice that, and sigma(2/9 eps).
THRESHOLD_SCALE = 2.25
QUERY_SCALE = 4.5
RELEASE_SCALE = 9.0


def check_sparse_vector(
    *,
    coordinates: int,
    most_releases: Array | int,
    threshold: Array | float,
    bound: Array | float,
    sensitivity: Array | float,
    epsilon_per_release: Array | float,
) -> None:
    """Raise ValueError for values outside the mechanism's domain; traced and device values are not checked.

    ``epsilon_per_release=inf`` is allowed: no noise, hence no privacy.
    """
    rules = (
        ("most_releases", most_releases, lambda x: 1 <= x <= coordinates, f"from 1 to {coordinates} coordinates"),
        ("threshold", threshold, lambda x: x >= 0, "of at least 0"),
        ("bound", bound, lambda x: 0 < x < math.inf, "above 0, and finite"),
        ("sensitivity", sensitivity, lambda x: 0 < x < math.inf, "above 0, and finite"),
        ("epsilon_per_release", epsilon_per_release, lambda x: x > 0, "above 0, or inf for no noise"),
    )
    for name, value, allowed, expected in rules:
        if isinstance(value, int | float | np.number) and not allowed(value):
            raise ValueError(f"{name}={value}: expected a number {expected}")


def _random_order(key: Array, first: Array) -> Array:
    """A uniformly random order of all coordinates, those marked by ``first`` [D] before the others -> int32 [D]."""
    return jax.lax.platform_dependent(key, first, cpu=_order_by_exchanges, default=_order_by_sorting)


def _order_by_sorting(key: Array, first: Array) -> Array:
    # Random numbers of 63 bits: at 480,000 coordinates, two are equal with probability of about 1e-8.
    high, low = jax.random.bits(key, (2, first.size), jnp.uint32)
    high = jnp.where(first, jnp.uint32(0), high | jnp.uint32(1))
    return jax.lax.sort((high, low, jnp.arange(first.size, dtype=jnp.int32)), num_keys=2, is_stable=False)[2]


# Under vmap, each exchange of all lanes would be a gather and a scatter: five times slower than lane after lane.
@jax.custom_batching.sequential_vmap
def _order_by_exchanges(key: Array, first: Array) -> Array:
    """Shuffle by sequential exchanges (Fisher and Yates, inside out); on a CPU a sort takes four times as long."""
    places = jnp.arange(first.size, dtype=jnp.int32)
    partners = jax.random.randint(key, first.shape, 0, places + 1)

    def exchange(order: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        place, partner = pair
        moved = jax.lax.dynamic_slice(order, (partner,), (1,))
        order = jax.lax.dynamic_update_slice(order, moved, (place,))
        return jax.lax.dynamic_update_slice(order, place[None], (partner,)), None

    order, _ = jax.lax.scan(exchange, jnp.zeros(first.shape, jnp.int32), (places, partners))
    ahead = first[order]
    place_ahead, place_behind = jnp.cumsum(ahead) - 1, jnp.sum(ahead) + jnp.cumsum(~ahead) - 1
    return jnp.zeros_like(order).at[jnp.where(ahead, place_ahead, place_behind)].set(order, unique_indices=True)


def _next_starts(queries: Array, thresholds: Array) -> Array:
    """For a threshold first used at position i, the position after the query that passes it -> int32 [D + 1].

    queries, thresholds: [D]. Entry i is 1 + min{k >= i: queries[k] >= thresholds[i]}, and D + 1 if there is no such k.
    All positions are searched at once in O(D log D), by skipping blocks of 2, 4, 8 ... queries with smaller maxima.
    """
    size = queries.size
    levels = jnp.arange(size.bit_length())
    # A last query that always passes ends every search.
    queries = jnp.pad(queries, (0, 1), constant_values=jnp.inf)
    thresholds = jnp.pad(thresholds, (0, 1))
    positions = jnp.arange(size + 1, dtype=jnp.int32)

    def double(maxima: Array, level: Array) -> tuple[Array, Array]:
        right = maxima.at[positions + (1 << level)].get(mode="fill", fill_value=jnp.inf)
        return jnp.maximum(maxima, right), maxima

    def skip(position: Array, level_and_maxima: tuple[Array, Array]) -> tuple[Array, None]:
        level, maxima = level_and_maxima
        return jnp.where(maxima[position] < thresholds, position + (1 << level), position), None

    _, maxima = jax.lax.scan(double, queries, levels)
    passing, _ = jax.lax.scan(skip, positions, (levels, maxima), reverse=True)
    return passing + 1


def _orbit(following: Array) -> Array:
    """Marks 0, following[0], following[following[0]] ... -> bool [n]; following: int32 [n], each entry above its index.

    An entry n ends the orbit. Doubling: after k steps the first 2^k members are marked.
    """
    size = following.size
    following = jnp.append(following, size)
    marks = jnp.zeros(size + 1, bool).at[0].set(True)

    def double(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        marks, following = carry
        return marks.at[jnp.where(marks, following, size)].set(True), following[following]

    marks, _ = jax.lax.fori_loop(0, size.bit_length(), double, (marks, following))
    return marks[:size]


def _passing(queries: Array, thresholds: Array, most: Array | int) -> Array:
    """Ask the queries [D] one by one, and mark those that pass -> bool [D], at most ``most``.

    ``thresholds[i]`` is used if a new threshold starts at query i. The thresholds are independent and identically
    distributed, so the result has the same distribution as with thresholds drawn one after another.
    """
    most = jnp.asarray(most, jnp.int32)
    return jax.lax.platform_dependent(queries, thresholds, most, cpu=_passing_in_turn, default=_passing_at_once)


def _passing_in_turn(queries: Array, thresholds: Array, most: Array) -> Array:
    """Ask one query after another: nanoseconds each on a CPU, microseconds on an accelerator."""

    def ask(carry: tuple[Array, Array, Array], drawn: tuple[Array, Array]) -> tuple[tuple, Array]:
        current, fresh, left = carry
        query, threshold = drawn
        current = jnp.where(fresh, threshold, current)
        passes = (query >= current) & (left > 0)
        return (current, passes, left - passes), passes

    start = (jnp.zeros((), thresholds.dtype), jnp.ones((), bool), most)
    return jax.lax.scan(ask, start, (queries, thresholds))[1]


def _passing_at_once(queries: Array, thresholds: Array, most: Array) -> Array:
    """Find the query that ends each threshold, all at once, and follow them from the first: no sequential loop."""
    starts = _orbit(_next_starts(queries, thresholds))
    # A new threshold starts after every query that passed.
    passing = starts[1:]
    return passing & (jnp.cumsum(passing) <= most)


def _release(
    values: Array,
    allowed: Array,
    order: Array,
    threshold_noise: Array,
    query_noise: Array,
    release_noise: Array,
    *,
    most_releases: Array | int,
    threshold: Array | float,
    bound: Array | float,
) -> tuple[Array, Array]:
    """The mechanism for given random numbers, all [D] -> (released values, mask).

    order: the coordinates in the order of asking; threshold_noise: by position in that order, see ``_passing``;
    query_noise and release_noise: by coordinate.
    """
    queries = jnp.abs(jnp.clip(values, -bound, bound)) + query_noise
    queries = jnp.where(jnp.isnan(values), jnp.inf, queries)
    queries = jnp.where(allowed, queries, -jnp.inf)
    passing = _passing(queries[order], threshold + threshold_noise, most_releases)
    mask = jnp.zeros(values.shape, bool).at[order].set(passing, unique_indices=True) & allowed
    return jnp.where(mask, jnp.clip(values + release_noise, -bound, bound), 0.0), mask


def sparse_vector(
    key: Array,
    values: Array,
    *,
    most_releases: Array | int,
    threshold: Array | float,
    bound: Array | float,
    sensitivity: Array | float,
    epsilon_per_release: Array | float,
    allowed: Array | None = None,
) -> tuple[Array, Array]:
    """Release at most ``most_releases`` noisy coordinates -> (values [D], zero where not released; mask bool [D]).

    With c = most_releases, df = sensitivity, e = epsilon_per_release: the coordinates are asked in a uniformly random
    order, each once, until c are released or all were asked. Coordinate j with value w passes where
    |clip(w, bound)| + Lap(4.5 df/e) >= threshold + Lap(2.25 df/e), and then clip(w + Lap(9 df/e), bound) is released.
    The noise on the left is drawn for every query, that on the right again after every release. The parameters may be
    traced; others are checked by ``check_sparse_vector``. ``allowed`` [D] marks the coordinates that may be asked
    (default all).

    Privacy. The call is purely differentially private with c * e; ``sensitivity`` determines the neighbors. It must
    bound the change of each single coordinate of ``values`` between neighboring inputs. Noise is added to the query,
    the threshold and the released coordinate, never to a norm.
    - Each release is one AboveThreshold of 8/9 e and one Laplace mechanism of 1/9 e. Releases compose sequentially:
      n of them cost n * e, plus 8/9 e for the last threshold if the coordinates ran out before c. Calls add up.
    - ``sensitivity = 2 * bound`` holds for any two data sets. The claim then covers a participant's whole data, but
      only values within [-bound, bound]. As published, the query is clipped before the noise, and the released value
      only after it: a coordinate beyond the bound is not covered. With ``truncate()`` before, it is. (The query is an
      absolute value and changes by at most ``bound``, so 2 * bound is conservative there.)
    - The caller must prove a sensitivity per record; nothing here clips records.
    - Noise in float32 is for research: most outputs are impossible under a neighboring input (Mironov 2012). So no
      value here is a guarantee against an adversary that reads low-order bits.

    Choices. The pseudo-code says "randomly select". We ask without replacement and stop when all were asked, so fewer
    than c may be released. With replacement, a coordinate could be asked until it passed. The budget is split by the
    published 8/9 and 2/9 with sigma(x) = 2 c df/x, so the release gets Lap(9 df/e).

    Values that are not finite. Infinite values are clipped. Allowed NaN are asked first, always pass and are released
    as NaN, up to c of them: a diverged update stays visible, without a promise. ``epsilon_per_release=inf`` means no
    noise and no privacy.
    """
    check_sparse_vector(
        coordinates=values.size,
        most_releases=most_releases,
        threshold=threshold,
        bound=bound,
        sensitivity=sensitivity,
        epsilon_per_release=epsilon_per_release,
    )
    allowed = jnp.ones(values.shape, bool) if allowed is None else allowed
    key_order, key_noise = jax.random.split(key)
    order = _random_order(key_order, allowed & jnp.isnan(values))
    scale = sensitivity / epsilon_per_release
    # One draw of [3, D] is several times faster than three of [D].
    threshold_noise, query_noise, release_noise = jax.random.laplace(key_noise, (3, values.size), values.dtype)
    return _release(
        values,
        allowed,
        order,
        THRESHOLD_SCALE * scale * threshold_noise,
        QUERY_SCALE * scale * query_noise,
        RELEASE_SCALE * scale * release_noise,
        most_releases=most_releases,
        threshold=threshold,
        bound=bound,
    )


def sparse_vector_upload(sensitivity: Array | float, epsilon_per_release: Array | float) -> UploadTransform:
    """Upload the releases of ``sparse_vector``; its privacy claim holds per call, and calls add up.

    From ``hyperparameters`` it reads ``upload_fraction`` (c is this fraction of all coordinates, at least one),
    ``upload_threshold`` and ``upload_bound``. Coordinates outside the incoming mask are never asked.

    The state is the number of releases so far, int32 []. The run has cost that many times ``epsilon_per_release``, plus
    8/9 of it for every call that released fewer than c. It is an integer, since float32 counts only to 2^24, and stops
    at 2^31 - 1.
    """

    def init(params: PyTree) -> Array:
        return jnp.zeros((), jnp.int32)

    def apply(
        key: Array, upload: Upload, state: Array, *, params: PyTree, hyperparameters: RoundHyperParameters, **extra: Any
    ) -> tuple[Upload, Array, TransformInfo]:
        values, mask = sparse_vector(
            key,
            upload.values,
            most_releases=fraction_to_count(hyperparameters.upload_fraction, upload.values.size),
            threshold=hyperparameters.upload_threshold,
            bound=hyperparameters.upload_bound,
            sensitivity=sensitivity,
            epsilon_per_release=epsilon_per_release,
            allowed=upload.mask,
        )
        releases = jnp.sum(mask).astype(jnp.int32)
        room = jnp.iinfo(jnp.int32).max - state
        return Upload(values, mask), state + jnp.minimum(releases, room), TransformInfo(releases)

    return UploadTransform(init, apply)


def _check_bound(settings: Mapping[str, float]) -> None:
    if settings["upload_bound"] == math.inf:
        raise ValueError(
            "upload_bound=inf: expected a finite number above 0 with defense 'sparse_vector', such as 0.001"
        )


DEFENSE = Defense(
    name="sparse_vector",
    stages=(SELECTION,),
    build=sparse_vector_upload,
    hyperparameters=(
        HyperParameter(
            "sensitivity",
            0.002,
            "Sparse vector: largest change of one coordinate of an update between neighboring data sets; 2 * gamma "
            "holds for any two (Shokri and Shmatikov 2015).",
            above(0),
            neutral=None,
            later=False,
        ),
        HyperParameter(
            "epsilon_per_release",
            100.0,
            "Sparse vector: privacy budget epsilon / c of one released coordinate (Hitaj et al. 2017, section 9.4); "
            "tau is upload_threshold, gamma upload_bound, c upload_fraction of all coordinates.",
            Bounds(0, lowest_included=False, highest_included=True),
            neutral=None,
            later=False,
        ),
    ),
    claim=Claim(
        mechanism="sparse vector",
        sensitivity="neighboring updates differ by at most sensitivity in every coordinate",
        unit="update",
        noise_added_by="each participant, to thresholds, queries and released values of every upload",
        against="everybody who sees the uploads",
        covers="uploaded values within upload_bound, as published, of every participant but an adversary that attacks; "
        "not the losses and norms in the metrics",
        total="sum of epsilon_per_release over the releases of all rounds",
        promise=sparse_vector_promise,
        solved_for="epsilon_per_release",
        solve=largest_release_budget,
        details=sparse_vector_details,
        note=sparse_vector_note,
        counts_coordinates=True,
    ),
    check=_check_bound,
)
