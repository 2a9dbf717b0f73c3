"""Source inference and inversion of local models: what the server can compute of each participant's model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.attacks import InversionTarget, model_inversion, run_procedure
from gan_leak.attacks.server.local_models import (
    LocalInversionTarget,
    LocalModels,
    change_params,
    invert_local_models,
    local_models,
)
from gan_leak.attacks.server.observed_updates import seen_updates
from gan_leak.attacks.server.source_inference import source_accuracy, source_inference
from gan_leak.collaboration import RoundHyperParameters, average, init_federation, make_round, selective_upload
from gan_leak.defenses import secure_average
from gan_leak.types import ModelView, ServerView
from reference.server_attacks import recording_attack
from reference.small import CLASSES, IMAGE_SHAPE, federation_data, largest_difference, linear_classifier, same_bits

SIZES = (6, 0, 5, 6)
MODEL = linear_classifier()
DATA = federation_data(SIZES)
RECORDS = np.concatenate([np.asarray(DATA.inputs[owner, :size]) for owner, size in enumerate(SIZES)])
LABELS = np.concatenate([np.asarray(DATA.labels[owner, :size]) for owner, size in enumerate(SIZES)])
OWNERS = np.repeat(np.arange(len(SIZES)), SIZES)


def one_round(aggregator):
    """The federation after one round of overfitting, and the server's view."""
    attack, transform = recording_attack(), selective_upload("largest")
    state = init_federation(
        jax.random.key(0), MODEL, transform, len(SIZES), aggregator=aggregator, server_attack=attack
    )
    round_fn = make_round(
        MODEL,
        transform,
        schedule="synchronous",
        aggregator=aggregator,
        local_epochs=60,
        batch_size=3,
        server_attack=attack,
    )
    state, _ = jax.jit(round_fn)(jax.random.key(1), state, DATA, RoundHyperParameters(0.3))
    return state, state.server_attack


def test_local_models_are_those_that_the_participants_trained():
    """Up to rounding; who has no data uploads nothing and is not there."""
    state, view = one_round(average())
    models = local_models(view)
    assert largest_difference(models.params, state.participants.params) < 1e-5
    assert models.present.tolist() == [True, False, True, True]


def test_records_are_traced_to_their_owner_and_new_ones_are_not():
    """Far above chance on what was trained on; shuffled owners, and records of nobody, give chance."""
    _, view = one_round(average())
    found = source_inference(MODEL, local_models(view), jnp.asarray(RECORDS), jnp.asarray(LABELS))
    assert found.losses.shape == (len(OWNERS), len(SIZES))
    assert source_accuracy(found.losses, OWNERS) == np.mean(found.sources == OWNERS) > 0.9
    shuffled = np.random.default_rng(0).permutation(OWNERS)
    assert source_accuracy(found.losses, shuffled) < 0.65
    fresh = federation_data((400,), length=400, seed=5)
    found = source_inference(MODEL, local_models(view), fresh.inputs[0], fresh.labels[0])
    owners = np.random.default_rng(1).choice([0, 2, 3], 400)
    assert abs(source_accuracy(found.losses, owners) - 1 / 3) < 0.1


def test_losses_are_those_of_a_loop():
    """Of every record under every model, in NumPy; an absent participant is never the source."""
    _, view = one_round(average())
    models = local_models(view)
    found = source_inference(MODEL, models, jnp.asarray(RECORDS), jnp.asarray(LABELS))
    for participant, present in enumerate([True, False, True, True]):
        params = jax.tree.map(lambda leaf, own=participant: np.asarray(leaf[own], np.float64), models.params)
        for record, label, loss in zip(RECORDS, LABELS, np.asarray(found.losses[:, participant]), strict=True):
            logits = record.reshape(-1) @ params["kernel"] + params["bias"]
            expected = np.log(np.sum(np.exp(logits))) - logits[label]
            assert loss == (pytest.approx(expected, rel=1e-4, abs=1e-5) if present else np.inf)
    assert not np.any(found.sources == 1)


def test_through_a_secure_sum_the_source_is_a_guess():
    """All local models are the same to the server: exactly one over the number of those who took part."""
    _, view = one_round(secure_average())
    models = local_models(view)
    assert same_bits(trees.take(models.params, 0), trees.take(models.params, 3))
    found = source_inference(MODEL, models, jnp.asarray(RECORDS), jnp.asarray(LABELS))
    assert source_accuracy(found.losses, OWNERS) == pytest.approx(1 / 3)


def test_a_tie_is_a_random_choice():
    """Equal losses for all are chance, and not the accuracy of the first participant."""
    losses = np.array([[1.0, 1.0, 2.0], [3.0, 2.0, 2.5], [np.inf, np.inf, np.inf], [np.nan, np.nan, 0.5]])
    assert source_accuracy(losses, np.array([0, 1, 2, 2])) == pytest.approx((1 / 2 + 1 + 1 / 3 + 1) / 4)
    assert source_accuracy(losses, np.array([2, 0, 0, 0])) == pytest.approx((0 + 0 + 1 / 3 + 0) / 4)
    assert source_accuracy(np.zeros((6, 3)), np.zeros(6, int)) == pytest.approx(1 / 3)


def test_wrong_input_is_refused_in_one_line():
    models = LocalModels(jax.vmap(MODEL.init)(jax.random.split(jax.random.key(0), 2)), jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"^labels\.shape=\(3,\): expected \[R\] for inputs"):
        source_inference(MODEL, models, jnp.zeros((2, *IMAGE_SHAPE)), jnp.zeros(3, int))
    with pytest.raises(ValueError, match=r"^owners\.shape=\(2,\): expected \[2\], each from 0 to 2"):
        source_accuracy(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(ValueError, match=r"^visible=tuple: expected Received or MaskedSum"):
        seen_updates(ServerView(0, jnp.arange(2), (), jnp.ones((2, 3), bool), (), ()))
    with pytest.raises(ValueError, match=r"^classes=0: expected at least 1"):
        invert_local_models(MODEL, 0)


def test_changes_are_added_in_the_order_of_flat_coordinates():
    params = jax.vmap(MODEL.init)(jax.random.split(jax.random.key(0), 2))
    changes = jnp.arange(170.0).reshape(2, 85)
    changed = change_params(params, changes)
    for index in range(2):
        before, after = (trees.ravel(trees.take(tree, index))[0] for tree in (params, changed))
        np.testing.assert_allclose(after, before + changes[index])


def test_inversion_of_all_models_and_classes_is_one_after_the_other():
    """Image by image what model inversion gives alone, those that end early included."""
    params = jax.vmap(MODEL.init)(jax.random.split(jax.random.key(3), 3))
    start = jnp.zeros(IMAGE_SHAPE)
    numbers = {"learning_rate": 2.0, "patience": 5, "confidence": 0.9}
    together = jax.jit(
        lambda params: run_procedure(
            jax.random.key(0), invert_local_models(MODEL, CLASSES, **numbers), LocalInversionTarget(params, start), 12
        )
    )(params)
    assert together.image.shape == (3, CLASSES, *IMAGE_SHAPE)
    single = model_inversion(MODEL, **numbers)
    alone = jax.jit(
        lambda params, target: run_procedure(
            jax.random.key(0), single, InversionTarget(ModelView(params), target, start), 12
        )
    )
    for model in range(3):
        for target in range(CLASSES):
            expected = alone(trees.take(params, model), target)
            np.testing.assert_allclose(together.image[model, target], expected.image, atol=1e-5)
            assert int(together.info.steps[model, target]) == int(expected.info.steps)
    # Some have ended and some have not, so that both cases were compared.
    assert len(np.unique(together.info.steps)) > 1
