"""Split inference from data to numbers: whose images are whose, and that no attack sees more than it may."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.data import Dataset
from gan_leak.runs.inversion import split, split_attacks
from gan_leak.runs.inversion.split import as_images, as_inputs, split_data, split_network, victim_for
from gan_leak.runs.storage.resumable import UNSAVED
from reference.small import largest_difference

VICTIM = victim_for("mnist")


def dataset(count=80):
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 10).astype(np.int32)
    images = rng.integers(0, 255, (count, 28, 28, 1), dtype=np.uint8)
    return Dataset("noise", images, labels, images[::-1].copy(), labels[::-1].copy(), tuple("0123456789"), "-")


@functools.cache
def prepared():
    data = split_data(VICTIM, dataset(), samples=32, images=3, rng=np.random.default_rng(0))
    return data, VICTIM.network.init(jax.random.key(0))


@pytest.mark.slow
def test_victim_and_adversary_have_different_images_and_the_first_of_each_class_is_attacked():
    data, _ = prepared()
    assert data.own[0].shape == data.others[0].shape == (32, 28, 28, 1)
    rows = {tuple(image.ravel()[:20]) for image in data.own[0]}
    assert not rows & {tuple(image.ravel()[:20]) for image in data.others[0]}
    assert data.tested[1][data.chosen[:10]].tolist() == list(range(10))
    # The first ten are one of each class; the others come after them.
    assert sorted(data.chosen[:10].tolist()) == list(range(10))
    assert data.chosen[10:].tolist() == [10, 11, 12]


@pytest.mark.parametrize(
    ("victim", "change", "samples", "message"),
    [
        ("cifar10", {}, 0, "dataset=noise: images of (28, 28, 1), expected (32, 32, 3)"),
        (
            "mnist",
            {"class_names": ("0",), "test_labels": np.zeros(80, np.int32)},
            0,
            "dataset=noise: test images of 1 class, expected at least 2 classes",
        ),
        ("mnist", {"class_names": tuple("abcdefghijk")}, 0, "dataset=noise: 11 classes, expected at most 10"),
        ("mnist", {}, 31, "samples=31: expected 0, for all, or at least a batch of 32"),
    ],
)
def test_data_that_does_not_fit_is_refused(victim, change, samples, message):
    data = dataset()._replace(**change)
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        split_data(victim_for(victim), data, samples=samples, images=0, rng=np.random.default_rng(0))


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="dataset=noise: 60 training images, expected at least 64"):
        split_data(VICTIM, dataset(60), samples=0, images=0, rng=np.random.default_rng(0))


def test_the_class_mean_is_of_the_adversarys_images():
    data, _ = prepared()
    inputs, labels = data.others
    for place, label in zip(range(13), data.tested[1][data.chosen], strict=True):
        np.testing.assert_allclose(data.class_means[place], inputs[labels == label].mean(0), atol=1e-6)


def test_inputs_and_images_are_the_same_in_two_scales():
    images = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    for victim in (VICTIM, victim_for("cifar10")):
        shown = images[..., :1] if victim is VICTIM else images
        np.testing.assert_allclose(as_images(victim, as_inputs(victim, shown)), shown, atol=1e-6)
    # Black is -mean / deviation of its channel (torchvision's Normalize).
    black = as_inputs(victim_for("cifar10"), np.full((1, 32, 32, 3), -1.0, np.float32))
    np.testing.assert_allclose(black[0, 0, 0], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-6)


def hidden(params, layers):
    return {
        name: jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), leaf) if name in layers else leaf
        for name, leaf in params.items()
    }


def test_the_white_box_reads_no_layer_of_the_cloud():
    data, params = prepared()
    parts = split_network(VICTIM, "conv1")
    inputs = data.tested[0][data.chosen[:2]]
    features = parts.client.apply(params, inputs)
    numbers = split.WhiteBoxHyperParameters(20, 1e-2, 0.0)
    found, blind = (
        split_attacks.white_box(parts.client, seen, features, (28, 28, 1), numbers, UNSAVED)
        for seen in (params, hidden(params, {"conv2", "fc1", "fc2", "fc3"}))
    )
    assert np.isfinite(found).all()
    assert largest_difference(found, blind) == 0
    # What it does read, it needs.
    unseen = hidden(params, {"conv1"})
    assert np.isnan(split_attacks.white_box(parts.client, unseen, features, (28, 28, 1), numbers, UNSAVED)).all()


@pytest.mark.slow
@pytest.mark.parametrize("knowledge", ["same set, same structure", "other set, other structure"])
def test_the_query_free_attack_reads_no_layer_of_the_client(knowledge):
    data, params = prepared()
    parts = split_network(VICTIM, "conv1")
    features = parts.client.apply(params, data.tested[0][data.chosen[:2]])
    found, blind = (
        split_attacks.query_free(
            jax.random.key(1),
            VICTIM,
            "conv1",
            parts,
            seen,
            data,
            knowledge,
            features,
            epochs=1,
            progress=UNSAVED,
            iterations=5,
        )
        for seen in (params, hidden(params, {"conv1"}))
    )
    assert np.isfinite(found).all()
    assert largest_difference(found, blind) == 0


def test_the_black_box_sees_features_only():
    """The client's network enters as a function that answers, and every image asked is one of its own choice."""
    data, params = prepared()
    asked = []

    def query(key, inputs):
        asked.append(np.asarray(inputs))
        return split_network(VICTIM, "conv1").client.apply(params, inputs)

    features = query(jax.random.key(0), data.tested[0][:2])

    def attack(number, knowledge):
        return split_attacks.black_box(
            jax.random.key(number), VICTIM, "conv1", query, data, knowledge, features, epochs=1, progress=UNSAVED
        )

    found = attack(1, "same distribution")
    assert found.shape == (2, 28, 28, 1)
    np.testing.assert_array_equal(np.concatenate(asked[1:]), data.others[0])
    attack(2, "random noise")
    assert abs(float(np.mean(asked[-1]))) < 0.05
    assert abs(float(np.std(asked[-1])) - 1.0) < 0.05


@pytest.mark.slow
def test_the_reconstruction_of_the_model_reads_no_layer_of_the_network():
    """It has the client's answers to images of its own choice, and the features."""
    data, params = prepared()
    parts = split_network(VICTIM, "conv1")
    asked = []

    def query(key, inputs):
        asked.append(np.asarray(inputs))
        return parts.client.apply(params, inputs)

    task = split_attacks.SplitTask(
        VICTIM,
        "conv1",
        parts,
        hidden(params, set(params)),
        data,
        query,
        parts.client.apply(params, data.tested[0][data.chosen[:2]]),
        "same distribution",
        epochs=1,
        iterations=5,
    )
    found = split_attacks.SPLIT_ATTACKS["model_reconstruction"].run(jax.random.key(1), task, UNSAVED)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(np.concatenate(asked), data.others[0])


def test_a_picture_of_another_image_scores_less():
    data, _ = prepared()
    inputs = data.tested[0][data.chosen]
    assert (data.tested[1][data.unseen] != data.tested[1][data.chosen]).all()
    outcome = split.measure(VICTIM, inputs, data)
    assert np.isinf(outcome.psnr).all()
    np.testing.assert_allclose(outcome.ssim, 1.0)
    assert outcome.re_identified.all()
    # One in eight by chance, as there are eight of a class.
    assert outcome.control_re_identified.mean() < 0.5
    assert (outcome.control_ssim < 0.3).all()
    # One who draws the mean of the class scores what stands beside it.
    means = split.measure(VICTIM, data.class_means, data)
    np.testing.assert_array_equal(means.psnr, outcome.class_psnr)
    np.testing.assert_array_equal(means.ssim, outcome.class_ssim)
    np.testing.assert_array_equal(means.re_identified, outcome.class_re_identified)
    assert means.class_re_identified.sum() <= 2


def test_a_picture_that_is_not_a_number_counts_as_grey():
    data, _ = prepared()
    broken = data.tested[0][data.chosen].copy()
    broken[0] = np.nan
    outcome = split.measure(VICTIM, broken, data)
    grey = split.measure(VICTIM, np.zeros_like(broken), data)
    assert outcome.psnr[0] == grey.psnr[0]
    assert all(np.isfinite(values).all() for values in grey)


def test_every_batch_has_a_key_of_its_own():
    inputs = np.zeros((12, 3), np.float32)
    said = split.predict_in_batches(
        jax.random.key(0), lambda key, inputs: inputs + jax.random.normal(key, inputs.shape), inputs, batch_size=5
    )
    assert said.shape == (12, 3)
    assert len(np.unique(said.round(6))) == 36
    share = split.accuracy(
        jax.random.key(0),
        lambda key, inputs: jax.nn.one_hot(inputs, 3),
        (np.array([0, 1, 2, 1]), np.array([0, 1, 2, 2])),
    )
    assert share == 0.75
