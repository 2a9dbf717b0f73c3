"""Every procedure keeps the contract of gan_leak.attacks.procedure, whatever it computes, and so does every attack.

A new procedure is added to PROCEDURES and has to pass the whole page; an entry of GRADIENT_ATTACKS is there already.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.attacks.gradient.contract import GradientAttack, GradientEvidence, GradientInversion, GradientTask
from gan_leak.attacks.gradient.observation import gradient_of
from gan_leak.attacks.gradient.registry import GRADIENT_ATTACKS
from gan_leak.attacks.model.model_inversion import InversionTarget, model_inversion
from gan_leak.attacks.optimizers import TrainingData
from gan_leak.attacks.procedure import Procedure, advance, run_procedure
from gan_leak.attacks.server.representatives import (
    MatchingTask,
    UpdateEvidence,
    lbfgs_representatives,
    signed_adam_representatives,
)
from gan_leak.attacks.split.inverse_network import inverse_network
from gan_leak.attacks.split.model_reconstruction import reconstructed_model
from gan_leak.attacks.split.regularized_likelihood import regularized_likelihood
from gan_leak.attacks.split.shadow_model import shadow_model
from gan_leak.trees import ravel, stack
from gan_leak.types import GradientView, Model, ModelView, SplitView
from reference.small import linear_classifier, same_bits

SHAPE = (16, 16, 1)
CLASSES = 5
BATCH = 2


def linear(inputs, outputs, shape=()):
    """[B, ...] -> [B, outputs], or [B, *shape]."""
    return Model(
        lambda key: jax.random.normal(key, (inputs, outputs)) / 16,
        lambda params, values: (values.reshape(len(values), -1) @ params).reshape(len(values), *(shape or (outputs,))),
    )


MODEL = Model(
    lambda key: {"kernel": jax.random.normal(key, (256, CLASSES)) / 16, "bias": jnp.zeros(CLASSES)},
    lambda params, images: images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None],
)
IMAGES = jax.random.uniform(jax.random.key(0), (6, *SHAPE))
LABELS = jnp.arange(6) % CLASSES
CLIENT, CLOUD, DECODER = linear(256, 8), linear(8, CLASSES), linear(8, 256, SHAPE)


def gradient_evidence():
    params, encoded = MODEL.init(jax.random.key(1)), jax.nn.one_hot(LABELS[:BATCH], CLASSES)
    return GradientEvidence(GradientView(params, gradient_of(MODEL, params, IMAGES[:BATCH], encoded)), encoded)


def gradient_task(attack):
    return GradientTask(MODEL, (BATCH, *SHAPE), CLASSES, attack.iterations, attack.total_variation or 0.0)


def matching_task():
    """Two clients with two images each."""
    views = [MODEL.init(jax.random.key(seed)) for seed in (1, 2)]
    updates = [flat_gradient(params) for params in views]
    labels = jnp.tile(LABELS[:BATCH].astype(jnp.int32), (2, 1))
    return MatchingTask(UpdateEvidence(stack(views), jnp.stack(updates), labels))


def flat_gradient(params):
    return ravel(gradient_of(MODEL, params, IMAGES[:BATCH], jax.nn.one_hot(LABELS[:BATCH], CLASSES)))[0]


FEATURES = CLIENT.apply(CLIENT.init(jax.random.key(2)), IMAGES)
PROCEDURES = {
    **{name: (attack.build(gradient_task(attack)), gradient_evidence()) for name, attack in GRADIENT_ATTACKS.items()},
    "signed_adam_representatives": (signed_adam_representatives(MODEL, SHAPE), matching_task()),
    "lbfgs_representatives": (lbfgs_representatives(MODEL, SHAPE, starts=2), matching_task()),
    "regularized_likelihood": (
        regularized_likelihood(CLIENT, SHAPE),
        SplitView(FEATURES[0], CLIENT.init(jax.random.key(2))),
    ),
    "inverse_network": (inverse_network(DECODER, samples=6, batch_size=2), TrainingData((IMAGES, FEATURES))),
    "reconstructed_model": (
        reconstructed_model(CLIENT, samples=6, batch_size=2),
        TrainingData((IMAGES, FEATURES)),
    ),
    "shadow_model": (
        shadow_model(CLIENT, CLOUD, samples=6, batch_size=2),
        TrainingData((IMAGES, LABELS), CLOUD.init(jax.random.key(3))),
    ),
    "model_inversion": (
        model_inversion(linear_classifier()),
        InversionTarget(ModelView(linear_classifier().init(jax.random.key(4))), jnp.int32(1), jnp.zeros((4, 4, 1))),
    ),
}


def avals(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(lambda: tree))


def parameters(function):
    return list(inspect.signature(function).parameters)


def quick(names):
    """The names as parameters. Attacks on gradients take long to compile, so only the simplest is quick."""
    slow = {*GRADIENT_ATTACKS, "lbfgs_representatives"} - {"idlg"}
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]


@pytest.mark.parametrize("name", PROCEDURES)
def test_procedures_have_one_signature(name):
    """init(key, evidence); step(key, state, evidence); extract(state, evidence): the key first, the evidence last."""
    procedure, _ = PROCEDURES[name]
    assert isinstance(procedure, Procedure)
    assert parameters(procedure.init)[0] == parameters(procedure.step)[0] == "key"
    assert [len(parameters(function)) for function in procedure[:3]] == [2, 3, 2]
    assert parameters(procedure.init)[-1] == parameters(procedure.step)[-1] == parameters(procedure.extract)[-1]


@pytest.mark.parametrize("name", quick(PROCEDURES))
def test_a_step_keeps_the_shapes_of_the_state_and_parts_are_the_whole(name):
    """So that a state can be saved and continued; and the result is determined by the key."""
    procedure, evidence = PROCEDURES[name]
    state = jax.jit(procedure.init)(jax.random.key(5), evidence)
    stepped, info = jax.jit(procedure.step)(jax.random.key(6), state, evidence)
    assert avals(stepped) == avals(state)
    assert all(leaf.shape == () for leaf in jax.tree.leaves(info))

    @jax.jit
    def further(state, steps, first):
        return advance(jax.random.key(7), procedure, state, evidence, steps, first=first)

    whole = further(state, jnp.int32(4), jnp.int32(0))
    assert same_bits(further(further(state, jnp.int32(1), jnp.int32(0)), jnp.int32(3), jnp.int32(1)), whole)
    assert not same_bits(whole, state)
    result = jax.jit(procedure.extract)(whole, evidence)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    run = jax.jit(lambda key, steps: run_procedure(key, procedure, evidence, steps))
    assert same_bits(run(jax.random.key(8), 3), run(jax.random.key(8), jnp.int32(3)))


@pytest.mark.parametrize("name", quick(PROCEDURES))
def test_procedures_take_an_axis(name):
    """Mapped over keys, each is what it is alone, but for rounding."""
    procedure, evidence = PROCEDURES[name]

    def run(key):
        return run_procedure(key, procedure, evidence, 2)

    together = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(9), 3))
    alone = jax.jit(run)(jax.random.split(jax.random.key(9), 3)[1])
    jax.tree.map(lambda many, one: np.testing.assert_allclose(many[1], one, rtol=1e-3, atol=1e-4), together, alone)


@pytest.mark.parametrize("name", quick(GRADIENT_ATTACKS))
def test_registered_attacks_state_what_they_need_and_return_a_batch(name):
    attack = GRADIENT_ATTACKS[name]
    assert isinstance(attack, GradientAttack)
    assert attack.name == name
    assert attack.citation
    assert attack.iterations > 0 < attack.largest_batch
    assert attack.labels in ("recovered", "inferred", "given")
    assert attack.distance in ("squared", "cosine")
    procedure, evidence = PROCEDURES[name]
    found = jax.eval_shape(lambda key: run_procedure(key, procedure, evidence, 1), jax.random.key(0))
    assert isinstance(found, GradientInversion)
    assert [leaf.shape for leaf in found] == [(BATCH, *SHAPE), (BATCH, CLASSES), ()]
    # What recovers labels does not read any.
    hidden = evidence._replace(labels=jnp.full_like(evidence.labels, jnp.nan))
    seen, unseen = (run_procedure(jax.random.key(0), procedure, given, 1) for given in (evidence, hidden))
    assert same_bits(seen, unseen) == (attack.labels == "recovered")


def test_a_negative_number_of_steps_is_refused():
    procedure, evidence = PROCEDURES["regularized_likelihood"]
    with pytest.raises(ValueError, match=r"^steps=-1: expected at least 0$"):
        run_procedure(jax.random.key(0), procedure, evidence, -1)


def test_a_finished_procedure_keeps_its_state():
    """Under vmap each lane ends at its own step."""
    counting = Procedure(
        lambda key, last: (jnp.zeros((), jnp.int32), last),
        lambda key, state, last: ((state[0] + 1, state[1]), state[0]),
        lambda state, last: state[0],
        lambda state: state[0] >= state[1],
    )
    run = jax.jit(jax.vmap(lambda last: run_procedure(jax.random.key(0), counting, last, 5)))
    assert run(jnp.array([0, 2, 9])).tolist() == [0, 2, 5]
