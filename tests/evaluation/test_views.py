"""Views of the class as a whole, by hand."""

import numpy as np
import pytest

from gan_leak.evaluation.views import evidence, likeness


def test_evidence_is_the_lead_of_the_class_over_every_other_output():
    """Also over the last one, "none of the classes"."""
    logits = np.array([[3.0, 1.0, 0.0], [0.5, 2.0, 4.0], [1.0, 1.0, -5.0]])
    np.testing.assert_allclose(evidence(lambda images: logits, 0)(np.zeros(3)), [2.0, -3.5, 0.0])
    np.testing.assert_allclose(evidence(lambda images: logits, 1)(np.zeros(3)), [-2.0, -2.0, 0.0])


def flatten(images):
    return images.reshape(len(images), -1)


def pictures(*vectors):
    return np.array(vectors, float).reshape(len(vectors), 1, 2, 1)


def test_likeness_is_the_mean_cosine_to_the_private_images_less_the_largest_to_another_class():
    """Private images along both axes, another class along one of them; the target class of the gallery is left out."""
    private, gallery = pictures([2, 0], [0, 3]), pictures([5, 0], [1, 0], [1, 1], [-1, 0])
    alike = likeness(flatten, private, gallery, np.array([1, 1, 0, 2]), target_class=0)
    half = np.sqrt(0.5)
    expected = [0.5 - 1.0, 0.5 - 0.0, half - half, -0.5 - 1.0]
    np.testing.assert_allclose(alike(pictures([1, 0], [0, 1], [4, 4], [-1, 0])), expected, atol=1e-12)
    # The length of a picture does not matter, and an empty one is like nothing.
    np.testing.assert_allclose(alike(pictures([7, 0], [0, 0])), [-0.5, 0.0], atol=1e-12)


@pytest.mark.parametrize("mixture", [0.0, 0.25, 0.5])
def test_likeness_falls_towards_another_class(mixture):
    private, gallery = pictures([1, 0], [1, 0.1]), pictures([0, 1], [0, 2])
    alike = likeness(flatten, private, gallery, np.array([1, 1]), target_class=0)
    nearer, further = alike(pictures([1 - mixture, mixture], [0.75 - mixture, 0.25 + mixture]))
    assert nearer > further
