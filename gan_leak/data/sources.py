"""Sources of images: two bundled data sets, TensorFlow Datasets, npz files and folders of images."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gan_leak.data import bundled
from gan_leak.data.archives import ArrayHeader, read_archive
from gan_leak.data.class_names import natural_key, shown
from gan_leak.data.dataset import Dataset, with_fingerprint
from gan_leak.data.folders import ClassFolder, list_classes, read_picture
from gan_leak.data.images import fit
from gan_leak.data.qmnist import with_writers
from gan_leak.data.spectrograms import Spectrogram, checked_spectrogram
from gan_leak.files import user_path
from gan_leak.machine import check_fits

IMAGE_SIZES = (28, 32, 64)
NAMES = "'mnist', 'orl_faces', 'tfds:<name>[/<config>]', 'npz:<path>' or 'folder:<path>'"

# The split of a source without a test part: every fifth sample of a class is for testing.
_TEST_EVERY = 5
# The split of the faces, which Hitaj et al. 2017 do not state: images 9 and 10 of each person are for testing.
_ORL_TRAIN_IMAGES = 8
# Each class is an output of the networks. Labels with more values are probably row numbers or time stamps.
MOST_CLASSES = 2**16
_MNIST_NAMES = tuple(str(digit) for digit in range(10))
_ORL_NAMES = tuple(f"person {person}" for person in range(1, bundled.ORL_PEOPLE + 1))
_NPZ_ARRAYS = ("images", "labels", "owners", "test_images", "test_labels", "test_owners", *Spectrogram._fields)


class _Samples(NamedTuple):
    """Images uint8 [N, S, S, C], labels int [N] and owners int [N], None where they are unknown."""

    images: np.ndarray
    labels: np.ndarray
    owners: np.ndarray | None = None

    def take(self, indices: np.ndarray) -> _Samples:
        """The samples at these indices."""
        owners = None if self.owners is None else self.owners[indices]
        return _Samples(self.images[indices], self.labels[indices], owners)


def load(name: str, *, image_size: int = 32, data_dir: str | None = None, owners: str = "") -> Dataset:
    """Load a data set as uint8 images of one size, resized by ``gan_leak.data.images.fit``.

    'mnist' and 'orl_faces' (training: images 1-8 of each of the 40 people, test: 9-10) need the extra ``data``. The
    owners of the faces are the people, which are also the classes; they are not part of the fingerprint. ``owners`` =
    'qmnist:<path>' reads the owners and series of 'mnist' by ``gan_leak.data.qmnist.with_writers``.
    'tfds:<name>[/<config>]' reads the features 'image' and 'label' of the splits 'train' and 'test' as TensorFlow
    Datasets prepared them in ``data_dir`` (None = its own default), and prepares them if TensorFlow is installed.
    'npz:<path>' reads ``images`` (uint8 [N, H, W] or [N, H, W, C]) and ``labels`` (0..K-1), and optionally
    ``test_images``, ``test_labels``, ``owners`` and ``test_owners`` (an integer for each image), and the fields of
    ``gan_leak.data.Spectrogram`` (a number each) if the images are spectrograms. 'folder:<path>' reads one sub-folder
    of images per class, in natural order of their names: 2 before 10. If every class consists of
    sub-folders, each is an owner, and one name is one owner in all classes; owners are numbered from 0 in natural order
    of their names. Without a test part, every fifth sample of each class is the test part.

    Raises ValueError for an unknown name, a missing extra, unreadable, altered or unsuitable data, and data that do not
    fit into half of the memory.

    >>> mnist = load("mnist")
    >>> mnist.train_images.shape, mnist.train_images.dtype
    ((60000, 32, 32, 1), dtype('uint8'))
    >>> mnist.class_names[3]
    '3'
    """
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image_size={image_size}, expected one of {IMAGE_SIZES}")
    kind, argument = _kind_of(name)
    if owners and kind != "mnist":
        raise ValueError(f"owners={owners!r}: expected none with dataset={name!r}; a file of owners is for 'mnist'")
    if kind == "mnist":
        return _load_mnist(name, image_size, _writers_path(owners))
    if kind == "orl_faces":
        return _load_orl_faces(name, image_size)
    if kind == "tfds":
        return _load_tfds(name, argument, image_size, data_dir, _tfds_builder)
    path = user_path(f"dataset={name!r}: path", argument)
    if kind == "npz":
        return _load_npz(name, path, image_size)
    return _load_folder(name, path, image_size)


def load_class_names(name: str, *, data_dir: str | None = None) -> tuple[str, ...]:
    """The names of the classes of a data set in order, as ``load`` gives them, without reading its images.

    Raises ValueError as ``load`` does.
    """
    kind, argument = _kind_of(name)
    if kind == "mnist":
        return _MNIST_NAMES
    if kind == "orl_faces":
        return _ORL_NAMES
    if kind == "tfds":
        return _tfds_names(name, _tfds_builder(argument, data_dir))
    path = user_path(f"dataset={name!r}: path", argument)
    if kind == "npz":
        return _npz_names(name, _read_npz(name, path, ("labels",), _check_labels)["labels"])
    return tuple(folder.name for folder in _class_folders(name, path)[0])


def _kind_of(name: str) -> tuple[str, str]:
    """The kind of source that a name means, and its argument."""
    kind, separator, argument = name.partition(":")
    if name in ("mnist", "orl_faces"):
        return name, ""
    if not separator or not argument or kind not in ("tfds", "npz", "folder"):
        raise ValueError(f"dataset={name!r}, expected {NAMES}")
    return kind, argument


def _writers_path(owners: str) -> Path | None:
    """The path of a label file of QMNIST that a user gives; None for an empty text."""
    if not owners:
        return None
    kind, _, argument = owners.partition(":")
    if kind != "qmnist":
        raise ValueError(f"owners={owners!r}: expected 'qmnist:<path>'")
    return user_path(f"owners={owners!r}: path", argument)


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted training and test indices of labels [N]: every fifth sample of a class is for testing."""
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _load_mnist(name: str, image_size: int, writers: Path | None) -> Dataset:
    train_images, train_labels, test_images, test_labels = bundled.read_mnist()
    dataset = _dataset(
        name,
        _Samples(fit(train_images[..., None], image_size), train_labels),
        _Samples(fit(test_images[..., None], image_size), test_labels),
        _MNIST_NAMES,
    )
    return dataset if writers is None else with_writers(dataset, writers)


def _load_orl_faces(name: str, image_size: int) -> Dataset:
    images = fit(bundled.read_orl_faces()[..., None], image_size)
    labels = np.repeat(np.arange(bundled.ORL_PEOPLE), bundled.ORL_IMAGES_PER_PERSON)
    is_train = np.arange(len(labels)) % bundled.ORL_IMAGES_PER_PERSON < _ORL_TRAIN_IMAGES
    dataset = _dataset(
        name,
        _Samples(images[is_train], labels[is_train]),
        _Samples(images[~is_train], labels[~is_train]),
        _ORL_NAMES,
    )
    # Owners that equal the labels tell nothing more, and the fingerprint stays that of runs without owners.
    people = labels.astype(np.int64)
    return dataset._replace(train_owners=people[is_train], test_owners=people[~is_train])


def _load_npz(name: str, path: Path, image_size: int) -> Dataset:
    arrays = _read_npz(name, path, _NPZ_ARRAYS, functools.partial(_check_headers, image_size=image_size))
    class_names = _npz_names(name, arrays["labels"])
    train, *test = (
        _Samples(
            _fitted(arrays[f"{prefix}images"], image_size), arrays[f"{prefix}labels"], arrays.get(f"{prefix}owners")
        )
        for prefix in ("", "test_")
        if f"{prefix}images" in arrays
    )
    return _dataset(name, train, test[0] if test else None, class_names)._replace(
        spectrogram=_spectrogram(name, path, arrays, image_size)
    )


def _spectrogram(name: str, path: Path, arrays: Mapping[str, np.ndarray], image_size: int) -> Spectrogram | None:
    values = {key: arrays[key].item() for key in Spectrogram._fields if key in arrays}
    if not values:
        return None
    shape, wanted = arrays["images"].shape[1:], (image_size, image_size)
    try:
        if shape not in (wanted, (*wanted, 1)):
            raise ValueError(f"spectrograms are {list(shape)}, expected {list(wanted)}: they cannot be resized")
        return checked_spectrogram(values, image_size)
    except ValueError as error:
        raise ValueError(f"dataset={name!r}: cannot read {path} ({error})") from error


def _fitted(images: np.ndarray, image_size: int) -> np.ndarray:
    return fit(images[..., None] if images.ndim == 3 else images, image_size)


def _read_npz(
    name: str, path: Path, wanted: Sequence[str], check: Callable[[Mapping[str, ArrayHeader]], None]
) -> dict[str, np.ndarray]:
    try:
        return read_archive(path, wanted, check)
    except ValueError as error:
        raise ValueError(f"dataset={name!r}: cannot read {path} ({error})") from error


def _check_headers(headers: Mapping[str, ArrayHeader], *, image_size: int) -> None:
    """Raise ValueError if the headers show that the arrays are not a data set, before they are unpacked."""
    parts = [""] if {"test_images", "test_labels", "test_owners"}.isdisjoint(headers) else ["", "test_"]
    needed = 0
    for prefix in parts:
        for key in (f"{prefix}images", f"{prefix}labels"):
            if key not in headers:
                raise ValueError(f"{key} is missing, found {sorted(headers)}")
        images = headers[f"{prefix}images"]
        shape = (*images.shape, 1) if len(images.shape) == 3 else images.shape
        if images.dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
            raise ValueError(
                f"{prefix}images are {images.dtype} {list(shape)}, "
                "expected uint8 [N, H, W] or [N, H, W, C] with C 1 or 3"
            )
        _check_labels(headers, f"{prefix}labels", shape[0])
        if f"{prefix}owners" in headers:
            _check_owners(headers[f"{prefix}owners"], f"{prefix}owners", shape[0])
        needed += images.size + _working_bytes(shape[0], image_size, shape[-1])
    for key in set(Spectrogram._fields) & set(headers):
        if headers[key].shape or headers[key].dtype.kind not in "iuf":
            raise ValueError(f"{key} is {headers[key].dtype} {list(headers[key].shape)}, expected one number")
    check_fits("its images need", needed)


def _check_labels(headers: Mapping[str, ArrayHeader], key: str = "labels", count: int | None = None) -> None:
    if key not in headers:
        raise ValueError(f"{key} is missing")
    shape, dtype, size = headers[key]
    if not np.issubdtype(dtype, np.integer) or len(shape) != 1 or count not in (None, *shape) or not size:
        raise ValueError(
            f"{key} are {dtype} {list(shape)}, expected integers [{'N' if count is None else count}], one for each "
            "image"
        )


def _check_owners(header: ArrayHeader, key: str, count: int) -> None:
    fits = np.issubdtype(header.dtype, np.integer) and np.can_cast(header.dtype, np.int64)
    if not fits or header.shape != (count,):
        raise ValueError(
            f"{key} are {header.dtype} {list(header.shape)}, expected integers of at most int64 [{count}], one for "
            "each image"
        )


def _working_bytes(count: int, image_size: int, channels: int) -> int:
    """Bytes of uint8 images of the wanted size, and of a float32 copy."""
    return 5 * count * image_size**2 * channels


def _npz_names(name: str, labels: np.ndarray) -> tuple[str, ...]:
    """The numbers of the classes as names; labels must contain every class."""
    found = np.unique(labels)
    if len(found) > MOST_CLASSES or not np.array_equal(found, np.arange(len(found))):
        raise ValueError(
            f"dataset={name!r}: labels have {len(found)} values from {found[0]} to {found[-1]}, expected 0..K-1, each "
            f"of the K classes there, at most {MOST_CLASSES}"
        )
    return tuple(map(str, range(len(found))))


def _class_folders(name: str, path: Path) -> tuple[list[ClassFolder], list[str]]:
    try:
        return list_classes(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"dataset={name!r}: {error}") from error


def _load_folder(name: str, path: Path, image_size: int) -> Dataset:
    classes, skipped = _class_folders(name, path)
    files = [(label, file) for label, folder in enumerate(classes) for file in folder.files]
    check_fits(f"dataset={name!r}: {len(files)} images need", _working_bytes(len(files), image_size, 1))
    images = []
    for _, file in files:
        try:
            images.append(fit(read_picture(file)[None], image_size)[0])
        except ValueError as error:
            raise ValueError(f"dataset={name!r}: {error}") from error
    channels = max(image.shape[-1] for image in images)
    stacked = np.stack([np.broadcast_to(image, (image_size, image_size, channels)) for image in images])
    labels = np.array([label for label, _ in files])
    dataset = _dataset(
        name, _Samples(stacked, labels, _owner_numbers(classes)), None, tuple(folder.name for folder in classes)
    )
    if not skipped:
        return dataset
    entries = "1 entry" if len(skipped) == 1 else f"{len(skipped)} entries"
    note = f"dataset={shown(name)}: skipped {entries} beside the images of the classes, such as {skipped[0]}"
    return dataset._replace(notes=(note,))


def _owner_numbers(classes: Sequence[ClassFolder]) -> np.ndarray | None:
    """The number of the owner of each image, class by class; None without owners."""
    owners = [owner for folder in classes for owner in folder.owners]
    numbers = {owner: number for number, owner in enumerate(sorted(set(owners), key=natural_key))}
    return np.array([numbers[owner] for owner in owners], np.int64) if owners else None


def _load_tfds(
    name: str, argument: str, image_size: int, data_dir: str | None, make_builder: Callable[[str, str | None], Any]
) -> Dataset:
    """Read 'train' and, if there is one, 'test' from the TensorFlow Datasets builder that ``make_builder`` returns."""
    builder = make_builder(argument, data_dir)
    class_names = _tfds_names(name, builder)
    if not builder.is_prepared():
        _prepare_tfds(name, builder)
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(f"dataset={name!r}: splits={list(splits)}, expected 'train'")
    train = _tfds_samples(name, builder, "train", image_size)
    test = _tfds_samples(name, builder, "test", image_size) if "test" in splits else None
    return _dataset(name, train, test, class_names)


def _tfds_names(name: str, builder: Any) -> tuple[str, ...]:
    features = builder.info.features
    if "image" not in features or "label" not in features or not hasattr(features["label"], "names"):
        raise ValueError(f"dataset={name!r}: features={list(features)}, expected 'image' and a class 'label'")
    return tuple(map(shown, features["label"].names))


def _tfds_builder(argument: str, data_dir: str | None) -> Any:
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ValueError(f"dataset='tfds:{argument}' needs the package tensorflow-datasets")
    import tensorflow_datasets

    try:
        return tensorflow_datasets.builder(argument, data_dir=data_dir)
    except Exception as error:  # names are parsed as settings, paths and addresses, with different errors
        raise ValueError(
            f"dataset='tfds:{argument}', expected one that TensorFlow Datasets has ({_reason(error)})"
        ) from error


def _prepare_tfds(name: str, builder: Any) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"dataset={name!r} is not prepared in {builder.data_dir}, and preparing it needs TensorFlow, "
            "which the extra 'tfds' brings: pip install 'gan-leak[tfds]'"
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # network, disk and the data set's own code
        raise ValueError(f"dataset={name!r} cannot be prepared in {builder.data_dir} ({_reason(error)})") from error


def _tfds_samples(name: str, builder: Any, split: str, image_size: int) -> _Samples:
    images, labels = [], []
    try:
        examples = builder.as_data_source(split=split)
        check_fits(f"{len(examples)} images need", _working_bytes(len(examples), image_size, 1))
        for example in examples:
            images.append(fit(np.asarray(example["image"])[None], image_size)[0])
            labels.append(int(example["label"]))
        return _Samples(np.stack(images), np.array(labels))
    except Exception as error:  # another file format, a damaged file, images of another type
        raise ValueError(
            f"dataset={name!r}: cannot read split {split!r} in {builder.data_dir} ({_reason(error)}); "
            "expected uint8 images prepared with file_format='array_record'"
        ) from error


def _dataset(name: str, train: _Samples, test: _Samples | None, class_names: tuple[str, ...]) -> Dataset:
    """Check the parts of a source and combine them; split off a test part if there is none."""
    if test is None:
        train_indices, test_indices = stratified_split(train.labels)
        train, test = train.take(train_indices), train.take(test_indices)
    if not len(test.labels):
        raise ValueError(
            f"dataset={name!r}: no class has {_TEST_EVERY} images, expected enough to split off a test part"
        )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"dataset={name!r}: training images are {list(train.images.shape[1:])} and test images "
            f"{list(test.images.shape[1:])}, expected the same"
        )
    classes, trained, tested = range(len(class_names)), np.unique(train.labels), np.unique(test.labels)
    if not np.array_equal(trained, classes) or not np.isin(tested, classes).all():
        raise ValueError(
            f"dataset={name!r}: labels have {len(trained)} values from {trained[0]} to {trained[-1]} (training) "
            f"and from {tested[0]} to {tested[-1]} (test), expected 0..{len(classes) - 1}, each in training"
        )
    return with_fingerprint(
        Dataset(
            name,
            np.ascontiguousarray(train.images),
            train.labels.astype(np.int32),
            np.ascontiguousarray(test.images),
            test.labels.astype(np.int32),
            class_names,
            fingerprint="",
            train_owners=None if train.owners is None else train.owners.astype(np.int64),
            test_owners=None if test.owners is None else test.owners.astype(np.int64),
        )
    )
