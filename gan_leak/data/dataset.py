"""A data set in memory, its fingerprint, and a task whose category is the rotation of an image."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from gan_leak.data.spectrograms import Spectrogram
from gan_leak.machine import check_fits

# Names of the classes of ``rotations``.
ROTATIONS = ("0 degrees", "90 degrees", "180 degrees", "270 degrees")


class Dataset(NamedTuple):
    """Labeled square images in a training and a test part.

    train_images, test_images: uint8 [N, S, S, C], C 1 or 3; train_labels, test_labels: int32 [N], indices into
    class_names. fingerprint: SHA-256 (hex) of the shapes and bytes of these arrays, and of those of the six int64
    fields that are there, unless ``load`` says otherwise. notes: remarks on the reading for reports, one line each.
    spectrogram: how the images were made from sound, None if they were not.

    The other fields are int64 [N], and None if unknown. train_owners, test_owners: the owner of each image, such as its
    writer. train_series, test_series: the series in which it was collected; images of two series differ by more than
    their owners. train_records, test_records: the original image that it was made from, where several images of the
    data set come from one original.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    train_owners: np.ndarray | None = None
    test_owners: np.ndarray | None = None
    train_series: np.ndarray | None = None
    test_series: np.ndarray | None = None
    train_records: np.ndarray | None = None
    test_records: np.ndarray | None = None
    spectrogram: Spectrogram | None = None


def with_fingerprint(dataset: Dataset) -> Dataset:
    """The data set with the fingerprint of its arrays."""
    digest = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        digest.update(str(array.shape).encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    optional = ("train_owners", "test_owners", "train_series", "test_series", "train_records", "test_records")
    for name in optional:
        # Data sets without these fields keep the fingerprint of earlier versions.
        if (kept := getattr(dataset, name)) is not None:
            digest.update(f"{name} {kept.shape}".encode())
            digest.update(kept.astype(kept.dtype.newbyteorder("<"), copy=False).data)
    return dataset._replace(fingerprint=digest.hexdigest())


def rotations(dataset: Dataset) -> Dataset:
    """The data set with each image in four rotations, whose class is the rotation, counterclockwise.

    A classifier of rotations needs no annotation (Gidaris et al. 2018, arXiv 1803.07728). It serves data whose classes
    are their owners, such as faces. Images 4 n to 4 n + 3 are image n, rotated by 0, 90, 180 and 270 degrees; they have
    its owner and series, and one number in ``train_records`` or ``test_records``. Classes of the data set are dropped.

    Raises ValueError if the images do not fit into half of the memory.

    >>> photo = np.array([[[0], [1]], [[2], [3]]], np.uint8)
    >>> photos, labels, owners = np.stack([photo, photo + 4]), np.zeros(2, np.int32), np.array([7, 8])
    >>> whole = rotations(Dataset("photos", photos, labels, photos, labels, ("photo",), "", train_owners=owners))
    >>> whole.train_images[1, :, :, 0]
    array([[1, 3],
           [0, 2]], dtype=uint8)
    >>> whole.train_labels, whole.train_records, whole.train_owners
    (array([0, 1, 2, 3, 0, 1, 2, 3], dtype=int32), array([0, 0, 0, 0, 1, 1, 1, 1]), array([7, 7, 7, 7, 8, 8, 8, 8]))
    """
    size = len(ROTATIONS) * (dataset.train_images.nbytes + dataset.test_images.nbytes)
    check_fits(f"dataset={dataset.name}: images in {len(ROTATIONS)} rotations need", size)
    rotated = dataset._replace(
        train_images=_rotated(dataset.train_images),
        train_labels=_rotation_of(dataset.train_images),
        test_images=_rotated(dataset.test_images),
        test_labels=_rotation_of(dataset.test_images),
        class_names=ROTATIONS,
        train_owners=_repeated(dataset.train_owners),
        test_owners=_repeated(dataset.test_owners),
        train_series=_repeated(dataset.train_series),
        test_series=_repeated(dataset.test_series),
        train_records=_repeated(_records(dataset.train_records, dataset.train_images)),
        test_records=_repeated(_records(dataset.test_records, dataset.test_images)),
        spectrogram=None,
    )
    return with_fingerprint(rotated)


def _rotated(images: np.ndarray) -> np.ndarray:
    """Images [N, S, S, C] in four rotations: [4 N, S, S, C]."""
    turned = [np.rot90(images, turns, axes=(1, 2)) for turns in range(len(ROTATIONS))]
    return np.stack(turned, axis=1).reshape(-1, *images.shape[1:])


def _rotation_of(images: np.ndarray) -> np.ndarray:
    return np.tile(np.arange(len(ROTATIONS), dtype=np.int32), len(images))


def _records(records: np.ndarray | None, images: np.ndarray) -> np.ndarray:
    return np.arange(len(images)) if records is None else records


def _repeated(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.repeat(values, len(ROTATIONS))
