"""Faces: forty people with ten images each, from who gets which of them to what is told from a handful."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from gan_leak.config import make_config
from gan_leak.evaluation.descriptions import describe_gallery
from gan_leak.evaluation.judge import FEW_PHOTOGRAPHS_TRAINING, garbage, judge_accuracy, load_or_train_judge
from gan_leak.evaluation.leakage import measure_leakage
from gan_leak.runs.federated.measurement import Instruments, build_comparison
from gan_leak.runs.federated.setup import prepare_data
from gan_leak.settings import replace

PEOPLE = 40
TARGET = 3
NONE = PEOPLE
TWO_PARTICIPANTS = make_config(
    dataset="orl_faces", image_size=64, participant_classes="0-19;20-39", target_class=TARGET, batch_size=32
)
ONE_PERSON_EACH = replace(TWO_PARTICIPANTS, participant_classes="each 0-39;", adversary=PEOPLE, batch_size=1)
SETTINGS = pytest.mark.parametrize("config", [TWO_PARTICIPANTS, ONE_PERSON_EACH], ids=["two", "one person each"])


def _known(images):
    """Images as a set that can be compared."""
    return {np.round(image, 4).tobytes() for image in images}


@SETTINGS
def test_of_ten_images_four_are_private_four_the_judges_and_two_for_testing(config):
    data = prepare_data(config)
    pool = data.judge_pool
    assert np.bincount(pool.labels).tolist() == [4] * PEOPLE
    assert len(data.private) == 4
    # All that the judge was not trained on: 2 test images and 4 of the federation's of each person.
    assert np.bincount(data.judge_test.labels).tolist() == [6] * PEOPLE
    judged = _known(pool.images.astype(np.float32) / 127.5 - 1)
    assert len(judged | _known(data.judge_test.images)) == 10 * PEOPLE
    assert not judged & _known(data.federation.inputs.reshape(-1, 64, 64, 1))


def test_fresh_images_of_a_person_are_the_test_images_and_the_judges():
    """One test image is in the half that defines a score of 1, one in the half that checks it."""
    data = prepare_data(TWO_PARTICIPANTS)
    judged = _known(data.judge_pool.images.astype(np.float32) / 127.5 - 1)
    assert [bool(_known([image]) & judged) for image in data.fresh] == [False, False, True, True, True, True]
    assert not _known(data.fresh) & _known(data.private)


def test_two_participants_own_twenty_people_each():
    data = prepare_data(TWO_PARTICIPANTS)
    assert np.asarray(data.federation.sizes).tolist() == [80, 80]
    assert len(data.own_classes) == 20
    assert not data.common_knowledge


def test_an_adversary_without_images_knows_other_people_and_their_average():
    data = prepare_data(ONE_PERSON_EACH)
    assert np.asarray(data.federation.sizes).tolist() == [4] * PEOPLE + [0]
    assert not data.own_classes
    others, average = data.common_knowledge.values()
    assert others.shape == (4 * (PEOPLE - 1), 64, 64, 1)
    assert not _known(others) & _known(data.gallery.images[data.gallery.labels == TARGET])
    np.testing.assert_allclose(average, others.mean(axis=0, keepdims=True), atol=1e-6)


def test_a_person_whom_nobody_owns_has_private_images_all_the_same():
    data = prepare_data(replace(TWO_PARTICIPANTS, participant_classes="0-2,4-19;20-39"))
    assert not data.target_is_owned
    assert len(data.private) == 4
    assert not _known(data.private) & _known(data.federation.inputs.reshape(-1, 64, 64, 1))
    assert TARGET not in data.test.labels
    assert TARGET in data.judge_test.labels


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (TWO_PARTICIPANTS, {"judge_samples": 0}, "judge_samples=0: 0 images of target_class=3"),
        (TWO_PARTICIPANTS, {"judge_samples": 80}, "judge_samples=80: 2 images of target_class=3.*at least 3"),
        (TWO_PARTICIPANTS, {"samples_per_participant": 40}, "target_class=3: 2 private images.*at least 3"),
        (TWO_PARTICIPANTS, {"target_class": 40}, "target_class=40: expected 0 to 39"),
        (ONE_PERSON_EACH, {"batch_size": 5}, "batch_size=5: expected at most 4"),
        (ONE_PERSON_EACH, {"adversary": 41}, "adversary=41"),
        (ONE_PERSON_EACH, {"own_images_per_batch": 8}, "own_images_per_batch=8: expected 0"),
        (ONE_PERSON_EACH, {"participant_classes": ";", "adversary": 1}, "participant_classes=';': expected a particip"),
        (ONE_PERSON_EACH, {"participant_classes": "each ;", "adversary": 1}, "participant_classes='each ;'"),
    ],
)
def test_too_few_images_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        prepare_data(replace(config, **changes))
    assert "\n" not in str(raised.value)


def test_a_class_with_too_few_fresh_images_is_refused(tmp_path):
    """Six training images a class, of which the judge gets three, and one test image."""
    labels, test_labels = np.repeat([0, 1], 6), np.array([0, 1])
    pictures = np.random.default_rng(0).integers(0, 255, (14, 32, 32), np.uint8)
    np.savez(
        tmp_path / "few.npz", images=pictures[:12], labels=labels, test_images=pictures[12:], test_labels=test_labels
    )
    config = make_config(
        dataset=f"npz:{tmp_path / 'few.npz'}", participant_classes="0;1", target_class=0, batch_size=1, judge_samples=6
    )
    with pytest.raises(ValueError, match="1 images without an owner and 3 for the judge, expected at least 5 in all"):
        prepare_data(config)


# What is told from so few images


@pytest.fixture(scope="module")
def face_instruments():
    """A judge of a quarter of the training, less hardened so that it learns in time: enough for what is asked here."""
    data = prepare_data(TWO_PARTICIPANTS)
    quick = FEW_PHOTOGRAPHS_TRAINING._replace(least_steps=400, garbage_per_batch=20, noise=0.3)
    judge = load_or_train_judge(*data.judge_pool, *data.judge_test, PEOPLE, training=quick)
    return Instruments(judge, describe_gallery(judge, data.gallery.images))


@pytest.mark.slow
def test_the_judge_recognises_people_from_four_images_each(face_instruments):
    """On the 240 images that it did not see, one in forty by chance."""
    assert face_instruments.judge.test_accuracy >= 0.88


@pytest.mark.slow
def test_the_judge_sees_nobody_in_noise_and_greys_and_shuffled_faces(face_instruments):
    judge, faces = face_instruments.judge, prepare_data(TWO_PARTICIPANTS).test.images
    random = np.random.default_rng(0)
    noise = np.clip(random.normal(0, [[[[0.2]]], [[[0.5]]], [[[1.0]]]] * 20, (60, 64, 64, 1)), -1, 1)
    greys = np.broadcast_to(np.linspace(-1, 1, 60)[:, None, None, None], (60, 64, 64, 1))
    for pictures in (noise, greys, jax.jit(garbage)(jax.random.key(0), jnp.asarray(faces))):
        assert judge_accuracy(judge, jnp.asarray(pictures, jnp.float32), NONE) >= 0.9


@pytest.fixture(scope="module", params=[TWO_PARTICIPANTS, ONE_PERSON_EACH], ids=["two", "one person each"])
def leak(request, face_instruments):
    """The data of a setting, a function that gives the score of pictures of its target, and the rows beside it."""
    data = prepare_data(request.param)
    references, comparison = build_comparison(request.param, data, face_instruments, None)
    return data, lambda images: measure_leakage(references, np.asarray(images, np.float32)).leakage_score, comparison


def _under_noise(images, deviation):
    return np.clip(images + deviation * np.random.default_rng(0).normal(size=images.shape), -1, 1)


@pytest.mark.slow
def test_private_and_fresh_images_of_a_person_score_high(leak):
    data, score, comparison = leak
    assert score(data.private) == 1
    assert comparison["fresh real images"]["leakage_score"] >= 0.6


@pytest.mark.slow
def test_other_people_score_nothing(leak):
    data, score, _ = leak
    assert max(score(data.judge_test.images[data.judge_test.labels == person]) for person in (0, 10, 20, 30)) <= 0.05


@pytest.mark.slow
def test_the_average_face_scores_nothing(leak):
    """Of all other people, and of those whom the adversary owns, if any."""
    data, score, _ = leak
    for faces in (data.gallery.images[data.gallery.labels != TARGET], *data.own_classes.values()):
        assert score(np.repeat(faces.mean(axis=0, keepdims=True), 2, axis=0)) <= 0.05


@pytest.mark.slow
def test_noise_and_greys_score_nothing(leak):
    _, score, _ = leak
    assert score(np.random.default_rng(0).uniform(-1, 1, (30, 64, 64, 1))) <= 0.05
    assert score(np.zeros((2, 64, 64, 1))) <= 0.05


def test_spoilt_private_images_score_in_between(leak):
    """The less, the more they are blurred or drowned in noise. Under much noise the score may already be 0."""
    data, score, _ = leak
    blurred = [score(gaussian_filter(data.private, (0, width, width, 0))) for width in (1.5, 4)]
    noisy = [score(_under_noise(data.private, level)) for level in (0.2, 0.35, 0.5, 1.0)]
    assert 1 >= blurred[0] > blurred[1]
    assert blurred[0] > 0.4
    assert 1 >= noisy[0] > noisy[1] > noisy[2] >= noisy[3]
    assert noisy[0] > 0.4 > noisy[3]


def test_measures_of_a_handful_of_images_are_finite(leak):
    _, _, comparison = leak
    for row in comparison.values():
        assert np.isfinite([value for value in row.values() if not isinstance(value, dict)]).all()
    assert comparison["fresh real images"]["nearest_neighbour_share"] == 1
