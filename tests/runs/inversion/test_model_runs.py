"""Model inversion of networks trained centrally: they learn, and every class of every network gets its picture."""

import jax
import numpy as np
import pytest

from gan_leak.runs.federated.measurement import model_accuracy
from gan_leak.runs.federated.setup import Images
from gan_leak.runs.inversion.model import invert_all_classes, train_classifier
from reference.small import linear_classifier, same_bits


def bright_rows(count, seed=0):
    """Pictures 4 x 4 in noise, of class k with row k bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count).astype(np.int32)
    images = rng.uniform(-1.0, -0.6, (count, 4, 4, 1)).astype(np.float32)
    images[np.arange(count), labels] = rng.uniform(0.4, 1.0, (count, 4, 1))
    return Images(images, labels)


def train(key, epochs, count=250):
    return train_classifier(jax.random.key(key), linear_classifier(), bright_rows(count), epochs=epochs)


def test_a_classifier_learns_what_can_be_told_apart():
    model, test = linear_classifier(), bright_rows(200, seed=1)
    before = model_accuracy(model, train(0, 0), *test)
    assert before < 0.6
    assert model_accuracy(model, train(0, 150), *test) > 0.95


def test_training_is_decided_by_its_key():
    trained = train(0, 2)
    assert same_bits(trained, train(0, 2))
    assert not same_bits(trained, train(1, 2))
    assert not same_bits(trained, train(0, 3))


def test_fewer_images_than_a_batch_are_one_batch():
    """Otherwise an epoch would have no step, and nothing would be learnt."""
    assert not same_bits(train(0, 1, count=20), train(0, 0, count=20))


@pytest.fixture(scope="module")
def inversions():
    train, test = bright_rows(300), bright_rows(100, seed=1)
    return invert_all_classes("mlp", 2, train, test, 4, epochs=4, steps=30)


@pytest.mark.slow
def test_every_network_gives_a_picture_of_every_class(inversions):
    assert inversions.pictures.shape == (2, 4, 4, 4, 1)
    assert inversions.confidences.shape == (2, 4)
    assert np.abs(inversions.pictures).max() <= 1.0
    assert len(inversions.accuracies) == 2
    assert all(accuracy > 0.9 for accuracy in inversions.accuracies)
    # Drawn from black: the network's idea of a class is its row, brighter than the others.
    brightness = inversions.pictures.mean(axis=(3, 4))
    np.testing.assert_array_equal(brightness.argmax(axis=-1), np.tile(np.arange(4), (2, 1)))


@pytest.mark.slow
def test_networks_of_other_seeds_give_other_pictures(inversions):
    assert np.abs(inversions.pictures[0] - inversions.pictures[1]).max() > 0.01


@pytest.mark.slow
def test_the_convolutional_kind_is_the_federation_s_own(linear_networks):
    """With one output more than there are classes, as there."""
    train, test = bright_rows(40), bright_rows(20, seed=1)
    found = invert_all_classes("cnn", 1, train, test, 4, epochs=1, steps=2)
    assert found.pictures.shape == (1, 4, 4, 4, 1)


def test_another_kind_is_refused():
    data = bright_rows(10)
    with pytest.raises(ValueError, match="kind='rnn': expected 'mlp' or 'cnn'"):
        invert_all_classes("rnn", 1, data, data, 4, epochs=1, steps=1)
