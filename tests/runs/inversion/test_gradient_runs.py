"""Attacks on one gradient from data to numbers: who is attacked, what is kept on the way, and what counts as near."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.attacks.gradient.contract import GradientEvidence, GradientInversion
from gan_leak.attacks.gradient.inverting_gradients import inverting_gradients
from gan_leak.attacks.gradient.observation import gradient_of
from gan_leak.attacks.procedure import run_procedure
from gan_leak.data import Dataset
from gan_leak.defenses import gaussian_noise
from gan_leak.runs.inversion import gradient as inversion
from gan_leak.runs.inversion.gradient import (
    Observation,
    Victims,
    observe,
    run_attack,
    utility,
    victims_from,
)
from gan_leak.runs.inversion.gradient_labels import infer_labels
from gan_leak.runs.inversion.gradient_measures import measure
from gan_leak.runs.storage import resumable as parts
from gan_leak.runs.storage.resumable import SavedProgress
from gan_leak.types import GradientView
from reference.small import CLASSES, IMAGE_SHAPE, largest_difference, linear_classifier

MODEL = linear_classifier()


def dataset(count=60, size=12):
    """Every image has its own brightness, so that it can be told."""
    shades = np.arange(count, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(4 * shades, (count, size, size, 1)).copy()
    images[:, : size // 2] = 255 - images[:, : size // 2]
    labels = (np.arange(count) % 3).astype(np.int32)
    return Dataset("shades", images, labels, images, labels, ("a", "b", "c"), "-")


@pytest.mark.parametrize(("batch_size", "images", "participants"), [(1, 5, 5), (4, 10, 3), (8, 8, 1), (8, 1, 1)])
def test_participants_own_different_images_and_are_held_against_images_of_others(batch_size, images, participants):
    victims = victims_from(dataset(), batch_size=batch_size, images=images, channels=3, seed=1)
    assert victims.images.shape == (participants, batch_size, 12, 12, 3)
    own, other, gallery = (
        np.round(255 * values[..., -1, -1, 0] / 4).astype(int)
        for values in (victims.images, victims.other_images, victims.gallery_images)
    )
    assert len(set(own.ravel())) == own.size
    for mine, theirs in zip(own, other, strict=True):
        assert not set(mine) & set(theirs)
    assert not set(gallery) & {*own.ravel(), *other.ravel()}
    np.testing.assert_array_equal(victims.labels, own % 3)
    np.testing.assert_array_equal(victims.other_labels, other % 3)
    np.testing.assert_array_equal(victims.gallery_labels, gallery % 3)


def test_more_images_than_there_are_and_other_channels_are_refused():
    with pytest.raises(ValueError, match="batch_size=1, images=60: expected fewer than 60 images in all"):
        victims_from(dataset(), batch_size=1, images=60, channels=1, seed=0)
    with pytest.raises(ValueError, match="batch_size=30, images=1: expected fewer than 60 images"):
        victims_from(dataset(), batch_size=30, images=1, channels=1, seed=0)
    colour = dataset()._replace(train_images=np.zeros((60, 12, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="channels=1: expected 3, as the images of shades have"):
        victims_from(colour, batch_size=1, images=2, channels=1, seed=0)


@pytest.mark.parametrize(("concentration", "pairs"), [(0.05, 1.05 / 1.15), (1.0, 2 / 4), (1e4, 1 / 3)])
def test_classes_of_a_participant_have_dirichlet_proportions(concentration, pairs):
    """Two images of a participant share their class with probability (a + 1) / (K a + 1)."""
    victims = victims_from(
        dataset(count=60_000, size=2),
        batch_size=20,
        images=6_000,
        channels=1,
        seed=0,
        dirichlet_concentration=concentration,
    )
    counts = np.stack([np.sum(victims.labels == label, axis=1) for label in range(3)], axis=1)
    shares = np.sum(counts * (counts - 1), axis=1) / (20 * 19)
    assert np.mean(shares) == pytest.approx(pairs, abs=4 * np.std(shares) / np.sqrt(300) + 1e-3)


def test_dealt_participants_own_different_images_and_too_few_of_a_class_are_refused():
    def deal(batch_size):
        return victims_from(
            dataset(), batch_size=batch_size, images=8, channels=1, seed=0, dirichlet_concentration=0.01
        )

    victims = deal(4)
    own, other, gallery = (
        np.round(255 * values[..., -1, -1, 0] / 4).astype(int).ravel()
        for values in (victims.images, victims.other_images, victims.gallery_images)
    )
    assert sorted([*own, *gallery]) == list(range(60))
    assert sorted(own) == sorted(other)
    np.testing.assert_array_equal(victims.labels.ravel(), own % 3)
    with pytest.raises(
        ValueError, match=r"dirichlet_concentration=0.01: expected more images, class [012] has too few"
    ):
        deal(29)


def perfect(victims, order):
    labels = np.eye(3, dtype=np.float32)[victims.labels]
    return GradientInversion(victims.images[:, order], labels[:, order], np.zeros(len(victims.images)))


def test_measures_of_a_perfect_attack_in_any_order_and_of_one_that_saw_nothing():
    victims = victims_from(dataset(), batch_size=4, images=8, channels=1, seed=0)
    result = measure(perfect(victims, [2, 0, 3, 1]), victims)
    np.testing.assert_array_equal(result.images, victims.images.astype(np.float32))
    assert np.isinf(result.measures.psnr).all()
    np.testing.assert_allclose(result.measures.ssim, 1.0)
    assert result.measures.recovered.all()
    assert result.measures.label_right.all()
    assert not result.measures.rmse.any()
    # Held against another participant's, the same pictures are no longer exact.
    assert np.isfinite(result.other_measures.psnr).all()
    blank = measure(GradientInversion(np.full_like(victims.images, np.nan), np.zeros((2, 4, 3)), np.zeros(2)), victims)
    assert not blank.measures.recovered.any()
    assert np.isfinite(blank.images).all()


def test_a_picture_is_identified_by_the_nearest_of_the_gallery():
    images = np.stack([np.zeros((8, 8, 1)), np.ones((8, 8, 1))])[:, None]
    gallery = np.stack([np.full((8, 8, 1), 0.1), np.full((8, 8, 1), 0.9)])
    victims = Victims(images, np.array([[5], [7]]), images[::-1], np.array([[7], [5]]), gallery, np.array([5, 7]))
    found = GradientInversion(images, np.eye(8)[[[5], [7]]], np.zeros(2))
    result = measure(found, victims)
    assert result.measures.identified.all()
    assert not result.other_measures.identified.any()
    assert not result.other_measures.label_right.any()
    # What needs no attack: the mean of the class lies a tenth of the range away, black is one of the images.
    np.testing.assert_allclose(result.baselines["class_psnr"], [[20.0], [20.0]], rtol=1e-5)
    assert result.baselines["class_recovered"].tolist() == [[False], [True]]
    np.testing.assert_allclose(result.baselines["blank_psnr"], [[np.inf], [0.0]], atol=1e-6)
    assert result.baselines["blank_recovered"].tolist() == [[True], [False]]
    # Of one color, nothing is re-identified.
    assert not result.baselines["class_re_identified"].any()
    assert all(values.shape == (2, 1) for values in result.baselines.values())


def test_pictures_under_noise_single_out_their_image_and_no_other_nor_does_the_mean_of_the_class():
    rng = np.random.default_rng(0)
    images, others = (rng.uniform(size=(20, 1, 8, 8, 1)).astype(np.float32) for _ in range(2))
    labels, gallery = np.zeros((20, 1), int), rng.uniform(size=(40, 8, 8, 1)).astype(np.float32)
    victims = Victims(images, labels, others, labels, gallery, np.zeros(40, int))
    noise = 0.3 * rng.normal(size=images.shape)
    result = measure(GradientInversion(images + noise, np.ones((20, 1, 1)), np.zeros(20)), victims)
    assert not result.measures.recovered.all()
    assert result.measures.re_identified.all()
    # One in sixty by chance.
    assert result.other_measures.re_identified.mean() < 0.2
    assert result.baselines["class_re_identified"].mean() < 0.2


def views(count, batch=1):
    images = jax.random.uniform(jax.random.key(0), (count, batch, *IMAGE_SHAPE))
    labels = jax.nn.one_hot(jax.random.randint(jax.random.key(1), (count, batch), 0, CLASSES), CLASSES)
    params = jax.vmap(MODEL.init)(jax.random.split(jax.random.key(2), count))
    gradients = jax.vmap(lambda *entry: gradient_of(MODEL, *entry))(params, images, labels)
    return GradientView(params, gradients), labels


def attack_all(tmp_path, iterations, *, count=5, restarts=1, lanes=2, tell=lambda line: None):
    view, labels = views(count)
    attack = inverting_gradients(MODEL, (1, *IMAGE_SHAPE), iterations=40, total_variation=0.0)
    return run_attack(
        jax.random.key(3),
        attack,
        GradientEvidence(view, labels),
        iterations=iterations,
        restarts=restarts,
        lanes=lanes,
        progress=SavedProgress(tmp_path / "part.npz", tell),
    )


@pytest.mark.slow
def test_lanes_and_chunks_change_nothing(tmp_path):
    """Participants in one program, in pieces of any length, are what each is alone."""
    together = attack_all(tmp_path, 40)
    assert largest_difference(together, attack_all(tmp_path, 40, lanes=5)) < 1e-5
    view, labels = views(5)
    attack = inverting_gradients(MODEL, (1, *IMAGE_SHAPE), iterations=40, total_variation=0.0)
    keys = jax.random.split(jax.random.key(3), 5)
    evidence = GradientEvidence(jax.tree.map(lambda leaf: leaf[3], view), labels[3])
    alone = run_procedure(keys[3], attack, evidence, 40)
    assert largest_difference(alone, jax.tree.map(lambda leaf: leaf[3], together)) < 1e-5


@pytest.mark.slow
def test_an_interrupted_attack_goes_on_where_it_was_kept(tmp_path, monkeypatch):
    whole = attack_all(tmp_path, 40)
    # Every part counts as long enough to be kept.
    monkeypatch.setattr(parts, "_SECONDS_OF_A_PART", 1e-9)

    def die(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack_all(tmp_path, 40, tell=die)
    assert (tmp_path / "part.npz").exists()
    assert largest_difference(whole, attack_all(tmp_path, 40)) == 0


@pytest.mark.slow
def test_of_several_starts_the_nearest_gradient_counts(tmp_path):
    one, three = attack_all(tmp_path, 15), attack_all(tmp_path, 15, restarts=3)
    assert three.images.shape == one.images.shape
    assert float(jnp.mean(three.distance)) < float(jnp.mean(one.distance))


def test_what_is_sent_goes_through_the_defence():
    images, labels = jnp.ones((2, *IMAGE_SHAPE)), jax.nn.one_hot(jnp.array([0, 1]), CLASSES)
    plain = observe(jax.random.key(0), MODEL, images, labels, Observation(1, 0.1, 0), None)
    noisy = observe(jax.random.key(0), MODEL, images, labels, Observation(1, 0.1, 0), gaussian_noise(0.5))
    assert largest_difference(plain.params, noisy.params) == 0
    difference = np.concatenate(
        [np.ravel(a - b) for a, b in zip(jax.tree.leaves(plain.gradient), jax.tree.leaves(noisy.gradient), strict=True)]
    )
    assert 0.35 < difference.std() < 0.65


def test_labels_are_inferred_from_the_one_gradient_that_has_their_shape():
    view, labels = views(1)
    single = jax.tree.map(lambda leaf: leaf[0], view)
    for network in ("dlg_lenet", "mnist_classifier"):
        told = infer_labels(network, CLASSES, single, 1)
        assert told.tolist() == np.argmax(labels[0], axis=1).tolist()
    with pytest.raises(ValueError, match="labels: 0 gradients end in 7 classes, expected one layer's"):
        infer_labels("dlg_lenet", 7, single, 1)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["dlg_lenet", "grnn_lenet", "mnist_classifier"])
def test_the_label_of_one_image_is_told_whatever_the_network(network):
    channels = 1 if network == "mnist_classifier" else 3
    model = inversion.network_for(network, "torch", 10, 32, channels)
    image = jax.random.uniform(jax.random.key(0), (1, 32, 32, channels))
    view = observe(jax.random.key(1), model, image, jax.nn.one_hot(jnp.array([6]), 10), Observation(1, 0.1, 0), None)
    assert infer_labels(network, 10, view, 1).tolist() == [6]


@pytest.mark.slow
def test_an_update_of_several_steps_is_attacked_as_what_it_is():
    """With the steps that were taken the images come back, and with others they do not come as near."""
    taken = Observation(4, 0.5, 1)
    images = jax.random.uniform(jax.random.key(0), (2, *IMAGE_SHAPE))
    labels = jax.nn.one_hot(jnp.array([0, 3]), CLASSES)
    view = observe(jax.random.key(1), MODEL, images, labels, taken, None)

    def error(observation):
        attack = inversion.procedure_for(
            "inverting_gradients", MODEL, images.shape, CLASSES, iterations=3000, observation=observation
        )
        found = jax.jit(lambda key: run_procedure(key, attack, GradientEvidence(view, labels), 3000))(jax.random.key(3))
        return float(jnp.abs(found.images - images).mean())

    assert error(taken) < 1e-3
    for wrong in (taken._replace(learning_rate=0.05), taken._replace(steps=1), taken._replace(batch_size=2)):
        assert error(wrong) > 0.05


def test_accuracy_behind_a_defence():
    """A model learns from gradients, and not from noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 300).astype(np.int32)
    images = rng.integers(0, 60, (300, *IMAGE_SHAPE), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image.reshape(-1)[label] = 255
    data = Dataset("dots", images, labels, images, labels, tuple(map(str, range(CLASSES))), "-")
    learnt, hidden = (
        utility(jax.random.key(0), MODEL, transform, data, channels=1, steps=4000)
        for transform in (None, gaussian_noise(100.0))
    )
    assert learnt > 0.9
    assert hidden < 0.7


def test_accuracy_is_that_of_all_test_images_whatever_their_order():
    """Sorted by class, the first thousands are of few classes."""
    labels = np.repeat(np.arange(CLASSES, dtype=np.int32), 1000)
    images = np.zeros((len(labels), *IMAGE_SHAPE), np.uint8)
    data = Dataset("zeros", images[:64], np.zeros(64, np.int32), images, labels, tuple(map(str, range(CLASSES))), "-")
    assert utility(jax.random.key(0), MODEL, None, data, channels=1, steps=200) == pytest.approx(1 / CLASSES)
