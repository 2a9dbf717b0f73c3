"""Defenses of the main job, chosen by name: which go together, in what order they act, and that they act in a round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.collaboration import RoundHyperParameters, init_federation, make_round, selective_upload
from gan_leak.collaboration.aggregation import add
from gan_leak.collaboration.participant import local_sgd
from gan_leak.defenses import aggregator_of, clip_norm, local_training_of, parse_composition, upload_of
from gan_leak.defenses.composition import traced
from gan_leak.defenses.contract import AGGREGATION, Defense, HyperParameter
from gan_leak.settings import at_least
from gan_leak.types import Upload
from reference.small import federation_data, largest_difference, linear_classifier, same_bits

MODEL = linear_classifier()
DATA = federation_data([7, 0, 3])
SIZE = 30
EVERYTHING = Upload(jnp.asarray(np.random.default_rng(0).normal(size=SIZE), jnp.float32), jnp.ones(SIZE, bool))


def numbers(**defense):
    return RoundHyperParameters(0.2, upload_fraction=0.5, upload_threshold=1e-4, upload_bound=0.5, defense=defense)


def sent(text, hyperparameters, upload=EVERYTHING):
    transform = upload_of(parse_composition(text), selective_upload("largest"))
    return transform.apply(jax.random.key(0), upload, transform.init(()), params=(), hyperparameters=hyperparameters)[0]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("none", []),
        ("dp_sgd", ["dp_sgd"]),
        ("clipping,gaussian", ["clipping", "gaussian"]),
        ("clipping+gaussian", ["clipping", "gaussian"]),
        ("gaussian + clipping", ["gaussian", "clipping"]),
        ("dp_sgd+pruning+quantisation", ["dp_sgd", "pruning", "quantization"]),
    ],
)
def test_names_are_read_in_order(text, names):
    assert [defense.name for defense in parse_composition(text)] == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hope", "defense='hope': expected none, or some of sparse_vector, dp_sgd, gaussian,"),
        ("", "defense='': expected none, or some of"),
        ("none+gaussian", r"defense='none\+gaussian': expected none, or some of"),
        ("gaussian+", r"defense='gaussian\+': expected none, or some of"),
        ("gaussian,clipping,gaussian", "defense='gaussian,clipping,gaussian': expected gaussian once"),
        ("quantization+quantisation", "expected quantization once"),
        ("dp_sgd+sparse_vector", "expected one that promises privacy, not dp_sgd and sparse_vector"),
        (
            "clipping+sparse_vector",
            "expected no change of the update with sparse_vector, whose claim is on the trained",
        ),
        ("sparse_vector+gaussian", "expected no change of the update with sparse_vector"),
        ("gaussian+dp_sgd+clipping", r"expected the order in which they act, dp_sgd\+gaussian\+clipping"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_composition(text)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_defenses_of_an_update_act_from_left_to_right_and_the_selection_last():
    """Noise after clipping makes the update longer than the norm, clipping after noise does not."""
    own = numbers(update_clipping_norm=0.4, gaussian_deviation=1.0)
    everything = own._replace(upload_fraction=1.0, upload_bound=jnp.inf)
    assert jnp.linalg.norm(sent("clipping+gaussian", everything).values) > 1.0
    assert jnp.linalg.norm(sent("gaussian+clipping", everything).values) == pytest.approx(0.4, rel=1e-5)
    selected = sent("clipping+gaussian", own)
    assert int(selected.mask.sum()) == SIZE // 2
    assert float(jnp.abs(selected.values).max()) == 0.5
    magnitudes = jnp.abs(sent("clipping+gaussian", everything).values)
    assert magnitudes[selected.mask].min() >= magnitudes[~selected.mask].max()


def test_each_defense_draws_the_same_whatever_the_others():
    """Gaussian noise alone, and between two defenses that change nothing."""
    own = numbers(update_clipping_norm=jnp.inf, gaussian_deviation=0.3, pruning_fraction=0.0)
    assert same_bits(sent("clipping+gaussian+pruning", own), sent("gaussian", own))


def test_without_a_defense_of_the_update_there_is_the_selection_alone():
    """So states and draws are those of an undefended run; the sparse vector takes the place of the selection."""
    selection = selective_upload("random")
    assert upload_of((), selection) is selection
    assert upload_of(parse_composition("dp_sgd"), selection) is selection
    assert upload_of(parse_composition("sparse_vector"), selection).init(()).dtype == jnp.int32
    assert local_training_of(parse_composition("gaussian"), local_sgd) is local_sgd


def one_round(text, hyperparameters, schedule="synchronous", mapping="loop"):
    defenses = parse_composition(text)
    transform = upload_of(defenses, selective_upload("random"))
    round_fn = make_round(
        MODEL,
        transform,
        schedule=schedule,
        batch_size=3,
        local_training=local_training_of(defenses, local_sgd),
        participant_mapping=mapping,
    )
    state = init_federation(jax.random.key(0), MODEL, transform, 3)
    return jax.jit(round_fn)(jax.random.key(1), state, DATA, hyperparameters)


@pytest.mark.parametrize("schedule", [pytest.param("synchronous", marks=pytest.mark.slow), "round_robin"])
def test_a_round_behind_neutral_defenses_is_an_undefended_round_bit_for_bit(schedule):
    """Selection at random included: it draws as if it were alone."""
    own = numbers(
        update_clipping_norm=jnp.inf, gaussian_deviation=0.0, laplace_scale=0.0, pruning_fraction=0.0, dropout_rate=0.0
    )
    plain, plain_info = one_round("none", own._replace(defense={}), schedule)
    neutral, info = one_round("clipping+gaussian+laplace+pruning+dropout", own, schedule)
    assert same_bits((neutral.server, info), (plain.server, plain_info))


@pytest.mark.slow
def test_a_composition_acts_in_a_round_the_same_in_every_mapping():
    """DP-SGD, clipping, noise and quantization together; who has no data sends nothing."""
    own = numbers(
        clipping_norm=1.0,
        noise_multiplier=0.1,
        update_clipping_norm=0.1,
        gaussian_deviation=0.01,
        quantization_bits=8,
    )
    text = "dp_sgd+clipping+gaussian+quantization"
    loop, info = one_round(text, own)
    assert largest_difference(one_round(text, own, mapping="vmap"), (loop, info)) < 1e-5
    assert info.turns.uploaded.tolist()[1] == 0
    assert info.turns.uploaded.tolist()[0] > 0
    assert largest_difference(loop.server.params, one_round("dp_sgd", own)[0].server.params) > 1e-3


def scaled_sum(factor):
    """An aggregator that adds the uploads times a factor."""
    plain = add()

    def apply(key, server, uploads, weights, state, *, hyperparameters, merged=None, **extra):
        scaled = Upload(factor * uploads.values, uploads.mask)
        return plain.apply(key, server, scaled, weights, state, hyperparameters=hyperparameters, merged=merged)

    return plain._replace(apply=apply)


def test_a_defense_may_take_the_place_of_the_aggregator():
    """With a traced number; without one the aggregator is the run's own."""
    factor = HyperParameter("factor", 1.0, "Factor of the sum (a toy).", at_least(0), neutral=1.0)
    defense = Defense("scaling", (AGGREGATION,), scaled_sum, (factor,))
    plain = add()
    assert aggregator_of((), plain) is plain
    transform = selective_upload("largest")
    round_fn = make_round(MODEL, transform, schedule="round_robin", aggregator=aggregator_of((defense,), plain))
    state = init_federation(jax.random.key(0), MODEL, transform, 3)
    run = jax.jit(round_fn)
    still, _ = run(jax.random.key(1), state, DATA, RoundHyperParameters(0.2, defense={"factor": 0.0}))
    assert same_bits(still.server.params, state.server.params)
    whole, _ = run(jax.random.key(1), state, DATA, RoundHyperParameters(0.2, defense={"factor": 1.0}))
    own = jax.jit(make_round(MODEL, transform, schedule="round_robin"))
    expected, _ = own(jax.random.key(1), state, DATA, RoundHyperParameters(0.2))
    assert same_bits(whole, expected)


def test_strengths_are_traced():
    """Lanes of one program have strengths of their own."""
    transform = traced(*parse_composition("gaussian"))

    @jax.jit
    @jax.vmap
    def upload(deviation):
        own = numbers(gaussian_deviation=deviation)
        return transform.apply(jax.random.key(0), EVERYTHING, (), params=(), hyperparameters=own)[0].values

    noise = upload(jnp.asarray([0.0, 0.1, 0.2])) - EVERYTHING.values[None]
    assert not noise[0].any()
    np.testing.assert_allclose(noise[2], 2 * noise[1], rtol=1e-4, atol=1e-6)


def test_the_library_composes_with_fixed_strengths():
    """A defense of an update is an upload transform like any other."""
    transform = clip_norm(0.1)
    upload, state, _ = transform.apply(
        jax.random.key(0), EVERYTHING, transform.init(()), params=(), hyperparameters=None
    )
    assert state == ()
    assert jnp.linalg.norm(upload.values) == pytest.approx(0.1, rel=1e-5)
