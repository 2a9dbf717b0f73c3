"""The rotation task: each image four times, with its owner, and the record that the four have in common."""

import numpy as np
import pytest

from gan_leak.data import Dataset, load, rotations


def photographs(count, rng):
    return rng.integers(0, 256, (count, 5, 5, 3), np.uint8)


def turned(image):
    """Counterclockwise by a quarter, pixel by pixel."""
    side = len(image)
    return np.array([[image[column, side - 1 - row] for column in range(side)] for row in range(side)])


def test_each_image_is_there_in_four_rotations_of_one_record():
    rng = np.random.default_rng(0)
    train, test = photographs(3, rng), photographs(2, rng)
    labels = np.zeros(3, np.int32), np.zeros(2, np.int32)
    owners = np.array([7, 7, 9])
    whole = Dataset("photos", train, labels[0], test, labels[1], ("photo",), "x", (), owners, None, owners * 2, None)
    task = rotations(whole)
    for images, made, made_labels, records in (
        (train, task.train_images, task.train_labels, task.train_records),
        (test, task.test_images, task.test_labels, task.test_records),
    ):
        assert made.shape == (4 * len(images), 5, 5, 3)
        assert made.flags.c_contiguous
        assert made_labels.dtype == np.int32
        for image, label, record in zip(made, made_labels, records, strict=True):
            expected = images[record]
            for _ in range(label):
                expected = turned(expected)
            np.testing.assert_array_equal(image, expected)
        assert sorted(zip(records.tolist(), made_labels.tolist(), strict=True)) == [
            (record, label) for record in range(len(images)) for label in range(4)
        ]
    np.testing.assert_array_equal(task.train_owners, owners[task.train_records])
    np.testing.assert_array_equal(task.train_series, 2 * owners[task.train_records])
    assert task.test_owners is task.test_series is None
    assert task.class_names == ("0 degrees", "90 degrees", "180 degrees", "270 degrees")


def test_records_that_a_data_set_has_stay():
    images, labels = photographs(2, np.random.default_rng(0)), np.zeros(2, np.int32)
    whole = Dataset("photos", images, labels, images, labels, ("photo",), "x", train_records=np.array([5, 5]))
    assert rotations(whole).train_records.tolist() == [5] * 8


def test_rotations_of_more_images_than_fit_are_refused(monkeypatch):
    images, labels = photographs(2, np.random.default_rng(0)), np.zeros(2, np.int32)
    monkeypatch.setattr("gan_leak.machine.usable_memory", lambda: 8 * 2 * images.nbytes - 1)
    with pytest.raises(ValueError, match="dataset=photos: images in 4 rotations need at least"):
        rotations(Dataset("photos", images, labels, images, labels, ("photo",), "x"))


def test_the_owners_of_faces_are_the_people_and_change_no_fingerprint():
    faces = load("orl_faces")
    # As before faces had owners.
    assert faces.fingerprint == "0654a63505544923bdd45dfc88bd0767aada90b25fd2b4c9c319337c16ae59ad"
    for owners, labels in ((faces.train_owners, faces.train_labels), (faces.test_owners, faces.test_labels)):
        assert owners.dtype == np.int64
        np.testing.assert_array_equal(owners, labels)
    task = rotations(faces)
    assert len(task.train_labels) == 1280
    assert np.bincount(task.train_owners).tolist() == [32] * 40
    assert task.fingerprint not in (faces.fingerprint, rotations(faces._replace(train_owners=None)).fingerprint)
