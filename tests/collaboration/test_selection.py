"""Which coordinates travel: exact counts, honest ties, and the promises of each rule."""

import functools
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gan_leak.collaboration import RoundHyperParameters, selective_upload
from gan_leak.collaboration.selection import (
    chain,
    fraction_to_count,
    largest,
    largest_fraction,
    random_above_threshold,
    truncate,
)
from gan_leak.types import TransformInfo, Upload, UploadTransform
from reference.selection import is_some_choice_above, is_some_largest, largest_mask, truncated
from reference.small import same_bits

SIZE = 24
HEAVY_TIES = st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1.0000001, 3e38, math.inf])
SCORES = st.lists(HEAVY_TIES | st.floats(0, 10, width=32), min_size=SIZE, max_size=SIZE)
# XLA's CPU backend flushes subnormal numbers in arithmetic, which is no business of a selection.
MAGNITUDES = st.lists(
    st.sampled_from([0.0, 1e-3, 1.0, 1.0000001, 3e38, math.inf]) | st.floats(0, 10, width=32, allow_subnormal=False),
    min_size=SIZE,
    max_size=SIZE,
)
COUNTS = st.integers(0, SIZE)
SEEDS = st.integers(0, 1000)

jitted_largest = jax.jit(largest)
jitted_largest_random = jax.jit(lambda key, scores, count: largest(scores, count, key=key))


def numbers(**values):
    return RoundHyperParameters(0.1, **values)


@functools.cache
def jitted_apply(make):
    transform = make()
    return jax.jit(
        lambda key, upload, hyperparameters: transform.apply(
            key, upload, transform.init(()), params=(), hyperparameters=hyperparameters
        )
    )


def everything(values):
    values = jnp.asarray(values, jnp.float32)
    return Upload(values, jnp.ones(values.shape, bool))


@hypothesis.given(SCORES, COUNTS)
def test_largest_equals_sorting_with_lowest_index_first_among_ties(scores, count):
    """The mask is that of a sort by score and then index, for every count, zeros and infinities included."""
    scores = np.array(scores, np.float32)
    mask = np.asarray(jitted_largest(scores, count))
    assert mask.sum() == count
    np.testing.assert_array_equal(mask, largest_mask(scores, count))
    by_lexsort = np.zeros(SIZE, bool)
    by_lexsort[np.lexsort((np.arange(SIZE), -scores))[:count]] = True
    np.testing.assert_array_equal(mask, by_lexsort)


@hypothesis.given(SCORES, COUNTS, SEEDS)
def test_largest_with_a_key_leaves_nothing_larger_out(scores, count, seed):
    """Exactly the count, and chance decides only between equal scores at the boundary."""
    scores = np.array(scores, np.float32)
    mask = np.asarray(jitted_largest_random(jax.random.key(seed), scores, count))
    assert is_some_largest(mask, scores, count)


def test_largest_ranks_not_a_number_first_and_ignores_the_sign_of_zero():
    """A diverged coordinate is sent rather than hidden; -0.0 and 0.0 tie."""
    scores = jnp.array([1.0, jnp.nan, jnp.inf, -0.0, 0.0])
    assert largest(scores, 1).tolist() == [False, True, False, False, False]
    assert largest(scores, 4).tolist() == [True, True, True, True, False]


def tie_counts(choose):
    """How often each pair of the six tied coordinates was taken in 6000 draws of 4 + 2 out of 12."""
    scores = jnp.array([1, 5, 1, 5, 0, 1, 5, 1, 0, 5, 1, 1], jnp.float32)
    masks = np.asarray(jax.vmap(lambda key: choose(key, scores))(jax.random.split(jax.random.key(0), 6000)))
    assert masks[:, scores == 5].all()
    assert not masks[:, scores == 0].any()
    taken = masks[:, scores == 1]
    return [int((taken[:, a] & taken[:, b]).sum()) for a, b in itertools.combinations(range(6), 2)]


def test_random_ties_are_uniform():
    """Every subset of the ties is equally likely; the same test rejects a lottery that favours low indices."""
    fair = tie_counts(lambda key, scores: largest(scores, 6, key=key))
    assert sum(fair) == 6000
    assert scipy.stats.chisquare(fair).pvalue > 1e-3

    def favours_low_indices(key, scores):
        lottery = jax.random.uniform(key, scores.shape) - 0.02 * jnp.arange(scores.size)
        return largest(2 * scores + lottery + 1, 6)

    assert scipy.stats.chisquare(tie_counts(favours_low_indices)).pvalue < 1e-3


@hypothesis.given(st.floats(1e-9, 1.0), st.integers(1, 10**6))
def test_fraction_to_count_is_the_nearest_whole_number_but_at_least_one(fraction, size):
    """Within half a coordinate of the fraction, float32 rounding aside, never none and never more than there are."""
    count = int(fraction_to_count(fraction, size))
    assert 1 <= count <= size
    assert count == 1 or abs(count - fraction * size) <= 0.5 + 1e-6 * size


@hypothesis.given(st.integers(1, 10**6).flatmap(lambda size: st.tuples(st.integers(1, size), st.just(size))))
def test_fraction_to_count_inverts_the_fraction_of_a_count(count_and_size):
    """From count / size comes back the count, at sizes up to a million."""
    count, size = count_and_size
    assert int(fraction_to_count(count / size, size)) == count


@hypothesis.given(MAGNITUDES, st.floats(0.01, 1.0), SEEDS)
def test_largest_fraction_sends_the_largest_magnitudes_unchanged(magnitudes, fraction, seed):
    """Sorted by magnitude, sign kept, the exact count of coordinates, zero elsewhere."""
    signs = np.random.default_rng(seed).choice([-1, 1], SIZE)
    values = np.array(magnitudes, np.float32) * signs.astype(np.float32)
    upload, _, info = jitted_apply(largest_fraction)(
        jax.random.key(0), everything(values), numbers(upload_fraction=fraction)
    )
    count = int(fraction_to_count(fraction, SIZE))
    np.testing.assert_array_equal(upload.mask, largest_mask(np.abs(values), count))
    np.testing.assert_array_equal(upload.values, np.where(upload.mask, values, 0))
    assert int(info.uploaded) == count


@pytest.mark.parametrize("criterion", ["largest", "random"])
def test_fraction_one_is_bit_exactly_the_full_update(criterion):
    """Without bound and threshold nothing is lost: infinities and NaN pass as well."""
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    values[:3] = np.inf, -np.inf, np.nan
    upload, _, info = jitted_apply(functools.partial(selective_upload, criterion))(
        jax.random.key(0), everything(values), numbers()
    )
    assert np.asarray(upload.values).tobytes() == values.tobytes()
    assert int(info.uploaded) == 200


@hypothesis.given(MAGNITUDES, st.floats(0.01, 1.0), st.sampled_from([0.0, 1e-3, 1.0, 4.0]), SEEDS)
def test_random_above_threshold_sends_only_what_passes(magnitudes, fraction, threshold, seed):
    """As many as the fraction allows of the magnitudes strictly above the threshold, and nothing else."""
    values = -np.array(magnitudes, np.float32)
    upload, _, info = jitted_apply(random_above_threshold)(
        jax.random.key(seed), everything(values), numbers(upload_fraction=fraction, upload_threshold=threshold)
    )
    count = int(fraction_to_count(fraction, SIZE))
    assert is_some_choice_above(np.asarray(upload.mask), values, np.float32(threshold), count)
    np.testing.assert_array_equal(upload.values, np.where(upload.mask, values, 0))
    assert int(info.uploaded) == upload.mask.sum()


def test_random_above_threshold_chooses_uniformly():
    """Every subset of the passing coordinates is equally likely, whatever their magnitudes."""
    values = jnp.array([0.1, 2, 0.2, -9, 3, -1.5, 70], jnp.float32)
    apply = jitted_apply(random_above_threshold)
    hyperparameters = numbers(upload_fraction=2 / 7, upload_threshold=1.0)

    def subsets(apply):
        masks = jax.vmap(lambda key: apply(key, everything(values), hyperparameters)[0].mask)
        taken = np.asarray(masks(jax.random.split(jax.random.key(1), 5000)))[:, [1, 3, 4, 5, 6]]
        return [int((taken[:, a] & taken[:, b]).sum()) for a, b in itertools.combinations(range(5), 2)]

    fair = subsets(apply)
    assert sum(fair) == 5000
    assert scipy.stats.chisquare(fair).pvalue > 1e-3
    assert scipy.stats.chisquare(subsets(jitted_apply(largest_fraction))).pvalue < 1e-3


@hypothesis.given(MAGNITUDES, st.sampled_from([0.0, 1e-3, 2.0, math.inf]))
def test_truncate_cuts_to_the_bound_and_touches_nothing_else(magnitudes, bound):
    """Both signs are cut to the bound; the mask stays."""
    signs = np.where(np.arange(SIZE) % 2, -1, 1).astype(np.float32)
    values = signs * np.array(magnitudes, np.float32)
    mask = np.arange(SIZE) % 3 > 0
    given = Upload(jnp.where(mask, values, 0), jnp.asarray(mask))
    upload, _, _ = jitted_apply(truncate)(jax.random.key(0), given, numbers(upload_bound=bound))
    expected = [truncated(value, np.float32(bound)) if kept else 0 for value, kept in zip(values, mask, strict=True)]
    np.testing.assert_array_equal(upload.values, np.array(expected, np.float32))
    np.testing.assert_array_equal(upload.mask, mask)


@pytest.mark.parametrize("make", [largest_fraction, random_above_threshold, truncate])
def test_a_transform_never_sends_what_an_earlier_one_dropped(make):
    """The mask of the result lies in the mask that came in, and dropped values stay zero."""
    mask = np.arange(SIZE) % 2 > 0
    values = jnp.where(mask, jnp.arange(SIZE, dtype=jnp.float32) - 12.5, 0)
    upload, _, _ = jitted_apply(make)(
        jax.random.key(0), Upload(values, jnp.asarray(mask)), numbers(upload_fraction=0.9)
    )
    assert not (np.asarray(upload.mask) & ~mask).any()
    assert not np.asarray(upload.values)[~mask].any()


def counting(factor):
    """A transform that multiplies the values, and counts its calls in its state."""

    def apply(key, upload, state, *, params, hyperparameters, **extra):
        noise = jax.random.uniform(key) if extra.get("noisy") else 0.0
        upload = Upload(upload.values * factor + 1 + noise, upload.mask)
        return upload, state + factor, TransformInfo(jnp.int32(-1))

    return UploadTransform(lambda params: jnp.float32(0), apply)


def test_chain_applies_in_order_and_threads_each_state():
    """((x * 2 + 1) * 3 + 1), every state to its own transform, extra arguments and distinct keys to all."""
    transform = chain(counting(2), counting(3))
    state = transform.init(())
    for call in (1, 2):
        upload, state, info = transform.apply(
            jax.random.key(0), everything([1.0, 2.0]), state, params=(), hyperparameters=numbers()
        )
        assert upload.values.tolist() == [10, 16]
        assert state == (2 * call, 3 * call)
        assert int(info.uploaded) == 2
    noisy = chain(counting(1), counting(0)).apply(
        jax.random.key(0), everything([0.0]), state, params=(), hyperparameters=numbers(), noisy=True
    )[0]
    first = chain(counting(1)).apply(
        jax.random.key(0), everything([0.0]), state[:1], params=(), hyperparameters=numbers(), noisy=True
    )[0]
    assert float(noisy.values[0]) != float(first.values[0])


def test_truncation_comes_after_selection():
    """The largest magnitudes are chosen before they are cut to one bound, which would make them tie."""
    upload, _, _ = jitted_apply(functools.partial(selective_upload, "largest"))(
        jax.random.key(0), everything([1.0, 2.0, -3.0]), numbers(upload_fraction=1 / 3, upload_bound=0.5)
    )
    assert upload.values.tolist() == [0, 0, -0.5]


def test_empty_chain_is_the_identity():
    """No transform, no change."""
    given = Upload(jnp.array([1.0, 0.0]), jnp.array([True, False]))
    upload, state, info = chain().apply(jax.random.key(0), given, (), params=(), hyperparameters=numbers())
    assert same_bits(upload, given)
    assert state == ()
    assert int(info.uploaded) == 1


@pytest.mark.parametrize("criterion", ["largest", "random"])
def test_one_compilation_serves_all_fractions_thresholds_and_bounds(criterion):
    """The numbers of a selection are traced: the function is traced once, and vmapping over them equals a loop."""
    transform, traces = selective_upload(criterion), []

    @jax.jit
    def apply(key, upload, hyperparameters):
        traces.append(None)
        return transform.apply(key, upload, transform.init(()), params=(), hyperparameters=hyperparameters)[0]

    given = everything(np.random.default_rng(0).normal(size=50))
    settings = [(0.1, 0.0, 9.0), (0.5, 0.5, 1.0), (1.0, 1.0, 0.1)]
    results = []
    for fraction, threshold, bound in settings:
        hyperparameters = numbers(upload_fraction=fraction, upload_threshold=threshold, upload_bound=bound)
        results.append(apply(jax.random.key(0), given, hyperparameters))
    assert len(traces) == 1
    assert len({int(upload.mask.sum()) for upload in results}) == 3
    fractions, thresholds, bounds = jnp.array(settings).T
    stacked = jax.vmap(
        lambda fraction, threshold, bound: apply(
            jax.random.key(0),
            given,
            numbers(upload_fraction=fraction, upload_threshold=threshold, upload_bound=bound),
        )
    )(fractions, thresholds, bounds)
    for index, single in enumerate(results):
        np.testing.assert_array_equal(stacked.values[index], single.values)


def test_unknown_criterion_is_refused():
    """One line with the name, the value and what is allowed."""
    with pytest.raises(ValueError, match="upload_criterion='best': allowed are 'largest', 'random'"):
        selective_upload("best")
