"""Rows of a table instead of images: federations, the insider attack and DP-SGD take inputs of any shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.collaboration import AGGREGATORS, RoundHyperParameters, init_federation, make_round, selective_upload
from gan_leak.collaboration.participant import local_sgd
from gan_leak.defenses import dp_sgd_training
from reference.small import largest_difference
from reference.tabular import (
    FAKE_CLASS,
    FEATURES,
    breast_cancer,
    mlp_classifier,
    mlp_generator,
    tabular_federation,
    train,
)

MODEL = mlp_classifier()
TRANSFORM = selective_upload("largest")
# All of them in one batch, so that a step does not depend on the order of the rows.
OWNED = (np.arange(0, 24), np.arange(0), np.arange(100, 117))
FULL_BATCH = 24
RATE = 0.4
DP_SGD = dp_sgd_training(1.0, 0.0)
TRAININGS = {
    "sgd": (local_sgd, RoundHyperParameters(RATE), np.inf),
    "dp_sgd": (dp_sgd_training(0.5, 0.0), RoundHyperParameters(RATE), 0.5),
}


@pytest.mark.parametrize(
    "training", ["sgd", *(pytest.param(name, marks=pytest.mark.slow) for name in TRAININGS if name != "sgd")]
)
@pytest.mark.parametrize(
    ("schedule", "mapping", "aggregation"),
    [("round_robin", "auto", "add"), ("synchronous", "map", "average"), ("synchronous", "vmap", "add")],
)
def test_a_tabular_federation_equals_the_twin(schedule, mapping, aggregation, training):
    """Two rounds of two full-batch epochs of a small network, one row after the other in NumPy."""
    local_training, numbers, clipping_norm = TRAININGS[training]
    data = tabular_federation(OWNED, length=26)
    round_fn = jax.jit(
        make_round(
            MODEL,
            TRANSFORM,
            schedule=schedule,
            aggregator=AGGREGATORS[aggregation](),
            local_epochs=2,
            batch_size=FULL_BATCH,
            local_training=local_training,
            participant_mapping=mapping,
        )
    )
    state = init_federation(jax.random.key(0), MODEL, TRANSFORM, len(OWNED))
    server = {name: np.asarray(leaf, np.float64) for name, leaf in state.server.params.items()}
    begin = server
    rows, labels = breast_cancer()
    weights = [len(indices) / 41 if aggregation == "average" else 1.0 for indices in OWNED]
    for number in range(2):
        state, _ = round_fn(jax.random.key(number), state, data, numbers)
        before = server
        for weight, indices in zip(weights, OWNED, strict=True):
            start = server if schedule == "round_robin" else before
            trained = train(start, rows[indices], labels[indices], RATE, 2, clipping_norm)
            server = {name: leaf + weight * (trained[name] - start[name]) for name, leaf in server.items()}
    assert largest_difference(state.server.params, server) < 1e-5
    assert largest_difference(begin, server) > 0.05


@functools.cache
def an_attack():
    return gan_attack(
        MODEL, mlp_generator(), (FEATURES,), generator_steps=20, generator_batch_size=16, fakes_per_round=16
    )


def attacked(schedule, mapping, local_training, rounds):
    """The victim owns malignant rows, the adversary benign ones; the state and info after some rounds."""
    labels = breast_cancer()[1]
    data = tabular_federation([np.flatnonzero(labels == label)[:64] for label in (0, 1)], length=64)
    round_fn = jax.jit(
        make_round(
            MODEL,
            TRANSFORM,
            schedule=schedule,
            batch_size=16,
            local_training=local_training,
            attack=an_attack(),
            adversary=1,
            participant_mapping=mapping,
        )
    )
    numbers = RoundHyperParameters(0.1, attack=GanAttackHyperParameters(0, FAKE_CLASS, 0.2))
    state, info = init_federation(jax.random.key(0), MODEL, TRANSFORM, 2, an_attack()), None
    for number in range(rounds):
        state, info = round_fn(jax.random.fold_in(jax.random.key(1), number), state, data, numbers)
    return state, info


@pytest.mark.slow
@pytest.mark.parametrize("local_training", [local_sgd, DP_SGD], ids=["sgd", "dp_sgd"])
@pytest.mark.parametrize("schedule", ["round_robin", "synchronous"])
def test_the_insider_draws_rows_of_the_target_class(schedule, local_training):
    """Rows in [-1, 1] that are nearer to the mean of the victim's class than to that of its own."""
    state, info = attacked(schedule, "map", local_training, rounds=12)
    drawn = np.asarray(an_attack().reconstruct(jax.random.key(2), state.attack, 40))
    assert drawn.shape == (40, FEATURES)
    assert np.abs(drawn).max() <= 1
    assert info.turns.samples.tolist() == [64, 80]
    assert float(info.attack.target_probability) > 0.5
    rows, labels = breast_cancer()
    distances = [np.linalg.norm(drawn - rows[labels == label].mean(axis=0), axis=1) for label in (0, 1)]
    assert np.mean(distances[0] < distances[1]) > 0.9


@pytest.mark.slow
def test_vmap_map_and_loop_over_tabular_participants_agree():
    """With the insider and with DP-SGD."""
    expected = attacked("synchronous", "loop", DP_SGD, rounds=1)
    for mapping in ("vmap", "map"):
        assert largest_difference(attacked("synchronous", mapping, DP_SGD, rounds=1), expected) < 1e-5
    assert trees.all_finite(expected[0].server.params)
    assert jnp.any(expected[0].participants.params["w1"][0] != expected[0].participants.params["w1"][1])
