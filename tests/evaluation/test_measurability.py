"""The leakage score is tested before it judges: blind views are left out, and without two working ones it is null."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan_leak.config import make_config
from gan_leak.evaluation.descriptions import describe_gallery
from gan_leak.evaluation.fidelity import flatten
from gan_leak.evaluation.leakage import measure_leakage
from gan_leak.evaluation.measurability import (
    LEAST_COPIES_SCORE,
    LEAST_HELD_OUT_SCORE,
    MOST_CONTROL_SCORE,
    Measurability,
    examine,
    plain_controls,
    score_text,
)
from gan_leak.evaluation.views import View, calibrated, contrast, is_blind, score
from gan_leak.runs.federated.measurement import Instruments, build_comparison
from gan_leak.runs.federated.setup import prepare_data


def _images(*values):
    """Images of one pixel."""
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def _level(images):
    return flatten(images).mean(axis=1)


# The contrast with other classes


def test_contrast_of_a_case_worked_out_by_hand():
    """Two private images at 0 and 10. Class 1 has two groups, {1, 9} and {3, 20}; class 2 one, {-8, 30}."""
    gallery, labels = _images(1, 3, 9, 20, -8, 30, 0), np.array([1, 1, 1, 1, 2, 2, 0])
    values = contrast(flatten, _images(0, 10), gallery, labels, target_class=0)
    # To the private images 2; to class 1 (1 + 1) / 2 = 1; to class 2 10. The nearer class counts: (1 - 2) / 2.
    # At 10: private 0; class 1 (1 + 7) / 2 = 4; class 2 18: (4 - 0) / 4.
    np.testing.assert_allclose(values(_images(2, 10)), [-0.5, 1.0], atol=1e-6)


def _naive_contrast(private, gallery, labels, target, image):
    """One picture against all others, a pair at a time."""
    to_private = min(abs(image - other) for other in private)
    to_classes = []
    for label in sorted(set(labels) - {target}):
        members = [value for value, of in zip(gallery, labels, strict=True) if of == label]
        count = max(1, len(members) // len(private))
        groups = [members[first::count][: len(private)] for first in range(count)]
        to_classes.append(sum(min(abs(image - other) for other in group) for group in groups) / count)
    to_others = min(to_classes)
    return (to_others - to_private) / max(to_others, to_private, 1e-12)


@given(
    private=st.lists(st.integers(-50, 50), min_size=1, max_size=6),
    others=st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 3)), min_size=1, max_size=20),
    image=st.integers(-50, 50),
)
def test_contrast_is_that_of_pairs_one_by_one(private, others, image):
    """Whatever the numbers of images; images of the target class in the gallery do not count."""
    gallery, labels = zip(*others, (0, 1), strict=True)
    values = contrast(flatten, _images(*private), _images(*gallery), np.array(labels), target_class=0)
    expected = _naive_contrast(private, gallery, labels, 0, image)
    np.testing.assert_allclose(values(_images(image)), [expected], atol=1e-5)


def test_contrast_does_not_favour_the_larger_class():
    """Three images against thousands of another class that is drawn alike: neither is nearer, as with as many."""
    random = np.random.default_rng(0)
    drawn = [random.normal(size=(count, 4, 1, 1)).astype(np.float32) for count in (3, 3000, 400)]
    values = contrast(flatten, drawn[0], drawn[1], np.ones(3000, int), target_class=0)
    assert abs(np.median(values(drawn[2]))) < 0.2
    nearest = contrast(flatten, np.repeat(drawn[0], 1000, axis=0), drawn[1], np.ones(3000, int), target_class=0)
    assert np.median(nearest(drawn[2])) < -0.5


# Blind views


def test_the_standard_error_is_that_of_a_median():
    """For n normal numbers 1.2533 / sqrt(n) of their deviation; half or twice as much is refused."""
    for count in (100, 400):
        images = _images(*np.random.default_rng(1).normal(0, 3, count))
        view = calibrated(_level, prior={"none": _images(-9)}, fresh=images)
        assert 0.7 < view.standard_error / (1.2533 * 3 / np.sqrt(count)) < 1.4


def test_a_scale_has_the_best_of_the_prior_at_zero_and_the_fresh_images_at_one():
    view = calibrated(_level, prior={"low": _images(-3, -2, 9), "high": _images(1, 2, 3)}, fresh=_images(5, 6, 7))
    assert (view.zero, view.one) == (2.0, 6.0)
    assert [score(view, _images(value)) for value in (2, 3, 6, 1, 8)] == [0.0, 0.25, 1.0, 0.0, 1.0]
    assert calibrated(_level, prior={"low": _images(1)}, fresh=_images(5), least_zero=4.0).zero == 4.0


@pytest.mark.parametrize(("gap", "blind"), [(-1.0, True), (0.0, True), (0.29, True), (0.31, False)])
def test_a_view_is_blind_within_three_standard_errors(gap, blind):
    assert is_blind(View(_level, 0.5, 0.5 + gap, 0.1)) == blind


def test_equal_ends_are_blind_without_any_error():
    """Of images that are all alike, the error is 0."""
    assert is_blind(View(_level, 0.5, 0.5, 0.0))
    assert not is_blind(View(_level, 0.5, 0.6, 0.0))
    with pytest.raises(ValueError, match=r"one=0\.5: expected above zero=0\.5"):
        score(View(_level, 0.5, 0.5, 0.0), _images(1))


# The test of the measure


SHARP, BLUNT = View(_level, 0.0, 10.0, 0.1), View(_level, 0.0, 10.0, 4.0)


def _examined(of, *, private=10.0, held_out=9.0, **controls):
    return examine(
        of,
        private=_images(private),
        held_out={"fresh": _images(held_out)},
        controls={name: _images(value) for name, value in controls.items()},
    )


def test_a_measure_that_passes_is_left_as_it_was():
    of = {"one": SHARP, "other": SHARP}
    found, measurability = _examined(of, black=MOST_CONTROL_SCORE * 10)
    assert found == of
    assert measurability == Measurability(("one", "other"), (), (), None)
    assert measurability.notes() == ()


def test_a_blind_view_never_decides_and_is_named():
    _, measurability = _examined({"one": SHARP, "blunt": BLUNT, "other": SHARP})
    assert measurability == Measurability(("one", "other"), ("blunt",), (), None)
    (note,) = measurability.notes()
    assert "these views: one, other." in note
    assert "Left out: blunt, " in note
    assert "3 standard errors" in note


def test_one_working_view_is_not_enough():
    _, measurability = _examined({"one": SHARP, "blunt": BLUNT})
    assert measurability.deciding == ("one",)
    assert "1 of the views" in measurability.reason
    assert measurability.notes()[0].startswith("The leakage score is not measurable: 1 of the views")


def test_the_judge_alone_is_not_enough():
    """Whatever number of views comes from it, one optimization passes them all."""
    of_judge = SHARP._replace(of_judge=True)
    _, measurability = _examined({"judge": of_judge, "evidence": of_judge, "blunt": BLUNT})
    assert measurability.reason.startswith("the working views (judge, evidence) all come from the judge")
    assert _examined({"judge": of_judge, "pixels": SHARP})[1].reason is None


def test_real_images_must_score():
    """In the product of the views: 0.77 of each of two."""
    least = 10 * LEAST_HELD_OUT_SCORE**0.5
    _, measurability = _examined({"one": SHARP, "other": SHARP}, held_out=least - 0.05)
    assert "real images of the class (fresh) score 0.59, expected at least 0.6" in measurability.reason
    assert _examined({"one": SHARP, "other": SHARP}, held_out=least + 0.05)[1].reason is None


def test_copies_of_the_private_images_must_score_higher():
    """In the product of the views: 0.95 of each of two."""
    least = 10 * LEAST_COPIES_SCORE**0.5
    _, measurability = _examined({"one": SHARP, "other": SHARP}, private=least - 0.05)
    assert measurability.reason == "copies of the private images score 0.89, expected at least 0.9"
    assert _examined({"one": SHARP, "other": SHARP}, private=least + 0.05)[1].reason is None


def test_a_control_that_scores_raises_what_scores_nothing():
    """In all views, to its own value; the others stay as they were."""
    found, measurability = _examined({"one": SHARP, "other": SHARP}, held_out=9.5, black=4.0, white=0.5)
    assert [view.zero for view in found.values()] == [4.0, 4.0]
    assert measurability == Measurability(("one", "other"), (), ("black",), None)
    assert "to these controls: black." in measurability.notes()[0]


def test_a_control_may_make_a_view_blind():
    """It stands as near as fresh images in one view, so that only one is left."""
    near = View(_level, 0.0, 4.1, 0.1)
    found, measurability = _examined({"one": SHARP, "near": near}, black=4.0)
    assert measurability.raised_by == ("black",)
    assert measurability.blind == ("near",)
    assert measurability.reason is not None
    assert found["near"].zero == 4.0


def test_a_control_that_one_working_view_sees_through_changes_nothing():
    found, measurability = _examined({"one": SHARP, "other": SHARP._replace(values=lambda x: -_level(x))}, black=4.0)
    assert measurability.raised_by == ()
    assert found["one"].zero == 0.0


def test_plain_controls_hold_no_image_of_the_class():
    gallery = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1)
    controls = plain_controls(gallery, np.array([0, 0, 1, 1, 2, 2, 2, 2]), 1)
    assert float(controls["average of all images"].item()) == 3.5
    assert float(controls["average of other classes"].item()) == pytest.approx((0 + 1 + 4 + 5 + 6 + 7) / 6)
    assert flatten(controls["real images of class 2"]).ravel().tolist() == [4, 5, 6, 7]
    assert "real images of class 1" not in controls
    assert {"black", "grey", "white", "noise"} <= set(controls)


def test_a_score_that_is_missing_is_never_a_number():
    assert (score_text(0.126), score_text(0.0), score_text(None)) == ("0.13", "0.00", "not measurable")


# Real data


@pytest.fixture(scope="module")
def instruments(mnist_judge):
    """As a default run has them."""
    return Instruments(mnist_judge, describe_gallery(mnist_judge, prepare_data(make_config()).gallery.images))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [20, 50, 200])
@pytest.mark.parametrize("target", [3, 1])
def test_copies_of_few_private_images_score_one_and_controls_nothing(instruments, samples, target):
    """Four, ten and forty images of a digit: a low score of copies would look like safety."""
    config = make_config(samples_per_participant=samples, batch_size=10, target_class=target)
    data = prepare_data(config)
    references, comparison = build_comparison(config, data, instruments, None)
    copies = measure_leakage(references, data.private)
    if references.measurability.reason is not None:
        # Four images: their own scale says that it cannot tell.
        assert (copies.leakage_score, samples) == (None, 20)
        return
    assert copies.leakage_score >= 0.9
    assert comparison["fresh real images"]["leakage_score"] >= LEAST_HELD_OUT_SCORE
    for digit in set(range(10)) - {target}:
        others = data.judge_test.images[data.judge_test.labels == digit][:150]
        assert measure_leakage(references, others).leakage_score <= 0.1
    for level in (-1.0, 0.0, 1.0):
        assert measure_leakage(references, np.full((2, 32, 32, 1), level)).leakage_score <= 0.1


def test_fresh_images_make_up_for_few_test_images(tmp_path):
    """Of 60 images a class that are nobody's, those that are not needed for the scale test it."""
    labels = np.repeat([0, 1], 700)
    pictures = np.random.default_rng(0).integers(0, 255, (1400, 32, 32), np.uint8)
    np.savez(
        tmp_path / "data.npz",
        images=pictures,
        labels=labels,
        test_images=pictures[[0, 1, 700, 701]],
        test_labels=labels[[0, 1, 700, 701]],
    )
    config = make_config(
        dataset=f"npz:{tmp_path / 'data.npz'}",
        participant_classes="0;1",
        target_class=0,
        samples_per_participant=30,
        batch_size=10,
        judge_samples=200,
    )
    data = prepare_data(config)
    # 700 less 100 of the judge, 30 private, and 198 that join the 2 test images.
    assert len(data.private) == 30
    assert len(data.fresh) == 200
    assert {name: len(images) for name, images in data.unowned.items()} == {"not dealt to anybody": 372}
    known = [{image.tobytes() for image in part} for part in (data.private, data.fresh[2:], *data.unowned.values())]
    assert len(set.union(*known)) == sum(map(len, known))
