"""The parameter server: what a download overwrites, and the order of turns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gan_leak.collaboration.schedule import draw_cohort, turn_delays, turn_order
from gan_leak.collaboration.server import download, flatten, init_server
from gan_leak.types import FlatServer
from reference.selection import is_some_largest
from reference.small import same_bits

COUNTS = np.array([0, 3, 1, 3, 0, 2, 3, 1, 0, 0], np.float32)


def params(values):
    """Ten numbers as a pytree of two leaves."""
    values = jnp.asarray(values, jnp.float32)
    return {"a": values[:4].reshape(2, 2), "b": values[4:]}


def flat(tree):
    return np.concatenate([np.asarray(tree["a"]).reshape(-1), np.asarray(tree["b"])])


SERVER = FlatServer(jnp.arange(10.0) + 100, jnp.asarray(COUNTS))
LOCAL = params(np.arange(10))
jitted_download = jax.jit(download)


@pytest.mark.parametrize("count", range(1, 11))
def test_download_overwrites_exactly_the_most_updated_fraction(count):
    """The chosen coordinates are the server's, the others stay the participant's own."""
    for seed in range(5):
        result, mask = jitted_download(jax.random.key(seed), SERVER, LOCAL, count / 10)
        result = flat(result)
        taken = result == np.arange(10) + 100
        np.testing.assert_array_equal(mask, taken)
        assert is_some_largest(taken, COUNTS, count)
        np.testing.assert_array_equal(result[~taken], np.arange(10)[~taken])


def test_download_breaks_ties_at_random_every_time():
    """With equal counters every coordinate gets its turn; by index some never would."""
    fresh, _ = flatten(init_server(params(SERVER.params)))
    keys = jax.random.split(jax.random.key(0), 2000)
    taken = jax.vmap(lambda key: jitted_download(key, fresh, LOCAL, 0.3)[1])(keys)
    often = np.asarray(taken).sum(axis=0)
    assert often.sum() == 2000 * 3
    assert scipy.stats.chisquare(often).pvalue > 1e-3


def test_a_random_download_takes_every_coordinate_equally_often():
    """Whatever the counters say; by counters the same three of them are taken every time."""
    keys, others = jax.random.split(jax.random.key(0), (2, 2_000))
    taken = jax.vmap(lambda key: download(key, SERVER, LOCAL, 0.3, "random")[1])(keys)
    often = np.asarray(taken).sum(axis=0)
    assert np.all(np.asarray(taken).sum(axis=1) == 3)
    assert scipy.stats.chisquare(often).pvalue > 1e-3
    by_counts = np.asarray(jax.vmap(lambda key: download(key, SERVER, LOCAL, 0.3)[1])(others)).sum(axis=0)
    assert scipy.stats.chisquare(by_counts).pvalue < 1e-9


def test_full_download_is_bit_exactly_the_server():
    """Fraction 1 leaves nothing of the local parameters, whatever the counters hold."""
    local = jax.tree.map(lambda leaf: leaf * jnp.nan, LOCAL)
    for counts in (COUNTS, np.zeros(10), np.full(10, np.nan)):
        server = FlatServer(SERVER.params, jnp.asarray(counts, jnp.float32))
        assert same_bits(jitted_download(jax.random.key(0), server, local, 1.0)[0], params(SERVER.params))


def test_turn_orders():
    """Round robin is the same in every round; a random order is a permutation, each equally likely."""
    keys = jax.random.split(jax.random.key(0), 3000)
    assert turn_order(jax.random.key(1), "round_robin", 4).tolist() == [0, 1, 2, 3]
    orders = np.asarray(jax.vmap(lambda key: turn_order(key, "random_order", 3))(keys)).tolist()
    often = [orders.count(list(order)) for order in itertools.permutations(range(3))]
    assert sum(often) == 3000
    assert scipy.stats.chisquare(often).pvalue > 1e-3


@pytest.mark.parametrize(("delays", "expected"), [("fixed", [0, 0, 0, 1]), ("drawn", [0.25] * 4)])
def test_delays_are_fixed_or_uniform(delays, expected):
    """Four thousand turns with delays of 0 to 3, within five standard errors."""
    found = np.asarray(turn_delays(jax.random.key(0), delays, 3, 4_000))
    assert found.shape == (4_000,)
    frequencies = np.bincount(found, minlength=4) / len(found)
    np.testing.assert_allclose(frequencies, expected, rtol=0, atol=5 * np.sqrt(0.25 * 0.75 / len(found)))


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
    with pytest.raises(ValueError, match="schedule='synchronous': allowed are 'round_robin', 'random_order', 'async"):
        turn_order(jax.random.key(0), "synchronous", 3)
