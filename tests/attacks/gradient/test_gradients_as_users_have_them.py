"""Gradients that lack arrays, are sums, come from reshuffled epochs, repeat labels, or stand in another order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.attacks.gradient.contract import GradientEvidence
from gan_leak.attacks.gradient.deep_leakage import deep_leakage
from gan_leak.attacks.gradient.flatten_order import chw_to_hwc, infer_flatten_order
from gan_leak.attacks.gradient.grnn import grnn
from gan_leak.attacks.gradient.inverting_gradients import inverting_gradients
from gan_leak.attacks.gradient.label_counts import infer_label_counts, infer_scale
from gan_leak.attacks.gradient.label_order import infer_label_order
from gan_leak.attacks.gradient.observation import (
    check_view,
    cosine_distance,
    fitted_scale,
    gradient_of,
    reshuffled,
    scaled_distance,
    squared_distance,
    update_of,
)
from gan_leak.attacks.procedure import run_procedure
from gan_leak.models.grnn_generator import grnn_generator
from gan_leak.runs.inversion.gradient import network_for
from gan_leak.runs.inversion.gradient_files import FLATTENINGS
from gan_leak.types import GradientView
from reference.small import CLASSES, IMAGE_SHAPE, largest_difference, linear_classifier

MODEL = linear_classifier()
PARAMS = MODEL.init(jax.random.key(0))
IMAGES = jax.random.uniform(jax.random.key(1), (1, *IMAGE_SHAPE))
LABELS = jax.nn.one_hot(jnp.array([3]), CLASSES)
GRADIENT = gradient_of(MODEL, PARAMS, IMAGES, LABELS)
# A gradient whose array is missing, or stands for nothing (None).
SENT = ({"kernel": GRADIENT["kernel"]}, {"kernel": GRADIENT["kernel"], "bias": None})


def seen(sent):
    return GradientEvidence(GradientView(PARAMS, sent), LABELS)


def test_distances_are_taken_over_what_was_sent():
    ours = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    for seen in ({"a": jnp.array([0.0, 2.0])}, {"a": jnp.array([0.0, 2.0]), "b": None}):
        assert float(squared_distance(ours, seen)) == 9 + 4
        assert float(cosine_distance(ours, seen)) == 1.0
    for foreign in ({"c": jnp.ones(2)}, {"a": jnp.ones((2, 1))}):
        for distance in (squared_distance, scaled_distance, cosine_distance):
            with pytest.raises(ValueError, match=r"gradient: .* expected arrays of the model's parameters"):
                distance(ours, foreign)


def test_a_view_may_lack_arrays_but_not_all_and_not_parameters():
    for sent in SENT:
        check_view(GradientView(PARAMS, sent))
    for params, gradient in ((PARAMS, {}), ({"bias": PARAMS["bias"]}, GRADIENT)):
        with pytest.raises(ValueError, match="gradient: of other shapes than the parameters"):
            check_view(GradientView(params, gradient))


@pytest.mark.parametrize("sent", SENT, ids=["missing", "none"])
def test_deep_leakage_finds_the_image_without_the_bias(sent):
    attack = deep_leakage(MODEL, IMAGES.shape, CLASSES, labels_known=True)
    run = jax.jit(jax.vmap(lambda key: run_procedure(key, attack, seen(sent), 200)))
    starts = run(jax.random.split(jax.random.key(3), 8))
    np.testing.assert_allclose(starts.images[jnp.argmin(starts.distance)], IMAGES, atol=1e-3)


def test_inverting_gradients_finds_the_image_without_the_bias():
    attack = inverting_gradients(MODEL, IMAGES.shape, iterations=1000, learning_rate=0.05, total_variation=0.0)
    found = jax.jit(lambda key: run_procedure(key, attack, seen(SENT[0]), 1000))(jax.random.key(3))
    np.testing.assert_allclose(found.images, IMAGES, atol=3e-2)


@pytest.mark.slow
def test_grnn_matches_what_was_sent():
    model = linear_classifier_of(16)
    params = model.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 16, 16, 1))
    sent = {"kernel": gradient_of(model, params, image, LABELS)["kernel"]}
    attack = grnn(model, grnn_generator(CLASSES, image_size=16, channels=1), 1, loss="squared", total_variation=0.0)
    evidence = GradientEvidence(GradientView(params, sent), LABELS)
    training = attack.init(jax.random.key(2), evidence)
    found = attack.extract(training, evidence)
    drawn = gradient_of(model, params, found.images, found.labels)["kernel"]
    assert float(found.distance) == pytest.approx(float(jnp.sum((drawn - sent["kernel"]) ** 2)), rel=1e-5)
    assert float(attack.step(jax.random.key(3), training, evidence)[1]) == pytest.approx(
        float(found.distance), rel=1e-4
    )


def linear_classifier_of(size):
    def init(key):
        return {"bias": jnp.zeros(CLASSES), "kernel": 0.1 * jax.random.normal(key, (size * size, CLASSES))}

    return MODEL._replace(init=init)


def test_the_fitted_scale_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    ours, seen = ({"a": jnp.asarray(rng.normal(size=5)), "b": jnp.asarray(rng.normal(size=(2, 3)))} for _ in range(2))
    left, right = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (ours, seen))
    scale, rest, _, _ = np.linalg.lstsq(left[:, None], right)
    np.testing.assert_allclose(fitted_scale(ours, seen), scale[0], rtol=1e-5)
    np.testing.assert_allclose(scaled_distance(ours, seen), rest[0], rtol=1e-5)
    assert float(scaled_distance(ours, jax.tree.map(lambda leaf: -8 * leaf, ours))) < 1e-6
    # Nothing has no direction, and no scale.
    assert float(fitted_scale(jax.tree.map(jnp.zeros_like, ours), seen)) == 0


@pytest.mark.slow
def test_deep_leakage_that_fits_the_scale_does_not_care_for_it():
    """Steps and what is found are the same for a gradient of any size, but for the distance, which is its square's."""
    attack = deep_leakage(MODEL, IMAGES.shape, CLASSES, fit_scale=True)
    found = [
        jax.jit(lambda key, sent: run_procedure(key, attack, seen(sent), 20))(
            jax.random.key(3), jax.tree.map(lambda leaf, scale=scale: scale * leaf, GRADIENT)
        )
        for scale in (1.0, 8.0)
    ]
    np.testing.assert_allclose(found[0].images, found[1].images, atol=1e-3)
    np.testing.assert_allclose(64 * found[0].distance, found[1].distance, rtol=1e-2)
    drawn = gradient_of(MODEL, PARAMS, found[0].images, found[0].labels)
    np.testing.assert_allclose(found[0].distance, scaled_distance(drawn, GRADIENT), rtol=1e-3)


def test_an_order_names_the_images_of_each_step():
    images = jax.random.uniform(jax.random.key(0), (4, *IMAGE_SHAPE))
    labels = jax.nn.one_hot(jnp.array([0, 1, 1, 2]), CLASSES)
    order = jnp.array([2, 0, 3, 1, 1, 2])
    current = PARAMS
    for start in (0, 2, 4):
        chosen = order[start : start + 2]
        gradient = gradient_of(MODEL, current, images[chosen], labels[chosen])
        current = jax.tree.map(lambda weight, change: weight - 0.3 * change, current, gradient)
    expected = jax.tree.map(lambda before, after: (before - after) / 0.3, PARAMS, current)
    seen = update_of(MODEL, PARAMS, images, labels, learning_rate=0.3, steps=3, batch_size=2, order=order)
    assert largest_difference(seen, expected) < 1e-5


def test_each_epoch_of_a_reshuffling_participant_holds_each_image_once():
    order = np.asarray(reshuffled(jax.random.key(0), 8, steps=10, batch_size=2))
    epochs = [order[start : start + 8].tolist() for start in (0, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert len(order) == 20


@pytest.mark.slow
def test_images_of_all_epochs_are_matched_whatever_their_order():
    """Epochs that hold the same images in other places read as those images; and labels are never mixed."""
    images = jax.random.uniform(jax.random.key(0), (4, *IMAGE_SHAPE))
    labels = jax.nn.one_hot(jnp.array([0, 0, 1, 1]), CLASSES)
    held = jnp.concatenate([images, images[jnp.array([1, 0, 2, 3])], images[jnp.array([1, 0, 3, 2])]])

    def update(params, images, labels):
        return update_of(MODEL, params, images, labels, learning_rate=0.1, steps=6, batch_size=2)

    labels = jnp.tile(labels, (3, 1))
    attack = inverting_gradients(MODEL, images.shape, update=update, epochs=3, total_variation=0.0, epoch_prior=2.0)
    evidence = GradientEvidence(GradientView(PARAMS, GRADIENT), labels)
    position = attack.init(jax.random.key(1), evidence)
    assert position.values.shape == (12, *IMAGE_SHAPE)
    found = attack.extract(position._replace(values=held), evidence)
    np.testing.assert_allclose(found.images, images, atol=1e-6)
    # The objective: a distance, and how far the means of the epochs are from their mean.
    values = position.values
    means = np.asarray(values).reshape(3, 4, *IMAGE_SHAPE).mean(axis=1)
    distance = cosine_distance(update(PARAMS, values, labels), GRADIENT)
    objective = attack.step(jax.random.key(2), position, evidence)[1]
    np.testing.assert_allclose(objective, distance + 2.0 * np.var(means, axis=0).mean(), rtol=1e-4)


@pytest.mark.slow
def test_an_update_tells_which_labels_were_in_which_batch():
    """Where the simulation has the participant's images; with grey ones it is an estimate."""
    params = jax.tree.map(lambda leaf: 0.05 * leaf, PARAMS)
    labels = np.array([0, 1, 1, 2])
    for seed in range(4):
        order = np.asarray(reshuffled(jax.random.key(seed), 4, steps=6, batch_size=2))
        images = jax.random.uniform(jax.random.key(10 + seed), (4, *IMAGE_SHAPE))

        def update(images, labels):
            encoded = jax.nn.one_hot(labels, CLASSES)
            return update_of(MODEL, params, images, encoded, learning_rate=0.5, steps=6, batch_size=2)

        told, distance = infer_label_order(
            jax.random.key(seed),
            lambda labels, held=images[order]: update(held, labels),
            update(images[order], labels[order]),
            labels,
            epochs=3,
            batch_size=2,
        )
        assert distance < 1e-5
        for ours, theirs in zip(told.reshape(-1, 2), labels[order].reshape(-1, 2), strict=True):
            assert sorted(ours) == sorted(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [8.0, 0.3, -1.0])
def test_the_last_layer_of_one_image_tells_the_scale(scale):
    for network, initialisation in (("dlg_lenet", "wide"), ("mnist_classifier", "torch")):
        init, gradient = _compiled(network, initialisation)
        params = init(jax.random.key(0))
        image = np.random.default_rng(0).uniform(size=(1, 32, 32, 1)).astype(np.float32)
        seen = gradient(params, image, np.eye(10, dtype=np.float32)[[6]])
        kernel, bias, kernel_gradient, bias_gradient = (_last(tree, ndim) for tree in (params, seen) for ndim in (2, 1))
        told = infer_scale(kernel, bias, scale * kernel_gradient, scale * bias_gradient, 1)
        assert told == pytest.approx(scale, rel=1e-3)
        # Of another network's parameters, it tells nothing.
        assert infer_scale(-kernel, bias + 3.0 * np.arange(10), kernel_gradient, bias_gradient, 1) is None


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (4.0, 4.0), (2.5, None)])
def test_a_batch_is_a_mean_or_a_sum_or_does_not_tell(scale, expected):
    init, gradient = _compiled("dlg_lenet", "torch")
    params, labels = init(jax.random.key(0)), np.array([3, 3, 7, 1])
    images = np.random.default_rng(0).uniform(size=(4, 32, 32, 1)).astype(np.float32)
    seen = gradient(params, images, np.eye(10, dtype=np.float32)[labels])
    kernel, bias, kernel_gradient, bias_gradient = (_last(tree, ndim) for tree in (params, seen) for ndim in (2, 1))
    assert infer_scale(kernel, bias, scale * kernel_gradient, scale * bias_gradient, 4) == expected


def _last(tree, ndim):
    (leaf,) = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == ndim and leaf.shape[-1] == 10]
    return np.asarray(leaf)


@functools.cache
def _compiled(network, initialisation):
    model = network_for(network, initialisation, 10, 32, 1)
    return jax.jit(lambda key: model.init(key)), jax.jit(functools.partial(gradient_of, model))


def counts_of(network, initialisation, labels, seed):
    init, gradient = _compiled(network, initialisation)
    params = init(jax.random.key(seed))
    images = np.random.default_rng(seed).uniform(size=(len(labels), 32, 32, 1)).astype(np.float32)
    seen = gradient(params, images, np.eye(10, dtype=np.float32)[labels])
    return infer_label_counts(*(_last(tree, ndim) for tree in (params, seen) for ndim in (2, 1)), len(labels))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["dlg_lenet", "grnn_lenet", "mnist_classifier"])
def test_repeated_labels_of_an_untrained_network_are_exact(network):
    rng = np.random.default_rng(0)
    batches = [
        np.array([3, 3, 7, 1]),
        np.array([5, 5, 5, 5]),
        *(rng.choice(rng.integers(0, 10, 3), 4) for _ in range(6)),
    ]
    for seed, labels in enumerate(batches):
        assert counts_of(network, "torch", labels, seed).tolist() == sorted(labels.tolist())


def test_counts_are_right_wherever_they_are_told_at_all():
    """Of networks whose probabilities differ from image to image, most batches are refused and none is wrong."""
    rng = np.random.default_rng(1)
    refused = 0
    for seed in range(30):
        labels = rng.choice(rng.integers(0, 10, 3), 4)
        try:
            told = counts_of("mnist_classifier", "wide", labels, seed)
        except ValueError:
            refused += 1
        else:
            assert told.tolist() == sorted(labels.tolist())
    assert refused > 15


def test_a_sum_in_the_place_of_a_mean_has_no_counts():
    init, gradient = _compiled("dlg_lenet", "torch")
    params, labels = init(jax.random.key(0)), np.array([3, 3, 7, 1])
    seen = gradient(params, np.ones((4, 32, 32, 1), np.float32), np.eye(10, dtype=np.float32)[labels])
    kernel, bias, kernel_gradient, bias_gradient = (_last(tree, ndim) for tree in (params, seen) for ndim in (2, 1))
    with pytest.raises(
        ValueError,
        match=r"labels: the counts of 4 images cannot be inferred reliably .*an array 'labels' in the file",
    ):
        infer_label_counts(kernel, bias, 4 * kernel_gradient, 4 * bias_gradient, 4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("network", list(FLATTENINGS))
@pytest.mark.parametrize("initialisation", ["torch", "wide"])
def test_the_flatten_order_shows_in_the_gradient(network, initialisation, size):
    init, gradient = _compiled(network, initialisation)
    where = FLATTENINGS[network]
    params = init(jax.random.key(size))
    rng = np.random.default_rng(size)
    images = rng.uniform(size=(size, 32, 32, 1)).astype(np.float32)
    seen = gradient(params, images, np.eye(10, dtype=np.float32)[rng.integers(0, 10, size)])

    def dense(tree):
        return functools.reduce(dict.__getitem__, where.dense.split("/"), tree)

    kernel, rows = (np.asarray(dense(tree)["kernel"]) for tree in (params, seen))
    channels = len(seen[where.convolution]["bias"])
    # The inverse of what reads PyTorch's order.
    theirs = np.argsort(chw_to_hwc(np.arange(len(rows))[:, None], channels)[:, 0])
    nobodys = rng.permutation(len(rows))
    for order, expected in ((slice(None), "hwc"), (theirs, "chw"), (nobodys, None)):
        given = (kernel[order], rows[order], dense(seen)["bias"], seen[where.convolution]["bias"])
        inferred = infer_flatten_order(*given, where.slope)
        # A network of tanh units that are all but certain may hide it in a batch; it never shows the wrong one.
        certain = (network, initialisation) == ("mnist_classifier", "wide") and size > 1
        assert inferred in ((expected, None) if certain else (expected,))
    np.testing.assert_array_equal(chw_to_hwc(rows[theirs], channels), rows)


def test_a_channel_is_moved_from_first_to_last():
    volume = np.arange(2 * 3 * 3 * 5).reshape(2, 3, 3, 5)
    np.testing.assert_array_equal(chw_to_hwc(volume.reshape(18, 5), 2), volume.transpose(1, 2, 0, 3).reshape(18, 5))
