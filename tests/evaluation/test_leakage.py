"""The leakage measures put pictures in the right order, each view is needed, and the edge cases are the stated ones."""

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, grey_dilation, grey_erosion

from gan_leak import data
from gan_leak.evaluation import views
from gan_leak.evaluation.fidelity import euclidean_distances
from gan_leak.evaluation.judge import Judge, judge_accuracy, judge_logits, network
from gan_leak.evaluation.leakage import (
    DEFINITIONS,
    Leakage,
    build_references,
    coverage,
    diversity,
    measure_leakage,
    nearest_neighbour_share,
)
from gan_leak.evaluation.views import edges

TARGET = 3
VIEWS = ("pixels", "edges", "judge", "contrast")


def _random(seed):
    return np.random.default_rng(seed)


def _uniform(seed, count):
    return _random(seed).uniform(-1, 1, (count, 32, 32, 1)).astype(np.float32)


def _under_noise(images, deviation, seed=0):
    noise = _random(seed).normal(size=images.shape)
    return np.clip(images + deviation * noise, -1, 1).astype(np.float32)


def _mean(images, count=2):
    return np.repeat(images.mean(axis=0, keepdims=True), count, axis=0)


@pytest.fixture(scope="module")
def sets(mnist, mnist_test, judge_pool, untrained):
    """Who has which images, as in a default run, and real images of every class that nobody has."""
    federation = np.setdiff1d(np.arange(len(mnist.train_labels)), judge_pool)
    gallery = judge_pool[:: len(judge_pool) // 4000][:4000]
    images, labels = mnist.train_images, mnist.train_labels
    threes = mnist_test[0][mnist_test[1] == TARGET]
    own = {f"own {c}": data.to_float(images[federation[labels[federation] == c][:300]]) for c in range(5, 10)}
    return {
        "private": data.to_float(images[federation[labels[federation] == TARGET][:500]]),
        "fresh": threes[::2],
        "held out": threes[1::2],
        "gallery": data.to_float(images[gallery]),
        "gallery labels": labels[gallery],
        "prior": own | {"untrained": untrained[0]},
        "digits": {c: mnist_test[0][mnist_test[1] == c][:150] for c in range(10)},
    }


@pytest.fixture(scope="module")
def references(mnist_judge, sets):
    """What leakage of threes is measured against."""
    return build_references(
        mnist_judge,
        target_class=TARGET,
        private=sets["private"],
        fresh=sets["fresh"],
        held_out={"held out": sets["held out"]},
        gallery=sets["gallery"],
        gallery_labels=sets["gallery labels"],
        prior=sets["prior"],
    )


@pytest.fixture(scope="module")
def leakage(references):
    """Measures pictures, and checks what holds of every measurement."""

    def measure(images):
        result = measure_leakage(references, images)
        shares = [result.judge_accuracy, result.nearest_neighbour_share, result.coverage]
        assert tuple(result.leakage_by_representation) == VIEWS
        assert result.leakage_score == pytest.approx(np.prod(list(result.leakage_by_representation.values())))
        assert all(0 <= share <= 1 for share in [*shares, *result.leakage_by_representation.values()])
        assert result.diversity >= 0
        assert result.l1_to_nearest >= 0
        assert -1 <= result.ssim_to_nearest <= 1 + 1e-5
        return result

    return measure


@pytest.fixture(scope="module")
def optimised(mnist_judge, sets, climb):
    """Pictures climbed towards a three for the judge, 200 steps of 0.02, by where they began; 50 of each."""
    starts = {
        "noise": _uniform(1, 50),
        "own digits": np.concatenate([images[:10] for name, images in sets["prior"].items() if name != "untrained"]),
    }
    ends = climb(
        lambda images: judge_logits(mnist_judge, images),
        np.concatenate(list(starts.values())),
        TARGET,
        steps=200,
        step_size=0.02,
    )
    return dict(zip(starts, np.split(ends, len(starts)), strict=True))


# The order


@pytest.mark.slow
def test_held_out_real_images_score_near_one(leakage, sets):
    """Real threes that are neither private nor references."""
    assert leakage(sets["held out"]).leakage_score >= 0.85


def test_copied_private_images_score_one(leakage, sets):
    """In every view, at no distance, each covering its original."""
    result = leakage(sets["private"][:100])
    assert result.leakage_score == 1
    assert result.l1_to_nearest == 0
    assert result.ssim_to_nearest == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_one_repeated_private_image_scores_one_with_no_diversity(leakage, sets):
    """What a single picture gives away is one matter, how many there are another."""
    result = leakage(np.repeat(sets["private"][7:8], 40, axis=0))
    assert result.leakage_score == 1
    assert result.diversity == pytest.approx(0, abs=0.01)
    assert result.coverage < 0.2


@pytest.mark.slow
def test_the_class_mean_scores_in_between(leakage, sets):
    """The blurred average of the private images tells of the class, but no image of it."""
    assert 0.3 < leakage(_mean(sets["private"])).leakage_score < 0.95


@pytest.mark.parametrize("digit", [c for c in range(10) if c != TARGET])
def test_other_digits_score_nothing(leakage, sets, digit):
    """Real images of another class, and their mean, owned by the adversary or not."""
    assert leakage(sets["digits"][digit]).leakage_score <= 0.1
    assert leakage(_mean(sets["digits"][digit])).leakage_score <= 0.1


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: _uniform(3, 100), id="uniform noise"),
        pytest.param(lambda: _under_noise(np.zeros((100, 32, 32, 1)), 0.5), id="Gaussian noise"),
        pytest.param(lambda: _under_noise(np.full((100, 32, 32, 1), -1.0), 0.3), id="dark noise"),
        pytest.param(lambda: np.full((2, 32, 32, 1), -1.0), id="black"),
        pytest.param(lambda: np.full((2, 32, 32, 1), 0.0), id="grey"),
        pytest.param(lambda: np.full((2, 32, 32, 1), 1.0), id="white"),
    ],
)
def test_noise_and_flat_pictures_score_nothing(leakage, make):
    """However near to the private images one view takes them to be."""
    assert leakage(make()).leakage_score <= 0.1


def test_the_mean_of_all_images_scores_nothing(leakage, sets):
    """A blot that resembles every class a little."""
    assert leakage(_mean(sets["gallery"])).leakage_score <= 0.1


def test_an_untrained_generator_scores_nothing(leakage, untrained):
    """Another one than that of the references."""
    assert leakage(untrained[1][:100]).leakage_score <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("start", ["noise", "own digits"])
def test_pictures_optimised_against_the_judge_score_little(leakage, optimised, start):
    """The judge is fooled by nearly all of them, the score is not.

    From starts without details the judge's gradients may draw real threes, see ``test_impostors``.
    """
    result = leakage(optimised[start])
    assert result.judge_accuracy >= 0.95
    assert result.leakage_score <= 0.2


@pytest.mark.slow
def test_real_images_under_noise_still_leak(leakage, sets):
    """It measures what is drawn, not how cleanly; and more noise never gives more away."""
    scores = [leakage(_under_noise(sets["held out"], level)).leakage_score for level in (0.1, 0.3, 1.0)]
    assert scores[1] >= 0.7
    assert scores == sorted(scores, reverse=True)
    assert scores[2] < 0.5


# Each view is needed


def _framed(images):
    return np.pad(images[:, 2:-2, 2:-2], ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=1)


def _stripes(images):
    wave = 0.6 * np.sin(2 * np.pi * np.arange(32) / 8)
    return np.clip(images + wave[None, :, None, None], -1, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("view", "spoil"),
    [
        pytest.param("pixels", lambda x: grey_dilation(x, (1, 3, 3, 1)), id="pixels: strokes two pixels too thick"),
        pytest.param("edges", _stripes, id="edges: stripes over the picture"),
        pytest.param("judge", _framed, id="judge: a white frame around the picture"),
        pytest.param("contrast", lambda x: _mean(x), id="contrast: the mean"),
        pytest.param("contrast", lambda x: grey_erosion(x, (1, 2, 2, 1)), id="contrast: strokes worn thin"),
    ],
)
def test_each_view_sees_what_all_others_miss(leakage, sets, view, spoil):
    """Threes spoilt so that this view alone lowers the score, by 0.15 and more."""
    scores = dict(leakage(spoil(sets["held out"][:200])).leakage_by_representation)
    assert scores.pop(view) < min(scores.values()) - 0.15


def test_a_morph_to_the_nearest_other_digit_is_caught_by_contrast_alone(references, leakage, sets):
    """Half a three and half the most similar image of another class is near the threes in every view but contrast."""
    threes, others = sets["held out"][:100], sets["gallery"][sets["gallery labels"] != TARGET]
    distances = euclidean_distances(*(references.describe(images)["pixels"] for images in (threes, others)))
    scores = dict(leakage((threes + others[distances.argmin(axis=1)]) / 2).leakage_by_representation)
    assert scores.pop("contrast") <= 0.1
    assert min(scores.values()) > 0.5


@pytest.mark.parametrize(
    ("view", "make"),
    [
        pytest.param("pixels", lambda sets: np.full((2, 32, 32, 1), -1.0), id="black passes in part in pixels"),
        pytest.param("edges", lambda sets: -sets["held out"], id="a negative passes in edges"),
        pytest.param(
            "judge", lambda sets: np.roll(sets["held out"], 4, axis=1), id="displaced passes in part for the judge"
        ),
    ],
)
def test_no_view_is_enough_alone(leakage, sets, view, make):
    """What one view lets pass, the score does not."""
    result = leakage(make(sets))
    assert result.leakage_by_representation[view] >= 0.3
    assert result.leakage_score <= 0.1


# What holds of all measures


@pytest.mark.slow
def test_the_order_of_the_pictures_does_not_matter(leakage, sets):
    """Also of more pictures than there are fresh images, of very unlike kinds."""
    pictures = np.concatenate([sets["held out"], sets["digits"][0], np.repeat(sets["private"][:1], 50, axis=0)])
    assert len(pictures) > len(sets["fresh"])
    once, again = leakage(pictures), leakage(pictures[::-1])
    assert once.leakage_by_representation == pytest.approx(again.leakage_by_representation, abs=1e-4)
    flat = [[value for value in result if not isinstance(value, dict)] for result in (once, again)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-3)


def test_measuring_changes_no_reference(references, sets):
    """The same pictures measure the same before and after other ones."""
    before = measure_leakage(references, sets["held out"][:50])
    measure_leakage(references, _uniform(6, 50))
    assert measure_leakage(references, sets["held out"][:50]) == before


def test_every_measure_is_defined():
    """The report explains each by name."""
    assert set(DEFINITIONS) == set(Leakage._fields)
    assert all(len(text) > 20 for text in DEFINITIONS.values())


@pytest.mark.slow
def test_diversity_of_real_images_is_about_one(leakage, sets):
    """Whatever their number."""
    for count in (60, 250, None):
        assert 0.9 < leakage(sets["held out"][:count]).diversity < 1.15


def test_a_few_repeated_pictures_have_no_diversity(leakage, sets):
    """Ten real images over and over, though they differ much from each other."""
    assert leakage(np.repeat(sets["held out"][:10], 20, axis=0)).diversity == pytest.approx(0, abs=0.01)


def test_diversity_falls_as_pictures_become_alike(leakage, sets):
    """Real images drawn together towards their mean."""
    images = sets["held out"][:200]
    mixtures = [(1 - share) * images + share * _mean(images, 1) for share in (0, 0.25, 0.5, 0.75, 1)]
    diversities = [leakage(mixture).diversity for mixture in mixtures]
    assert np.all(np.diff(diversities) < -0.1)
    assert diversities[-1] == pytest.approx(0, abs=0.01)


@pytest.mark.slow
def test_coverage_of_private_images_by_themselves_is_one_and_by_one_of_them_low(leakage, sets):
    """The set covers itself; one picture covers its few neighbours; another class covers hardly any."""
    assert leakage(sets["private"]).coverage == 1
    assert 0 < leakage(np.repeat(sets["private"][:1], 5, axis=0)).coverage < 0.2
    assert leakage(sets["digits"][0]).coverage < 0.1


def test_coverage_of_a_case_worked_out_by_hand():
    """Private points 0, 1, ..., 6 on a line: their 5th nearest other is 5, 4, 3, 3, 3, 4, 5 away."""
    private = np.arange(7.0)[:, None]
    assert coverage(private, np.array([[-3.5]])) == pytest.approx(1 / 7)
    assert coverage(private, np.array([[-2.5]])) == pytest.approx(2 / 7)
    assert coverage(private, np.array([[3.0]])) == 1
    assert coverage(private, np.array([[-5.5], [11.5]])) == 0


def test_coverage_of_a_handful_reaches_to_the_furthest():
    """Private points 0, 1, 2, 4: the furthest other is 4, 3, 2, 4 away."""
    private = np.array([0.0, 1.0, 2.0, 4.0])[:, None]
    assert coverage(private, np.array([[-2.5]])) == pytest.approx(1 / 4)
    assert coverage(private, np.array([[5.0]])) == pytest.approx(1 / 4)
    assert coverage(private, np.array([[2.5]])) == 1


def test_diversity_beside_a_handful_of_fresh_images_is_that_of_a_random_handful():
    """Of many pictures drawn as the fresh ones were: about 1 over many such handfuls, whatever the order."""
    random = _random(0)
    handfuls = [random.normal(size=(3, 8)) for _ in range(60)]
    pictures = random.normal(size=(300, 8))
    diversities = [diversity(pictures, fresh) for fresh in handfuls]
    assert np.median(diversities) == pytest.approx(0.9, abs=0.15)
    assert diversity(pictures[::-1], handfuls[0]) == pytest.approx(diversities[0])
    assert diversity(np.repeat(pictures[:1], 9, axis=0), handfuls[0]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (200, 60)])
def test_principal_components_are_the_same_for_more_and_for_fewer_images_than_features(shape):
    """Orthonormal, and along them the vectors vary as much as along those of the covariance."""
    centred = _random(0).normal(size=shape) * np.linspace(1, 3, shape[1])
    centred -= centred.mean(axis=0)
    components = views.largest_components(centred)
    count = min(views.PRINCIPAL_COMPONENTS, *shape)
    np.testing.assert_allclose(components.T @ components, np.eye(count), atol=1e-9)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1][:count]
    np.testing.assert_allclose(np.sum((centred @ components) ** 2, axis=0), variances, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_neighbours_of_real_images_are_of_their_class(leakage, sets):
    """On most real threes, and on hardly any real image of another class."""
    assert leakage(sets["held out"]).nearest_neighbour_share > 0.85
    others = np.concatenate([images[:40] for c, images in sets["digits"].items() if c != TARGET])
    assert leakage(others).nearest_neighbour_share < 0.05


@pytest.mark.slow
def test_judge_accuracy_is_the_judges(mnist_judge, leakage, sets):
    """The share that the judge gives the target class, over classes mixed."""
    pictures = np.concatenate([sets["held out"][:30], sets["digits"][8][:90]])
    result = leakage(pictures)
    assert result.judge_accuracy == judge_accuracy(mnist_judge, pictures, TARGET)
    assert result.judge_accuracy == pytest.approx(0.25, abs=0.05)


# Degenerate and bad input


@pytest.fixture(scope="module")
def small():
    """Arguments of build_references made of noise and an untrained judge, for two classes of 16 x 16 pixels."""
    init, _ = network(2, (16, 16, 1))
    pictures = _random(0).uniform(-1, 1, (120, 16, 16, 1)).astype(np.float32)
    return {
        "judge": Judge(init(jax.random.key(0)), 2, 0.5),
        "target_class": 1,
        "private": pictures[:10],
        "fresh": pictures[10:20],
        "held_out": {"fresh": pictures[10:20]},
        "gallery": pictures[20:100],
        "gallery_labels": np.arange(80) % 2,
        "prior": {"own": pictures[100:]},
    }


@pytest.fixture(scope="module")
def small_references(small):
    """Built with as few images as are allowed."""
    return build_references(**{**small, "private": small["private"][:3], "fresh": small["fresh"][:3]})


@pytest.mark.parametrize("name", ["private", "fresh"])
def test_too_few_images_are_refused(small, small_references, name):
    """Three are enough; two are refused by name and number."""
    with pytest.raises(ValueError, match=f"{name} images of class 1: 2, at least 3"):
        build_references(**{**small, name: small[name][:2]})
    assert len(getattr(small_references, f"{name}_pixels")) == 3


def test_a_gallery_without_the_class_is_refused(small):
    with pytest.raises(ValueError, match="gallery images of class 1: 0, at least 1"):
        build_references(**{**small, "gallery_labels": np.zeros(80, int)})


def test_with_the_fewest_images_every_measure_is_finite(small, small_references):
    result = measure_leakage(small_references, small["fresh"])
    assert result.leakage_score is None
    assert np.isfinite([value for value in result[2:]]).all()


@pytest.mark.parametrize(("of_target", "neighbours"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)])
def test_neighbours_vote_in_a_number_that_a_small_class_can_win(small, small_references, of_target, neighbours):
    """Points on a line: just more than half of those nearest to 0 are of the class, or one fewer."""
    line = np.broadcast_to((0.01 * np.arange(20.0))[:, None, None, None], (20, 16, 16, 1))
    first = neighbours // 2 + 1
    for winning, share in ((first, 1.0), (first - 1, 0.0)):
        labels = np.zeros(20, int)
        labels[:winning] = 1
        labels[20 - (of_target - winning) :] = 1
        references = small_references._replace(gallery=line, gallery_labels=labels)
        assert nearest_neighbour_share(references, line[:1]) == share


def test_an_empty_prior_is_refused(small):
    """Without it nothing says what 0 means."""
    with pytest.raises(ValueError, match="prior"):
        build_references(**{**small, "prior": {}})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pictures_that_are_not_finite_are_refused(small, small_references, bad):
    """One pixel of one picture is enough."""
    pictures = small["fresh"].copy()
    pictures[3, 4, 5, 0] = bad
    with pytest.raises(ValueError, match="finite"):
        measure_leakage(small_references, pictures)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_are_refused(small, small_references, count):
    """One has no diversity; two are enough."""
    with pytest.raises(ValueError, match="at least 2"):
        measure_leakage(small_references, small["fresh"][:count])
    assert measure_leakage(small_references, small["private"][:2]).l1_to_nearest == 0


def test_where_a_prior_is_as_near_as_fresh_images_nothing_is_measurable(small):
    """If the adversary had as much before, no number is reported, least of all 0 for copies of the private images."""
    references = build_references(**{**small, "prior": {"all": small["fresh"], **small["prior"]}})
    result = measure_leakage(references, small["private"])
    assert result.leakage_score is None
    assert all(result.leakage_by_representation[view] is None for view in ("pixels", "edges", "judge"))
    assert references.measurability.reason is not None


# Edges


def test_edges_have_a_fixed_length_at_any_image_size():
    """7 x 7 blocks of 4 cells of 8 orientations, also over more images than one batch, and for colours."""
    for shape in ((251, 16, 16, 1), (3, 32, 32, 1), (2, 64, 64, 1), (2, 32, 32, 3)):
        descriptors = edges(_random(0).uniform(-1, 1, shape).astype(np.float32))
        assert descriptors.shape == (shape[0], 7 * 7 * 4 * 8)
        assert np.all(descriptors >= 0)


@pytest.mark.slow
def test_edges_of_one_image_do_not_depend_on_the_others(sets):
    """The batches are put together in order."""
    images = sets["gallery"][:300]
    np.testing.assert_allclose(edges(images)[[0, 249, 250, 299]], edges(images[[0, 249, 250, 299]]), atol=1e-6)


def _apart(left, right):
    """Distance of descriptors, relative to the length of those on the left."""
    return np.linalg.norm(left - right, axis=1) / np.linalg.norm(left, axis=1)


@pytest.mark.slow
def test_edges_of_an_image_at_twice_the_size_are_nearly_the_same(sets):
    """Much nearer than those of the next image of its class."""
    images = sets["held out"][:40]
    same = _apart(edges(images), edges(np.asarray(jax.image.resize(images, (40, 64, 64, 1), "linear"))))
    assert np.median(same) < 0.15
    assert np.median(same) < 0.3 * np.median(_apart(edges(images[:20]), edges(images[20:])))


def test_edges_of_a_blank_image_are_zero():
    """Whatever its grey."""
    for grey in (-1.0, 0.3):
        assert np.abs(edges(np.full((2, 32, 32, 1), grey, np.float32))).max() < 1e-4


def test_edges_do_not_change_with_a_constant_and_little_with_faint_speckle(sets):
    """The question is which strokes are drawn."""
    images = gaussian_filter(sets["held out"][:40], (0, 0.5, 0.5, 0))
    assert np.max(_apart(edges(images), edges(images + 0.3))) < 1e-3
    speckled = images + 0.05 * _random(7).normal(size=images.shape).astype(np.float32)
    assert np.max(_apart(edges(images), edges(speckled))) < 0.25
