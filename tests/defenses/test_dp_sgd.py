"""DP-SGD does what its privacy claim says: who is drawn, what is clipped, what is noised, and what it is divided by."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from gan_leak import trees
from gan_leak.collaboration import RoundHyperParameters, init_federation, make_round, selective_upload
from gan_leak.collaboration.participant import local_sgd, masked_cross_entropy
from gan_leak.defenses.composition import local_training_of
from gan_leak.defenses.dp_sgd import (
    DEFENSE,
    add_gaussian_noise,
    check_dp_sgd,
    clipped_gradient_sum,
    clipping_scale,
    dp_sgd,
    poisson_sample,
)
from gan_leak.types import LocalData, Model
from reference import dp_sgd as reference
from reference.small import CLASSES, IMAGE_SHAPE, federation_data, largest_difference, linear_classifier, same_bits

MODEL = linear_classifier()


class Numbers(NamedTuple):
    """The traced numbers of local training by DP-SGD."""

    learning_rate: Any
    learning_rate_decay: Any = 0.0
    clipping_norm: Any = 1.0
    noise_multiplier: Any = 0.0


PARAMS = MODEL.init(jax.random.key(0))
# Real samples of an adversary are not the first ones: its fakes follow its padding.
MASK = np.array([True, True, False, True, True, False, True, False, True, True, True, True])
EVERYONE = np.ones(9, bool)
NO_CLIPPING = Numbers(0.3, 0.1, clipping_norm=math.inf, noise_multiplier=0.0)


def local_data(mask=MASK, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    images = scale * generator.uniform(-1, 1, (len(mask), *IMAGE_SHAPE)).astype(np.float32)
    labels = generator.integers(0, CLASSES, len(mask)).astype(np.int32)
    return LocalData(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(mask))


def step_function(model, **arguments):
    def train(key, params, steps, data, hyperparameters):
        own = {"clipping_norm": hyperparameters.clipping_norm, "noise_multiplier": hyperparameters.noise_multiplier}
        return dp_sgd(key, model, params, steps, data, hyperparameters, **own, **arguments)

    return train


@functools.cache
def jitted_dp_sgd(epochs=1, batch_size=4, microbatch_size=8):
    return jax.jit(step_function(MODEL, epochs=epochs, batch_size=batch_size, microbatch_size=microbatch_size))


@functools.cache
def jitted_sum(microbatch_size=3):
    return jax.jit(
        lambda params, data, chosen, norm: clipped_gradient_sum(
            MODEL, params, data, chosen, norm, microbatch_size=microbatch_size
        )
    )


def flat(tree):
    return np.asarray(trees.ravel(tree)[0])


@pytest.mark.parametrize("microbatch_size", [1, 4, 32])
@pytest.mark.parametrize("clipping_norm", [0.3, 2.0, math.inf])
def test_the_sum_equals_a_loop_over_examples(clipping_norm, microbatch_size):
    """One gradient after the other, by jax.grad and by hand, for lots that do and do not fill the last microbatch."""
    data = local_data()
    for lot in ([], [4], [0, 3, 6, 8], list(np.flatnonzero(MASK))):
        chosen = jnp.zeros(len(MASK), bool).at[jnp.array(lot, int)].set(True)
        total, loss = jitted_sum(microbatch_size)(PARAMS, data, chosen, clipping_norm)
        expected, losses = np.zeros(85), []
        for index in lot:
            example = [leaf[index : index + 1] for leaf in data]
            losses.append(masked_cross_entropy(MODEL, PARAMS, *example))
            gradient = flat(
                jax.grad(lambda params, example=example: masked_cross_entropy(MODEL, params, *example))(PARAMS)
            )
            expected += gradient * min(1.0, clipping_norm / np.linalg.norm(gradient))
        twin = reference.clipped_sum(flat(PARAMS), *map(np.asarray, data[:2]), lot, clipping_norm, CLASSES)
        np.testing.assert_allclose(flat(total), expected, atol=1e-6)
        np.testing.assert_allclose(flat(total), twin, atol=1e-5)
        assert float(loss) == pytest.approx(sum(map(float, losses)), abs=1e-5)


def test_one_step_by_hand():
    """From zero, one image x of class 2 of 5: (1/5 - onehot) times (1, x), clipped to norm 1/2."""
    data = local_data(np.array([True]))._replace(labels=jnp.array([2]))
    params = jax.tree.map(jnp.zeros_like, PARAMS)
    trained, steps, loss = jitted_dp_sgd(1, 1)(
        jax.random.key(0), params, jnp.int32(4), data, Numbers(0.5, 0.25, clipping_norm=0.5)
    )
    image = np.asarray(data.inputs).reshape(-1)
    push = np.eye(CLASSES)[2] - 1 / CLASSES
    norm = math.sqrt((push**2).sum() * (1 + (image**2).sum()))
    assert norm > 0.5
    push *= 0.5 / (1 + 4 * 0.25) * 0.5 / norm
    np.testing.assert_allclose(trained["bias"], push, atol=1e-6)
    np.testing.assert_allclose(trained["kernel"], np.outer(image, push), atol=1e-6)
    assert int(steps) == 5
    assert float(loss) == pytest.approx(math.log(CLASSES), abs=1e-6)


@given(
    seed=st.integers(0, 10**6),
    removed=st.integers(0, 8),
    clipping_norm=st.floats(1e-3, 1e3),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e6]),
    lot=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_sensitivity_is_the_clipping_norm(seed, removed, clipping_norm, scale, lot):
    """Whatever the data, the parameters and the rest of the lot: one record more or less moves the sum by at most C."""
    params = jax.tree.map(lambda leaf: leaf * (1 + seed % 3), MODEL.init(jax.random.key(seed)))
    data = local_data(EVERYONE, seed, scale)
    chosen = np.array(lot)
    chosen[removed] = True
    with_it = flat(jitted_sum()(params, data, jnp.asarray(chosen), clipping_norm)[0])
    chosen[removed] = False
    without = flat(jitted_sum()(params, data, jnp.asarray(chosen), clipping_norm)[0])
    assert np.isfinite(with_it).all()
    # The sums of up to nine clipped gradients are rounded, each time by up to 2^-24 of what has been added up.
    assert np.linalg.norm(with_it - without) <= clipping_norm * (1 + 1e-5)


def test_the_norm_is_over_all_leaves_together():
    """(3, 4) in two leaves has norm 5; shorter gradients and zero stay as they are."""
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    assert float(clipping_scale(gradient, 1.0)) == pytest.approx(0.2)
    assert float(clipping_scale(gradient, 5.1)) == 1
    assert float(clipping_scale(gradient, math.inf)) == 1
    zero = jax.tree.map(jnp.zeros_like, gradient)
    assert float(clipping_scale(zero, 1.0)) == 1
    assert float(clipping_scale(zero, math.inf)) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_diverged_gradient_is_not_clipped_to_a_number(value):
    """NaN, infinity and a norm that overflows all show; 1 / inf = 0 would have hidden the last two."""
    assert math.isnan(clipping_scale({"a": jnp.array([1.0, value])}, 1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_example_shows_in_the_update_and_the_loss(value):
    """One image that is not a number: every parameter becomes NaN, whatever the clipping norm."""
    data = local_data()
    data = data._replace(inputs=data.inputs.at[3, 1, 1].set(value))
    for norm in (0.1, math.inf):
        numbers = Numbers(0.1, clipping_norm=norm)
        trained, _, loss = jitted_dp_sgd(1, 16)(jax.random.key(0), PARAMS, jnp.int32(0), data, numbers)
        assert np.isnan(flat(trained)).all()
        assert not math.isfinite(loss)


@pytest.mark.parametrize("padding", [1e3, np.nan, np.inf])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_padding_changes_nothing(padding, batch_size):
    """No result depends on the images or labels that the mask hides, bit for bit, even where they are not numbers."""
    # With the first sample hidden, what fills up a microbatch points to padding.
    mask = MASK.copy()
    mask[0] = False
    data, hidden = local_data(mask), ~mask
    images = jnp.where(hidden[:, None, None, None], padding, data.inputs)
    labels = jnp.where(hidden, 10**6, data.labels)
    numbers = Numbers(0.3, noise_multiplier=0.5)
    train = jitted_dp_sgd(2, batch_size)
    expected = train(jax.random.key(0), PARAMS, jnp.int32(0), data, numbers)
    assert np.isfinite(flat(expected[0])).all()
    assert same_bits(
        train(jax.random.key(0), PARAMS, jnp.int32(0), LocalData(images, labels, data.mask), numbers), expected
    )


def test_without_samples_nothing_is_learned():
    """No steps, no noise, no change, loss zero; even where the padding is not a number."""
    data = local_data(np.zeros(9, bool))
    data = data._replace(inputs=jnp.full_like(data.inputs, jnp.nan))
    numbers = Numbers(0.3, noise_multiplier=1.0)
    trained, steps, loss = jitted_dp_sgd(2)(jax.random.key(0), PARAMS, jnp.int32(7), data, numbers)
    assert same_bits(trained, PARAMS)
    assert (int(steps), float(loss)) == (7, 0)


@pytest.mark.parametrize("batch_size", [9, 20])
def test_without_noise_and_clipping_full_lots_are_gradient_descent(batch_size):
    """Probability 1: every step takes all samples, as plain SGD does in one full batch."""
    data = local_data()
    expected = jax.jit(
        lambda: local_sgd(
            jax.random.key(1), MODEL, PARAMS, jnp.int32(3), data, NO_CLIPPING, epochs=4, batch_size=batch_size
        )
    )()
    result = jitted_dp_sgd(4, batch_size)(jax.random.key(0), PARAMS, jnp.int32(3), data, NO_CLIPPING)
    assert largest_difference(result, expected) < 1e-6
    assert largest_difference(result[0], PARAMS) > 1e-2


def lots_of(keys, mask, probability):
    return np.asarray(jax.vmap(lambda key: poisson_sample(key, mask, probability))(keys))


def test_sampling_is_poisson():
    """Every sample by itself: binomial counts, equal shares, independent pairs; padding never."""
    mask, probability, trials = np.arange(40) % 4 > 0, 0.2, 20000
    lots = lots_of(jax.random.split(jax.random.key(5), trials), jnp.asarray(mask), probability)
    assert not lots[:, ~mask].any()
    lots = lots[:, mask]
    counts = np.bincount(lots.sum(1), minlength=31)
    expected = trials * scipy.stats.binom.pmf(np.arange(31), 30, probability)
    likely = expected > 5
    chi_squared = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert scipy.stats.chi2.sf(chi_squared, likely.sum() - 1) > 1e-3
    assert np.abs(lots.mean(0) - probability).max() < 5 * math.sqrt(probability * 0.8 / trials)
    correlations = np.corrcoef(lots.T)[np.triu_indices(30, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(trials)


def test_a_probability_of_one_takes_everyone():
    """The uniform number is below 1."""
    assert lots_of(jax.random.split(jax.random.key(0), 100), jnp.ones(50, bool), 1.0).all()


def gradients_moved(size, batch_size, trials):
    """One epoch over identical samples, in steps too small to change the gradient -> by how many gradients it moved."""
    data = local_data(np.arange(24) < size)
    data = data._replace(inputs=jnp.ones_like(data.inputs), labels=jnp.full_like(data.labels, 2))
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    numbers = Numbers(1e-4, clipping_norm=math.inf)
    keys = jax.random.split(jax.random.key(2), trials)
    train = step_function(MODEL, epochs=1, batch_size=batch_size)
    trained, _, _ = jax.jit(jax.vmap(lambda key: train(key, zero, jnp.int32(0), data, numbers)))(keys)
    # At zero, the gradient of class 2 in its own bias is 1/5 - 1.
    return np.asarray(trained["bias"])[:, 2] / (1e-4 * 0.8)


def test_the_divisor_is_the_expected_lot_size():
    """With 20 identical samples and batches of 5, an epoch moves by its draws over 5, however these fall into lots."""
    moved = gradients_moved(20, 5, 300)
    draws = moved * 5
    np.testing.assert_allclose(draws, np.round(draws), atol=0.05)
    # Four binomial lots of 20 at 1/4: the total has mean 20 and variance 15; a mean over each lot would have none.
    assert abs(draws.mean() - 20) < 5 * math.sqrt(15 / 300)
    assert 10 < draws.var() < 21


def rejects(sample, deviation):
    return scipy.stats.kstest(sample, "norm", args=(0, deviation)).pvalue < 1e-3


def test_the_noise_is_that_of_the_claim():
    """N(0, (z C)^2) on the sum, over the lot size; another scale or noise calibrated to the mean is told apart."""
    batch_size, norm, multiplier, rate = 3, 0.7, 1.7, 0.1
    data = local_data(EVERYONE)
    # A model that ignores its parameters has gradients of zero: what remains is the noise.
    model = Model(MODEL.init, lambda params, images: images.reshape(len(images), -1)[:, :CLASSES])
    train = jax.jit(
        jax.vmap(step_function(model, epochs=1, batch_size=batch_size), in_axes=(0, None, None, None, None))
    )
    numbers = Numbers(rate, clipping_norm=norm, noise_multiplier=multiplier)
    trained, steps, _ = train(jax.random.split(jax.random.key(3), 60), PARAMS, jnp.int32(0), data, numbers)
    assert set(steps.tolist()) == {3}
    moved = np.concatenate(
        [np.ravel(leaf - start[None]) for leaf, start in zip(*map(jax.tree.leaves, (trained, PARAMS)), strict=True)]
    )
    claimed = rate * math.sqrt(3) * multiplier * norm / batch_size
    assert not rejects(moved, claimed)
    for wrong in (claimed / 1.2, claimed * 1.2, claimed * batch_size, claimed / batch_size, claimed / norm):
        assert rejects(moved, wrong)


def test_noise_is_independent_between_coordinates_leaves_and_keys():
    """No two of them agree or correlate."""
    tree = {"a": jnp.zeros((40, 50)), "b": jnp.zeros(2000)}
    noise = [flat(add_gaussian_noise(jax.random.key(seed), tree, 2.0)) for seed in (0, 1)]
    parts = np.concatenate([vector.reshape(2, 2000) for vector in noise])
    assert np.abs(np.corrcoef(parts) - np.eye(4)).max() < 0.1
    assert not rejects(np.ravel(parts), 2.0)
    assert len(np.unique(parts)) > 7900


def test_every_step_draws_its_own_lot_and_noise():
    """Two steps from one key are not one step twice, and another key is another run."""
    data, numbers = local_data(), Numbers(0.1, noise_multiplier=1.0)
    once = jitted_dp_sgd(1, 16)(jax.random.key(0), PARAMS, jnp.int32(0), data, numbers)[0]
    twice = jitted_dp_sgd(2, 16)(jax.random.key(0), PARAMS, jnp.int32(0), data, numbers)[0]
    other = jitted_dp_sgd(1, 16)(jax.random.key(1), PARAMS, jnp.int32(0), data, numbers)[0]
    first, second = (flat(trees.subtract(*pair)) for pair in ((once, PARAMS), (twice, once)))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5
    assert largest_difference(once, other) > 1e-2


def test_jit_and_microbatches_change_nothing():
    """Beyond float tolerance."""
    data, numbers = local_data(), Numbers(0.3, 0.1, clipping_norm=0.8, noise_multiplier=0.3)
    arguments = (PARAMS, jnp.int32(2), data, numbers)
    expected = jitted_dp_sgd(2)(jax.random.key(0), *arguments)
    plain = step_function(MODEL, epochs=2, batch_size=4)(jax.random.key(0), *arguments)
    assert largest_difference(plain, expected) < 1e-6
    for size in (1, None):
        assert largest_difference(jitted_dp_sgd(2, 4, size)(jax.random.key(0), *arguments), expected) < 1e-6
    assert int(expected[1]) == 2 + 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["synchronous", "round_robin"])
def test_it_trains_a_federation(schedule):
    """In the place of plain SGD, with one traced noise multiplier a run; vmap over participants is a loop over them."""
    data, transform = federation_data([7, 0, 3]), selective_upload("largest")
    state = init_federation(jax.random.key(0), MODEL, transform, 3)
    numbers = RoundHyperParameters(0.2, defense={"clipping_norm": 0.5, "noise_multiplier": 0.1})
    training = local_training_of([DEFENSE], otherwise=local_sgd)
    results = []
    for mapping in ("loop", "vmap") if schedule == "synchronous" else ("auto",):
        round_fn = make_round(
            MODEL, transform, schedule=schedule, batch_size=3, local_training=training, participant_mapping=mapping
        )
        results.append(jax.jit(round_fn)(jax.random.key(1), state, data, numbers))
    for result in results[1:]:
        assert largest_difference(result, results[0]) < 1e-6
    server, info = results[0][0].server, results[0][1]
    assert info.turns.samples.tolist() == [7, 0, 3]
    assert results[0][0].participants.optimizer_steps.tolist() == [3, 0, 1]
    assert float(info.turns.update_norm[1]) == 0
    assert largest_difference(server.params, state.server.params) > 1e-3


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"clipping_norm": 0.0, "noise_multiplier": 1.0}, "clipping_norm=0.0: expected a number above 0"),
        ({"clipping_norm": -1.0, "noise_multiplier": 1.0}, "clipping_norm=-1.0: expected a number above 0"),
        ({"clipping_norm": math.nan, "noise_multiplier": 1.0}, "clipping_norm=nan: expected a number above 0"),
        ({"clipping_norm": 1.0, "noise_multiplier": -0.1}, "noise_multiplier=-0.1: expected a finite number of at"),
        ({"clipping_norm": 1.0, "noise_multiplier": math.inf}, "noise_multiplier=inf: expected a finite number"),
        ({"clipping_norm": math.inf, "noise_multiplier": 1.0}, "clipping_norm=inf: expected a finite number with"),
    ],
)
def test_wrong_numbers_are_refused(numbers, message):
    """Name, value and what is expected, in one line."""
    with pytest.raises(ValueError, match=message):
        check_dp_sgd(**numbers)


def test_noise_or_no_clipping_alone_is_allowed():
    """The plain cases pass."""
    check_dp_sgd(clipping_norm=1.0, noise_multiplier=1.1)
    check_dp_sgd(clipping_norm=math.inf, noise_multiplier=0.0)
