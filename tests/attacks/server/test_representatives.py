"""Representatives: what is exact in a closed case, the objectives against NumPy, and that the clients do not mix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.attacks.gradient.observation import gradient_of, update_of
from gan_leak.attacks.priors import summed_total_variation
from gan_leak.attacks.procedure import _STEPS_BRANCH
from gan_leak.attacks.server.observed_updates import as_gradients
from gan_leak.attacks.server.representatives import (
    MatchingTask,
    UpdateEvidence,
    check_matching,
    lbfgs_representatives,
    matcher,
    signed_adam_representatives,
    unrolled,
)
from gan_leak.models.gradient_networks import dlg_lenet, with_uniform_init
from gan_leak.runs.storage.resumable import UNSAVED, Keys, run_in_parts
from reference.small import CLASSES, IMAGE_SHAPE, largest_difference, linear_classifier, same_bits

MODEL = linear_classifier()
RATE = 0.3


def clients_images(clients, count, seed=0):
    return jax.random.uniform(jax.random.key(seed), (clients, count, *IMAGE_SHAPE), minval=-1, maxval=1)


def labels_of(clients, count):
    return (jnp.arange(clients * count, dtype=jnp.int32).reshape(clients, count) * 3) % CLASSES


def params_of(clients, seed=10):
    return jax.vmap(MODEL.init)(jax.random.split(jax.random.key(seed), clients))


def observed(params, images, labels, steps=1):
    """The evidence of clients that trained on these images for so many full-batch steps."""

    def of_client(params, images, labels):
        encoded = jax.nn.one_hot(labels, CLASSES)
        update = update_of(MODEL, params, images, encoded, learning_rate=RATE, steps=steps, batch_size=images.shape[0])
        return trees.ravel(update)[0] / steps

    return UpdateEvidence(params, jax.vmap(of_client)(params, images, labels), labels)


def evidence_of(clients, count, seed=0):
    return observed(params_of(clients), clients_images(clients, count, seed), labels_of(clients, count))


def adam(iterations=60, **arguments):
    return matcher(signed_adam_representatives(MODEL, IMAGE_SHAPE, iterations=iterations, **arguments), iterations)


def lbfgs(iterations=60, **arguments):
    return matcher(lbfgs_representatives(MODEL, IMAGE_SHAPE, **arguments), iterations)


MATCHERS = {"signed_adam": adam, "lbfgs": lbfgs}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("match", "tolerance"),
    [
        (adam(600, total_variation=0.0), 0.02),
        (lbfgs(60, total_variation=0.0), 0.001),
    ],
)
def test_the_representative_of_one_image_is_that_image_in_a_linear_model(match, tolerance):
    """Its gradient is an outer product with the image. Each of three clients has a model and an image of its own."""
    images = clients_images(3, 1)
    evidence = observed(params_of(3), images, labels_of(3, 1))
    found = jax.jit(match)(jax.random.key(1), evidence)
    assert largest_difference(found.images, images) < tolerance
    assert (np.asarray(found.distances) < 1e-3).all()
    # The control: another client's update does not have this image.
    assert largest_difference(found.images[::-1], images) > 0.5


def numpy_gradient(params, images, labels, weights):
    """The gradient of the weighted cross-entropy of a linear model: bias, then kernel."""
    flat = images.reshape(len(images), -1)
    logits = flat @ params["kernel"] + params["bias"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = (powers / powers.sum(axis=1, keepdims=True) - np.eye(CLASSES)[labels]) * weights[:, None]
    return np.concatenate([errors.sum(axis=0), (flat.T @ errors).ravel()])


def numpy_distance(kind, gradient, seen):
    if kind == "lbfgs":
        return np.sum((gradient - seen) ** 2)
    return 1 - gradient @ seen / np.linalg.norm(gradient) / np.linalg.norm(seen)


def numpy_total_variation(kind, images):
    """Pixel by pixel: the mean absolute differences, or the sum of (dx^2 + dy^2)^1.25; the mean over images."""
    values = []
    for image in images[..., 0]:
        height, width = image.shape
        rows = [image[i + 1, j] - image[i, j] for i in range(height - 1) for j in range(width)]
        columns = [image[i, j + 1] - image[i, j] for i in range(height) for j in range(width - 1)]
        if kind == "signed_adam":
            values.append(np.mean(np.abs(rows)) + np.mean(np.abs(columns)))
            continue
        total = 0.0
        for i in range(height):
            for j in range(width):
                down = image[i + 1, j] - image[i, j] if i + 1 < height else 0.0
                right = image[i, j + 1] - image[i, j] if j + 1 < width else 0.0
                total += (down**2 + right**2) ** 1.25
        values.append(total)
    return np.mean(values)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", MATCHERS)
def test_the_objective_is_that_of_a_naive_twin(kind, weighted):
    """The info of the first step is the mean objective of the start; the result without steps has its distance."""
    evidence = evidence_of(2, 3)
    weights = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    evidence = evidence._replace(weights=weights if weighted else None)
    start = clients_images(2, 3, seed=5)
    build = {"signed_adam": signed_adam_representatives, "lbfgs": lbfgs_representatives}[kind]
    procedure = build(MODEL, IMAGE_SHAPE, total_variation=0.25)
    task = MatchingTask(evidence, start)
    _, value = jax.jit(procedure.step)(jax.random.key(0), procedure.init(jax.random.key(1), task), task)
    found = jax.jit(matcher(procedure, 0))(jax.random.key(2), evidence, start)
    assert same_bits(found.images, start)
    distances, objectives = [], []
    for client in range(2):
        params = {name: np.asarray(leaf[client], np.float64) for name, leaf in evidence.params.items()}
        parts = np.asarray(weights[client], np.float64) if weighted else np.full(3, 1 / 3)
        images = np.asarray(start[client], np.float64)
        gradient = numpy_gradient(params, images, np.asarray(evidence.labels[client]), parts)
        distances.append(numpy_distance(kind, gradient, np.asarray(evidence.updates[client], np.float64)))
        objectives.append(distances[-1] + 0.25 * numpy_total_variation(kind, images))
    np.testing.assert_allclose(found.distances, distances, rtol=1e-4)
    np.testing.assert_allclose(value, np.mean(objectives), rtol=1e-4)


def test_total_variation_of_a_step_by_hand():
    """Four rows of 0, 0, 1, 1: each has one difference of 1. And flat images have a slope of zero."""
    image = jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0])[None, :, None], (4, 1, 1))
    assert float(summed_total_variation(image)) == 4.0
    assert float(summed_total_variation(image.swapaxes(0, 1))) == 4.0
    both = image + image.swapaxes(0, 1)
    np.testing.assert_allclose(summed_total_variation(both), 6.0 + 2**1.25, rtol=1e-6)
    assert not np.any(jax.grad(lambda flat: summed_total_variation(flat))(jnp.ones((4, 4, 1))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MATCHERS)
def test_more_starts_are_never_worse_than_one(kind):
    """The first start is the same, so the others can only be nearer; with some of these keys one is."""
    evidence = evidence_of(2, 2)
    one, three = (jax.jit(MATCHERS[kind](12, starts=starts)) for starts in (1, 3))
    gains = []
    for seed in range(4):
        alone, best = one(jax.random.key(seed), evidence).distances, three(jax.random.key(seed), evidence).distances
        assert (np.asarray(best) <= np.asarray(alone) * (1 + 1e-4) + 1e-6).all()
        gains.append(alone - best)
    assert np.max(gains) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", MATCHERS)
def test_one_round_is_the_plain_evidence_bit_for_bit(kind):
    evidence = evidence_of(2, 2)
    once = evidence._replace(params=trees.expand(evidence.params), updates=evidence.updates[None])
    match = jax.jit(MATCHERS[kind](10))
    assert same_bits(match(jax.random.key(0), evidence), match(jax.random.key(0), once))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MATCHERS)
def test_the_distance_of_rounds_is_their_sum(kind):
    images, labels = clients_images(2, 2), labels_of(2, 2)
    rounds = [observed(params_of(2, seed), images, labels) for seed in (10, 11, 12)]
    together = UpdateEvidence(
        trees.stack([one.params for one in rounds]), jnp.stack([one.updates for one in rounds]), labels
    )
    start = clients_images(2, 2, seed=3)
    measure = jax.jit(MATCHERS[kind](0))
    apart = [measure(jax.random.key(0), one, start).distances for one in rounds]
    summed = measure(jax.random.key(0), together, start).distances
    np.testing.assert_allclose(summed, np.sum(apart, axis=0), rtol=1e-5)
    # Three models show more of an image than one does: two images' sums become the images.
    errors = [
        float(jnp.mean(jnp.abs(jax.jit(MATCHERS[kind](300, total_variation=0.0))(jax.random.key(1), seen)[0] - images)))
        for seen in (rounds[0], together)
    ]
    assert errors[1] < errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MATCHERS)
def test_clients_do_not_mix_and_mappings_agree(kind):
    evidence, start = evidence_of(3, 2), clients_images(3, 2, seed=4)
    key = jax.random.key(0)
    mapped, vectorized = (
        jax.jit(MATCHERS[kind](8, client_mapping=mapping))(key, evidence, start) for mapping in ("map", "vmap")
    )
    for client in range(3):
        own = slice(client, client + 1)
        alone = jax.jit(MATCHERS[kind](8))(key, trees.take(evidence, own), start[own])
        for all_of_them in (mapped, vectorized):
            np.testing.assert_allclose(all_of_them.images[client], alone.images[0], atol=1e-4)
            np.testing.assert_allclose(all_of_them.distances[client], alone.distances[0], rtol=1e-3, atol=1e-5)
    # The control: what another client sent changes nothing.
    other = evidence._replace(updates=evidence.updates.at[1].set(jnp.nan))
    changed = jax.jit(MATCHERS[kind](8, client_mapping="vmap"))(key, other, start)
    assert same_bits(trees.take(changed, jnp.array([0, 2])), trees.take(vectorized, jnp.array([0, 2])))
    assert not same_bits(changed.distances[1], vectorized.distances[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "procedure",
    [
        signed_adam_representatives(MODEL, IMAGE_SHAPE, iterations=25, starts=2),
        lbfgs_representatives(MODEL, IMAGE_SHAPE, starts=2),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_round_and_the_resumable_runner_find_the_same_bits(procedure, warm):
    """Inside a loop of a jitted program, as an attack calls it, and in parts with the host between them."""
    evidence, start = evidence_of(2, 2), clients_images(2, 2, seed=6) if warm else None
    match = matcher(procedure, 25)

    @jax.jit
    def rounds(seed):
        def body(_, found):
            return match(jax.random.wrap_key_data(seed), evidence, start)

        return jax.lax.fori_loop(0, 2, body, trees.zeros(jax.eval_shape(body, 0, None)))

    def key():
        return jax.random.key(7)

    in_round = rounds(jax.random.key_data(key()))
    in_parts = run_in_parts(
        Keys(key(), jax.random.fold_in(key(), _STEPS_BRANCH)),
        procedure,
        MatchingTask(evidence, start),
        steps=25,
        unit="step",
        progress=UNSAVED,
    )
    assert same_bits(in_round, in_parts)


@pytest.mark.slow
def test_unrolled_steps_see_what_divided_ones_cannot():
    """After five long steps, the update at the true images is exact if simulated, and wrong if divided."""
    images, labels = clients_images(2, 2), labels_of(2, 2)
    evidence = observed(params_of(2), images, labels, steps=5)
    simulate = unrolled(MODEL, learning_rate=RATE, steps=5, batch_size=2)
    for match in (adam, lbfgs):
        exact, divided = (
            jax.jit(match(0, simulate=how))(jax.random.key(0), evidence, images).distances for how in (simulate, None)
        )
        assert (np.asarray(exact) < 1e-6).all()
        assert (np.asarray(divided) > 1e-3).all()
    found = jax.jit(adam(200, simulate=simulate, total_variation=0.0))(jax.random.key(1), evidence)
    assert (np.asarray(found.distances) < 0.01).all()


def test_uploads_become_gradients():
    """One step: minus the upload over the rate. Several: the mean along the way, as ``unrolled`` divides."""
    params, images = MODEL.init(jax.random.key(0)), clients_images(1, 2)[0]
    labels = jax.nn.one_hot(labels_of(1, 2)[0], CLASSES)
    after, total = params, jax.tree.map(jnp.zeros_like, params)
    for _ in range(3):
        gradient = gradient_of(MODEL, after, images, labels)
        after = jax.tree.map(lambda weight, change: weight - RATE * change, after, gradient)
        total = trees.add(total, gradient)
    upload, _ = trees.ravel(trees.subtract(after, params))
    seen = as_gradients(upload, RATE, 3)
    np.testing.assert_allclose(seen, trees.ravel(total)[0] / 3, rtol=1e-4, atol=1e-6)
    simulated = unrolled(MODEL, learning_rate=RATE, steps=3, batch_size=2)(params, images, labels)
    np.testing.assert_allclose(trees.ravel(simulated)[0], seen, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MATCHERS)
def test_images_stay_in_the_box_and_never_get_worse_than_the_start(kind):
    """Also from a start outside; and from the private images themselves nothing is lost."""
    evidence = evidence_of(2, 2)
    found = jax.jit(MATCHERS[kind](15))(jax.random.key(0), evidence, 3 * clients_images(2, 2, seed=8))
    assert np.max(np.abs(found.images)) <= 1.0
    private = clients_images(2, 2)
    warm = jax.jit(MATCHERS[kind](15, total_variation=0.0))(jax.random.key(0), evidence, private)
    assert (np.asarray(warm.distances) < 1e-6).all()


@pytest.mark.slow
def test_an_update_of_zeros_or_noise_gives_finite_images():
    """A defense may remove an update; the search of that client, and of the others, goes on."""
    evidence = evidence_of(2, 2)
    evidence = evidence._replace(updates=evidence.updates.at[0].set(0.0))
    for match in (adam(10), lbfgs(10)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(match)(jax.random.key(0), evidence)))


@pytest.mark.slow
def test_one_image_of_a_convolutional_classifier_is_recovered_beyond_24_db():
    """One published figure is 24.06 dB, on CIFAR-10 (breaching). Here: a synthetic image and DLG's network."""
    model = with_uniform_init(dlg_lenet(10, image_size=16, channels=1))
    params = model.init(jax.random.key(0))
    rows = jnp.linspace(-1, 1, 16)
    image = (jnp.sin(5 * rows[:, None]) * jnp.cos(3 * rows[None, :]))[None, :, :, None]
    label = jnp.array([[4]], jnp.int32)
    update, _ = trees.ravel(gradient_of(model, params, image, jax.nn.one_hot(label[0], 10)))
    evidence = UpdateEvidence(trees.expand(params), update[None], label)
    found = jax.jit(matcher(lbfgs_representatives(model, (16, 16, 1), starts=4, total_variation=0.0), 400))(
        jax.random.key(1), evidence
    )
    assert 10 * np.log10(4 / np.mean((found.images[0] - image) ** 2)) > 24


def bad(**changes):
    evidence = evidence_of(2, 3)
    return evidence._replace(**{name: change(getattr(evidence, name)) for name, change in changes.items()})


@pytest.mark.parametrize(
    ("evidence", "start", "message"),
    [
        (bad(updates=lambda values: values[:, :-1]), None, r"^updates: shape \(2, 84\), expected \(2, 85\)"),
        (bad(updates=lambda values: values[:1]), None, r"^updates: shape \(1, 85\), expected \(2, 85\)"),
        (bad(updates=lambda values: values[None]), None, r"^params: expected the model's, with leading axes \(1, 2\)"),
        (
            bad(params=lambda tree: trees.take(tree, 0)),
            None,
            r"^params: expected the model's, with leading axes \(2,\)",
        ),
        (bad(labels=lambda values: values[0]), None, r"^labels: shape \(3,\), expected \[K, R\]"),
        (bad(labels=lambda values: values[:, :0]), None, r"^labels: shape \(2, 0\), expected \[K, R\]"),
        (bad(weights=lambda _: jnp.ones((2, 2))), None, r"^weights: shape \(2, 2\), expected \(2, 3\)"),
        (bad(), jnp.zeros((2, 3, 4, 4)), r"^start: shape \(2, 3, 4, 4\), expected \(2, 3, 4, 4, 1\)$"),
    ],
)
def test_evidence_that_does_not_fit_is_refused_in_one_line(evidence, start, message):
    with pytest.raises(ValueError, match=message) as raised:
        check_matching(MODEL, IMAGE_SHAPE, MatchingTask(evidence, start))
    assert "\n" not in str(raised.value)
    for match in (adam(1), lbfgs(1)):
        with pytest.raises(ValueError, match=message):
            match(jax.random.key(0), evidence, start)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: adam(1, starts=0), r"^starts=0: expected at least 1$"),
        (lambda: adam(1, client_mapping="loop"), r"^client_mapping='loop': allowed are 'auto', 'vmap', 'map'$"),
        (lambda: adam(-1), r"^iterations=-1: expected at least 0$"),
        (lambda: lbfgs(-1), r"^iterations=-1: expected at least 0$"),
        (lambda: lbfgs(1, memory=0), r"^memory=0: expected at least 1$"),
        (lambda: unrolled(MODEL, learning_rate=0.1, steps=0, batch_size=1), r"^steps=0: expected at least 1$"),
        (lambda: unrolled(MODEL, learning_rate=0.1, steps=1, batch_size=0), r"^batch_size=0: expected at least 1$"),
    ],
)
def test_choices_that_are_not_allowed_are_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message):
        build()
