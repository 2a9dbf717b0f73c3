"""The sparse vector technique: the published pseudo-code exactly, its noises and its bookkeeping."""

import functools
import math
import operator
import unittest.mock

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gan_leak.collaboration import RoundHyperParameters
from gan_leak.collaboration.selection import chain, truncate
from gan_leak.defenses import check_sparse_vector, sparse_vector_upload
from gan_leak.defenses.composition import traced
from gan_leak.defenses.sparse_vector import (
    DEFENSE,
    _order_by_exchanges,
    _order_by_sorting,
    _passing_at_once,
    _passing_in_turn,
    _release,
    sparse_vector,
)
from gan_leak.types import Upload
from reference import sparse_vector as twin
from reference.selection import is_some_choice_above
from reference.small import same_bits

MODULE = "gan_leak.defenses.sparse_vector"
SCALES = {"THRESHOLD_SCALE": 2.25, "QUERY_SCALE": 4.5, "RELEASE_SCALE": 9.0}
NOISELESS = {"bound": 1.5, "sensitivity": 3.0, "epsilon_per_release": math.inf}
# What a CPU does, and what an accelerator does.
PASSING = {"in turn": jax.jit(_passing_in_turn), "at once": jax.jit(_passing_at_once)}
jitted_sparse_vector = jax.jit(sparse_vector)


def numbers(*, sensitivity=0.002, epsilon_per_release=math.inf, **values):
    defense = {"sensitivity": sensitivity, "epsilon_per_release": epsilon_per_release}
    return RoundHyperParameters(0.1, defense=defense, **values)


@functools.cache
def jitted_release(passing):
    def release(*arguments, **settings):
        with unittest.mock.patch(f"{MODULE}._passing", PASSING[passing]):
            return _release(*arguments, **settings)

    return jax.jit(release)


@functools.cache
def jitted_apply():
    transform = traced(DEFENSE)
    return jax.jit(
        lambda key, upload, state, hyperparameters: transform.apply(
            key, upload, state, params=(), hyperparameters=hyperparameters
        )
    )


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


@st.composite
def mechanism_inputs(draw):
    """Coarse numbers, so that ties between query and threshold are common, and sizes on both sides of powers of two."""
    size = draw(st.sampled_from([1, 2, 3, 4, 7, 9]))

    def array(elements):
        return np.array(draw(st.lists(elements, min_size=size, max_size=size)), np.float32)

    # Without subnormal numbers, which XLA's CPU backend flushes to zero.
    smooth = st.floats(-3, 3, width=32).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
    noise = st.integers(-4, 4).map(lambda x: x / 4) | smooth | st.sampled_from([-1e3, 1e3])
    allowed = np.array(draw(st.lists(st.sampled_from([True, True, True, False]), min_size=size, max_size=size)))
    arrays = (array(noise), allowed, np.array(draw(st.permutations(range(size))), np.int32))
    settings = {
        "most_releases": draw(st.integers(1, size)),
        "threshold": np.float32(draw(st.sampled_from([0.0, 0.25, 0.5, 50.0]))),
        "bound": np.float32(draw(st.sampled_from([0.25, 1.0, 5e3]))),
    }
    return *arrays, array(noise), array(noise), array(noise), settings


@pytest.mark.parametrize("passing", PASSING)
@hypothesis.given(inputs=mechanism_inputs())
def test_equals_the_pseudo_code_when_fed_the_same_noise(passing, inputs):
    """Bit for bit: which coordinates, which values, zero elsewhere, whatever the cap, ties and mask."""
    values, allowed, order, threshold_noise, query_noise, release_noise, settings = inputs
    result = jitted_release(passing)(values, allowed, order, threshold_noise, query_noise, release_noise, **settings)
    chance = twin.given_chance(order, allowed, threshold_noise, query_noise, release_noise)
    expected = twin.as_arrays(twin.released(values, **settings, chance=chance), len(values))
    np.testing.assert_array_equal(result[1], expected[1])
    np.testing.assert_array_equal(result[0], expected[0])


def passing_in_turn(queries, thresholds, most):
    """One query after the other."""
    mask, threshold = np.zeros(len(queries), bool), thresholds[0]
    for index, query in enumerate(queries):
        if query >= threshold and mask.sum() < most:
            mask[index] = True
            threshold = thresholds[min(index + 1, len(queries) - 1)]
    return mask


@pytest.mark.parametrize("shift", [-100.0, -2.0, 0.0, 3.0, 6.0, 100.0])
@pytest.mark.parametrize("most", [1, 37, 4099])
@pytest.mark.parametrize("passing", PASSING)
def test_passing_equals_asking_in_turn_at_size(passing, shift, most):
    """From all passing to none, at a size beyond a power of two."""
    queries, thresholds = np.random.default_rng(0).laplace(size=(2, 4099)).astype(np.float32)
    thresholds += np.float32(shift)
    mask = np.asarray(PASSING[passing](queries, thresholds, np.int32(most)))
    np.testing.assert_array_equal(mask, passing_in_turn(queries, thresholds, most))
    if abs(shift) == 100:
        assert mask.sum() == (most if shift < 0 else 0)


def test_equal_query_and_threshold_pass():
    """The test is 'at least': at noise zero and |w| = tau the coordinate is released."""
    values = np.array([0.5, -0.5, 0.25] + 21 * [0.0], np.float32)
    released, mask = jitted_sparse_vector(jax.random.key(0), values, **NOISELESS, most_releases=24, threshold=0.5)
    assert np.flatnonzero(mask).tolist() == [0, 1]
    assert released.tolist() == [0.5, -0.5] + 22 * [0]


@hypothesis.given(st.integers(0, 1000), st.integers(1, 24), st.sampled_from([0.0, 0.3, 1.0, 1.4]))
def test_without_noise_it_is_a_random_choice_above_the_threshold(seed, most, threshold):
    """epsilon_per_release=inf: as many as pass and the cap allows, clipped, and no noise."""
    values = np.random.default_rng(seed).normal(size=24).astype(np.float32)
    released, mask = jitted_sparse_vector(
        jax.random.key(seed), values, **NOISELESS, most_releases=most, threshold=threshold
    )
    assert is_some_choice_above(np.asarray(mask), values, threshold, most)
    np.testing.assert_array_equal(released, np.where(mask, np.clip(values, -1.5, 1.5), 0))


# In these settings sensitivity / epsilon_per_release is one.
VALUES = np.array([0.0, 3.0, -7.0, 1.0, 9.0], np.float32)
SETTINGS = {"threshold": 4.0, "bound": 8.0, "sensitivity": 16.0, "epsilon_per_release": 16.0}


@jax.jit
def sample(keys, values, settings, scales):
    # The scales are traced as well, so that right and wrong ones share a compilation.
    with pytest.MonkeyPatch.context() as patch:
        for name, scale in scales.items():
            patch.setattr(f"{MODULE}.{name}", scale)
        return jax.vmap(lambda key: sparse_vector(key, values, **settings))(keys)


def ours(seed, count=12_000, values=VALUES, scales=SCALES, **settings):
    """Released values and masks [count, D]."""
    settings = {"most_releases": 3, **SETTINGS, **settings}
    return tuple(map(np.asarray, sample(keys(seed, count), jnp.asarray(values, jnp.float32), settings, scales)))


@functools.cache
def theirs(most_releases=3, fresh_thresholds=False, count=12000):
    """The same by the twin, which draws from NumPy; optionally with the mistake of a new threshold for every query."""
    generator, results = np.random.default_rng(5), []
    epsilon = most_releases * SETTINGS["epsilon_per_release"]
    for _ in range(count):
        chance = twin.draw_chance(generator, 5, most_releases, SETTINGS["sensitivity"], epsilon)
        if fresh_thresholds:
            chance = chance._replace(
                threshold_noise=lambda _: 0.0,
                query_noise=lambda _, old=chance: old.query_noise(0) - old.threshold_noise(0),
            )
        result = twin.released(VALUES, most_releases, SETTINGS["threshold"], SETTINGS["bound"], chance)
        results.append(twin.as_arrays(result, 5))
    return tuple(map(np.stack, zip(*results, strict=True)))


def same_masks(left, right):
    """The p-value of both samples of masks [n, D] having one distribution, over all patterns jointly."""
    patterns = [np.bincount(mask @ (1 << np.arange(mask.shape[1])), minlength=32) for mask in (left, right)]
    table = np.stack(patterns)
    return scipy.stats.chi2_contingency(table[:, table.sum(axis=0) >= 20]).pvalue


@pytest.mark.parametrize("most_releases", [1, 3, 5])
def test_distribution_is_that_of_the_pseudo_code(most_releases):
    """How many and which coordinates jointly, and the released value of each coordinate."""
    values, masks = ours(0, most_releases=most_releases)
    twin_values, twin_masks = theirs(most_releases)
    assert masks.sum(axis=1).max() == twin_masks.sum(axis=1).max() == most_releases
    assert same_masks(masks, twin_masks) > 1e-3
    for coordinate in range(5):
        left = values[masks[:, coordinate], coordinate]
        right = twin_values[twin_masks[:, coordinate], coordinate]
        assert scipy.stats.ks_2samp(left, right).pvalue > 1e-3


def test_a_threshold_for_every_query_would_be_noticed():
    """The comparison with the twin rejects the variant that draws a threshold for each query."""
    assert same_masks(ours(0, most_releases=5)[1], theirs(5, fresh_thresholds=True)[1]) < 1e-6


def passing_probability(gap, threshold_scale, query_scale):
    """P(Lap(query_scale) - Lap(threshold_scale) >= gap) for gap > 0 and different scales."""
    a, b = query_scale, threshold_scale
    return 0.5 * (a**2 * math.exp(-gap / a) - b**2 * math.exp(-gap / b)) / (a**2 - b**2)


@pytest.mark.parametrize("wrong", ["THRESHOLD_SCALE", "QUERY_SCALE"])
def test_threshold_and_query_noise_have_the_published_scale(wrong):
    """One coordinate passes as often as calculated; a scale that is wrong by a factor 1.2 does not."""
    gap, count = 14.0, 300_000
    right = passing_probability(gap, 2.25, 4.5)
    error = math.sqrt(right * (1 - right) / count)
    wrong_scales = {**SCALES, wrong: 1.2 * SCALES[wrong]}
    wrong_probability = passing_probability(gap, wrong_scales["THRESHOLD_SCALE"], wrong_scales["QUERY_SCALE"])
    # The power of the test: what is to be rejected lies 9 standard errors away, and the limit is 4.
    assert abs(wrong_probability - right) > 9 * error

    def deviation(scales):
        return abs(ours(1, count, [0.0], scales, most_releases=1, threshold=gap)[1].mean() - right) / error

    assert deviation(SCALES) < 4
    assert deviation(wrong_scales) > 4


def test_release_noise_is_laplace_of_the_published_scale():
    """Kolmogorov-Smirnov against Lap(9 df/e): passes, and rejects a scale that is wrong by a factor 1.2 either way.

    Two Laplace cdfs with scales in ratio 1.2 differ by 0.033 at most; over 10,000 releases the p-value is then 1e-9.
    """

    def pvalue(scale):
        scales = {**SCALES, "RELEASE_SCALE": scale}
        values, masks = ours(2, 300_000, [-2.0], scales, most_releases=1, threshold=0.0, bound=1e4)
        noise = values[masks][:20_000] + 2.0
        assert len(noise) == 20_000
        return scipy.stats.kstest(noise, scipy.stats.laplace(scale=9.0).cdf).pvalue

    assert pvalue(9.0) > 1e-3
    assert pvalue(9.0 * 1.2) < 1e-6
    assert pvalue(9.0 / 1.2) < 1e-6


def captured_chance(monkeypatch, size):
    """Order and noises [3, size] that ``sparse_vector`` hands to the mechanism, at sensitivity 0.3 and e 0.2."""
    seen = []

    def capture(values, allowed, order, *noises, **settings):
        seen.append((np.asarray(order), np.stack([np.asarray(noise) for noise in noises])))
        return values, allowed

    monkeypatch.setattr(f"{MODULE}._release", capture)
    settings = {"threshold": 0.0, "bound": 0.15, "sensitivity": 0.3, "epsilon_per_release": 0.2}
    sparse_vector(jax.random.key(3), jnp.zeros(size), most_releases=size, **settings)
    return seen[0]


def test_the_three_noises_are_independent_laplace(monkeypatch):
    """By themselves 2.25, 4.5 and 9 df/e, no two alike or correlated, also along a lag; the test rejects 1.2 times."""
    order, noises = captured_chance(monkeypatch, 20_000)
    assert sorted(order) == list(range(20_000))
    for noise, scale in zip(noises, SCALES.values(), strict=True):
        assert scipy.stats.kstest(noise, scipy.stats.laplace(scale=scale * 1.5).cdf).pvalue > 1e-3
        assert scipy.stats.kstest(noise, scipy.stats.laplace(scale=scale * 1.5 * 1.2).cdf).pvalue < 1e-6
    lagged = np.concatenate([noises[:, :-1], noises[:, 1:], order[None, 1:]])
    correlations = np.corrcoef(lagged) - np.eye(7)
    # 5 standard errors of a correlation that is zero.
    assert np.abs(correlations).max() < 5 / math.sqrt(20_000)


def order_counts(draw_order):
    orders = np.asarray(jax.jit(jax.vmap(draw_order))(keys(4, 24_000)))
    return np.unique(orders @ (5 ** np.arange(4)), return_counts=True)[1]


@pytest.mark.parametrize("random_order", [_order_by_exchanges, _order_by_sorting])
def test_every_order_is_equally_likely(random_order):
    """All 24 orders of four coordinates; the same test rejects lots that favour low indices a little."""
    fair = order_counts(lambda key: random_order(key, jnp.zeros(4, bool)))
    assert len(fair) == 24
    assert scipy.stats.chisquare(fair).pvalue > 1e-3
    unfair = order_counts(lambda key: jnp.argsort(jax.random.uniform(key, (4,)) + 0.02 * jnp.arange(4)))
    assert scipy.stats.chisquare(unfair).pvalue < 1e-3


@pytest.mark.parametrize("random_order", [_order_by_exchanges, _order_by_sorting])
def test_who_is_marked_comes_first_in_an_order_as_random(random_order):
    """The second and fourth of four: two orders of each pair, all equally likely."""
    first = jnp.array([False, True, False, True])
    orders = np.asarray(jax.jit(jax.vmap(lambda key: random_order(key, first)))(keys(5, 4_000)))
    found, counts = np.unique(orders, axis=0, return_counts=True)
    assert found.tolist() == [[1, 3, 0, 2], [1, 3, 2, 0], [3, 1, 0, 2], [3, 1, 2, 0]]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_lanes_are_shuffled_one_after_another():
    """All at once, each exchange would gather and scatter over the lanes, which takes a CPU five times as long."""
    lanes = keys(5, 3), jnp.zeros((3, 8), bool)
    over_lanes = "operand_batching_dims=(0,)"
    assert over_lanes not in str(jax.make_jaxpr(jax.vmap(_order_by_exchanges))(*lanes))
    assert over_lanes in str(jax.make_jaxpr(jax.vmap(_order_by_exchanges.fun))(*lanes))


def test_the_cap_takes_a_uniformly_random_subset():
    """Where all pass, every pair of five is released equally often, whatever the magnitudes."""
    values = np.array([1, 2, 3, 50, -9], np.float32)
    masks = ours(6, values=values, most_releases=2, threshold=0.5, epsilon_per_release=math.inf)[1]
    pairs = np.unique(masks @ (1 << np.arange(5)), return_counts=True)[1]
    assert (masks.sum(axis=1) == 2).all()
    assert len(pairs) == 10
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3


def test_jit_and_vmap_change_nothing():
    """One traced function for all numbers, a loop without jit, and vmap over keys and numbers agree."""
    values = jnp.asarray(np.random.default_rng(0).normal(size=60), jnp.float32)
    sweep = {
        "most_releases": np.array([60, 7, 30], np.int32),
        "threshold": np.array([0.1, 0.0, 1.0], np.float32),
        "bound": np.array([1.0, 0.5, 2.0], np.float32),
        "sensitivity": np.array([2.0, 1.0, 4.0], np.float32),
        "epsilon_per_release": np.array([100.0, 10.0, np.inf], np.float32),
    }
    traces = []

    @jax.jit
    def traced(key, settings):
        traces.append(None)
        return sparse_vector(key, values, **settings)

    stacked = jax.vmap(traced)(keys(7, 3), sweep)
    for index in range(3):
        single = {name: column[index] for name, column in sweep.items()}
        assert same_bits(traced(keys(7, 3)[index], single), jax.tree.map(operator.itemgetter(index), stacked))
    assert len(traces) == 1
    assert len({int(mask.sum()) for mask in stacked[1]}) == 3
    released, mask = sparse_vector(keys(7, 3)[1], values, **{name: column[1].item() for name, column in sweep.items()})
    np.testing.assert_array_equal(mask, stacked[1][1])
    np.testing.assert_allclose(released, stacked[0][1], rtol=1e-5, atol=1e-6)


def test_the_state_counts_releases_and_does_not_wrap():
    """Over calls the sum of what was uploaded; at the end of int32 it stays there."""
    hyperparameters = numbers(upload_fraction=0.5, upload_threshold=0.2, upload_bound=1.0, epsilon_per_release=0.01)
    given = Upload(jnp.linspace(-1, 1, 40), jnp.ones(40, bool))
    state, total = sparse_vector_upload(0.002, 0.01).init(()), 0
    assert (state.shape, state.dtype, int(state)) == ((), jnp.int32, 0)
    for key in keys(8, 5):
        upload, state, info = jitted_apply()(key, given, state, hyperparameters)
        assert 1 <= int(info.uploaded) == int(upload.mask.sum()) <= 20
        total += int(info.uploaded)
        assert int(state) == total
    full = jnp.int32(2**31 - 2)
    assert int(jitted_apply()(jax.random.key(0), given, full, hyperparameters)[1]) == 2**31 - 1


@pytest.mark.parametrize("epsilon", [math.inf, 1.0, 1e-6])
def test_coordinates_outside_the_mask_are_never_asked(epsilon):
    """They are not sent and take no place under the cap; who has trained on nothing sends and pays nothing."""
    mask = np.arange(40) % 4 == 0
    hyperparameters = numbers(upload_fraction=6 / 40, upload_bound=9.0, sensitivity=18.0, epsilon_per_release=epsilon)
    values = jnp.where(mask, 5.0, jnp.nan)
    for key in keys(9, 20):
        upload, _, _ = jitted_apply()(key, Upload(values, jnp.asarray(mask)), jnp.int32(0), hyperparameters)
        assert not (np.asarray(upload.mask) & ~mask).any()
        assert upload.mask.sum() <= 6
        assert epsilon < math.inf or upload.mask.sum() == 6
        assert np.isfinite(upload.values).all()
        assert not np.asarray(upload.values)[~np.asarray(upload.mask)].any()
    nothing = Upload(jnp.full(40, 5.0), jnp.zeros(40, bool))
    upload, state, info = jitted_apply()(jax.random.key(0), nothing, jnp.int32(3), hyperparameters)
    assert not np.asarray(upload.mask).any()
    assert (int(state), int(info.uploaded), float(jnp.abs(upload.values).sum())) == (3, 0, 0.0)


@pytest.mark.parametrize("broken", [1, 3, 5])
def test_not_a_number_comes_out_as_not_a_number(broken):
    """Whether no other coordinate has a chance or every other passes too; never more than the cap."""
    for most in (1, 2):
        for other, threshold in ((0.0, 1e6), (9.0, 0.0)):
            values = np.where(np.arange(5) < broken, np.nan, other)
            released, masks = ours(
                10, values=values, most_releases=most, threshold=threshold, epsilon_per_release=math.inf
            )
            assert (np.isnan(released).sum(axis=1) == min(broken, most)).all()
            assert (masks.sum(axis=1) == (most if other else min(broken, most))).all()
            assert (masks | (released == 0)).all()


def test_infinite_values_are_clipped():
    """An infinite coordinate is a coordinate at the bound, or the noise would not hide it."""
    values = [np.inf, -np.inf, 8, -8, 80]
    released, masks = ours(11, values=values, most_releases=5, threshold=0.0, epsilon_per_release=1e9)
    assert masks.all()
    np.testing.assert_allclose(released, np.broadcast_to([8.0, -8, 8, -8, 8], released.shape), atol=1e-5)


def test_truncation_before_brings_every_value_under_the_claim():
    """Values beyond the bound then are as if they lay on it: the same bits come out."""
    transform = chain(truncate(), traced(DEFENSE))
    hyperparameters = numbers(upload_bound=1.0, sensitivity=2.0, epsilon_per_release=5.0)

    @jax.jit
    def upload(key, values):
        given = Upload(values, jnp.ones(4, bool))
        return transform.apply(key, given, transform.init(()), params=(), hyperparameters=hyperparameters)[0]

    on_the_bound, beyond = (upload(jax.random.key(0), jnp.array([1.0, -1, 1, -1]) * scale) for scale in (1, 100))
    assert on_the_bound.mask.any()
    assert same_bits(on_the_bound, beyond)


GOOD = {"most_releases": 3, "threshold": 0.0, "bound": 1.0, "sensitivity": 2.0, "epsilon_per_release": math.inf}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"epsilon_per_release": 0.0}, "epsilon_per_release=0.0: expected a number above 0, or inf for no noise"),
        ({"epsilon_per_release": -1}, "epsilon_per_release=-1: "),
        ({"epsilon_per_release": math.nan}, "epsilon_per_release=nan: "),
        ({"sensitivity": 0}, "sensitivity=0: expected a number above 0, and finite"),
        ({"sensitivity": math.inf}, "sensitivity=inf: "),
        ({"bound": 0.0}, "bound=0.0: expected a number above 0, and finite"),
        ({"bound": math.inf}, "bound=inf: "),
        ({"bound": np.float32(-1)}, "bound=-1.0: "),
        ({"threshold": -1e-9}, "threshold=-1e-09: expected a number of at least 0"),
        ({"threshold": math.nan}, "threshold=nan: "),
        ({"most_releases": 0}, "most_releases=0: expected a number from 1 to 5 coordinates"),
        ({"most_releases": 6}, "most_releases=6: expected a number from 1 to 5 coordinates"),
    ],
)
def test_bad_numbers_are_refused_and_traced_ones_skipped(bad, message):
    """One line with name, value and what is allowed, from the check and from the function."""
    check_sparse_vector(coordinates=5, **GOOD)
    with pytest.raises(ValueError, match=f"^{message}"):
        check_sparse_vector(coordinates=5, **{**GOOD, **bad})
    with pytest.raises(ValueError, match=message):
        sparse_vector(jax.random.key(0), jnp.zeros(5), **{**GOOD, **bad})
    check_sparse_vector(coordinates=5, **{**GOOD, **{name: jnp.asarray(value) for name, value in bad.items()}})
    jax.eval_shape(
        lambda bad: sparse_vector(jax.random.key(0), jnp.zeros(5), **{**GOOD, **bad}),
        jax.tree.map(jnp.float32, bad),
    )
