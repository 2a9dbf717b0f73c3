"""Every registered defense keeps the contract: one battery, whatever the method."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.collaboration import AGGREGATORS, RoundHyperParameters, average
from gan_leak.collaboration.participant import local_sgd
from gan_leak.config import RunConfig
from gan_leak.defenses import DEFENSES, protect
from gan_leak.defenses.composition import aggregator_of, traced
from gan_leak.defenses.contract import (
    AGGREGATION,
    FEATURES,
    GRADIENT,
    LOCAL_TRAINING,
    SELECTION,
    STAGES,
    UPLOAD,
)
from gan_leak.defenses.registry import find, in_stages
from gan_leak.settings import check_value, settings_of
from gan_leak.types import FlatServer, LocalData, TransformInfo, Upload
from reference.small import IMAGE_SHAPE, largest_difference, linear_classifier, same_bits

SIZE = 40
PARAMS = {"a": jnp.zeros((4, 5)), "b": jnp.zeros(20)}
# Numbers at which a defense visibly does something to the small uploads here.
STRENGTHS = {
    "sensitivity": 0.01,
    "epsilon_per_release": 1.0,
    "update_clipping_norm": 0.5,
    "pruning_fraction": 0.6,
    "quantization_bits": 3,
}
# Whose result does not depend on the key.
DETERMINISTIC = ("clipping", "pruning")

named = functools.partial(pytest.mark.parametrize, "defense", ids=lambda defense: defense.name)
every_defense = named(DEFENSES)
of_uploads = named(in_stages(UPLOAD, SELECTION, GRADIENT, FEATURES))
of_one_strength = named(in_stages(GRADIENT, FEATURES))
of_training = named(in_stages(LOCAL_TRAINING))


def strengths(defense):
    return {each.name: STRENGTHS.get(each.name, each.default) for each in defense.hyperparameters}


def neutral(defense):
    return {each.name: each.neutral for each in defense.hyperparameters}


def an_upload(seed=0):
    mask = np.arange(SIZE) % 4 > 0
    values = np.where(mask, np.random.default_rng(seed).normal(size=SIZE), 0)
    return Upload(jnp.asarray(values, jnp.float32), jnp.asarray(mask))


@functools.cache
def applied(defense):
    """The compiled transform: ``(key, upload, state, numbers) -> (upload, state, info)``."""
    transform = traced(defense)

    def apply(key, upload, state, numbers):
        hyperparameters = RoundHyperParameters(
            0.1, upload_fraction=0.4, upload_threshold=0.01, upload_bound=2.0, defense=numbers
        )
        return transform.apply(key, upload, state, params=PARAMS, hyperparameters=hyperparameters, unknown_extra=1)

    return jax.jit(apply)


def sent(defense, seed=0, upload=None, numbers=None):
    state = traced(defense).init(PARAMS)
    given = an_upload() if upload is None else upload
    return applied(defense)(jax.random.key(seed), given, state, numbers or strengths(defense))


def avals(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(lambda: tree))


def test_names_are_distinct_and_found():
    """Of defenses with their aliases, and of hyperparameters, which are flags of one command line."""
    names = [name for defense in DEFENSES for name in (defense.name, *defense.aliases)]
    assert len(set(names)) == len(names)
    numbers = [each.name for defense in DEFENSES for each in defense.hyperparameters]
    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & set(RoundHyperParameters._fields)
    assert find("quantisation", UPLOAD) is find("quantization", GRADIENT) is not None
    assert find("dp_sgd", UPLOAD) is find("none", *STAGES) is find("hope", *STAGES) is None


@every_defense
def test_a_defense_is_complete(defense):
    """Known stages, one strength where a binary takes one, a help text, a default that is allowed, a whole claim."""
    assert defense.stages
    assert set(defense.stages) <= set(STAGES)
    assert len(set(defense.stages) & {LOCAL_TRAINING, UPLOAD, SELECTION, AGGREGATION}) <= 1
    assert not set(defense.stages) & {GRADIENT, FEATURES} or len(defense.hyperparameters) == 1
    for each in defense.hyperparameters:
        assert len(each.help) > 20
        assert each.default in each.bounds
    if defense.claim is not None:
        assert all(defense.claim[:7])
        assert defense.claim.solved_for in [each.name for each in defense.hyperparameters]


@pytest.mark.parametrize(
    ("defense", "parameter"), [(defense, each) for defense in DEFENSES for each in defense.hyperparameters]
)
@pytest.mark.parametrize("value", [math.nan, -1.0, -math.inf])
def test_numbers_without_a_meaning_are_refused_in_one_line(defense, parameter, value):
    with pytest.raises(ValueError, match=f"^{parameter.name}={value}: expected ") as error:
        check_value(settings_of(RunConfig)[parameter.name], value)
    assert "\n" not in str(error.value)


@every_defense
def test_its_numbers_are_traced_settings_of_a_run(defense):
    """Flags, sweeps and lanes of a batch know them without another list."""
    for each in defense.hyperparameters:
        setting = settings_of(RunConfig)[each.name]
        assert (setting.default, setting.help, setting.defenses) == (each.default, each.help, (defense.name,))
        assert setting.sweepable
        assert setting.varies_in_batch
        assert setting.solved_for == (defense.claim is not None and defense.claim.solved_for == each.name)


@of_uploads
def test_it_returns_an_upload(defense):
    """Same shapes and types, an honest count, a state to carry."""
    given, state = an_upload(), traced(defense).init(PARAMS)
    upload, new_state, info = sent(defense)
    assert (type(upload), type(info)) == (Upload, TransformInfo)
    assert avals(upload) == avals(given)
    assert avals(new_state) == avals(state)
    assert (info.uploaded.shape, info.uploaded.dtype) == ((), jnp.int32)
    assert int(info.uploaded) == int(upload.mask.sum()) > 0
    assert not same_bits(upload, given)


@of_uploads
def test_what_is_not_uploaded_stays_zero(defense):
    """The mask only shrinks, what lies outside it is zero, and where nothing is offered nothing is sent."""
    given = an_upload()
    upload, _, _ = sent(defense)
    assert not (upload.mask & ~given.mask).any()
    assert not np.asarray(upload.values)[~np.asarray(upload.mask)].any()
    nothing = Upload(jnp.zeros(SIZE), jnp.zeros(SIZE, bool))
    upload, _, info = sent(defense, upload=nothing)
    assert same_bits(upload, nothing)
    assert int(info.uploaded) == 0


@of_uploads
def test_it_uses_its_key_or_ignores_it(defense):
    """The same key gives the same bits; another key others, unless the defense is deterministic."""
    first, again, other = sent(defense, seed=0), sent(defense, seed=0), sent(defense, seed=1)
    assert same_bits(first, again)
    assert same_bits(first[0], other[0]) == (defense.name in DETERMINISTIC)


@of_uploads
def test_not_a_number_is_seen(defense):
    """A diverged update does not leave as a sound one."""
    given = an_upload()
    broken = given._replace(values=given.values.at[1].set(jnp.nan))
    uploads = [sent(defense, seed=seed, upload=broken)[0] for seed in range(8)]
    assert any(np.isnan(upload.values).any() for upload in uploads)


@of_uploads
def test_vmap_is_a_loop(defense):
    """Over keys, uploads and numbers, as lanes of a batch and participants of a round have them."""
    uploads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(an_upload(seed) for seed in range(3)))
    numbers = {
        each.name: jnp.asarray([STRENGTHS.get(each.name, each.default)] * 2 + [each.default])
        for each in defense.hyperparameters
    }
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), traced(defense).init(PARAMS))
    together = jax.vmap(applied(defense))(jax.random.split(jax.random.key(3), 3), uploads, states, numbers)
    for lane in range(3):
        upload, state, own = trees.take((uploads, states, numbers), lane)
        key = jax.random.split(jax.random.key(3), 3)[lane]
        alone = applied(defense)(key, upload, state, own)
        for left, right in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(left, right[lane], rtol=1e-5, atol=1e-6)


@of_uploads
def test_a_neutral_strength_is_no_defense_bit_for_bit(defense):
    """Strength zero, or an infinite norm; what cannot be switched off says so."""
    if any(number is None for number in neutral(defense).values()):
        assert defense.name in ("sparse_vector", "quantization")
        return
    given = an_upload()
    assert same_bits(sent(defense, numbers=neutral(defense))[0], given)


@of_one_strength
def test_a_strength_that_is_fixed_does_what_a_traced_one_does(defense):
    """The binaries of one gradient close over the strength; rounds trace it."""
    everything = Upload(an_upload().values, jnp.ones(SIZE, bool))
    [(name, strength)] = strengths(defense).items()
    fixed = protect(jax.random.key(0), defense.build(strength), everything.values)
    np.testing.assert_allclose(sent(defense, upload=everything, numbers={name: strength})[0].values, fixed, rtol=1e-6)


@named(in_stages(FEATURES))
def test_features_keep_their_shape(defense):
    """Noise on features [B, H, W, C] is independent of how they are shaped."""
    features = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 3, 4)).astype(np.float32))
    [strength] = strengths(defense).values()
    protected = protect(jax.random.key(0), defense.build(strength), features)
    assert (protected.shape, protected.dtype) == (features.shape, features.dtype)
    flat = protect(jax.random.key(0), defense.build(strength), features.ravel())
    assert same_bits(protected.ravel(), flat)


def trained(defense, numbers, seed=0, poison=0.0):
    """Two epochs of local training on 7 of 9 samples; poison fills the other two."""
    model = linear_classifier()
    images = np.random.default_rng(0).uniform(-1, 1, (9, *IMAGE_SHAPE)).astype(np.float32)
    images[7:] = poison
    data = LocalData(jnp.asarray(images), jnp.arange(9, dtype=jnp.int32) % 3, jnp.arange(9) < 7)
    training = defense.build(*numbers.values()) if defense else local_sgd
    params = model.init(jax.random.key(5))
    hyperparameters = RoundHyperParameters(0.1, 0.01)
    return training(jax.random.key(seed), model, params, jnp.int32(0), data, hyperparameters, epochs=2, batch_size=7)


@of_training
def test_local_training_keeps_its_contract(defense):
    """(params, steps, loss) as plain SGD returns them; its key is used; padding has no influence, even as NaN."""
    numbers = strengths(defense)
    result = trained(defense, numbers)
    assert avals(result) == avals(trained(None, {}))
    assert same_bits(trained(defense, numbers), result)
    assert not same_bits(trained(defense, numbers, seed=1)[0], result[0])
    assert same_bits(trained(defense, numbers, poison=math.nan), result)


@of_training
def test_neutral_local_training_is_plain_training(defense):
    """With a lot of everything; the sum over samples is in another order, so that bits differ."""
    neutral_result, plain = trained(defense, neutral(defense)), trained(None, {})
    for left, right in zip(jax.tree.leaves(neutral_result), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@named(in_stages(AGGREGATION))
def test_an_aggregator_keeps_its_contract(defense):
    """It returns a server and a state as they came, ignores padding even as NaN, and uses its key in the view only."""
    numbers = strengths(defense)
    aggregator = aggregator_of((defense,), average())
    server = FlatServer(jnp.ones(SIZE), jnp.zeros(SIZE))
    given = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(an_upload(seed) for seed in range(4)))

    @jax.jit
    def apply(key, uploads):
        return aggregator.apply(
            key,
            server,
            uploads,
            jnp.asarray([3, 1, 2, 0], jnp.int32),
            aggregator.init(PARAMS),
            hyperparameters=RoundHyperParameters(0.1, defense=numbers),
            unknown_extra=1,
        )

    result = apply(jax.random.key(0), given)
    assert avals(result[0]) == avals(server)
    assert avals(result[1]) == avals(aggregator.init(PARAMS))
    assert not same_bits(result[0].params, server.params)
    poisoned = given._replace(values=given.values.at[3].set(jnp.nan))
    assert same_bits(apply(jax.random.key(0), poisoned), result)
    other = apply(jax.random.key(1), given)
    assert largest_difference(other[0], result[0]) < 1e-6
    assert not same_bits(other[2], result[2])


@named(in_stages(AGGREGATION))
def test_a_defense_of_the_aggregation_names_what_it_computes(defense):
    """The rule that it takes the place of, if there is one, and what it hides."""
    assert defense.aggregation in ("", *AGGREGATORS)
    assert defense.claim is not None or all(defense.secrecy)


def test_no_defense_has_a_stage_without_tests():
    """A stage of its own needs a battery of its own."""
    assert {stage for defense in DEFENSES for stage in defense.stages} == set(STAGES)
