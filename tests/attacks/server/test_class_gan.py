"""The class-level GAN at the server: the insider's generator, trained on the shared model only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.attacks.server.class_gan import ClassGanHyperParameters, class_gan, images_by_class
from gan_leak.collaboration import RoundHyperParameters, average, init_federation, make_round, selective_upload
from gan_leak.defenses import secure_average
from gan_leak.types import InsiderView, ServerView
from reference.small import (
    IMAGE_SHAPE,
    federation_data,
    largest_difference,
    linear_classifier,
    linear_generator,
    same_bits,
)

MODEL, GENERATOR, CLASSES = linear_classifier(), linear_generator(), 3
COUNTS = {"generator_steps": 4, "generator_batch_size": 8}
ATTACK = class_gan(MODEL, GENERATOR, IMAGE_SHAPE, CLASSES, **COUNTS)
NUMBERS = ClassGanHyperParameters(0.5)


def view_of(params):
    """A view in which everything but the shared parameters is missing."""
    return ServerView(None, None, None, None, None, params)


def test_each_generator_is_that_of_an_insider_of_its_class():
    """Step by step and with the same keys, average included."""
    params, key = MODEL.init(jax.random.key(0)), jax.random.key(1)
    insider = gan_attack(MODEL, GENERATOR, IMAGE_SHAPE, fakes_per_round=0, **COUNTS)
    state = jax.jit(ATTACK.init)(jax.random.key(2), params)
    numbers = NUMBERS._replace(generator_averaging=0.5)
    after, info = jax.jit(ATTACK.step)(key, state, view_of(params), numbers)
    for target in range(CLASSES):
        own_key = jax.random.fold_in(jax.random.clone(key), target)
        own_numbers = GanAttackHyperParameters(target, 0, 0.5, 0.5)
        own, _, own_info = jax.jit(insider.step)(own_key, trees.take(state, target), InsiderView(params), own_numbers)
        assert largest_difference(trees.take(after, target), own) < 1e-6
        assert largest_difference(trees.take(info, target), own_info) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("aggregator", [average(), secure_average()], ids=["average", "secure"])
def test_in_rounds_its_images_become_those_of_their_class(aggregator):
    """The shared model assigns them, unlike those of untrained generators; the federation is the same without."""
    transform, data = selective_upload("largest"), federation_data((7, 7, 7))
    numbers = RoundHyperParameters(0.3, server_attack=NUMBERS)
    states = []
    for attack in (ATTACK, None):
        state = init_federation(jax.random.key(0), MODEL, transform, 3, aggregator=aggregator, server_attack=attack)
        round_fn = jax.jit(
            make_round(
                MODEL, transform, schedule="synchronous", aggregator=aggregator, batch_size=4, server_attack=attack
            )
        )
        for number in range(6):
            state, _ = round_fn(jax.random.fold_in(jax.random.key(1), number), state, data, numbers)
        states.append(state)
    attacked, plain = states
    assert same_bits(attacked._replace(server_attack=()), plain)
    untrained = jax.jit(ATTACK.init)(jax.random.key(2), plain.server.params)
    shares = []
    for generators in (attacked.server_attack, untrained):
        images = images_by_class(jax.random.key(3), ATTACK, generators, CLASSES, 20)
        assert images.shape == (CLASSES, 20, *IMAGE_SHAPE)
        logits = MODEL.apply(plain.server.params, images.reshape(-1, *IMAGE_SHAPE))
        shares.append(float(jnp.mean(jnp.argmax(logits, axis=1) == jnp.repeat(jnp.arange(CLASSES), 20))))
    assert shares[0] > 0.95
    assert shares[1] < 0.6


def test_images_are_dealt_out_over_the_classes():
    """Image i shows class i modulo the number of classes, also where the count is no multiple."""
    state = jax.jit(ATTACK.init)(jax.random.key(2), MODEL.init(jax.random.key(0)))
    # Generators whose images are constant and tell the class.
    biases = jnp.repeat(jnp.arange(CLASSES, dtype=float)[:, None], 16, axis=1)
    own = {"bias": biases, "weights": jnp.zeros((CLASSES, 100, 16))}
    images = ATTACK.reconstruct(jax.random.key(0), state._replace(averaged_generator=own), 7)
    np.testing.assert_allclose(images[:, 0, 0, 0], np.tanh([0, 1, 2, 0, 1, 2, 0]), rtol=1e-6)


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match=r"^classes=0: expected at least 1"):
        class_gan(MODEL, GENERATOR, IMAGE_SHAPE, 0, **COUNTS)
    with pytest.raises(ValueError, match=r"^generator_steps=0: expected at least 1"):
        class_gan(MODEL, GENERATOR, IMAGE_SHAPE, 2, generator_steps=0, generator_batch_size=8)
