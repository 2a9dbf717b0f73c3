"""One participant's local training: what it computes, what it visits, and what it must not look at."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.collaboration import RoundHyperParameters, selective_upload
from gan_leak.collaboration.participant import (
    init_participant,
    join,
    local_sgd,
    masked_cross_entropy,
    train_and_upload,
)
from gan_leak.types import Contribution, LocalData, Model
from reference import federation
from reference.small import CLASSES, IMAGE_SHAPE, largest_difference, linear_classifier, same_bits

MODEL = linear_classifier()
# Real samples of an adversary are not the first ones: its fakes follow its padding.
MASK = np.array([True, True, False, True, True, False, False, True, False])


def local_data(mask=MASK, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.uniform(-1, 1, (len(mask), *IMAGE_SHAPE)).astype(np.float32)
    labels = generator.integers(0, CLASSES, len(mask)).astype(np.int32)
    return LocalData(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(mask))


# As BatchNorm, it reads the whole batch for each of its images.
CENTERED = Model(MODEL.init, lambda params, images: MODEL.apply(params, images - jnp.mean(images, axis=0)[None]))


@functools.cache
def jitted_sgd(epochs=1, batch_size=3, model=MODEL):
    def run(key, params, steps, data, learning_rate=0.1, learning_rate_decay=0.0):
        return local_sgd(
            key,
            model,
            params,
            steps,
            data,
            RoundHyperParameters(learning_rate, learning_rate_decay),
            epochs=epochs,
            batch_size=batch_size,
        )

    return jax.jit(run)


def params_and_steps(seed=0, steps=0):
    return MODEL.init(jax.random.key(seed)), jnp.int32(steps)


def test_one_step_by_hand():
    """From zero, one image x of class 2 of 5: the step is rate * (onehot - 1/5) in the bias, times x in the weights."""
    params = jax.tree.map(jnp.zeros_like, MODEL.init(jax.random.key(0)))
    data = local_data(np.array([True]))._replace(labels=jnp.array([2]))
    trained, steps, loss = jitted_sgd()(jax.random.key(0), params, jnp.int32(4), data, 0.5, 0.25)
    push = 0.5 / (1 + 4 * 0.25) * (np.eye(CLASSES)[2] - 1 / CLASSES)
    np.testing.assert_allclose(trained["bias"], push, atol=1e-6)
    np.testing.assert_allclose(trained["kernel"], np.outer(data.inputs.reshape(-1), push), atol=1e-6)
    assert int(steps) == 5
    assert float(loss) == pytest.approx(math.log(CLASSES), abs=1e-6)


def observe_training(data, epochs, batch_size, key):
    """Runs local SGD and returns the sample numbers of its batches beside the result; fillers are left out."""
    seen = []
    model = linear_classifier(lambda images: seen.append(np.array(images)))
    params, steps = params_and_steps()
    result = jax.jit(
        lambda: local_sgd(
            key,
            model,
            params,
            steps,
            data,
            RoundHyperParameters(0.2, 0.3),
            epochs=epochs,
            batch_size=batch_size,
        )
    )()
    jax.effects_barrier()
    names = {np.asarray(image).tobytes(): number for number, image in enumerate(data.inputs)}
    real, batches, left = int(data.mask.sum()), [], 0
    for images in seen:
        left = left or real
        batches.append([names[image.tobytes()] for image in images[: min(left, batch_size)]])
        left -= len(batches[-1])
    return result, batches


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 2), (2, 3), (2, 5), (1, 16)])
def test_local_sgd_equals_the_twin(epochs, batch_size):
    """Each epoch visits each real sample once, and the loop over those batches gives the same parameters and loss."""
    data = local_data()
    (trained, steps, loss), batches = observe_training(data, epochs, batch_size, jax.random.key(1))
    settings = federation.Settings(0.2, 0.3, 1, 1, "largest", 0, math.inf, 1, epochs, batch_size, CLASSES)
    real = np.flatnonzero(MASK)
    renumbered = [[int(np.flatnonzero(real == number)[0]) for number in batch] for batch in batches]
    federation.check_batches(renumbered, len(real), settings)
    expected, expected_steps, expected_loss = federation.local_sgd(
        trees.ravel(params_and_steps()[0])[0],
        np.asarray(data.inputs),
        np.asarray(data.labels),
        0,
        batches,
        settings,
    )
    np.testing.assert_allclose(trees.ravel(trained)[0], expected, atol=1e-5)
    assert int(steps) == expected_steps
    assert float(loss) == pytest.approx(expected_loss, abs=1e-5)


def test_every_epoch_and_key_shuffles_anew():
    """Sixteen samples come in another order in each epoch and under each key."""
    data = local_data(np.ones(16, bool))
    orders = []
    for key in (0, 1):
        _, batches = observe_training(data, 2, 4, jax.random.key(key))
        flat = [number for batch in batches for number in batch]
        orders += [tuple(flat[:16]), tuple(flat[16:])]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("padding", [1e3, np.nan, np.inf])
@pytest.mark.parametrize("batch_size", [2, 4, 16])
@pytest.mark.parametrize("model", [MODEL, CENTERED], ids=["linear", "centered"])
def test_padding_changes_nothing(padding, batch_size, model):
    """No result depends on the images or labels that the mask hides, bit for bit, even where they are not numbers."""
    data = local_data()
    hidden = ~MASK
    images = jnp.where(hidden[:, None, None, None], padding, data.inputs)
    labels = jnp.where(hidden, 10**6, data.labels)
    sgd, start = jitted_sgd(2, batch_size, model), params_and_steps()
    expected = sgd(jax.random.key(0), *start, data)
    assert same_bits(sgd(jax.random.key(0), *start, LocalData(images, labels, data.mask)), expected)
    assert largest_difference(expected[0], start[0]) > 1e-3


def test_a_model_that_reads_the_batch_reads_real_samples_only():
    """Two equal real images, behind a hidden one, are centered to zero in a batch of any size, so the weights stay."""
    start, data = params_and_steps(), local_data(np.array([False, True, True, False]))
    images = data.inputs.at[2].set(data.inputs[1])
    for batch_size in (1, 2, 3, 16):
        trained, _, _ = jitted_sgd(1, batch_size, CENTERED)(jax.random.key(0), *start, data._replace(inputs=images))
        np.testing.assert_allclose(trained["kernel"], start[0]["kernel"], atol=1e-6)
        assert largest_difference(trained["bias"], start[0]["bias"]) > 1e-3


def test_training_depends_on_every_real_sample():
    """The counterpart of the padding test: a change of one real image or label shows."""
    data, start = local_data(), params_and_steps()
    sgd = jitted_sgd(2, 4)
    expected = sgd(jax.random.key(0), *start, data)
    for number in np.flatnonzero(MASK):
        moved = data._replace(inputs=data.inputs.at[number].add(0.1))
        assert not same_bits(sgd(jax.random.key(0), *start, moved), expected)
        relabelled = data._replace(labels=data.labels.at[number].set((data.labels[number] + 1) % CLASSES))
        assert not same_bits(sgd(jax.random.key(0), *start, relabelled), expected)


def test_without_samples_nothing_is_learned():
    """No steps, no change, loss zero; even where the padding is not a number."""
    data = local_data(np.zeros(9, bool))
    data = data._replace(inputs=jnp.full_like(data.inputs, jnp.nan))
    params, steps = params_and_steps(steps=7)
    trained, new_steps, loss = jitted_sgd(2, 4)(jax.random.key(0), params, steps, data)
    assert same_bits(trained, params)
    assert int(new_steps) == 7
    assert float(loss) == 0


def test_loss_is_the_mean_over_samples_not_over_batches():
    """With a rate of zero it is the mean negative log-likelihood, however the samples fall into uneven batches."""
    data = local_data()
    params, steps = params_and_steps()
    loss = jitted_sgd(2, 4)(jax.random.key(0), params, steps, data, 0.0)[2]
    flat = np.asarray(trees.ravel(params)[0])
    images, labels = np.asarray(data.inputs)[MASK], np.asarray(data.labels)[MASK]
    assert float(loss) == pytest.approx(federation.loss_and_gradient(flat, images, labels, CLASSES)[0], abs=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 10, 1000])
def test_learning_rate_decays_as_in_torch(steps):
    """Step t moves by 1 / (1 + t * d) of the first step."""
    data = local_data(np.ones(4, bool))
    params, _ = params_and_steps()

    def moved(steps):
        sgd = jitted_sgd(1, 4)
        return trees.subtract(sgd(jax.random.key(0), params, jnp.int32(steps), data, 0.1, 0.01)[0], params)

    expected = jax.tree.map(lambda leaf: leaf / (1 + steps * 0.01), moved(0))
    assert largest_difference(moved(steps), expected) < 1e-7


def test_masked_cross_entropy_of_an_empty_batch_is_zero():
    """No sample, no loss, and no division by zero in the gradient."""
    data = local_data(np.zeros(3, bool))
    params, _ = params_and_steps()
    loss, gradient = jax.value_and_grad(lambda params: masked_cross_entropy(MODEL, params, *data))(params)
    assert float(loss) == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_join_appends_the_contribution():
    """Local data first, then the adversary's; both masks apply."""
    data = local_data()
    fakes = Contribution(jnp.ones((2, *IMAGE_SHAPE)), jnp.array([4, 4]), jnp.array([True, False]))
    joined = join(data, fakes)
    assert joined.mask.tolist() == [*MASK.tolist(), True, False]
    assert same_bits(joined.inputs[:9], data.inputs)
    assert same_bits(joined.inputs[9:], fakes.inputs)
    assert joined.labels.tolist() == [*data.labels.tolist(), 4, 4]


def test_a_turn_keeps_the_trained_model_and_sends_its_selected_change():
    """Local parameters stay whole while the upload holds the largest changes since the download."""
    transform = selective_upload("largest")
    params, _ = params_and_steps()
    downloaded, _ = params_and_steps(seed=1)
    state = init_participant(params, transform)
    hyperparameters = RoundHyperParameters(0.3, 0.0, upload_fraction=0.2, upload_bound=0.01)
    new, upload, info = jax.jit(
        lambda: train_and_upload(
            jax.random.key(0),
            MODEL,
            transform,
            state,
            downloaded,
            local_data(),
            hyperparameters,
            epochs=1,
            batch_size=2,
        )
    )()
    change = np.asarray(trees.ravel(new.params)[0] - trees.ravel(downloaded)[0])
    assert int(info.uploaded) == upload.mask.sum() == round(0.2 * change.size)
    assert np.abs(change[upload.mask]).min() >= np.abs(change[~np.asarray(upload.mask)]).max()
    np.testing.assert_array_equal(upload.values, np.where(upload.mask, np.clip(change, -0.01, 0.01), 0))
    assert float(info.update_norm) == pytest.approx(np.linalg.norm(change), rel=1e-5)
    assert int(info.samples) == MASK.sum()
    assert int(new.optimizer_steps) == 3
