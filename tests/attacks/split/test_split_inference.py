"""Attacks on split inference: exact where the client's part is linear, and blind where the view is another's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.attacks.optimizers import Position, TrainingData, amsgrad, descend, halving_amsgrad, training
from gan_leak.attacks.priors import absolute_total_variation, squared_total_variation
from gan_leak.attacks.split.inverse_network import inverse_network
from gan_leak.attacks.split.model_reconstruction import reconstructed_model
from gan_leak.attacks.split.regularized_likelihood import regularized_likelihood
from gan_leak.attacks.split.shadow_model import shadow_model
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


def found(client, params, features, iterations, **weights):
    """What the white box finds behind features [N, F], and the objective before its last step [N]."""
    search = regularized_likelihood(client, SHAPE, **weights)

    def one(features):
        view, key = SplitView(features, params), jax.random.key(0)
        last, path = jax.lax.scan(lambda at, _: search.step(key, at, view), search.init(key, view), length=iterations)
        return search.extract(last, view), path[-1]

    return jax.jit(jax.vmap(one))(features)


def test_features_that_determine_the_image_give_it_back():
    client = linear(32)
    params, seen = client.init(jax.random.key(1)), images(3)
    features = client.apply(params, seen)
    inputs, objective = found(client, params, features, 4000)
    np.testing.assert_allclose(inputs, seen, atol=2e-2)
    assert float(jnp.max(objective)) < 1e-4
    # With another client's layers they do not.
    elsewhere, objective = found(client, client.init(jax.random.key(2)), features, 4000)
    assert float(jnp.min(jnp.mean(jnp.abs(elsewhere - seen), axis=(1, 2, 3)))) > 0.2
    assert float(jnp.min(objective)) > 1e-2


def test_the_priors_weigh_as_they_should():
    client = linear(4)
    params, seen = client.init(jax.random.key(1)), images(1)
    features = client.apply(params, seen)
    plain, flat, small = (
        found(client, params, features, 500, **weights)[0]
        for weights in ({}, {"total_variation": 10.0}, {"magnitude": 10.0})
    )
    assert float(squared_total_variation(flat)[0]) < 0.1 * float(squared_total_variation(plain)[0])
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


def test_a_descent_keeps_to_its_range_and_hides_no_divergence():
    import optax

    optimizer = optax.sgd(0.1)
    position = Position(jnp.array(0.9), optimizer.init(jnp.array(0.9)))
    moved, before = descend(
        lambda value: (value - 3.0) ** 2, optimizer, position, lambda value: jnp.minimum(value, 1.0)
    )
    assert float(moved.values) == 1.0
    assert float(before) == pytest.approx(4.41)
    for _ in range(2):
        position, before = descend(lambda value: jnp.sqrt(value - 1.0), optimizer, position)
    assert np.isnan(before)
    assert np.isnan(position.values)


def taught(key, procedure, samples, epochs, context=None):
    """(params, mean loss of each epoch) of a training."""
    data = TrainingData(samples, context)
    key_init, key_epochs = jax.random.split(key)
    keys = jax.random.split(key_epochs, epochs)
    last, losses = jax.jit(
        lambda start, data: jax.lax.scan(lambda position, key: procedure.step(key, position, data), start, keys)
    )(procedure.init(key_init, data), data)
    return procedure.extract(last, data), losses


def test_an_inverse_network_learns_the_way_back_and_only_from_its_pairs():
    client, decoder = (
        linear(24),
        Model(
            lambda key: 0.1 * jax.random.normal(key, (24, PIXELS)),
            lambda params, features: (features @ params).reshape(-1, *SHAPE),
        ),
    )
    params, queries = client.init(jax.random.key(1)), images(512)
    made = inverse_network(decoder, samples=512, learning_rate=1e-2)
    learned, losses = taught(jax.random.key(2), made, (queries, client.apply(params, queries)), 60)
    assert float(losses[-1]) < 0.1 * float(losses[0])
    unseen = images(20, seed=9)
    recovered = decoder.apply(learned, client.apply(params, unseen))
    assert float(jnp.mean((recovered - unseen) ** 2)) < 0.02
    mixed, _ = taught(jax.random.key(2), made, (queries[::-1], client.apply(params, queries)), 60)
    assert float(jnp.mean((decoder.apply(mixed, client.apply(params, unseen)) - unseen) ** 2)) > 0.2


def test_a_reconstructed_model_answers_as_the_client_and_its_inversion_finds_the_image():
    """From its answers alone; where the answers belong to other images, it finds none."""
    client = linear(32)
    params, queries = client.init(jax.random.key(1)), images(512)
    answers = client.apply(params, queries)
    made = reconstructed_model(client, samples=512, learning_rate=1e-2)
    own, losses = taught(jax.random.key(2), made, (queries, answers), 60)
    assert float(losses[-1]) < 0.01 * float(losses[0])
    np.testing.assert_allclose(own, params, atol=0.05)
    seen = images(3, seed=9)
    features = client.apply(params, seen)
    inputs, _ = found(client, own, features, 4000)
    np.testing.assert_allclose(inputs, seen, atol=0.1)
    mixed, _ = taught(jax.random.key(2), made, (queries[::-1], answers), 60)
    elsewhere, _ = found(client, mixed, features, 4000)
    assert float(jnp.min(jnp.mean(jnp.abs(elsewhere - seen), axis=(1, 2, 3)))) > 0.2


def test_a_shadow_learns_to_serve_the_cloud_which_stays_as_it_was():
    client, cloud = linear(8), Model(lambda key: jax.random.normal(key, (8, 4)), lambda params, values: values @ params)
    key = jax.random.key(3)
    key_client, key_cloud = jax.random.split(key)
    params, cloud_params, inputs = client.init(key_client), cloud.init(key_cloud), images(256)
    labels = jnp.argmax(cloud.apply(cloud_params, client.apply(params, inputs)), axis=1)
    made = shadow_model(client, cloud, samples=256, learning_rate=1e-2)
    shadow, losses = taught(jax.random.key(4), made, (inputs, labels), 40, cloud_params)
    right = jnp.argmax(cloud.apply(cloud_params, client.apply(shadow, inputs)), axis=1) == labels
    assert float(right.mean()) > 0.9
    assert float(losses[-1]) < 0.5 * float(losses[0])


@pytest.mark.slow
def test_the_inversion_of_a_shadow_finds_the_image_and_that_of_another_cloud_s_does_not():
    """A client that weighs pixels: what the cloud teaches its shadow are the weights, but for a factor."""
    client = Model(
        lambda key: jax.random.normal(key, (PIXELS,)),
        lambda params, images: images.reshape(len(images), -1) * params[None],
    )
    cloud = Model(lambda key: jax.random.normal(key, (PIXELS, 4)), lambda params, values: values @ params)
    params, cloud_params, inputs = client.init(jax.random.key(5)), cloud.init(jax.random.key(6)), images(2048)
    labels = jnp.argmax(cloud.apply(cloud_params, client.apply(params, inputs)), axis=1)
    seen = images(20, seed=9)

    def likeness(known):
        made = shadow_model(client, cloud, samples=2048, learning_rate=1e-2)
        shadow, _ = taught(jax.random.key(7), made, (inputs, labels), 20, known)
        drawn, _ = found(client, shadow, client.apply(params, seen), 2000)
        pairs = zip(drawn, seen, strict=True)
        return float(np.median([np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in pairs]))

    assert likeness(cloud_params) > 0.8
    assert likeness(cloud.init(jax.random.key(8))) < 0.5


def test_rates_halve_and_training_needs_a_batch():
    """Of two samples in two batches of one: an epoch is two steps on slopes of one size, as long as the rate is."""

    def loss(params, batch, context):
        return 1e6 * params * jnp.mean(batch)

    optimizer = halving_amsgrad(0.8, samples=2, batch_size=1, epochs_between_halvings=2)
    procedure = training(lambda key: jnp.array(0.0), loss, optimizer, samples=2, batch_size=1)
    data = TrainingData(jnp.ones(2))
    position, walked = procedure.init(jax.random.key(0), data), []
    for epoch in range(5):
        before = float(position.values)
        position, _ = procedure.step(jax.random.key(epoch), position, data)
        walked.append(before - float(position.values))
    np.testing.assert_allclose(walked, [1.6, 1.6, 0.8, 0.8, 0.4], rtol=0.05)
    with pytest.raises(ValueError, match="batch_size=8: expected at most 5, the number of samples"):
        inverse_network(linear(2), samples=5, batch_size=8)
