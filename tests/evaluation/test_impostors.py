"""Impostors see no image of the class and score nothing unless they show it; degraded private images score less."""

import pathlib
import re

import jax
import numpy as np
import pytest

from gan_leak.config import make_config
from gan_leak.data import load, to_float
from gan_leak.evaluation import impostors
from gan_leak.evaluation.descriptions import describe_gallery
from gan_leak.evaluation.fidelity import euclidean_distances
from gan_leak.evaluation.impostors import (
    DEGRADATIONS,
    IMPOSTORS,
    MOST_IMPOSTOR_SCORE,
    Knowledge,
    degrade,
    descend,
)
from gan_leak.evaluation.judge import Judge, judge_logits, network
from gan_leak.evaluation.leakage import leakage_score, nearest_neighbour_share, scores_by_view
from gan_leak.evaluation.views import edges
from gan_leak.runs.federated.measurability import untrained_images
from gan_leak.runs.federated.measurement import Instruments, build_comparison
from gan_leak.runs.federated.rows import READABLE_SCORE
from gan_leak.runs.federated.score_attacks import knowledge_of, other_data_sets
from gan_leak.runs.federated.setup import prepare_data
from reference.quick import small_run, write_stripes

COUNT = 6
# Medians of 40 pictures differ by this much by chance; a larger rise would be a defect.
TOLERANCE = 0.03


@pytest.fixture
def few_steps(monkeypatch):
    """Descents of two steps, since the pictures do not matter here."""
    monkeypatch.setattr(impostors, "_DESCENTS", ((0.05, (1, 2)),))
    monkeypatch.setattr(impostors, "_SMOOTH_DESCENTS", ((0.05, (2,)),))


# By eye these show the class, too, but under noise that no view forgives.
UNDER_NOISE = {"optimized from noise", "optimized from an untrained generator"}


def _random(seed):
    return np.random.default_rng(seed)


def _knowledge(size=32, channels=1):
    judge = Judge(network(3, (size, size, channels)).init(jax.random.key(0)), num_classes=3, test_accuracy=0.5)
    shape = (12, size, size, channels)
    images = [_random(seed).uniform(-1, 1, shape).astype(np.float32) for seed in range(4)]
    return Knowledge({"own 1": images[0], "own 2": images[1]}, images[2], {"other": images[3]}, judge, 0)


def test_there_are_at_least_ten_kinds():
    assert len(IMPOSTORS) >= 10
    assert sum(not impostor.shows_class for impostor in IMPOSTORS.values()) >= 10


@pytest.mark.parametrize("kind", IMPOSTORS)
@pytest.mark.usefixtures("few_steps")
def test_every_impostor_makes_as_many_finite_pictures_as_asked(kind):
    """Of one shape and range, the same for the same random numbers, and without a change of what it is made from."""
    knowledge = _knowledge(16)
    before = [
        images.copy() for images in (*knowledge.own_classes.values(), knowledge.untrained, *knowledge.others.values())
    ]
    variants = IMPOSTORS[kind].make(_random(0), knowledge, COUNT)
    again = IMPOSTORS[kind].make(_random(0), knowledge, COUNT)
    assert variants
    for name, pictures in variants.items():
        assert pictures.shape == (COUNT, 16, 16, 1), name
        assert pictures.dtype == np.float32
        assert np.all(np.abs(pictures) <= 1)
        np.testing.assert_array_equal(pictures, again[name])
    after = (*knowledge.own_classes.values(), knowledge.untrained, *knowledge.others.values())
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.usefixtures("few_steps")
def test_descents_of_two_steps_have_no_more():
    """So that no other test takes those of users without a word."""
    names = {name for kind in IMPOSTORS for name in IMPOSTORS[kind].make(_random(0), _knowledge(16), 1)}
    steps = {found for name in names for found in re.findall(r"(\d+) steps of", name)}
    assert steps == {"1", "2"}


@pytest.mark.parametrize("kind", ["optimized by smooth steps", "optimized coarse picture, repeated", "pasted strokes"])
@pytest.mark.usefixtures("few_steps")
def test_larger_and_colored_images_keep_their_shape(kind):
    for pictures in IMPOSTORS[kind].make(_random(0), _knowledge(64, 3), 3).values():
        assert pictures.shape == (3, 64, 64, 3)


def test_the_knowledge_of_the_adversary_holds_no_image_of_the_class(tmp_path):
    """With NaN in place of all private, fresh and held-out images, and nothing else but its own, it is the same."""
    config = small_run(write_stripes(tmp_path / "stripes.npz"))
    data = prepare_data(config)
    judge = Judge(network(4, (32, 32, 1)).init(jax.random.key(0)), 4, 0.5)
    others = {"other": np.zeros((1, 32, 32, 1), np.float32)}
    gone = data._replace(
        private=np.full_like(data.private, np.nan),
        fresh=np.full_like(data.fresh, np.nan),
        unowned={name: np.full_like(images, np.nan) for name, images in data.unowned.items()},
        gallery=None,
        test=None,
        judge_test=None,
        judge_pool=None,
        federation=None,
    )
    of_run, of_gone = (knowledge_of(config, each, Instruments(judge, None), others) for each in (data, gone))
    assert jax.tree.all(jax.tree.map(np.array_equal, of_run, of_gone))
    assert set(of_run.own_classes) == {"own class 2", "own class 3"}
    known = {image.tobytes() for images in of_run.own_classes.values() for image in images}
    assert not known & {image.tobytes() for image in (*data.private, *data.fresh)}


def test_a_descent_moves_each_pixel_by_the_step_and_raises_the_log_probability():
    knowledge = _knowledge()
    start = 0.5 * knowledge.untrained

    def log_probability(images):
        return np.asarray(jax.nn.log_softmax(judge_logits(knowledge.judge, images))[:, 2])

    once = descend(knowledge.judge, 2, start, steps=1, step_size=0.01)
    moved = np.abs(once - start)
    assert np.all((moved < 1e-6) | (np.abs(moved - 0.01) < 1e-6))
    smooth = descend(knowledge.judge, 2, start, steps=1, step_size=0.01, smoothing=np.eye(32))
    np.testing.assert_allclose(np.abs(smooth - start).max(axis=(1, 2, 3)), 0.01, atol=1e-6)
    for later in (descend(knowledge.judge, 2, start, steps=20, step_size=0.01), once, smooth):
        assert np.all(log_probability(later) > log_probability(start))
    np.testing.assert_array_equal(descend(knowledge.judge, 2, start, steps=0, step_size=0.01), start)


# Degradations


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_no_strength_leaves_images_as_they_are_and_more_moves_them_further(kind):
    images = 0.9 * _knowledge().untrained
    np.testing.assert_allclose(degrade(images, kind, 0.0), images, atol=1e-6)
    strengths = DEGRADATIONS[kind]
    assert list(strengths) == sorted(strengths)
    assert strengths[0] == 0
    if kind != "shift":
        distances = [np.linalg.norm(degrade(images, kind, strength) - images) for strength in strengths]
        assert np.all(np.diff(distances) > 0)


def test_each_degradation_is_what_it_says():
    image = np.full((1, 32, 32, 1), -1.0, np.float32)
    image[0, 10, 10] = 1.0
    moved = degrade(image, "shift", 3.0)
    assert moved[0, 10, 13, 0] == pytest.approx(1.0)
    assert moved[0, 10, 10, 0] == pytest.approx(-1.0)
    assert np.ptp(degrade(image, "contrast", 1.0)) < 1e-6
    assert degrade(image, "contrast", 0.5).mean() == pytest.approx(image.mean(), abs=1e-6)
    assert degrade(image, "blur", 2.0).mean() == pytest.approx(image.mean(), abs=1e-5)
    noisy = degrade(np.zeros((20, 32, 32, 1), np.float32), "noise", 0.2)
    assert noisy.std() == pytest.approx(0.2, rel=0.05)


def test_unknown_and_negative_degradations_are_refused():
    images = np.zeros((1, 32, 32, 1), np.float32)
    with pytest.raises(ValueError, match="kind=fog: expected one of blur"):
        degrade(images, "fog", 1.0)
    with pytest.raises(ValueError, match=r"strength=-1\.0: expected at least 0"):
        degrade(images, "blur", -1.0)


# Real data


@pytest.fixture(scope="module")
def attacked(mnist_judge):
    """A function of a class: data, references and knowledge as in a default run."""
    found = {}

    def attack(target):
        if target not in found:
            config = make_config(target_class=target, adversary=int(target < 5))
            data = prepare_data(config)
            instruments = Instruments(mnist_judge, describe_gallery(mnist_judge, data.gallery.images))
            references, _ = build_comparison(config, data, instruments, untrained_images(32, 1, 0))
            others = other_data_sets("mnist", (32, 32, 1))
            found[target] = data, references, knowledge_of(config, data, instruments, others)
        return found[target]

    return attack


def _score(references, images):
    return leakage_score(references, scores_by_view(references, images))


def _looks_like_the_class(references, images):
    """Whether at least half of the pictures have most neighbors, on pixels or on edges, in the class.

    The judge cannot say so, since the pictures are optimized against it.
    """
    of_class = references.gallery_labels == references.target_class
    nearest = np.argsort(euclidean_distances(edges(images), edges(references.gallery)), axis=1)[:, :5]
    by_edges = np.mean(of_class[nearest].sum(axis=1) > 2)
    return max(nearest_neighbour_share(references, images), by_edges) >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMPOSTORS)
def test_an_impostor_scores_little_unless_it_shows_the_class(attacked, kind):
    """Every variant, as an attacker would choose the best."""
    _, references, knowledge = attacked(3)
    for name, pictures in IMPOSTORS[kind].make(_random(0), knowledge, 40).items():
        if _score(references, pictures) > MOST_IMPOSTOR_SCORE:
            assert IMPOSTORS[kind].shows_class, name
            assert kind not in UNDER_NOISE, name
            assert _looks_like_the_class(references, pictures), name


@pytest.mark.slow
def test_the_average_of_own_images_becomes_a_real_three_by_way_of_the_judge(attacked):
    """The limit of the score: it says what pictures show, and this one shows the class without any private image."""
    _, references, knowledge = attacked(3)
    variants = IMPOSTORS["optimized from averages"].make(_random(0), knowledge, 2)
    assert max(_score(references, pictures) for pictures in variants.values()) >= 0.9


@pytest.mark.slow
def test_a_coarse_collapsed_picture_does_not_count_as_readable(attacked):
    """Of a generator that collapsed in a real attack: half right in every view, so the smallest view is not enough."""
    _, references, _ = attacked(3)
    pictures = to_float(np.load(pathlib.Path(__file__).with_name("collapsed_generator.npz"))["images"])
    assert min(scores_by_view(references, pictures).values()) >= READABLE_SCORE
    assert _score(references, pictures) <= MOST_IMPOSTOR_SCORE


@pytest.mark.slow
@pytest.mark.parametrize("view", ["pixels", "edges", "judge"])
def test_a_score_of_one_view_would_be_fooled(attacked, view):
    """Some impostor with no score passes in each view alone, so the bound notices a broken score."""
    _, references, knowledge = attacked(3)
    kinds = ("low-pass noise", "averages", "optimized from own images")
    variants = [variant for kind in kinds for variant in IMPOSTORS[kind].make(_random(0), knowledge, 20).values()]
    refused = [variant for variant in variants if _score(references, variant) == 0.0]
    assert max(scores_by_view(references, pictures)[view] for pictures in refused) > MOST_IMPOSTOR_SCORE


@pytest.mark.slow
@pytest.mark.parametrize("target", [3, 4])
@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_the_score_falls_as_private_images_are_degraded(attacked, kind, target):
    """From 1 to nearly nothing, and never up again by more than chance."""
    data, references, _ = attacked(target)
    scores = [_score(references, degrade(data.private[:40], kind, strength)) for strength in DEGRADATIONS[kind]]
    assert scores[0] == 1
    assert np.all(np.diff(scores) <= TOLERANCE)
    assert scores[-1] <= MOST_IMPOSTOR_SCORE


@pytest.mark.slow
def test_faces_beside_digits_and_digits_beside_faces():
    assert set(other_data_sets("mnist", (32, 32, 1))) == {"orl_faces"}
    (digits,) = other_data_sets("orl_faces", (64, 64, 1)).values()
    assert digits.shape[1:] == (64, 64, 1)
    np.testing.assert_array_equal(digits, to_float(load("mnist", image_size=64).test_images))
