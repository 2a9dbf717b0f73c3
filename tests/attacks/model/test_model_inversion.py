"""Model inversion: where the descent goes, when it stops, and what it returns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan_leak.attacks import InversionTarget, clip_to_range, gaussian_smoothing, model_inversion, run_procedure
from gan_leak.collaboration import init_federation, selective_upload
from gan_leak.models import mlp_classifier
from gan_leak.models.flax import stateless_model
from gan_leak.models.hitaj_classifiers import PooledConvolutionClassifier
from gan_leak.types import Model, ModelView
from reference.model_inversion import invert_softmax_regression, stop
from reference.small import CLASSES, IMAGE_SHAPE, largest_difference, leaves, linear_classifier, same_bits

LINEAR = linear_classifier()
BLACK, GREY = -jnp.ones(IMAGE_SHAPE), jnp.zeros(IMAGE_SHAPE)
SETTINGS = {"start": BLACK, "learning_rate": 0.5, "steps": 60, "patience": 10, "confidence": 0.9}


def linear_view(seed=0):
    return ModelView(LINEAR.init(jax.random.key(seed)))


def inversion(view, classifier, *, target_class, start, steps=5000, **numbers):
    """The attack from start to end."""
    procedure = model_inversion(classifier, **numbers)
    return run_procedure(jax.random.key(0), procedure, InversionTarget(view, target_class, start), steps)


@functools.cache
def inverter(classifier=LINEAR, mapped=False, **static):
    """The attack, compiled: (view, target_class, numbers) -> (image, info); mapped, for target classes [T]."""

    def attack(view, target_class, numbers):
        return inversion(view, classifier, target_class=target_class, **numbers, **static)

    return jax.jit(jax.vmap(attack, in_axes=(None, 0, None)) if mapped else attack)


def invert(view, target_class, classifier=LINEAR, mapped=False, process=clip_to_range, **changes):
    numbers = SETTINGS | changes
    static = {"patience": numbers.pop("patience"), "process": process}
    return inverter(classifier, mapped, **static)(view, target_class, numbers)


@functools.cache
def small_mlp():
    """A nonlinear network with weights large enough for its costs to differ, and its view."""
    model = mlp_classifier(CLASSES, image_size=4, hidden=(12,))
    return model, ModelView(jax.tree.map(lambda leaf: 4 * leaf, model.init(jax.random.key(3))))


def one_weight_a_pixel(weights):
    """Two classes, a 2x2 image: the first has logit <weights, image>, the second 0."""

    def apply(params, images):
        return jnp.stack([images.reshape(-1, 4) @ params, jnp.zeros(len(images))], axis=1)

    return Model(lambda key: jnp.asarray(weights), apply), ModelView(jnp.asarray(weights))


def test_one_step_by_hand():
    """From grey both classes have 1/2, where the gradient of the cost is -1/4 of the weights."""
    model, view = one_weight_a_pixel([0.5, -1.0, 0.0, 2.0])
    image, info = inversion(
        view, model, target_class=0, start=jnp.zeros((2, 2, 1)), steps=1, learning_rate=0.8, confidence=1.0
    )
    np.testing.assert_allclose(image.ravel(), [0.1, -0.2, 0.0, 0.4], atol=1e-7)
    # <weights, image> = 0.05 + 0.2 + 0.8
    assert float(info.confidence) == pytest.approx(1 / (1 + np.exp(-1.05)), abs=1e-6)
    assert float(info.cost) == pytest.approx(1 - float(info.confidence), abs=1e-7)
    assert int(info.steps) == 1


@pytest.mark.parametrize(("target", "corner"), [(0, [1, -1, 0, 1]), (1, [-1, 1, 0, -1])])
def test_a_linear_model_is_inverted_to_a_corner(target, corner):
    """Every pixel ends black or white by the sign of its weight, one without weight as it began; then nothing moves."""
    model, view = one_weight_a_pixel([0.5, -1.0, 0.0, 0.75])
    image, info = inversion(
        view, model, target_class=target, start=jnp.zeros((2, 2, 1)), learning_rate=4.0, patience=7, confidence=1.0
    )
    assert image.ravel().tolist() == corner
    assert float(info.confidence) == pytest.approx(1 / (1 + np.exp(-2.25)), abs=1e-6)
    # The slowest pixel moves 4 * 0.5 * p (1 - p) a step, at most 1/2 and at least 2 * 0.086: corner within 12 steps.
    assert 2 + 7 <= int(info.steps) <= 12 + 7


def test_the_rate_for_this_range_is_four_times_the_papers():
    """With 4 lambda in [-1, 1] the path is that of lambda in [0, 1]: same steps, same picture."""
    paper_model = Model(LINEAR.init, lambda params, images: LINEAR.apply(params, 2 * images - 1))
    paper_image, paper_info = invert(
        linear_view(), 2, paper_model, process=lambda image: jnp.clip(image, 0, 1), start=GREY, learning_rate=0.1
    )
    image, info = invert(linear_view(), 2, start=BLACK, learning_rate=0.4)
    np.testing.assert_allclose(2 * paper_image - 1, image, atol=1e-5)
    assert int(paper_info.steps) == int(info.steps) > 5


def scripted(costs):
    """A model and a process that walk through confidences that are given, whatever the gradient; 64 at most.

    The picture is a counter, which the process moves on, and its logits are looked up.
    """
    model = Model(lambda key: costs, lambda table, images: table[jnp.int32(jnp.round(images[:, 0, 0, 0] * 64))])
    return model, lambda image: image + 1 / 64


LENGTH = 40
SCRIPT_MODEL, NEXT_PICTURE = scripted(None)
COSTS = st.one_of(
    # A few levels, so that there are plateaus, relapses and ties.
    st.lists(st.sampled_from([0.9, 0.7, 0.5, 0.3]), min_size=LENGTH, max_size=LENGTH),
    st.lists(st.floats(0.001, 0.999), min_size=LENGTH, max_size=LENGTH),
    st.lists(st.floats(0.001, 0.999), min_size=LENGTH, max_size=LENGTH).map(lambda costs: sorted(costs, reverse=True)),
    st.lists(st.sampled_from([0.9, 0.5, 0.3, np.nan]), min_size=LENGTH, max_size=LENGTH),
)


@given(
    costs=COSTS,
    alpha=st.integers(1, LENGTH - 1),
    beta=st.sampled_from([1, 2, 3, 8, 60]),
    gamma=st.sampled_from([0.0, 0.1, 0.35, 0.5]),
)
def test_stopping_is_that_of_the_algorithm(costs, alpha, beta, gamma):
    """Steps taken and the picture returned equal those of a plain loop on the same costs, ties and NaN included."""
    logits = np.stack([np.log1p(-np.asarray(costs)), np.log(costs)], axis=1).astype(np.float32)
    confidences = np.asarray(jax.nn.softmax(logits)[:, 0])
    numbers = {"start": jnp.zeros((1, 1, 1)), "steps": alpha, "learning_rate": 0.1, "confidence": np.float32(1 - gamma)}
    image, info = inverter(SCRIPT_MODEL, patience=beta, process=NEXT_PICTURE)(ModelView(logits), 0, numbers)
    exact_costs = 1 - confidences.astype(np.float64)
    steps, least = stop(exact_costs, alpha, beta, 1 - float(np.float32(1 - gamma)))
    assert int(info.steps) == steps
    assert round(float(image[0, 0, 0]) * 64) == least
    np.testing.assert_array_equal(info.confidence, confidences[least])
    np.testing.assert_allclose(info.cost, exact_costs[least], atol=1e-7)


@pytest.mark.parametrize("target", range(CLASSES))
@pytest.mark.parametrize(("rate", "alpha", "gamma"), [(0.5, 60, 0.1), (0.1, 9, 0.0), (5.0, 60, 0.0)])
def test_the_path_is_that_of_the_algorithm(target, rate, alpha, gamma):
    """On softmax regression, in double precision and with a gradient written by hand."""
    params = {name: np.asarray(leaf, np.float64) for name, leaf in linear_view().params.items()}
    picture, cost, steps = invert_softmax_regression(
        params["kernel"], params["bias"], target, np.full(16, -1), rate, alpha, 10, gamma
    )
    image, info = invert(linear_view(), target, learning_rate=rate, steps=alpha, confidence=1 - gamma)
    np.testing.assert_allclose(image.ravel(), picture, atol=2e-5)
    assert float(info.cost) == pytest.approx(cost, abs=1e-5)
    assert gamma == 0 or int(info.steps) == steps


def test_mapped_over_classes_it_equals_one_class_after_the_other():
    """Classes finish after different numbers of steps; who has finished waits unchanged."""
    model, view = small_mlp()
    images, infos = invert(view, jnp.arange(CLASSES), model, mapped=True, learning_rate=1.0, confidence=0.6)
    assert len(set(infos.steps.tolist())) > 2
    for target in range(CLASSES):
        image, info = invert(view, target, model, learning_rate=1.0, confidence=0.6)
        np.testing.assert_allclose(images[target], image, atol=1e-5)
        np.testing.assert_allclose(infos.confidence[target], info.confidence, atol=1e-5)
        assert int(infos.steps[target]) == int(info.steps)


@pytest.mark.slow
def test_a_convolutional_network_is_inverted_mapped_and_alone():
    """Through the layers of the paper's network, of which pooling has a gradient of its own."""
    model = stateless_model(PooledConvolutionClassifier(((3, 2),), 8, CLASSES), (12, 12, 1))
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    view = ModelView(jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), shapes))
    start = jnp.zeros((12, 12, 1))
    before = jax.nn.softmax(model.apply(view.params, start[None]))[0]
    images, infos = invert(view, jnp.arange(3), model, mapped=True, start=start, steps=4, learning_rate=0.01)
    image, info = invert(view, 1, model, start=start, steps=4, learning_rate=0.01)
    assert (infos.confidence > before[:3]).all()
    np.testing.assert_allclose(images[1], image, atol=1e-5)
    assert float(info.confidence) == pytest.approx(float(infos.confidence[1]), abs=1e-6)


def test_compiled_equals_not_compiled():
    """The same picture and the same number of steps."""
    model, view = small_mlp()
    compiled = invert(view, 1, model, steps=12)
    plain = inversion(view, model, target_class=1, **SETTINGS | {"steps": 12})
    assert largest_difference(compiled, plain) < 1e-5


def test_all_numbers_are_traced():
    """One compilation serves every class, start, rate, number of steps and confidence."""
    attack = jax.jit(lambda view, numbers: inversion(view, LINEAR, patience=5, **numbers))
    for target, start, rate, steps, confidence in ((0, BLACK, 0.1, 3, 0.9), (3, GREY, 0.2, 9, 0.99)):
        numbers = {"target_class": target, "start": start, "learning_rate": rate, "steps": steps}
        attack(linear_view(), numbers | {"confidence": confidence})
    assert attack._cache_size() == 1


@given(
    seed=st.integers(0, 1000),
    rate=st.sampled_from([0.01, 0.4, 30.0, 1e6]),
    target=st.integers(0, CLASSES - 1),
    smoothed=st.booleans(),
)
def test_the_result_is_a_picture_no_worse_than_the_start(seed, rate, target, smoothed):
    """In [-1, 1] and of no higher cost, however wild the rate and whatever the process does to the path."""
    model, view = small_mlp()
    start = jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, IMAGE_SHAPE), jnp.float32)
    process = SMOOTHING if smoothed else clip_to_range
    image, info = invert(view, target, model, start=start, learning_rate=rate, steps=15, process=process)
    assert np.abs(image).max() <= 1
    of_start, of_image = jax.nn.softmax(model.apply(view.params, jnp.stack([start, image])))[:, target]
    assert float(of_image) >= float(of_start) - 1e-6
    assert float(info.confidence) == pytest.approx(float(of_image), abs=1e-6)


def test_the_attack_depends_on_its_view_alone():
    """The trained model leaves a federation of which all the rest, and the model's own initialisation, is NaN."""

    def view_of(state):
        return ModelView(state.server.params)

    def poison(leaf):
        return jnp.full_like(leaf, jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    state = init_federation(jax.random.key(0), LINEAR, selective_upload("largest"), participants=3)
    hidden = jax.tree.map(poison, state)
    hidden = hidden._replace(server=hidden.server._replace(params=state.server.params))
    assert any(np.isnan(leaf).any() for leaf in leaves(hidden))
    uninitialised = Model(lambda key: jax.tree.map(poison, LINEAR.init(key)), LINEAR.apply)
    result = invert(view_of(state), 1)
    assert same_bits(invert(view_of(hidden), 1, uninitialised), result)
    assert largest_difference(invert(linear_view(seed=5), 1)[0], result[0]) > 0.1


def test_a_view_of_nan_gives_the_start_back():
    """And says that its confidence is no number, after one step."""
    image, info = invert(ModelView(jax.tree.map(lambda leaf: leaf * jnp.nan, linear_view().params)), 1)
    assert same_bits(image, BLACK)
    assert np.isnan(info.confidence)
    assert np.isnan(info.cost)
    assert int(info.steps) == 1


def test_a_traced_class_that_is_not_there_is_not_taken_for_another():
    """Where no error can be raised, the confidence is NaN."""
    image, info = invert(linear_view(), jnp.int32(CLASSES))
    assert same_bits(image, BLACK)
    assert np.isnan(info.confidence)


SMOOTHING = gaussian_smoothing(0.5)


def test_smoothing_is_a_gaussian_blur():
    """It keeps what is constant, spreads a point by the Gaussian's ratios, alike both ways, and cuts the range."""
    np.testing.assert_allclose(SMOOTHING(jnp.full((5, 7, 3), 0.3)), 0.3, atol=1e-6)
    point = jnp.zeros((9, 9, 2)).at[4, 4, 1].set(1.0)
    blurred = np.asarray(SMOOTHING(point))
    assert blurred.sum() == pytest.approx(1, abs=1e-6)
    assert not blurred[:, :, 0].any()
    np.testing.assert_allclose(blurred, blurred.transpose(1, 0, 2), atol=1e-7)
    np.testing.assert_allclose(blurred, blurred[::-1], atol=1e-7)
    # exp(-offset^2 / (2 * 0.5^2))
    np.testing.assert_allclose(blurred[5, 4, 1] / blurred[4, 4, 1], np.exp(-2), rtol=1e-5)
    np.testing.assert_allclose(blurred[6, 5, 1] / blurred[4, 4, 1], np.exp(-2 * (4 + 1)), rtol=1e-5)
    assert float(SMOOTHING(jnp.full((3, 3, 1), 5.0)).max()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_class": -1}, "target_class=-1: expected at least 0"),
        ({"target_class": 5}, "target_class=5: expected 0 to 4, one of the classifier's outputs"),
        ({"target_class": jnp.arange(2)}, r"target_class.shape=\(2,\): expected a single number; vmap takes several"),
        ({"steps": -1}, "steps=-1: expected at least 0"),
        ({"patience": 0}, "patience=0: expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: expected a positive finite number"),
        ({"learning_rate": np.nan}, "learning_rate=nan: expected a positive finite number"),
        ({"learning_rate": np.inf}, "learning_rate=inf: expected a positive finite number"),
        ({"confidence": 0.0}, r"confidence=0.0: expected a number in \(0, 1\]"),
        ({"confidence": 99.0}, r"confidence=99.0: expected a number in \(0, 1\]"),
        ({"start": BLACK[None]}, r"start.shape=\(1, 4, 4, 1\): expected \[H, W, C\]"),
        ({"start": jnp.zeros(IMAGE_SHAPE, jnp.uint8)}, r"start.dtype=uint8: expected floating point in \[-1, 1\]"),
        ({"start": 2 * BLACK}, r"start from -2.0 to -2.0: expected values in \[-1, 1\]"),
        ({"start": BLACK * np.nan}, r"start from nan to nan: expected values in \[-1, 1\]"),
    ],
)
def test_bad_input_is_refused(changes, message):
    """In one line with the name, the value and what is expected, inside jit as well."""
    arguments = {"target_class": 0} | SETTINGS | changes
    with pytest.raises(ValueError, match=f"^{message}$"):
        inversion(linear_view(), LINEAR, **arguments)
    with pytest.raises(ValueError, match=f"^{message}"):  # JAX adds a note of its own
        jax.jit(lambda view: inversion(view, LINEAR, **arguments))(linear_view())


@pytest.mark.parametrize("deviation", [0.0, -1.0, np.inf, np.nan])
def test_a_smoothing_without_width_is_refused(deviation):
    """One line with the name, the value and what is expected."""
    with pytest.raises(ValueError, match=f"^standard_deviation={deviation}: expected a positive finite number$"):
        gaussian_smoothing(deviation)
