"""The parameter server: what a download overwrites, and how uploads are merged and counted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gan_leak.collaboration.schedule import draw_cohort, turn_order
from gan_leak.collaboration.server import add_upload, download, init_server, merge_uploads
from gan_leak.types import ServerState, Upload
from reference.selection import is_some_largest
from reference.small import same_bits

COUNTS = np.array([0, 3, 1, 3, 0, 2, 3, 1, 0, 0], np.float32)


def params(values):
    """Ten numbers as a pytree of two leaves."""
    values = jnp.asarray(values, jnp.float32)
    return {"a": values[:4].reshape(2, 2), "b": values[4:]}


def flat(tree):
    return np.concatenate([np.asarray(tree["a"]).reshape(-1), np.asarray(tree["b"])])


SERVER = ServerState(params(np.arange(10) + 100), jnp.asarray(COUNTS))
LOCAL = params(np.arange(10))
jitted_download = jax.jit(download)


@pytest.mark.parametrize("count", range(1, 11))
def test_download_overwrites_exactly_the_most_updated_fraction(count):
    """The chosen coordinates are the server's, the others stay the participant's own."""
    for seed in range(5):
        result = flat(jitted_download(jax.random.key(seed), SERVER, LOCAL, count / 10))
        taken = result == np.arange(10) + 100
        assert is_some_largest(taken, COUNTS, count)
        np.testing.assert_array_equal(result[~taken], np.arange(10)[~taken])


def test_download_breaks_ties_at_random_every_time():
    """With equal counters every coordinate gets its turn; by index some never would."""
    fresh = init_server(SERVER.params)
    keys = jax.random.split(jax.random.key(0), 2000)
    taken = jax.vmap(lambda key: jnp.concatenate([*map(jnp.ravel, jitted_download(key, fresh, LOCAL, 0.3).values())]))(
        keys
    )
    often = (np.asarray(taken) >= 100).sum(axis=0)
    assert often.sum() == 2000 * 3
    assert scipy.stats.chisquare(often).pvalue > 1e-3


def test_full_download_is_bit_exactly_the_server():
    """Fraction 1 leaves nothing of the local parameters, whatever the counters hold."""
    local = jax.tree.map(lambda leaf: leaf * jnp.nan, LOCAL)
    for counts in (COUNTS, np.zeros(10), np.full(10, np.nan)):
        server = ServerState(SERVER.params, jnp.asarray(counts, jnp.float32))
        assert same_bits(jitted_download(jax.random.key(0), server, local, 1.0), SERVER.params)


def test_add_upload_adds_values_and_counts_the_mask():
    """Values are added where they were sent; the counters decay first, then count one."""
    mask = np.arange(10) % 2 == 0
    values = np.where(mask, -np.arange(10.0), 0)
    server = add_upload(SERVER, Upload(jnp.asarray(values, jnp.float32), jnp.asarray(mask)), 0.5)
    np.testing.assert_allclose(flat(server.params), np.arange(10) + 100 + values)
    np.testing.assert_allclose(server.update_counts, 0.5 * COUNTS + mask)


def uploads(seed=0, participants=3):
    generator = np.random.default_rng(seed)
    mask = generator.random((participants, 10)) < 0.6
    values = np.where(mask, generator.normal(size=mask.shape), 0).astype(np.float32)
    return Upload(jnp.asarray(values), jnp.asarray(mask))


def test_merging_adds_or_averages_by_samples():
    """``add`` is the sum; ``average`` weights 5, 0 and 15 samples as 1/4, 0 and 3/4, and a gap counts as no change."""
    sent, sizes = uploads(), jnp.array([5, 0, 15], jnp.int32)
    counts = 0.25 * COUNTS + np.asarray(sent.mask).sum(axis=0)
    before = np.arange(10) + 100
    for aggregation, weights in (("add", [1, 1, 1]), ("average", [0.25, 0, 0.75])):
        server = merge_uploads(SERVER, sent, sizes, 0.25, aggregation=aggregation)
        change = sum(weight * np.asarray(values) for weight, values in zip(weights, sent.values, strict=True))
        np.testing.assert_allclose(flat(server.params), before + change, rtol=1e-6)
        np.testing.assert_allclose(server.update_counts, counts)


def test_merging_by_addition_equals_one_upload_after_the_other():
    """The synchronous sum is the sequential one, counters included, when nothing decays."""
    sent = uploads()
    server = SERVER
    for values, mask in zip(sent.values, sent.mask, strict=True):
        server = add_upload(server, Upload(values, mask), 1.0)
    merged = merge_uploads(SERVER, sent, jnp.ones(3, jnp.int32), 1.0, aggregation="add")
    np.testing.assert_allclose(flat(merged.params), flat(server.params), rtol=1e-6)
    np.testing.assert_array_equal(merged.update_counts, server.update_counts)


def test_average_over_nobody_changes_nothing():
    """If no participant had a sample, there is nothing to weight by."""
    merged = merge_uploads(SERVER, uploads(), jnp.zeros(3, jnp.int32), 1.0, aggregation="average")
    assert same_bits(merged.params, SERVER.params)


def test_turn_orders():
    """Round robin is the same in every round; a random order is a permutation, each equally likely."""
    keys = jax.random.split(jax.random.key(0), 3000)
    assert turn_order(jax.random.key(1), "round_robin", 4).tolist() == [0, 1, 2, 3]
    orders = np.asarray(jax.vmap(lambda key: turn_order(key, "random_order", 3))(keys)).tolist()
    often = [orders.count(list(order)) for order in itertools.permutations(range(3))]
    assert sum(often) == 3000
    assert scipy.stats.chisquare(often).pvalue > 1e-3


def test_a_cohort_is_a_uniformly_random_subset_in_order():
    """Every pair of five equally often; drawing with replacement, or by neighbours, would show."""
    keys = jax.random.split(jax.random.key(2), 4000)
    cohorts = np.asarray(jax.vmap(lambda key: draw_cohort(key, 5, 2))(keys)).tolist()
    often = [cohorts.count(list(pair)) for pair in itertools.combinations(range(5), 2)]
    assert sum(often) == 4000
    assert scipy.stats.chisquare(often).pvalue > 1e-3
    assert draw_cohort(jax.random.key(0), 4, 4).tolist() == [0, 1, 2, 3]
    for size in (0, 6):
        with pytest.raises(ValueError, match=f"cohort={size}: expected 1 to 5, the number of participants"):
            draw_cohort(jax.random.key(0), 5, size)


def test_a_schedule_without_an_order_is_refused():
    """One line with the name, the value and what is allowed."""
    with pytest.raises(ValueError, match="schedule='synchronous': allowed are 'round_robin' and 'random_order'"):
        turn_order(jax.random.key(0), "synchronous", 3)
