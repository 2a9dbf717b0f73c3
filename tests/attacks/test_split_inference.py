"""Attacks on split inference: exact where the client's part is linear, and blind where the view is another's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.attacks.descent import Position, amsgrad, descend, fit, halving_rate, minimise
from gan_leak.attacks.inverse_network import train_inverse_network
from gan_leak.attacks.priors import absolute_total_variation, squared_total_variation
from gan_leak.attacks.regularised_likelihood import regularised_likelihood
from gan_leak.attacks.shadow_model import train_shadow
from gan_leak.types import Model, SplitView

SHAPE = (4, 4, 1)
PIXELS = 16


def linear(outputs):
    """Features = pixels @ weights."""
    return Model(
        lambda key: jax.random.normal(key, (PIXELS, outputs)) / 4,
        lambda params, images: images.reshape(len(images), -1) @ params,
    )


def images(count, seed=0):
    return jax.random.uniform(jax.random.key(seed), (count, *SHAPE), minval=-1.0)


def test_features_that_determine_the_image_give_it_back():
    client = linear(32)
    params, seen = client.init(jax.random.key(1)), images(3)
    attack = jax.jit(
        jax.vmap(
            lambda features: regularised_likelihood(
                SplitView(features, params), client, SHAPE, iterations=4000, learning_rate=1e-2
            )
        )
    )
    found, info = attack(client.apply(params, seen))
    np.testing.assert_allclose(found, seen, atol=2e-2)
    assert float(jnp.max(info.feature_error)) < 1e-4
    assert info.path.shape == (3, 4000)
    # The features of another input lead to that one.
    assert float(jnp.abs(found[0] - seen[1]).mean()) > 0.2


def test_the_priors_weigh_as_they_should():
    client = linear(4)
    params, seen = client.init(jax.random.key(1)), images(1)
    view = SplitView(client.apply(params, seen)[0], params)
    plain, flat, small = (
        regularised_likelihood(view, client, SHAPE, iterations=500, **weights)[0]
        for weights in ({}, {"total_variation": 10.0}, {"magnitude": 10.0})
    )
    assert float(squared_total_variation(flat)) < 0.1 * float(squared_total_variation(plain))
    assert float(jnp.mean(small**2)) < 0.1 * float(jnp.mean(plain**2))


def test_total_variations_by_hand():
    picture = jnp.array([[0.0, 1.0], [2.0, 4.0]])[:, :, None]
    assert float(squared_total_variation(picture)) == (4 + 9) / 2 + (1 + 4) / 2
    assert float(absolute_total_variation(picture)) == (2 + 3) / 2 + (1 + 2) / 2
    both = squared_total_variation(jnp.stack([picture, 2 * picture]))
    np.testing.assert_allclose(both, [9.0, 36.0])


def test_amsgrad_is_that_of_pytorch_1_0():
    """Three steps by hand: largest raw second moment, epsilon added before the correction."""
    optimizer = amsgrad(0.1)
    value = jnp.array(1.0)
    state = optimizer.init(value)
    mean = square = largest = 0.0
    for step, gradient in enumerate((2.0, -0.1, 0.5), start=1):
        update, state = optimizer.update(jnp.array(gradient), state)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        largest = max(largest, square)
        rate = 0.1 * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
        assert float(update) == pytest.approx(-rate * mean / (largest**0.5 + 1e-3), rel=1e-4)


def test_a_descent_reports_its_path_and_keeps_to_its_range():
    import optax

    def objective(value):
        return (value - 3.0) ** 2

    result = minimise(objective, jnp.array(0.0), optax.sgd(0.1), 50)
    assert float(result.values) == pytest.approx(3.0, abs=1e-3)
    assert float(result.path[0]) == 9.0
    position = Position(jnp.array(0.9), optax.sgd(0.1).init(jnp.array(0.9)))
    moved, before = descend(objective, optax.sgd(0.1), position, lambda value: jnp.minimum(value, 1.0))
    assert float(moved.values) == 1.0
    assert float(before) == pytest.approx(4.41)
    assert np.isnan(minimise(lambda value: jnp.log(value), jnp.array(-1.0), optax.sgd(0.1), 3).path).all()


def test_an_inverse_network_learns_the_way_back_and_only_from_its_pairs():
    client, decoder = (
        linear(24),
        Model(
            lambda key: 0.1 * jax.random.normal(key, (24, PIXELS)),
            lambda params, features: (features @ params).reshape(-1, *SHAPE),
        ),
    )
    params, queries = client.init(jax.random.key(1)), images(512)
    learned, losses = train_inverse_network(
        jax.random.key(2), decoder, queries, client.apply(params, queries), epochs=60, learning_rate=1e-2
    )
    assert losses.shape == (60,)
    assert float(losses[-1]) < 0.1 * float(losses[0])
    unseen = images(20, seed=9)
    recovered = decoder.apply(learned, client.apply(params, unseen))
    assert float(jnp.mean((recovered - unseen) ** 2)) < 0.02
    mixed, _ = train_inverse_network(
        jax.random.key(2), decoder, queries[::-1], client.apply(params, queries), epochs=60, learning_rate=1e-2
    )
    assert float(jnp.mean((decoder.apply(mixed, client.apply(params, unseen)) - unseen) ** 2)) > 0.2


def test_a_shadow_learns_to_serve_the_cloud_which_stays_as_it_was():
    client, cloud = linear(8), Model(lambda key: jax.random.normal(key, (8, 4)), lambda params, values: values @ params)
    key = jax.random.key(3)
    key_client, key_cloud = jax.random.split(key)
    params, cloud_params, inputs = client.init(key_client), cloud.init(key_cloud), images(256)
    labels = jnp.argmax(cloud.apply(cloud_params, client.apply(params, inputs)), axis=1)
    shadow, losses = train_shadow(
        jax.random.key(4), client, cloud, cloud_params, inputs, labels, epochs=40, learning_rate=1e-2
    )
    right = jnp.argmax(cloud.apply(cloud_params, client.apply(shadow, inputs)), axis=1) == labels
    assert float(right.mean()) > 0.9
    assert float(losses[-1]) < 0.5 * float(losses[0])


def test_rates_halve_and_training_needs_a_batch():
    assert [float(halving_rate(0.8, 5)(step)) for step in (0, 4, 5, 10)] == pytest.approx([0.8, 0.8, 0.4, 0.2])
    with pytest.raises(ValueError, match="batch_size=8: expected at most 5, the number of samples"):
        fit(jax.random.key(0), lambda p, b: p, jnp.array(0.0), jnp.zeros(5), amsgrad(0.1), batch_size=8, epochs=1)
