"""The GAN attack: what it trains against, what it hands to local training, and what it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gan_leak import trees
from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.models import sample_latents
from gan_leak.types import InsiderView, LocalData, Model
from reference.small import (
    CLASSES,
    FAKE_CLASS,
    IMAGE_SHAPE,
    largest_difference,
    linear_classifier,
    linear_generator,
    same_bits,
)

CLASSIFIER, GENERATOR = linear_classifier(), linear_generator()
TARGET = 2
FAKES = 6
NUMBERS = GanAttackHyperParameters(TARGET, FAKE_CLASS, 0.5)


@functools.cache
def attack(steps=20, fakes=FAKES, memory=1, optimizer="sgd", discriminator="local", first_turn=0):
    return gan_attack(
        CLASSIFIER,
        GENERATOR,
        IMAGE_SHAPE,
        generator_steps=steps,
        generator_batch_size=4,
        generator_optimizer=optimizer,
        fakes_per_round=fakes,
        fake_memory_rounds=memory,
        discriminator=discriminator,
        first_turn=first_turn,
    )


@functools.cache
def jitted_step(**arguments):
    return jax.jit(attack(**arguments).step)


def view(seed=0):
    return InsiderView(CLASSIFIER.init(jax.random.key(seed)))


def start(**arguments):
    return attack(**arguments).init(jax.random.key(7))


def target_loss(generator, discriminator, target=TARGET, count=256):
    """Mean negative log-likelihood of the target class on fresh pictures."""
    images = GENERATOR.apply(generator, sample_latents(jax.random.key(99), count))
    return float(-jnp.mean(jax.nn.log_softmax(CLASSIFIER.apply(discriminator, images))[:, target]))


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.5), ("adam", 0.01)])
def test_the_generator_learns_the_target_class_of_the_downloaded_model(optimizer, rate):
    """Its loss falls on the model it was shown and on the class it was told, and not on other ones."""
    numbers = NUMBERS._replace(generator_learning_rate=rate)
    before = start(optimizer=optimizer)
    after, _, info = jitted_step(optimizer=optimizer)(jax.random.key(1), before, view(), numbers)
    gain = target_loss(before.generator, view().params) - target_loss(after.generator, view().params)
    assert gain > 0.2
    assert (
        target_loss(after.generator, view().params)
        < float(info.generator_loss)
        < target_loss(before.generator, view().params)
    )
    for other in set(range(CLASSES)) - {TARGET}:
        shift = target_loss(before.generator, view().params, other) - target_loss(after.generator, view().params, other)
        assert shift < gain / 2
    other_model, _, _ = jitted_step(optimizer=optimizer)(jax.random.key(1), before, view(seed=1), numbers)
    assert target_loss(other_model.generator, view().params) > target_loss(after.generator, view().params) + 0.1
    assert target_loss(other_model.generator, view(seed=1).params) < target_loss(before.generator, view(seed=1).params)


def test_a_remembered_discriminator_has_the_last_value_that_the_server_sent_of_every_parameter():
    """Three partial downloads: the generator is that of an adversary whose local model is what has been sent by then.

    Of a parameter that was never sent, the adversary has its own present value.
    """
    flat, unravel = trees.ravel(view().params)
    rng = np.random.default_rng(0)
    local, sent = rng.normal(size=(3, flat.size)).astype(np.float32), rng.random((3, flat.size)) < 0.4
    assert 0 < np.sum(~sent.any(axis=0)) < flat.size / 2
    state, expected_state = start(discriminator="remembered"), start()
    remembered = np.full(flat.size, np.nan, np.float32)
    for number in range(3):
        remembered = np.where(sent[number], local[number], remembered)
        shown = np.where(np.isnan(remembered), local[number], remembered)
        partial = InsiderView(unravel(jnp.asarray(local[number])), jnp.asarray(sent[number]))
        state, _, _ = attack(discriminator="remembered").step(jax.random.key(number), state, partial, NUMBERS)
        expected_before, as_shown = expected_state, InsiderView(unravel(jnp.asarray(shown)))
        expected_state, _, _ = attack().step(jax.random.key(number), expected_before, as_shown, NUMBERS)
        assert same_bits(state.generator, expected_state.generator)
        local_state, _, _ = attack().step(jax.random.key(number), expected_before, partial, NUMBERS)
        assert number == 0 or largest_difference(local_state.generator, expected_state.generator) > 1e-3


def test_before_its_first_turn_the_adversary_is_honest():
    """Two turns without fakes and without training; from then on it is the attack that began in its place."""
    late, numbers = attack(first_turn=2), NUMBERS._replace(generator_averaging=0.5)
    state, own = late.init(jax.random.key(7)), start()
    for number in range(4):
        waiting = number < 2
        state, contribution, info = late.step(jax.random.key(number), state, view(number), numbers)
        if waiting:
            assert not np.any(contribution.mask)
            assert same_bits(state._replace(steps=own.steps), own)
            assert (float(info.generator_loss), float(info.target_probability)) == (0, 0)
        else:
            own, expected, _ = attack().step(jax.random.key(number), own, view(number), numbers)
            assert same_bits(state._replace(steps=own.steps), own)
            assert same_bits(contribution, expected)


OWN = LocalData(
    jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (7, *IMAGE_SHAPE)), jnp.float32),
    jnp.zeros(7, jnp.int32),
    jnp.arange(7) < 5,
)


def beside_own_images(classifier, count, steps=20):
    return gan_attack(
        classifier,
        GENERATOR,
        IMAGE_SHAPE,
        generator_steps=steps,
        generator_batch_size=4,
        fakes_per_round=FAKES,
        own_images_per_batch=count,
    )


def test_own_images_share_the_discriminator_s_batch():
    """Behind the generated ones: real ones of the adversary, others in each step, and never the padding."""
    seen = []
    classifier = linear_classifier(lambda images: seen.append(np.array(images)))
    own_view = view()._replace(own=OWN)
    beside_own_images(classifier, 3).step(jax.random.key(1), start(), own_view, NUMBERS)
    jax.effects_barrier()
    batches = np.stack(seen)
    assert batches.shape == (20, 7, *IMAGE_SHAPE)
    shown = {image.tobytes() for image in batches[:, 4:].reshape(-1, *IMAGE_SHAPE)}
    assert shown == {image.tobytes() for image in np.asarray(OWN.inputs[:5])}
    assert len({batch.tobytes() for batch in batches[:, 4:]}) > 10


def test_own_images_change_nothing_but_the_statistics_of_the_batch():
    """Not the attack on a model that looks at one image at a time, and of other models only what they normalize."""
    own_view = view()._replace(own=OWN)
    plain, sent, info = jitted_step()(jax.random.key(1), start(), view(), NUMBERS)
    beside, also_sent, also_info = jax.jit(beside_own_images(CLASSIFIER, 3).step)(
        jax.random.key(1), start(), own_view, NUMBERS
    )
    assert largest_difference((plain, sent, info), (beside, also_sent, also_info)) < 1e-6


def test_a_model_that_normalizes_by_the_batch_sees_generated_images_among_real_ones():
    """The first loss by hand, for own images that are all the same, so that it does not matter which are drawn."""

    def apply(params, images):
        return CLASSIFIER.apply(params, images - images.mean(axis=0, keepdims=True))

    one = OWN.inputs[:1]
    own_view = view()._replace(own=OWN._replace(inputs=jnp.repeat(one, 7, axis=0)))
    attack = beside_own_images(Model(CLASSIFIER.init, apply), 12, steps=1)
    _, _, info = attack.step(jax.random.key(1), start(), own_view, NUMBERS)
    latents = sample_latents(jax.random.fold_in(jax.random.split(jax.random.key(1))[0], 0), 4)
    images = np.asarray(GENERATOR.apply(start().generator, latents))
    mean = (images.sum(axis=0) + 12 * np.asarray(one[0])) / 16
    logits = np.asarray(CLASSIFIER.apply(view().params, jnp.asarray(images - mean)))
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[:, TARGET])
    assert float(info.generator_loss) == pytest.approx(expected, rel=1e-5)


def test_without_data_of_its_own_the_attack_has_no_own_images():
    with pytest.raises(ValueError, match="own_images_per_batch=3: expected 0 where the attack has no data"):
        beside_own_images(CLASSIFIER, 3).step(jax.random.key(1), start(), view(), NUMBERS)


def test_after_full_downloads_both_discriminators_are_the_same():
    states = start(discriminator="remembered"), start()
    for number in range(2):
        states = (
            jitted_step(discriminator="remembered")(jax.random.key(number), states[0], view(number), NUMBERS)[0],
            jitted_step()(jax.random.key(number), states[1], view(number), NUMBERS)[0],
        )
    assert same_bits(states[0]._replace(remembered=()), states[1])


def test_one_sgd_step_by_hand():
    """The generator moves against the gradient of the mean target loss, through a discriminator that stays as it is."""
    before, seen = start(steps=1), view()
    kept = jax.tree.map(np.array, seen.params)
    after, _, info = jitted_step(steps=1)(jax.random.key(1), before, seen, NUMBERS)
    assert same_bits(seen.params, jax.tree.map(jnp.asarray, kept))
    kernel, bias = kept["kernel"].astype(np.float64), kept["bias"]
    weights = np.asarray(before.generator["weights"], np.float64)
    # The latents are the one thing taken from the step itself: fold_in(first half of the key, step).
    key = jax.random.fold_in(jax.random.split(jax.random.key(1))[0], 0)
    latents = np.asarray(sample_latents(key, 4), np.float64)
    images = np.tanh(latents @ weights)
    logits = images @ kernel + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    pull = (probabilities - np.eye(CLASSES)[TARGET]) @ kernel.T * (1 - images**2)
    np.testing.assert_allclose(after.generator["weights"], weights - 0.5 * latents.T @ pull / 4, atol=1e-6)
    np.testing.assert_allclose(after.generator["bias"], -0.5 * pull.mean(axis=0), atol=1e-6)
    assert float(info.generator_loss) == pytest.approx(-np.log(probabilities[:, TARGET]).mean(), abs=1e-6)
    assert float(info.target_probability) == pytest.approx(np.exp(-float(info.generator_loss)), abs=1e-6)


def test_adam_is_dcgans_and_its_moments_survive_the_round():
    """Two rounds of one step equal optax.adam with beta1 0.5, whose first moments carry over."""
    step, numbers = jitted_step(steps=1, optimizer="adam"), NUMBERS._replace(generator_learning_rate=0.01)
    state = start(steps=1, optimizer="adam")
    reference, optimizer = state.generator, optax.adam(0.01, b1=0.5)
    moments = optimizer.init(reference)
    for number in range(2):
        latents = sample_latents(jax.random.fold_in(jax.random.split(jax.random.key(number))[0], 0), 4)

        def loss(params, latents=latents):
            logits = CLASSIFIER.apply(view().params, GENERATOR.apply(params, latents))
            return -jnp.mean(jax.nn.log_softmax(logits)[:, TARGET])

        change, moments = optimizer.update(jax.grad(loss)(reference), moments)
        reference = optax.apply_updates(reference, change)
        state, _, _ = step(jax.random.key(number), state, view(), numbers)
    assert largest_difference(state.generator, reference) < 1e-6
    forgetful = start(steps=1, optimizer="adam")._replace(generator=reference)
    assert not same_bits(forgetful.optimizer, state.optimizer)


def test_a_rate_of_zero_leaves_the_generator_alone():
    """The learning rate is a traced number of the attack."""
    before = start()
    after, _, _ = jitted_step()(jax.random.key(1), before, view(), NUMBERS._replace(generator_learning_rate=0.0))
    assert same_bits(after.generator, before.generator)


def test_the_contribution_is_the_generators_pictures_under_the_fake_class():
    """After the update, as many as asked for, all of them real to the local training, varied and in range."""
    after, contribution, _ = jitted_step()(jax.random.key(1), start(), view(), NUMBERS)
    assert contribution.inputs.shape == (FAKES, *IMAGE_SHAPE)
    assert contribution.labels.tolist() == [FAKE_CLASS] * FAKES
    assert contribution.mask.all()
    assert np.abs(contribution.inputs).max() <= 1
    assert len({image.tobytes() for image in np.asarray(contribution.inputs)}) == FAKES
    other, relabelled, _ = jitted_step()(jax.random.key(1), start(), view(), NUMBERS._replace(fake_class=0))
    assert relabelled.labels.tolist() == [0] * FAKES
    assert same_bits(other.generator, after.generator)
    # They are the trained generator's: they fit the class as well as fresh ones do, unlike those of the old one.
    logits = CLASSIFIER.apply(view().params, contribution.inputs)
    loss = float(-jnp.mean(jax.nn.log_softmax(logits)[:, TARGET]))
    old, new = (target_loss(state.generator, view().params) for state in (start(), after))
    assert abs(loss - new) < abs(loss - old)


@pytest.mark.parametrize("memory", [1, 3])
def test_fakes_accumulate_and_then_overwrite_the_oldest(memory):
    """After r rounds the contribution holds the fakes of the last min(r, memory) rounds, and nothing else counts."""
    state, alone, drawn = start(memory=memory), start(), []
    for number in range(5):
        state, contribution, _ = jitted_step(memory=memory)(jax.random.key(number), state, view(), NUMBERS)
        # An attack that keeps one round shows what this round drew.
        alone, fresh, _ = jitted_step()(jax.random.key(number), alone, view(), NUMBERS)
        drawn.append({image.tobytes() for image in np.asarray(fresh.inputs)})
        kept = np.asarray(contribution.inputs)[np.asarray(contribution.mask)]
        assert contribution.inputs.shape == (memory * FAKES, *IMAGE_SHAPE)
        assert len(kept) == FAKES * min(number + 1, memory)
        assert {image.tobytes() for image in kept} == set().union(*drawn[-memory:])
    assert len(set().union(*drawn)) == 5 * FAKES
    assert int(state.steps) == 5


def test_a_passive_attack_contributes_nothing_and_learns_the_same():
    """No images, no labels, no mask; its generator is bit for bit the active one's in the same round."""
    active, _, _ = jitted_step()(jax.random.key(1), start(), view(), NUMBERS)
    passive, contribution, _ = jitted_step(fakes=0)(jax.random.key(1), start(fakes=0), view(), NUMBERS)
    assert [leaf.shape[0] for leaf in contribution] == [0, 0, 0]
    assert same_bits(passive.generator, active.generator)
    assert int(passive.steps) == 1


def test_reconstruct_is_deterministic_in_its_key():
    """The same key draws the same pictures, another key others, another count nothing different up to a batch."""
    state, reconstruct = start(), attack().reconstruct
    seven = reconstruct(jax.random.key(0), state, 7)
    assert seven.shape == (7, *IMAGE_SHAPE)
    assert same_bits(reconstruct(jax.random.key(0), state, 7), seven)
    assert same_bits(reconstruct(jax.random.key(0), state, 5), seven[:5])
    assert not same_bits(reconstruct(jax.random.key(1), state, 7), seven)
    trained, _, _ = jitted_step()(jax.random.key(1), state, view(), NUMBERS)
    assert largest_difference(reconstruct(jax.random.key(0), trained, 7), seven) > 1e-2


@pytest.mark.parametrize("changed", ["target_class", "fake_class", "generator_learning_rate"])
def test_attack_numbers_are_traced(changed):
    """One compilation serves every target class, fake class and rate."""
    step = jax.jit(attack().step)
    for value in (0, 1):
        value = float(value) if changed == "generator_learning_rate" else value
        step(jax.random.key(1), start(), view(), NUMBERS._replace(**{changed: value}))
    assert step._cache_size() == 1


def test_unknown_choices_are_refused():
    """One line with the name, the value and what is allowed."""
    with pytest.raises(ValueError, match="generator_optimizer='rmsprop': allowed are 'sgd', 'adam'"):
        attack(optimizer="rmsprop")
    with pytest.raises(ValueError, match="first_turn=-1: expected at least 0"):
        attack(first_turn=-1)
    with pytest.raises(ValueError, match="discriminator='shared': allowed are 'local', 'remembered'"):
        attack(discriminator="shared")
    with pytest.raises(ValueError, match="own_images_per_batch=-1: expected at least 0"):
        beside_own_images(CLASSIFIER, -1)


@pytest.mark.parametrize("averaging", [0.0, 0.6])
def test_reconstructions_are_drawn_by_the_average_of_past_generators(averaging):
    """The average starts with the first trained generator, forgets at the stated rate, and at 0 is the last one."""
    numbers, state = NUMBERS._replace(generator_averaging=averaging), start()
    twin = None
    for round in range(4):
        state, _, _ = jitted_step()(jax.random.key(round), state, view(round), numbers)
        latest = jax.tree.map(np.asarray, state.generator)
        twin = (
            latest
            if twin is None
            else jax.tree.map(lambda old, new: averaging * old + (1 - averaging) * new, twin, latest)
        )
    assert largest_difference(state.averaged_generator, twin) < 1e-6
    assert same_bits(state.averaged_generator, state.generator) == (averaging == 0.0)
    drawn = attack().reconstruct(jax.random.key(5), state, 8)
    assert same_bits(drawn, attack().reconstruct(jax.random.key(5), state._replace(generator=None), 8))


def test_averaging_changes_nothing_that_the_federation_sees():
    """Fakes and the generator's own path are the same with and without it."""
    plain, averaged = start(), start()
    for round in range(2):
        step = jitted_step()
        plain, sent, _ = step(jax.random.key(round), plain, view(round), NUMBERS)
        averaged, also_sent, _ = step(
            jax.random.key(round), averaged, view(round), NUMBERS._replace(generator_averaging=0.9)
        )
        assert same_bits(sent, also_sent)
    assert same_bits(plain.generator, averaged.generator)
