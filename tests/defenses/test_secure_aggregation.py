"""Secure aggregation: sums are exact, words tell nothing, dropouts and padding work, and what breaks it breaks it."""

import functools
from fractions import Fraction

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from gan_leak import trees
from gan_leak.collaboration import RoundHyperParameters, average, init_federation, make_round, selective_upload
from gan_leak.config import make_config, validate
from gan_leak.defenses import aggregator_of, parse_composition, quantization_bound, secure_average
from gan_leak.defenses.secure_aggregation import _Members as Members
from gan_leak.defenses.secure_aggregation import decode, encode, largest_value, mask_words, pairwise_masks
from gan_leak.reports.privacy import privacy_summary
from gan_leak.runs.federated.privacy import PrivacyPlan, privacy_fields, promise_of
from gan_leak.types import FlatServer, MaskedSum, Sent, ServerAttack, Upload
from reference import secure_sum
from reference.server_attacks import Victim, isolating_attack, recording_attack
from reference.small import federation_data, largest_difference, leaves, linear_classifier, same_bits

BITS = 26
MODEL, TRANSFORM = linear_classifier(), selective_upload("largest")
SIZES = (5, 0, 3, 7)
NUMBERS = RoundHyperParameters(0.2)


@functools.partial(jax.jit, static_argnames="threshold")
def merged(key, values, weights, joining=None, sent=None, *, bits=BITS, threshold=2, compare=0):
    """One secure sum of values [P, D] at a server of zeros -> (server, visible, info)."""
    size = values.shape[1]
    aggregator = secure_average(bits, threshold, compare)
    server, _, visible, info = aggregator.apply(
        key,
        FlatServer(jnp.zeros(size), jnp.zeros(size)),
        Upload(values, values != 0),
        weights,
        (),
        hyperparameters=NUMBERS,
        merged=joining,
        sent=sent,
    )
    return server, visible, info


def some_values(participants=4, size=6, scale=1.0, seed=0):
    return (scale * np.random.default_rng(seed).normal(size=(participants, size))).astype(np.float32)


# The encoding.


@pytest.mark.parametrize("bits", [0, 10, 26, 30])
def test_a_value_is_decoded_to_half_a_unit(bits):
    """Over the whole range, negative values included; beyond it lies nothing that the sum could hold."""
    largest = float(largest_value(bits))
    assert largest == (2**31 - 2**16) / 2**bits
    values = np.concatenate([np.linspace(-largest, largest, 101), [0.0, 2.0**-bits, -(2.0**-bits)]]).astype(np.float32)
    back = np.asarray(decode(encode(jnp.asarray(values), bits), bits), np.float64)
    assert np.all(np.abs(back - values) <= 2.0 ** -(bits + 1) + np.abs(values) * 2.0**-24)
    assert [secure_sum.from_word(word) for word in encode(jnp.asarray([-1.0, 1.0]), 0)] == [-1, 1]


# The masks.


@pytest.mark.parametrize("joined", [[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
def test_masks_cancel_exactly_among_those_who_joined(joined):
    """In integers; those who did not join have none, and of two or more each has a mask in every place."""
    masks = np.asarray(pairwise_masks(jax.random.key(0), jnp.asarray(joined, bool), 50))
    assert masks.dtype == np.uint32
    assert secure_sum.integer_sum(masks, joined) == [0] * 50
    for row, here in zip(masks, joined, strict=True):
        assert np.all(row == 0) or (here and sum(joined) > 1 and np.all(row != 0))
    assert sum(bool(row.any()) for row in masks) == (sum(joined) if sum(joined) > 1 else 0)


def test_every_pair_has_a_mask_of_its_own():
    """With two members the mask is that of the pair: it does not depend on who else is there, and no two are alike."""
    pairs = {}
    for first, second in [(0, 1), (0, 2), (1, 2), (0, 3)]:
        joined = np.isin(np.arange(4), [first, second])
        masks = np.asarray(pairwise_masks(jax.random.key(0), jnp.asarray(joined), 20))
        np.testing.assert_array_equal(masks[first] + masks[second], 0)
        pairs[first, second] = masks[first]
    everyone = np.asarray(pairwise_masks(jax.random.key(0), jnp.asarray([True, True, True, False]), 20))
    np.testing.assert_array_equal(everyone[0], pairs[0, 1] + pairs[0, 2])
    np.testing.assert_array_equal(everyone[1], pairs[1, 2] - pairs[0, 1])
    assert len({mask.tobytes() for mask in pairs.values()}) == len(pairs)


# The sum.


@hypothesis.given(
    hypothesis.extra.numpy.arrays(np.float32, (4, 3), elements=st.floats(-40, 40, width=32)),
    st.lists(st.integers(0, 100_000), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_the_average_is_the_plain_one_up_to_the_stated_error(values, weights, joining):
    """Against exact fractions, with values beyond the range, absent participants and those left out."""
    server, visible, info = merged(
        jax.random.key(1), jnp.asarray(values), jnp.asarray(weights, jnp.int32), jnp.asarray(joining)
    )
    joined = [weight > 0 and here for weight, here in zip(weights, joining, strict=True)]
    joined = joined if sum(joined) >= 2 else [False] * 4
    assert int(info.joined) == sum(joined)
    # The words that the server has add up to the encoded sum, in integers.
    words = secure_sum.integer_sum(np.asarray(visible.words), joined)
    units = [secure_sum.from_word(word) for word in words]
    np.testing.assert_allclose(visible.average, np.array(units) * 2.0**-BITS, rtol=2.0**-24)
    [total] = secure_sum.integer_sum(np.asarray(visible.weight_words)[:, None], joined)
    assert int(visible.total_weight) == total == sum(w for w, here in zip(weights, joined, strict=True) if here)
    largest = Fraction(float(largest_value(BITS)))
    exact = secure_sum.exact_average(values, weights, joined, largest)
    magnitudes = secure_sum.exact_average(np.abs(values), weights, joined, largest)
    for got, wanted, magnitude in zip(np.asarray(server.params), exact, magnitudes, strict=True):
        assert abs(Fraction(float(got)) - wanted) <= quantization_bound(4, BITS, float(magnitude))
    clipped = sum(
        abs(Fraction(float(value))) > largest
        for row, weight in zip(values, weights, strict=True)
        if weight
        for value in row
    )
    assert int(info.clipped) == clipped


def test_the_stated_error_is_not_loose():
    """With few bits the error comes within a factor of five of the bound, so a coarser encoding would be noticed."""
    values, weights = some_values(size=2000), jnp.asarray([3, 1, 4, 2], jnp.int32)
    server, _, _ = merged(jax.random.key(1), jnp.asarray(values), weights, bits=8)
    error = np.max(np.abs(np.asarray(server.params) - np.average(values.astype(float), axis=0, weights=[3, 1, 4, 2])))
    assert quantization_bound(4, 8, 4.0) / 5 < error <= quantization_bound(4, 8, 4.0)


@pytest.mark.parametrize("participants", [2, 300])
def test_a_sum_at_the_end_of_the_range_does_not_overflow(participants):
    """All at the largest value, of either sign: the sum is that value, not its opposite."""
    largest = float(largest_value(BITS))
    values = np.tile(np.float32([largest, -largest, 1e30]), (participants, 1))
    weights = jnp.asarray(np.random.default_rng(0).integers(1, 1000, participants), jnp.int32)
    server, _, info = merged(jax.random.key(0), jnp.asarray(values), weights)
    np.testing.assert_allclose(server.params, [largest, -largest, largest], rtol=1e-6)
    assert int(info.clipped) == participants


def test_not_a_number_is_seen_in_the_average_and_only_where_it_joined():
    values = some_values()
    values[0, 1], values[2, 3] = np.nan, -np.inf
    weights = jnp.full(4, 2, jnp.int32)
    server, visible, _ = merged(jax.random.key(0), jnp.asarray(values), weights)
    assert np.isnan(np.asarray(server.params)).tolist() == [False, True, False, True, False, False]
    server, _, _ = merged(jax.random.key(0), jnp.asarray(values), weights, jnp.asarray([False, True, False, True]))
    np.testing.assert_allclose(server.params, values[[1, 3]].mean(axis=0), atol=1e-6)
    assert len(np.unique(visible.words)) == visible.words.size


# What the server learns.


@functools.partial(jax.jit, static_argnames="masked")
def many_words(values, masked=True):
    """Words of 4,000 rounds with other keys, uint32 [4000, P, D]; without masks, the encoded uploads plus dither.

    The dither stands for a mask of 24 bits, which leaves the highest bits as they are.
    """
    weights = jnp.ones(len(values), jnp.int32)

    def one(key):
        if masked:
            return merged(key, values, weights)[1].words
        dither = jax.random.bits(key, values.shape, jnp.uint32) >> 8
        return encode(values / len(values), BITS) + dither

    return jax.lax.map(one, jax.random.split(jax.random.key(3), 4000))


def uniform(words, bits):
    """The p-value of a chi-square test on 16 cells: bits from the given one of words [M]."""
    cells = np.bincount((np.asarray(words) >> bits) & 15, minlength=16)
    return scipy.stats.chisquare(cells).pvalue


def test_the_words_of_one_participant_are_uniform():
    """In their high, middle and low bits, at a constant upload; unmasked, and with a mask too short, they are not."""
    values = jnp.asarray(some_values(3, 2))
    words, plain = many_words(values), many_words(values, masked=False)
    for participant in range(3):
        for bits in (28, 14, 0):
            assert uniform(words[:, participant, 0], bits) > 1e-3
        assert uniform(plain[:, participant, 0], 28) < 1e-9
    # Words of a round in two places are independent, too.
    cells = np.asarray((words[:, 0, 0] >> 30) * 4 + (words[:, 0, 1] >> 30))
    assert scipy.stats.chisquare(np.bincount(cells, minlength=16)).pvalue > 1e-3


def test_the_view_does_not_tell_who_sent_what():
    """Two participants swap uploads: averages are equal, and the joint words of all have the same distribution."""
    values = some_values(3, 1, scale=8.0)
    swapped = values[[1, 0, 2]]
    first, second = (
        merged(jax.random.key(0), jnp.asarray(each), jnp.ones(3, jnp.int32))[1] for each in (values, swapped)
    )
    assert same_bits(first.average, second.average)

    def cells(values, masked):
        # By the sum the third is decided by the others, so that two of the three are counted.
        top = np.asarray(many_words(jnp.asarray(values), masked))[:, :, 0] >> 29
        return np.bincount(top[:, 0] * 8 + top[:, 1], minlength=64)

    def p_value(masked):
        table = np.stack([cells(values, masked), cells(swapped, masked)])
        return scipy.stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue

    # The keys are the same, so that the words of the two are not independent; of independent ones the test is exact.
    assert p_value(True) > 1e-3
    assert p_value(False) < 1e-9


def test_a_mask_explains_any_upload_with_the_same_sum():
    """Exactly: for other uploads of the same encoded sum there are masks, adding up to zero, that give these words."""
    joined = jnp.ones(3, bool)
    words = jax.random.bits(jax.random.key(5), (3, 4), jnp.uint32)
    view = mask_words(jax.random.key(0), words, Members(joined, joined))
    others = words.at[0].add(77).at[1].subtract(77)[jnp.asarray([1, 0, 2])]
    masks = np.asarray(view) - np.asarray(others)
    assert secure_sum.integer_sum(masks, [True] * 3) == [0] * 4
    # So the server is left with the sum and nothing else: it is that of the uploads.
    assert secure_sum.integer_sum(np.asarray(view), [True] * 3) == secure_sum.integer_sum(np.asarray(words), [True] * 3)


def test_who_is_left_out_after_sending_stays_hidden():
    """Its words are uniform, though the masks that it shared with the others are revealed."""
    values, weights = jnp.asarray(some_values(3, 1)), jnp.ones(3, jnp.int32)
    joining = jnp.asarray([True, False, True])
    keys = jax.random.split(jax.random.key(4), 3000)
    words = jax.jit(lambda keys: jax.lax.map(lambda key: merged(key, values, weights, joining)[1].words, keys))(keys)
    for bits in (28, 0):
        assert uniform(words[:, 1, 0], bits) > 1e-3
    server, visible, info = merged(jax.random.key(0), values, weights, joining)
    np.testing.assert_allclose(server.params, values[::2].mean(axis=0), atol=1e-6)
    assert visible.present.tolist() == [True, True, True]
    assert int(info.joined) == 2


@pytest.mark.parametrize(("threshold", "revealed"), [(1, True), (2, True), (3, False)])
def test_too_small_a_sum_is_not_revealed(threshold, revealed):
    """Below the threshold the parameters stay, and the words of all are noise."""
    values, weights = jnp.asarray(some_values()), jnp.asarray([2, 0, 2, 0], jnp.int32)
    server, visible, info = merged(jax.random.key(0), values, weights, threshold=threshold)
    assert bool(visible.revealed) == revealed
    assert int(info.joined) == (2 if revealed else 0)
    assert bool(jnp.any(server.params != 0)) == bool(jnp.any(visible.average != 0)) == revealed
    assert int(visible.total_weight) == (4 if revealed else 0)
    assert np.any(np.asarray(visible.words) != 0, axis=1).tolist() == [True, False, True, False]
    if not revealed:
        sums = np.asarray(visible.words[0] + visible.words[2])
        encoded = np.asarray(encode((values[0] + values[2]) / 2, BITS))
        assert not np.any(np.abs((sums - encoded).astype(np.int32)) < 4)


def test_a_single_upload_is_revealed_only_with_a_threshold_of_one():
    values, weights = jnp.asarray(some_values(1)), jnp.asarray([3], jnp.int32)
    alone, _, _ = merged(jax.random.key(0), values, weights)
    assert not alone.params.any()
    shown, _, _ = merged(jax.random.key(0), values, weights, threshold=1)
    np.testing.assert_allclose(shown.params, values[0], atol=1e-7)


# In rounds.


def rounds(aggregator, attack=None, sizes=SIZES, cohort=None, mapping="map", numbers=NUMBERS, count=2):
    """The state and info after some rounds of all participants, or of a cohort."""
    data = federation_data(sizes)
    state = init_federation(
        jax.random.key(0), MODEL, TRANSFORM, len(sizes), aggregator=aggregator, server_attack=attack
    )
    if cohort is not None:
        rows = np.maximum(cohort, 0)
        data = trees.take(data, rows)._replace(participants=jnp.asarray(cohort, jnp.int32))
        data = data._replace(sizes=jnp.where(data.participants < 0, 0, data.sizes))
        state = state._replace(participants=trees.take(state.participants, rows))
    round_fn = make_round(
        MODEL,
        TRANSFORM,
        schedule="synchronous",
        aggregator=aggregator,
        batch_size=4,
        server_attack=attack,
        participant_mapping=mapping,
    )
    info = None
    for number in range(count):
        state, info = jax.jit(round_fn)(jax.random.key(number), state, data, numbers)
    return state, info


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
@pytest.mark.parametrize("cohort", [pytest.param(None, marks=pytest.mark.slow), [0, 2], [3, 0, -1, -1]])
def test_it_trains_as_plain_averaging_does(mapping, cohort):
    """Cohorts and their padding included; the counters are those of uploads of all coordinates."""
    secure, info = rounds(secure_average(), cohort=cohort, mapping=mapping)
    plain, _ = rounds(average(), cohort=cohort, mapping=mapping)
    assert largest_difference(secure.server, plain.server) < 2 * quantization_bound(4, BITS, 1.0)
    assert int(info.aggregation.joined) == (3 if cohort is None else 2)
    assert int(info.aggregation.clipped) == 0


def test_padding_changes_no_bit():
    """A mesh appends participants without samples: the same masks, sums and parameters."""
    values, weights = some_values(3), jnp.asarray([2, 1, 5], jnp.int32)
    server, visible, _ = merged(jax.random.key(0), jnp.asarray(values), weights)
    padded = np.concatenate([values, np.full((2, 6), np.nan, np.float32)])
    more, shown, _ = merged(jax.random.key(0), jnp.asarray(padded), jnp.asarray([2, 1, 5, 0, 0], jnp.int32))
    assert same_bits(server, more)
    assert same_bits(visible.words, shown.words[:3])
    assert not shown.words[3:].any()
    assert shown.present.tolist() == [True] * 3 + [False] * 2


def test_lanes_of_a_batch_have_bits_and_thresholds_of_their_own():
    values, weights = jnp.asarray(some_values()), jnp.asarray([3, 1, 4, 2], jnp.int32)

    def one(bits, threshold):
        server, _, visible, _ = secure_average(bits, threshold).apply(
            jax.random.key(0),
            FlatServer(jnp.zeros(6), jnp.zeros(6)),
            Upload(values, values != 0),
            weights,
            (),
            hyperparameters=NUMBERS,
        )
        return server.params, visible.revealed

    params, revealed = jax.jit(jax.vmap(one))(jnp.asarray([8, 26, 26]), jnp.asarray([2.0, 2.0, 5.0]))
    assert revealed.tolist() == [True, True, False]
    exact = np.average(np.asarray(values, float), axis=0, weights=[3, 1, 4, 2])
    assert 1e-4 < np.max(np.abs(params[0] - exact)) < quantization_bound(4, 8, 4.0)
    assert np.max(np.abs(params[1] - exact)) < quantization_bound(4, 26, 4.0)


def test_the_server_sees_words_and_the_average():
    """All that an adversary at the server gets of the uploads; without data there are no words."""
    state, _ = rounds(secure_average(), recording_attack(), count=1)
    view = state.server_attack
    assert type(view.visible) is MaskedSum
    assert view.visible.present.tolist() == [True, False, True, True]
    assert int(view.visible.total_weight) == 15
    shown = [leaf for leaf in leaves(view.visible) if leaf.ndim == 2]
    assert [leaf.dtype for leaf in shown] == [np.uint32]
    moved = trees.ravel(trees.subtract(view.params, trees.take(view.sent, 0)))[0]
    np.testing.assert_allclose(view.visible.average, moved, atol=1e-6)


# What breaks it, and what stops that.


def suppressing_attack(victim):
    """A server that sends everybody but the victim NaN-free parameters whose gradient is zero (Pasquini et al. 2022).

    Of the linear classifier a huge bias of one class saturates the softmax, here for data of that class only.
    """

    def broadcast(key, state, params, participant, hyperparameters):
        saturated = {"bias": jnp.zeros(5).at[1].set(1e4), "kernel": jnp.zeros_like(params["kernel"])}
        return Sent(jax.tree.map(lambda own, other: jnp.where(participant == victim, own, other), params, saturated))

    def step(key, state, view, hyperparameters):
        return view, ()

    return ServerAttack(lambda key, params: (), broadcast, step, lambda key, state, count: jnp.zeros((count, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("compare", [0, 1])
def test_inconsistent_models_reveal_one_upload_unless_models_are_compared(compare):
    """The others send zeros, so that the average is the victim's upload times its share of the samples."""
    data = federation_data(SIZES)._replace(labels=jnp.ones((4, 7), jnp.int32))
    results = []
    for aggregator in (secure_average(compare_models=compare), average()):
        attack = suppressing_attack(2)
        state = init_federation(jax.random.key(0), MODEL, TRANSFORM, 4, aggregator=aggregator, server_attack=attack)
        round_fn = make_round(
            MODEL, TRANSFORM, schedule="synchronous", aggregator=aggregator, batch_size=4, server_attack=attack
        )
        results.append(jax.jit(round_fn)(jax.random.key(1), state, data, NUMBERS))
    (secure, info), (plain, _) = results
    upload = np.asarray(plain.server_attack.visible.uploads.values[2])
    assert np.linalg.norm(upload) > 0.1
    visible = secure.server_attack.visible
    assert not bool(info.aggregation.consistent)
    if compare:
        assert not visible.present.any()
        assert not visible.words.any()
        assert not visible.average.any()
        assert not bool(visible.revealed)
    else:
        np.testing.assert_allclose(np.asarray(visible.average) * 15 / 3, upload, atol=1e-5)


@pytest.mark.slow
def test_comparing_models_changes_nothing_for_an_honest_server():
    """Bit by bit; a model that differs in one bit is noticed, one sent to an absent participant is not."""
    trusting, _ = rounds(secure_average(), recording_attack())
    comparing, info = rounds(secure_average(compare_models=1), recording_attack())
    assert same_bits(trusting, comparing)
    assert bool(info.aggregation.consistent)
    values, weights = jnp.asarray(some_values()), jnp.asarray([2, 0, 1, 1], jnp.int32)
    sent = jnp.ones((4, 6))
    for row, noticed in ((1, False), (3, True)):
        changed = sent.at[row, 2].set(np.nextafter(np.float32(1), np.float32(2)))
        _, visible, _ = merged(jax.random.key(0), values, weights, sent=changed, compare=1)
        assert bool(visible.revealed) != noticed


@pytest.mark.slow
def test_an_isolated_victim_is_hidden_and_the_others_train_without_it():
    """A server that keeps the victim to itself gets its words, which tell nothing, and the sum of the others."""
    numbers = NUMBERS._replace(server_attack=Victim(2))
    # The attack reads uploads in the clear; only its broadcast is used here.
    attack = recording_attack(isolating_attack(4).broadcast)
    attack = attack._replace(
        init=isolating_attack(4).init, step=lambda key, state, view, hyperparameters: (state, view.visible)
    )
    state, info = rounds(secure_average(), attack, numbers=numbers, count=1)
    without, _ = rounds(secure_average(), cohort=[0, 1, 3], count=1)
    assert largest_difference(state.server, without.server) < 1e-6
    assert info.server_attack.present.tolist() == [True, False, True, True]
    assert int(info.aggregation.joined) == 2


# In the main job.


def test_it_needs_whole_rounds_and_the_average():
    """One line says what goes with it."""
    with pytest.raises(
        ValueError, match=r"^defense='secure_aggregation': expected with aggregation 'average', not 'add'$"
    ):
        validate(make_config(defense="secure_aggregation", schedule="synchronous"))
    with pytest.raises(ValueError, match=r"schedule 'synchronous', not 'round_robin'$"):
        validate(make_config(defense="secure_aggregation", aggregation="average"))
    validate(make_config(defense="dp_sgd+secure_aggregation", aggregation="average", schedule="synchronous"))
    with pytest.raises(ValueError, match=r"^compare_models=2: expected 0 or 1"):
        validate(make_config(compare_models=2))


def test_too_many_participants_are_refused_before_tracing():
    count = 2**16 + 1
    with pytest.raises(ValueError, match=f"^participants={count}: expected at most 65536 in a secure sum"):
        merged(jax.random.key(0), jnp.zeros((count, 1)), jnp.ones(count, jnp.int32))


@pytest.mark.slow
def test_the_composition_reads_its_numbers():
    """As rounds of the main job pass them: by name, traced."""
    defenses = parse_composition("clipping+secure_aggregation")
    own = {"fixed_point_bits": 26, "secure_sum_threshold": 2, "compare_models": 0, "update_clipping_norm": 1.0}
    aggregator = aggregator_of(defenses, average())
    assert not aggregator.sequential
    state, _ = rounds(aggregator, numbers=NUMBERS._replace(defense=own), count=1)
    plain, _ = rounds(average(), count=1)
    assert largest_difference(state.server, plain.server) < 1e-6
    high, _ = rounds(aggregator, numbers=NUMBERS._replace(defense=own | {"secure_sum_threshold": 4}), count=1)
    assert (
        largest_difference(high.server.params, init_federation(jax.random.key(0), MODEL, TRANSFORM, 4).server.params)
        == 0
    )


def test_reports_say_what_it_hides_and_what_breaks_it():
    """It has no epsilon, takes none from DP-SGD, and is not named among the defenses without a promise."""
    config = make_config(defense="secure_aggregation", aggregation="average", schedule="synchronous")
    plan = PrivacyPlan(config, (40, 10), 0, 0.0)
    assert promise_of(plan) is None
    fields = privacy_fields(plan)
    assert list(fields) == ["secrecy"]
    lines = privacy_summary(fields)
    assert lines["hidden by"] == "secure aggregation"
    assert "Pasquini" in lines["broken by"]
    both = make_config(defense="dp_sgd+clipping+secure_aggregation", aggregation="average", schedule="synchronous")
    fields = privacy_fields(plan._replace(config=both))
    assert fields["mechanism"] == "DP-SGD"
    assert fields["without_promise"] == "clipping"
    assert {"epsilon", "hidden from"} <= set(privacy_summary(fields))
