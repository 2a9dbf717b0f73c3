"""Linkability: clients are matched by what their representatives have in common, and only by that."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.attacks import advance
from gan_leak.attacks.server.linkability import (
    contrastive_loss,
    cosine_distances,
    embed,
    euclidean,
    label_distances,
    link,
    linking_accuracy,
    siamese,
    siamese_distances,
    train_siamese,
)
from gan_leak.types import Model

SHAPE = (4, 4, 1)


def network(size=6):
    """An embedding that is linear in the pixels."""

    def init(key):
        return 0.3 * jax.random.normal(key, (16, size))

    return Model(init, lambda params, images: images.reshape(len(images), -1) @ params)


def owners(count, rounds, seed=0, strength=0.5, images=3):
    """Representatives [count, rounds, images, 4, 4, 1]: four pixels tell the owner, the rest is much louder noise."""
    generator = np.random.default_rng(seed)
    values = generator.uniform(-1, 1, (count, rounds, images, *SHAPE))
    values[..., 0, :, :] = strength * generator.uniform(-1, 1, (count, 1, 1, 4, 1))
    values[..., 0, :, :] += 0.05 * generator.normal(size=(count, rounds, images, 4, 1))
    return jnp.asarray(values, jnp.float32)


def accuracy(distances, truth, seed=0):
    return linking_accuracy(link(np.random.default_rng(seed), distances), truth)


def test_it_learns_to_link_owners_that_it_has_not_seen():
    """Trained on simulated owners, it links others over rounds in another order; raw pixels do not."""
    params = train_siamese(jax.random.key(0), network(), owners(40, 4), steps=300, learning_rate=0.02)
    clients = owners(10, 2, seed=1)
    order = np.random.default_rng(2).permutation(10)
    first, second = clients[:, 0], clients[order, 1]
    truth = np.argsort(order)
    assert accuracy(siamese_distances(network(), params, first, second), truth) >= 0.8
    pixels = Model(lambda key: (), lambda params, images: images.reshape(len(images), -1))
    assert accuracy(siamese_distances(pixels, (), first, second), truth) <= 0.5


def test_without_a_common_trait_it_links_at_chance():
    """Representatives that are noise: over twenty federations a tenth of ten clients."""
    params = train_siamese(jax.random.key(0), network(), owners(40, 4), steps=100, learning_rate=0.02)
    found = []
    for seed in range(20):
        noise = np.random.default_rng(seed).uniform(-1, 1, (10, 2, 3, *SHAPE)).astype(np.float32)
        distances = siamese_distances(network(), params, jnp.asarray(noise[:, 0]), jnp.asarray(noise[:, 1]))
        found.append(accuracy(distances, np.arange(10), seed))
    assert np.mean(found) < 0.25


@pytest.mark.slow
def test_the_training_step_is_gradient_descent_on_the_stated_loss():
    """With two rounds there is one pair; its info is of the parameters before the step."""
    representatives = owners(3, 2)
    procedure = siamese(network(), margin=2.0)
    state = procedure.init(jax.random.key(0), representatives)
    after, info = procedure.step(jax.random.key(1), state, representatives)
    embedded = np.asarray(representatives).reshape(3, 2, 3, 16).mean(axis=2) @ np.asarray(state.values)
    pairs = {(i, j): np.linalg.norm(embedded[i, 0] - embedded[j, 1]) for i, j in itertools.product(range(3), repeat=2)}
    # The two rounds may come in either order.
    swapped = {(i, j): pairs[j, i] for i, j in pairs}

    def expected(distances):
        same = np.mean([distances[i, i] ** 2 for i in range(3)])
        return same + np.mean([max(0.0, 2.0 - d) ** 2 for (i, j), d in distances.items() if i != j])

    assert float(info.loss) == pytest.approx(expected(pairs), rel=1e-5)
    assert float(info.loss) == pytest.approx(expected(swapped), rel=1e-5)
    assert float(info.same) == pytest.approx(np.mean([pairs[i, i] for i in range(3)]), rel=1e-5)
    assert float(info.different) == pytest.approx(np.mean([d for (i, j), d in pairs.items() if i != j]), rel=1e-5)
    again = advance(jax.random.key(2), procedure, after, representatives, 50)
    _, later = procedure.step(jax.random.key(1), again, representatives)
    assert float(later.loss) < 0.9 * float(info.loss)


def test_parts_of_a_training_are_the_whole():
    """As the runner that saves in between needs it."""
    representatives, procedure = owners(4, 3), siamese(network())
    state = procedure.init(jax.random.key(0), representatives)
    whole = advance(jax.random.key(1), procedure, state, representatives, 6)
    part = advance(jax.random.key(1), procedure, state, representatives, 4)
    part = advance(jax.random.key(1), procedure, part, representatives, 2, first=4)
    np.testing.assert_array_equal(part.values, whole.values)


def test_equal_embeddings_have_a_finite_gradient():
    gradient = jax.grad(lambda points: contrastive_loss(euclidean(points, points), 1.0))(jnp.ones((3, 2)))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(euclidean(jnp.asarray([[0.0, 0], [3, 4]]), jnp.asarray([[0.0, 0]])), [[0], [5]])
    np.testing.assert_allclose(contrastive_loss(jnp.asarray([[0.5, 0.25], [3.0, 1.0]]), 1.0), 0.625 + 0.5625 / 2)


def test_the_order_of_representatives_does_not_matter():
    sets = owners(2, 1)[:, 0]
    params = network().init(jax.random.key(0))
    np.testing.assert_allclose(
        embed(network(), params, sets), embed(network(), params, sets[:, jnp.asarray([2, 0, 1])]), rtol=1e-5, atol=1e-6
    )


def test_the_assignment_is_the_best_of_all():
    """Against all permutations; a NaN is the worst that a pair can be."""
    for seed in range(5):
        distances = np.random.default_rng(seed).uniform(size=(5, 5))
        best = min(itertools.permutations(range(5)), key=lambda order: sum(distances[range(5), order]))
        assert tuple(link(np.random.default_rng(9), distances)) == best
    spoiled = np.array([[np.nan, 3.0], [1.0, 3.0]])
    assert link(np.random.default_rng(0), spoiled).tolist() == [1, 0]


def test_a_tie_is_no_hit():
    """Equal distances link at random, though both rounds have the same order: 1/K on average."""
    rng = np.random.default_rng(0)
    found = [linking_accuracy(link(rng, np.ones((8, 8))), np.arange(8)) for _ in range(400)]
    # The number of fixed points of a random permutation has mean 1 and variance 1.
    assert np.mean(found) == pytest.approx(1 / 8, abs=4 / 8 / 20)


def test_the_baselines_by_hand():
    updates = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(
        cosine_distances(updates, jnp.asarray([[6.0, 8.0], [-4.0, 3.0]])), [[0, 1], [1, 1]], atol=1e-6
    )
    counts, others = jnp.asarray([[2, 2, 0], [0, 0, 0]]), jnp.asarray([[10, 10, 0], [0, 0, 5]])
    np.testing.assert_allclose(label_distances(counts, others), [[0, 1], [0.5, 0.5]])
    assert linking_accuracy(np.array([0, 2, 1]), np.array([0, 1, 2])) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_siamese(jax.random.key(0), network(), jnp.zeros((3, 2, 16)), steps=1), "expected [A, T, R, H"),
        (lambda: train_siamese(jax.random.key(0), network(), owners(1, 2), steps=1), "expected at least 2 owners and"),
        (lambda: train_siamese(jax.random.key(0), network(), owners(2, 1), steps=1), "expected at least 2 owners and"),
        (lambda: link(np.random.default_rng(0), np.zeros((2, 3))), "distances.shape=(2, 3): expected [K, K]"),
        (lambda: linking_accuracy(np.zeros(2), np.zeros(3)), "assignment.shape=(2,): expected [K] as truth"),
    ],
)
def test_wrong_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
