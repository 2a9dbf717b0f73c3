"""Attacks on one gradient: what is exact in a closed case, what they share, and that another view gives nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.attacks.gradient.contract import GradientEvidence
from gan_leak.attacks.gradient.deep_leakage import deep_leakage
from gan_leak.attacks.gradient.grnn import grnn
from gan_leak.attacks.gradient.inverting_gradients import inverting_gradients
from gan_leak.attacks.gradient.observation import (
    check_view,
    cosine_distance,
    gradient_of,
    infer_distinct_labels,
    infer_label,
    infer_label_from_bias,
    squared_distance,
    update_of,
)
from gan_leak.attacks.optimizers import Position, descend, limited_memory_bfgs
from gan_leak.attacks.procedure import advance, run_procedure
from gan_leak.models import count_parameters
from gan_leak.models.gradient_networks import dlg_lenet, grnn_lenet, grnn_resnet18, with_uniform_init
from gan_leak.models.grnn_generator import grnn_generator
from gan_leak.types import GradientView
from reference.small import CLASSES, IMAGE_SHAPE, largest_difference, linear_classifier

MODEL = linear_classifier()
PARAMS = MODEL.init(jax.random.key(0))


def batch(size, seed=0):
    images = jax.random.uniform(jax.random.key(seed), (size, *IMAGE_SHAPE))
    labels = jax.nn.one_hot(jax.random.permutation(jax.random.key(seed + 1), CLASSES)[:size], CLASSES)
    return images, labels


def test_a_linear_model_s_gradient_is_the_image():
    """Row k of the weights' gradient is the image times the k-th entry of the bias's: the picture is there to read."""
    images, labels = batch(1)
    gradient = gradient_of(MODEL, PARAMS, images, labels)
    read = gradient["kernel"] / gradient["bias"][None]
    np.testing.assert_allclose(read, np.repeat(images.reshape(-1, 1), CLASSES, axis=1), rtol=1e-4)


def turned(view):
    """A view of nobody's: the gradient of the weights with its pixels in the reverse order."""
    return view._replace(gradient={**view.gradient, "kernel": view.gradient["kernel"][::-1]})


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_deep_leakage_finds_the_image_of_a_linear_model(known):
    """From one of eight starts: without a line search, some leave for good."""
    images, labels = batch(1)
    view = GradientView(PARAMS, gradient_of(MODEL, PARAMS, images, labels))

    attack = deep_leakage(MODEL, images.shape, CLASSES, labels_known=known)
    run = jax.jit(
        jax.vmap(lambda key, view: run_procedure(key, attack, GradientEvidence(view, labels), 300), in_axes=(0, None))
    )

    def nearest(number, view):
        starts = run(jax.random.split(jax.random.key(number), 8), view)
        return jax.tree.map(lambda leaf: leaf[jnp.argmin(starts.distance)], starts)

    found = nearest(3, view)
    assert float(found.distance) < 1e-8
    np.testing.assert_allclose(found.images, images, atol=1e-3)
    assert int(jnp.argmax(found.labels)) == int(jnp.argmax(labels))
    # From a wrong view it does not find it.
    assert float(jnp.abs(nearest(4, turned(view)).images - images).mean()) > 0.1


START = [0.3, -0.7, 0.2, 0.9, -0.4]
# torch.optim.LBFGS([point], history_size=4, max_iter=10), three steps in double precision (PyTorch 2.13).
PATH_OF_TORCH = [
    *(295.22, 64.81374334, 31.3788867, 15.64772057, 4.96314428, 4.394801338, 3.928532149, 3.877857159, 3.824053218),
    *(3.759114263, 3.673309944, 3.513313113, 3.21653282, 13.5124657, 4.620748606, 34.69716609, 3.042461327),
    *(2.652582489, 2.901113093, 2.334097445, 2.242172809, 2.166671281, 2.061204527, 1.906452108, 1.496872123),
    *(5.157115063, 1.630702679, 2.87596097, 1.22203335, 1.095795939),
]


def valley(values, total):
    return total(100.0 * (values[1:] - values[:-1] ** 2) ** 2 + (1.0 - values[:-1]) ** 2)


def test_the_quasi_newton_steps_are_those_of_torch():
    with jax.enable_x64(True):
        optimizer = limited_memory_bfgs(memory=4)
        start = jnp.array(START)
        _, ours = jax.lax.scan(
            lambda position, _: descend(lambda values: valley(values, jnp.sum), optimizer, position),
            Position(start, optimizer.init(start)),
            length=len(PATH_OF_TORCH),
        )
        # Curvature of both signs lies on the way.
        np.testing.assert_allclose(ours, PATH_OF_TORCH, rtol=1e-6)


def test_the_path_of_torch_is_still_that():
    torch = pytest.importorskip("torch")
    theirs = []
    point = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([point], history_size=4, max_iter=10)

    def closure():
        optimizer.zero_grad()
        value = valley(point, torch.sum)
        value.backward()
        theirs.append(value.item())
        return value

    for _ in range(3):
        optimizer.step(closure)
    np.testing.assert_allclose(theirs, PATH_OF_TORCH, rtol=1e-6)


def test_inverting_gradients_finds_the_image_of_a_linear_model():
    images, labels = batch(1)
    view = GradientView(PARAMS, gradient_of(MODEL, PARAMS, images, labels))
    attack = inverting_gradients(MODEL, images.shape, iterations=2000, learning_rate=0.05, total_variation=0.0)
    run = jax.jit(lambda key, view: run_procedure(key, attack, GradientEvidence(view, labels), 2000))
    found = run(jax.random.key(3), view)
    np.testing.assert_allclose(found.images, images, atol=2e-2)
    assert float(found.distance) < 1e-4
    # From a wrong view it does not find it.
    assert float(jnp.abs(run(jax.random.key(4), turned(view)).images - images).mean()) > 0.1


@pytest.mark.slow
def test_inverting_gradients_weighs_and_slows_down_as_it_should():
    """The objective by hand, and steps of the sign by Adam, which are as long as the rate, an eighth at a time."""
    images, labels = batch(1)
    view = GradientView(PARAMS, gradient_of(MODEL, PARAMS, images, labels))
    attack = inverting_gradients(MODEL, images.shape, iterations=8, learning_rate=1e-3, total_variation=0.7)
    evidence = GradientEvidence(view, labels)
    position = attack.init(jax.random.key(3), evidence)
    longest = []
    for _ in range(8):
        moved, objective = attack.step(jax.random.key(4), position, evidence)
        across, along = jnp.diff(position.values, axis=2), jnp.diff(position.values, axis=1)
        variation = jnp.mean(jnp.abs(across)) + jnp.mean(jnp.abs(along))
        distance = cosine_distance(gradient_of(MODEL, PARAMS, position.values, labels), view.gradient)
        np.testing.assert_allclose(objective, distance + 0.7 * variation, rtol=1e-5)
        inner = (position.values > 0.01) & (position.values < 0.99)
        longest.append(float(jnp.max(jnp.abs(jnp.where(inner, moved.values - position.values, 0.0)))))
        position = moved
    np.testing.assert_allclose(longest, [1e-3] * 3 + [1e-4] * 2 + [1e-5] * 2 + [1e-6], rtol=0.2)


def test_updates_of_one_step_are_gradients_and_of_several_are_a_loop():
    images, labels = batch(4)
    rate = 0.3
    one = update_of(MODEL, PARAMS, images, labels, learning_rate=rate, steps=1, batch_size=4)
    assert largest_difference(one, gradient_of(MODEL, PARAMS, images, labels)) < 1e-5
    current = PARAMS
    for start in (0, 2, 0):
        gradient = gradient_of(MODEL, current, images[start : start + 2], labels[start : start + 2])
        current = jax.tree.map(lambda weight, change: weight - rate * change, current, gradient)
    expected = jax.tree.map(lambda before, after: (before - after) / rate, PARAMS, current)
    several = update_of(MODEL, PARAMS, images, labels, learning_rate=rate, steps=3, batch_size=2)
    assert largest_difference(several, expected) < 1e-5
    with pytest.raises(ValueError, match="batch_size=3: expected a divisor of 4, the number of images"):
        update_of(MODEL, PARAMS, images, labels, learning_rate=rate, steps=1, batch_size=3)


def test_distances_by_hand():
    left, right = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}, {"a": jnp.array([0.0, 2.0]), "b": jnp.array(1.0)}
    assert float(squared_distance(left, right)) == 9 + 4 + 9
    assert float(cosine_distance(left, right)) == pytest.approx(1 - 4 / (5 * 5**0.5))
    assert float(cosine_distance(left, left)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("label", range(CLASSES))
def test_the_label_of_one_image_is_exact(label):
    images, _ = batch(1, seed=label)
    gradient = gradient_of(MODEL, PARAMS, images, jax.nn.one_hot(jnp.array([label]), CLASSES))
    assert int(infer_label(gradient["kernel"])) == label
    assert int(infer_label_from_bias(gradient["bias"])) == label


@pytest.mark.slow
def test_sums_over_inputs_tell_a_label_through_noise_that_hides_it_in_the_bias():
    model = with_uniform_init(dlg_lenet(4, image_size=16, channels=1))

    def told(key):
        key_model, key_image, key_noise = jax.random.split(key, 3)
        params = model.init(key_model)
        label = jax.nn.one_hot(jnp.array([2]), 4)
        gradient = gradient_of(model, params, jax.random.uniform(key_image, (1, 16, 16, 1)), label)
        last = [leaf for leaf in jax.tree.leaves(gradient) if leaf.shape[-1] == 4]
        bias, kernel = (
            leaf + jax.random.normal(key, leaf.shape)
            for leaf, key in zip(sorted(last, key=jnp.ndim), jax.random.split(key_noise), strict=True)
        )
        return infer_label(kernel) == 2, infer_label_from_bias(bias) == 2

    by_sums, by_bias = jax.vmap(told)(jax.random.split(jax.random.key(0), 100))
    assert float(by_sums.mean()) > 0.9
    assert float(by_bias.mean()) < 0.8


def test_labels_of_a_batch_are_told_only_beyond_doubt():
    images, labels = batch(3)
    wide = jax.tree.map(lambda leaf: 0.1 * leaf, PARAMS)
    gradient = gradient_of(MODEL, wide, images, labels)["bias"]
    assert infer_distinct_labels(gradient, 3).tolist() == sorted(np.argmax(labels, axis=1).tolist())
    twice = gradient_of(MODEL, wide, images, labels[jnp.array([0, 0, 1])])["bias"]
    with pytest.raises(ValueError, match="labels: 2 classes show in the gradient of 3 images, expected one for each"):
        infer_distinct_labels(twice, 3)


def test_a_gradient_of_another_model_or_without_numbers_is_refused():
    gradient = gradient_of(MODEL, PARAMS, *batch(1))
    check_view(GradientView(PARAMS, gradient))
    check_view(GradientView(PARAMS, {"bias": gradient["bias"]}))
    for other in ({}, {"bias": gradient["bias"], "more": gradient["bias"]}):
        with pytest.raises(ValueError, match="gradient: of other shapes than the parameters"):
            check_view(GradientView(PARAMS, other))
    with pytest.raises(ValueError, match="gradient: of other shapes than the parameters"):
        check_view(GradientView(PARAMS, {**gradient, "bias": gradient["bias"][1:]}))
    with pytest.raises(ValueError, match="gradient: not finite"):
        check_view(GradientView(PARAMS, {**gradient, "bias": gradient["bias"].at[0].set(jnp.nan)}))


@functools.cache
def seen_by_grnn():
    model = dlg_lenet(4, image_size=16, channels=1)
    params = with_uniform_init(model).init(jax.random.key(5))
    image = jnp.zeros((1, 16, 16, 1)).at[0, 4:12, 6:10].set(1.0)
    label = jax.nn.one_hot(jnp.array([2]), 4)
    return model, image, label, GradientView(params, gradient_of(model, params, image, label))


@pytest.mark.slow
def test_grnn_draws_the_image_and_tells_the_label():
    model, image, label, view = seen_by_grnn()
    generator = grnn_generator(4, image_size=16, channels=1)
    method = grnn(model, generator, 1)
    attack = jax.jit(lambda key, view: run_procedure(key, method, GradientEvidence(view, label), 500))
    found = attack(jax.random.key(1), view)
    assert int(jnp.argmax(found.labels)) == 2
    error = float(jnp.mean((found.images - image) ** 2))
    assert error < 0.02
    # From another participant's gradient it does not draw this one's image.
    other = GradientView(view.params, gradient_of(model, view.params, image[:, ::-1, ::-1] * 0.2, label))
    elsewhere = attack(jax.random.key(1), other)
    assert float(jnp.mean((elsewhere.images - image) ** 2)) > 5 * error


@pytest.mark.slow
def test_an_attack_in_parts_is_the_whole_attack():
    """What a long run keeps is all that it needs."""
    model, image, label, view = seen_by_grnn()
    for attack in (
        grnn(model, grnn_generator(4, image_size=16, channels=1), 1),
        deep_leakage(model, image.shape, 4),
        inverting_gradients(model, image.shape, iterations=30),
    ):
        evidence = GradientEvidence(view, label)
        state = attack.init(jax.random.key(2), evidence)

        @jax.jit
        def further(state, steps, first, attack=attack, evidence=evidence):
            return advance(jax.random.key(3), attack, state, evidence, steps, first=first)

        whole = further(state, jnp.int32(12), jnp.int32(0))
        parts = further(further(state, jnp.int32(5), jnp.int32(0)), jnp.int32(7), jnp.int32(5))
        assert largest_difference(whole, parts) == 0


@pytest.mark.slow
def test_attacks_that_recover_labels_do_not_look_at_them():
    """Labels of NaN, wherever an attack is not told any, change nothing."""
    model, image, label, view = seen_by_grnn()
    hidden = jnp.full_like(label, jnp.nan)
    for attack in (grnn(model, grnn_generator(4, image_size=16, channels=1), 1), deep_leakage(model, image.shape, 4)):
        run = jax.jit(
            lambda labels, attack=attack: run_procedure(jax.random.key(2), attack, GradientEvidence(view, labels), 3)
        )
        assert largest_difference(run(label), run(hidden)) == 0
    told = deep_leakage(model, image.shape, 4, labels_known=True)
    assert jnp.isnan(run_procedure(jax.random.key(2), told, GradientEvidence(view, hidden), 3).labels).all()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["released", "squared"])
def test_the_objective_of_grnn_by_hand(loss):
    model, _, label, view = seen_by_grnn()
    generator = grnn_generator(4, image_size=16, channels=1)
    attack = grnn(model, generator, 1, total_variation=0.3, loss=loss)
    evidence = GradientEvidence(view, label)
    training = jax.jit(attack.init)(jax.random.key(1), evidence)
    drawn, labels = jax.jit(generator.apply)(training.position.values, training.noise)
    differences = jax.tree.map(jnp.subtract, gradient_of(model, view.params, drawn, labels), view.gradient)
    squared = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(differences))
    along, across = (float(jnp.mean(jnp.diff(drawn, axis=axis) ** 2)) for axis in (1, 2))
    norm = squared**0.5 if loss == "released" else 0.0
    expected = squared + norm + 0.3 * 2 * (along + across)
    assert float(jax.jit(attack.step)(jax.random.key(2), training, evidence)[1]) == pytest.approx(expected, rel=1e-4)


def test_an_unknown_loss_is_refused():
    model = seen_by_grnn()[0]
    with pytest.raises(ValueError, match="loss='wasserstein': expected one of released, squared"):
        grnn(model, grnn_generator(4, image_size=16, channels=1), 1, loss="wasserstein")


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (dlg_lenet, (3 * 25 * 12 + 12) + 2 * (12 * 25 * 12 + 12) + 768 * 100 + 100),
        (grnn_lenet, 456 + 2416 + 48120 + 10164 + 85 * 100),
    ],
)
def test_networks_have_the_published_sizes(network, parameters):
    params = with_uniform_init(network(100)).init(jax.random.key(0))
    assert count_parameters(params) == parameters
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert -0.5 <= values.min() < -0.49
    assert 0.49 < values.max() <= 0.5


@pytest.mark.slow
def test_the_generator_and_the_resnet_have_the_published_sizes():
    generator = grnn_generator(10).init(jax.random.key(0))
    labels = count_parameters(generator["label_layer"])
    assert count_parameters(generator) - labels == 710_988
    resnet = jax.eval_shape(grnn_resnet18(10).init, jax.random.key(0))
    # The usual ResNet-18 for small images with ten classes.
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(resnet)) == 11_173_962
