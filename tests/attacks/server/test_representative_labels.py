"""Labels of representatives: against the exact method of one batch, and the shares by hand and as properties."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from gan_leak import trees
from gan_leak.attacks.gradient.label_counts import infer_label_counts
from gan_leak.attacks.gradient.observation import gradient_of
from gan_leak.attacks.server.representative_labels import (
    class_parts,
    class_probabilities,
    infer_labels,
    share_out,
    whole_counts,
)
from reference.small import CLASSES, IMAGE_SHAPE, linear_classifier

MODEL = linear_classifier()
PRIVATE = (np.array([0, 0, 0, 1, 1, 4, 4, 4]), np.array([2, 2, 2, 2, 2, 2, 3, 3]), np.array([0, 1, 2, 3, 4, 4, 4, 4]))


def clients(scale=0.05):
    """The parameters, images near gray, and gradients of three clients with eight images each."""
    params = jax.vmap(MODEL.init)(jax.random.split(jax.random.key(0), 3))
    images = scale * jax.random.normal(jax.random.key(1), (3, 8, *IMAGE_SHAPE))
    labels = jnp.stack([jnp.asarray(labels) for labels in PRIVATE])

    def of_client(params, images, labels):
        return trees.ravel(gradient_of(MODEL, params, images, jax.nn.one_hot(labels, CLASSES)))[0]

    return params, images, jax.vmap(of_client)(params, images, labels)


def test_counts_of_all_clients_are_those_of_the_exact_method():
    params, _, updates = clients()
    found = jax.jit(
        lambda *arrays: infer_labels(*arrays, num_classes=CLASSES, representatives=8),
    )(params, updates, jnp.full(3, 8))
    assert found.labels.dtype == jnp.int32
    for client, private in enumerate(PRIVATE):
        own = trees.take(params, client)
        gradient = trees.ravel(own)[1](updates[client])
        exact = infer_label_counts(own["kernel"], own["bias"], gradient["kernel"], gradient["bias"], 8)
        assert exact.tolist() == private.tolist() == found.labels[client].tolist()
        assert found.counts[client].tolist() == np.bincount(private, minlength=CLASSES).tolist()
        np.testing.assert_allclose(found.weights[client], 1 / 8, rtol=1e-5)


def trained_and_private():
    """A model that knows the classes, so that predictions differ by class, and a client's images of five patterns."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(CLASSES, *IMAGE_SHAPE))

    def draw(labels):
        return jnp.asarray(0.6 * patterns[labels] + 0.4 * rng.normal(size=(len(labels), *IMAGE_SHAPE)), jnp.float32)

    others = np.tile(np.arange(CLASSES), 60)
    images, params = draw(others), MODEL.init(jax.random.key(3))
    encoded = jax.nn.one_hot(others, CLASSES)
    for _ in range(60):
        params = jax.tree.map(lambda w, g: w - 0.3 * g, params, gradient_of(MODEL, params, images, encoded))
    private = np.repeat(np.arange(CLASSES), [0, 4, 10, 20, 6])
    update, _ = trees.ravel(gradient_of(MODEL, params, draw(private), jax.nn.one_hot(private, CLASSES)))
    return params, images, jnp.asarray(others), private, update


@pytest.mark.slow
def test_auxiliary_images_tell_the_counts_to_a_trained_model():
    """What the update alone no longer tells, since the probabilities of a class are not those of its input's mean."""
    params, images, labels, private, update = trained_and_private()
    rows = class_probabilities(MODEL, params, images, labels, CLASSES)
    truth = np.bincount(private, minlength=CLASSES)

    def wrong(probabilities):
        found = infer_labels(
            trees.expand(params),
            update[None],
            jnp.array([len(private)]),
            num_classes=CLASSES,
            representatives=CLASSES,
            probabilities=probabilities,
        )
        assert found.counts.sum() == len(private)
        return np.abs(np.asarray(found.counts[0]) - truth).sum() / 2

    with_images, without = wrong(rows[None]), wrong(None)
    assert with_images <= 4
    assert with_images < without


def test_class_probabilities_are_means_and_one_hot_without_images():
    params = MODEL.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, *IMAGE_SHAPE))
    rows = class_probabilities(MODEL, params, images, jnp.array([0, 3, 3, 3]), CLASSES)
    each = jax.nn.softmax(MODEL.apply(params, images))
    np.testing.assert_allclose(rows[0], each[0], rtol=1e-5)
    np.testing.assert_allclose(rows[3], np.mean(each[1:], axis=0), rtol=1e-5)
    np.testing.assert_array_equal(rows[np.array([1, 2, 4])], np.eye(CLASSES)[[1, 2, 4]])


@hypothesis.given(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any))
def test_the_parts_solve_their_equation(counts):
    """For any parts, if every class's images have the same probabilities each."""
    rows = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.25, 0.25, 0.5]])
    parts = np.array(counts) / sum(counts)
    gradient = parts @ (rows - np.eye(3))
    found = class_parts(jnp.asarray(gradient, jnp.float32), jnp.asarray(rows, jnp.float32))
    np.testing.assert_allclose(found, parts, atol=1e-4)
    assert whole_counts(found, sum(counts)).tolist() == counts


@pytest.mark.parametrize(
    ("parts", "size", "expected"),
    [
        ([0.5, 0.5], 3, [2, 1]),
        ([0.34, 0.33, 0.33], 10, [4, 3, 3]),
        ([0.0, 1.0, 0.0], 7, [0, 7, 0]),
        ([0.24, 0.26, 0.5], 4, [1, 1, 2]),
    ],
)
def test_whole_counts_by_hand(parts, size, expected):
    assert whole_counts(jnp.asarray(parts), size).tolist() == expected


@pytest.mark.parametrize(
    ("counts", "representatives", "labels", "weights"),
    [
        ([4, 4, 4], 3, [0, 1, 2], [1 / 3] * 3),
        ([4, 0, 4], 4, [0, 0, 2, 2], [1 / 4] * 4),
        ([8, 1, 1], 4, [0, 0, 1, 2], [0.4, 0.4, 0.1, 0.1]),
        ([8, 1, 1], 1, [0], [1.0]),
        ([1, 5, 3], 2, [1, 2], [5 / 8, 3 / 8]),
        ([0, 0, 6], 2, [2, 2], [0.5, 0.5]),
    ],
)
def test_shares_by_hand(counts, representatives, labels, weights):
    found, shares = share_out(jnp.asarray(counts), representatives)
    assert found.tolist() == labels
    np.testing.assert_allclose(shares, weights, rtol=1e-6)


@pytest.mark.slow
@hypothesis.given(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), st.integers(1, 8))
def test_shares_follow_the_counts(counts, representatives):
    """No image of an absent class, every present one if there is room, and the classes' parts of the loss."""
    labels, weights = (np.asarray(array) for array in share_out(jnp.asarray(counts), representatives))
    present = np.flatnonzero(counts)
    assert set(labels) <= set(present)
    assert len(set(labels)) == min(len(present), representatives)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    if representatives >= len(present):
        of_class = np.bincount(labels, weights=weights, minlength=4)
        np.testing.assert_allclose(of_class, np.array(counts) / sum(counts), rtol=1e-5)


def test_a_network_without_one_last_layer_is_refused():
    params, _, updates = clients()
    with pytest.raises(ValueError, match=r"^labels: 0 gradients end in 7 classes, expected one layer's$"):
        infer_labels(params, updates, jnp.full(3, 8), num_classes=7, representatives=8)
