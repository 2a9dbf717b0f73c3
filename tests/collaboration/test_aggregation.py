"""Aggregators: how uploads are merged and counted, what the server sees of them, and whose are left out."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.collaboration import (
    AGGREGATORS,
    RoundHyperParameters,
    add,
    average,
    init_federation,
    make_round,
    selective_upload,
)
from gan_leak.types import Aggregator, FlatServer, Received, Upload
from reference.server_attacks import recording_attack
from reference.small import federation_data, largest_difference, leaves, linear_classifier, same_bits

COUNTS = np.array([0, 3, 1, 3, 0, 2, 3, 1, 0, 0], np.float32)
SERVER = FlatServer(jnp.arange(10.0) + 100, jnp.asarray(COUNTS))
WEIGHTS = jnp.array([5, 0, 15], jnp.int32)


def uploads(seed=0, participants=3):
    generator = np.random.default_rng(seed)
    mask = generator.random((participants, 10)) < 0.6
    values = np.where(mask, generator.normal(size=mask.shape), 0).astype(np.float32)
    return Upload(jnp.asarray(values), jnp.asarray(mask))


def merge(aggregator, sent, weights=WEIGHTS, decay=1.0, server=SERVER, **arguments):
    state = aggregator.init({"a": jnp.zeros(10)})
    numbers = RoundHyperParameters(0.1, update_count_decay=decay)
    return jax.jit(
        lambda server, sent, weights: aggregator.apply(
            jax.random.key(0), server, sent, weights, state, hyperparameters=numbers, **arguments
        )
    )(server, sent, weights)


def names(function, kind):
    return [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind == kind]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregators_have_one_contract(name):
    """Signature, a server and a state of the shapes that came, and the same bits for the same key."""
    aggregator, sent = AGGREGATORS[name](), uploads()
    assert isinstance(aggregator, Aggregator)
    assert list(inspect.signature(aggregator.init).parameters) == ["params"]
    arguments = ["key", "server", "uploads", "weights", "state"]
    assert names(aggregator.apply, inspect.Parameter.POSITIONAL_OR_KEYWORD) == arguments
    assert names(aggregator.apply, inspect.Parameter.KEYWORD_ONLY) == ["hyperparameters", "merged"]
    assert names(aggregator.apply, inspect.Parameter.VAR_KEYWORD) == ["extra"]
    server, state, visible, info = merge(aggregator, sent, unknown_extra=1)
    assert type(server) is FlatServer
    assert [(leaf.shape, leaf.dtype) for leaf in leaves(server)] == [((10,), np.float32)] * 2
    assert jax.tree.structure(state) == jax.tree.structure(aggregator.init({"a": jnp.zeros(10)}))
    assert same_bits(merge(aggregator, sent), (server, state, visible, info))
    if aggregator.sequential:
        one = merge(aggregator, jax.tree.map(lambda leaf: leaf[:1], sent), WEIGHTS[:1])[2]
        assert all(leaf.shape[0] == 1 for leaf in leaves(one))


@pytest.mark.parametrize(("name", "factors"), [("add", [1, 1, 1]), ("average", [0.25, 0, 0.75])])
def test_merging_adds_or_averages_by_samples(name, factors):
    """Adding sums; averaging weights 5, 0 and 15 samples as 1/4, 0 and 3/4, and a gap counts as no change."""
    sent = uploads()
    server = merge(AGGREGATORS[name](), sent, decay=0.25)[0]
    change = sum(factor * np.asarray(values) for factor, values in zip(factors, sent.values, strict=True))
    np.testing.assert_allclose(server.params, np.arange(10) + 100 + change, rtol=1e-6)
    np.testing.assert_allclose(server.update_counts, 0.25 * COUNTS + np.asarray(sent.mask).sum(axis=0))


def test_adding_all_uploads_equals_adding_one_after_the_other():
    """The synchronous sum is the sequential one, counters included, when nothing decays."""
    sent, server = uploads(), SERVER
    for index in range(3):
        one = jax.tree.map(lambda leaf, index=index: leaf[index : index + 1], sent)
        server = merge(add(), one, WEIGHTS[index : index + 1], server=server)[0]
    merged = merge(add(), sent)[0]
    np.testing.assert_allclose(merged.params, server.params, rtol=1e-6)
    np.testing.assert_array_equal(merged.update_counts, server.update_counts)


def test_one_upload_is_added_exactly():
    """Of one participant, the server moves by the bits of its upload; the counters decay first, then count one."""
    sent = uploads(participants=1)
    for aggregator in (add(), average()):
        server = merge(aggregator, sent, WEIGHTS[:1], decay=0.5)[0]
        np.testing.assert_array_equal(server.params, SERVER.params + sent.values[0])
        np.testing.assert_array_equal(server.update_counts, 0.5 * COUNTS + sent.mask[0])


def test_average_over_nobody_changes_nothing():
    """If no participant had a sample, there is nothing to weight by."""
    assert same_bits(merge(average(), uploads(), jnp.zeros(3, jnp.int32))[0].params, SERVER.params)


def test_the_server_sees_every_upload_and_sample_counts_only_where_they_are_sent():
    """Adding needs no counts, so none are sent; averaging does."""
    sent = uploads()
    assert same_bits(merge(add(), sent)[2], Received(sent, None))
    assert same_bits(merge(average(), sent)[2], Received(sent, WEIGHTS))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_who_is_left_out_counts_as_absent_and_is_seen(name):
    """The merged server is that of the others, even where the upload left out is not a number."""
    sent = uploads()
    sent = sent._replace(values=sent.values.at[2].set(jnp.where(sent.mask[2], jnp.nan, 0.0)))
    server, _, visible, _ = merge(AGGREGATORS[name](), sent, merged=jnp.array([True, True, False]))
    others = jax.tree.map(lambda leaf: leaf[:2], sent)
    expected = merge(AGGREGATORS[name](), others, WEIGHTS[:2])[0]
    np.testing.assert_allclose(server.params, expected.params, rtol=1e-6)
    np.testing.assert_array_equal(server.update_counts, expected.update_counts)
    assert same_bits(visible.uploads, sent)


class MaskedSum(NamedTuple):
    """What a server sees of a secure sum: one masked word a coordinate and participant, and the sum."""

    words: jax.Array
    total: jax.Array


def masked_sum():
    """A sum of words to which pads were added that cancel out, as a federation with secure aggregation would send."""

    def encode(values):
        return jax.lax.bitcast_convert_type(jnp.round(values * 2**16).astype(jnp.int32), jnp.uint32)

    def apply(key, server, uploads, weights, state, *, hyperparameters, merged=None, **extra):
        pads = jax.random.bits(key, uploads.values.shape, jnp.uint32)
        words = encode(uploads.values) + pads - jnp.roll(pads, 1, axis=0)
        total = jax.lax.bitcast_convert_type(jnp.sum(words, axis=0, dtype=jnp.uint32), jnp.int32) / 2**16
        server = FlatServer(server.params + total, server.update_counts)
        return server, state + 1, MaskedSum(words, total), jnp.max(jnp.abs(total))

    return Aggregator(lambda params: jnp.int32(0), apply)


def test_a_secure_sum_fits_the_contract():
    """It trains as adding does; the server sees words that tell nothing of one participant, and their sum."""
    model, transform, attack = linear_classifier(), selective_upload("largest"), recording_attack()
    data, numbers = federation_data((5, 0, 3)), RoundHyperParameters(0.2)
    states = []
    for aggregator in (masked_sum(), add()):
        state = init_federation(jax.random.key(0), model, transform, 3, aggregator=aggregator, server_attack=attack)
        rounds = make_round(
            model, transform, schedule="synchronous", aggregator=aggregator, batch_size=4, server_attack=attack
        )
        states.append(jax.jit(rounds)(jax.random.key(1), state, data, numbers))
    (secure, info), (plain, _) = states
    assert largest_difference(secure.server.params, plain.server.params) < 3 / 2**16
    assert int(secure.aggregation) == 1
    assert float(info.aggregation) > 0
    view = secure.server_attack
    assert type(view.visible) is MaskedSum
    # Participant 1 uploads nothing but zeros, which its words do not show.
    assert len(np.unique(view.visible.words[1])) == 85
    with pytest.raises(ValueError, match="schedule='round_robin': an aggregator that merges whole rounds needs"):
        make_round(model, transform, schedule="round_robin", aggregator=masked_sum())
