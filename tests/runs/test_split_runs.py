"""Split inference from data to numbers: whose images are whose, and that no attack sees more than it may."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.data import Dataset
from gan_leak.runs import split_inference as split
from gan_leak.runs.split_inference import as_images, as_inputs, parts_of, split_data, victim_for
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


def test_victim_and_adversary_have_different_images_and_the_first_of_each_class_is_attacked():
    data, _ = prepared()
    assert data.own[0].shape == data.others[0].shape == (32, 28, 28, 1)
    rows = {tuple(image.ravel()[:20]) for image in data.own[0]}
    assert not rows & {tuple(image.ravel()[:20]) for image in data.others[0]}
    assert data.tested[1][data.chosen[:10]].tolist() == list(range(10))
    assert data.chosen[10:].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"dataset=noise: images of \(28, 28, 1\), expected \(32, 32, 3\)"):
        split_data(victim_for("cifar10"), dataset(), samples=0, images=0, rng=np.random.default_rng(0))


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
    parts = parts_of(VICTIM, "conv1")
    inputs = data.tested[0][data.chosen[:2]]
    features = parts.client.apply(params, inputs)
    numbers = split.Likelihood(20, 1e-2, 0.0)
    found, blind = (
        split.white_box(parts.client, seen, features, (28, 28, 1), numbers)
        for seen in (params, hidden(params, {"conv2", "fc1", "fc2", "fc3"}))
    )
    assert np.isfinite(found).all()
    assert largest_difference(found, blind) == 0
    # What it does read, it needs.
    assert np.isnan(split.white_box(parts.client, hidden(params, {"conv1"}), features, (28, 28, 1), numbers)).all()


@pytest.mark.parametrize("knowledge", ["same set, same structure", "other set, other structure"])
def test_the_query_free_attack_reads_no_layer_of_the_client(knowledge):
    data, params = prepared()
    parts = parts_of(VICTIM, "conv1")
    features = parts.client.apply(params, data.tested[0][data.chosen[:2]])
    found, blind = (
        split.query_free(
            jax.random.key(1), VICTIM, "conv1", parts, seen, data, knowledge, features, epochs=1, iterations=5
        )
        for seen in (params, hidden(params, {"conv1"}))
    )
    assert np.isfinite(found).all()
    assert largest_difference(found, blind) == 0


def test_the_black_box_sees_answers_only():
    """The client's network enters as a function that answers, and every image asked is one of its own choice."""
    data, params = prepared()
    asked = []

    def query(inputs):
        asked.append(np.asarray(inputs))
        return parts_of(VICTIM, "conv1").client.apply(params, inputs)

    features = query(data.tested[0][:2])
    found = split.black_box(jax.random.key(1), VICTIM, "conv1", query, data, "same distribution", features, epochs=1)
    assert found.shape == (2, 28, 28, 1)
    np.testing.assert_array_equal(np.concatenate(asked[1:]), data.others[0])
    split.black_box(jax.random.key(1), VICTIM, "conv1", query, data, "random noise", features, epochs=1)
    assert abs(float(np.mean(asked[-1]))) < 0.05
    assert abs(float(np.std(asked[-1])) - 1.0) < 0.05


def test_a_picture_of_another_image_scores_less():
    data, _ = prepared()
    inputs = data.tested[0][data.chosen]
    assert (data.tested[1][data.unseen] != data.tested[1][data.chosen]).all()
    outcome = split.measure(VICTIM, inputs, inputs, data.tested[0][data.unseen])
    assert np.isinf(outcome.psnr).all()
    np.testing.assert_allclose(outcome.ssim, 1.0)
    assert (outcome.control_ssim < 0.3).all()
