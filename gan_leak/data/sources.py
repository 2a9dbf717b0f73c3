"""Where images come from: two bundled data sets, TensorFlow Datasets, npz files and folders of pictures."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gan_leak.data import bundled
from gan_leak.data.images import fit

IMAGE_SIZES = (28, 32, 64)
NAMES = "'mnist', 'orl_faces', 'tfds:<name>[/<config>]', 'npz:<path>' or 'folder:<path>'"

# The split of a source that comes without a test part: every fifth sample of a class.
_TEST_EVERY = 5
# The split of the faces, which Hitaj et al. 2017 do not state: images 9 and 10 of each person are for testing.
_ORL_TRAIN_IMAGES = 8

_GREY_MODES = ("1", "L", "LA", "La")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class Dataset(NamedTuple):
    """Labelled square images in a training and a test part.

    train_images, test_images: uint8 [N, S, S, C], C 1 or 3; train_labels, test_labels: int32 [N], indices into
    class_names. fingerprint: SHA-256 (hex) of the shapes and bytes of the four arrays.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str


class _Samples(NamedTuple):
    """Images uint8 [N, S, S, C] and labels int [N]."""

    images: np.ndarray
    labels: np.ndarray


def load(name: str, *, image_size: int = 32, data_dir: str | None = None) -> Dataset:
    """Load a data set as uint8 images of one size; see ``gan_leak.data.images.fit`` for how they get there.

    'mnist' and 'orl_faces' (training: images 1-8 of each of the 40 people, test: 9-10) need the extra ``data``.
    'tfds:<name>[/<config>]' reads the features 'image' and 'label' of the splits 'train' and 'test' as TensorFlow
    Datasets prepared them in ``data_dir`` (None = its own default), and prepares them if TensorFlow is installed.
    'npz:<path>' reads ``images`` (uint8 [N, H, W] or [N, H, W, C]) and ``labels`` (0..K-1), and optionally
    ``test_images`` and ``test_labels``. 'folder:<path>' reads one sub-folder of pictures a class. Without a test part,
    every fifth sample of each class is the test part.

    Raises ValueError on an unknown name, a missing extra, and unreadable, altered or unsuitable data.
    """
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image_size={image_size}, expected one of {IMAGE_SIZES}")
    kind, separator, argument = name.partition(":")
    if name == "mnist":
        return _load_mnist(name, image_size)
    if name == "orl_faces":
        return _load_orl_faces(name, image_size)
    if not separator or not argument or kind not in ("tfds", "npz", "folder"):
        raise ValueError(f"dataset={name!r}, expected {NAMES}")
    if kind == "tfds":
        return _load_tfds(name, argument, image_size, data_dir, _tfds_builder)
    if kind == "npz":
        return _load_npz(name, Path(argument).expanduser(), image_size)
    return _load_folder(name, Path(argument).expanduser(), image_size)


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted training and test indices of labels [N]: every fifth sample of a class is for testing."""
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _load_mnist(name: str, image_size: int) -> Dataset:
    train_images, train_labels, test_images, test_labels = bundled.read_mnist()
    return _dataset(
        name,
        _Samples(fit(train_images[..., None], image_size), train_labels),
        _Samples(fit(test_images[..., None], image_size), test_labels),
        tuple(str(digit) for digit in range(10)),
    )


def _load_orl_faces(name: str, image_size: int) -> Dataset:
    images = fit(bundled.read_orl_faces()[..., None], image_size)
    labels = np.repeat(np.arange(bundled.ORL_PEOPLE), bundled.ORL_IMAGES_PER_PERSON)
    is_train = np.arange(len(labels)) % bundled.ORL_IMAGES_PER_PERSON < _ORL_TRAIN_IMAGES
    return _dataset(
        name,
        _Samples(images[is_train], labels[is_train]),
        _Samples(images[~is_train], labels[~is_train]),
        tuple(f"person {person}" for person in range(1, bundled.ORL_PEOPLE + 1)),
    )


def _load_npz(name: str, path: Path, image_size: int) -> Dataset:
    arrays = _read_npz(name, path)
    train = _npz_samples(name, arrays, "", image_size)
    test = None
    if "test_images" in arrays or "test_labels" in arrays:
        test = _npz_samples(name, arrays, "test_", image_size)
    class_names = tuple(str(label) for label in range(int(train.labels.max()) + 1))
    return _dataset(name, train, test, class_names)


def _read_npz(name: str, path: Path) -> dict[str, np.ndarray]:
    try:
        return read_archive(path, ("images", "labels", "test_images", "test_labels"))
    except ValueError as error:
        raise ValueError(f"dataset={name!r}: cannot read {path} ({error}); expected an npz without pickles") from error


def read_archive(path: Path, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file, or those of them that are wanted; raises ValueError if it cannot be read."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an npz archive")
            return {key: archive[key] for key in archive.files if wanted is None or key in wanted}
    except Exception as error:  # a damaged archive fails in any layer: zip, inflate, array header, pickle refused
        raise ValueError(_reason(error)) from error


def _npz_samples(name: str, arrays: dict[str, np.ndarray], prefix: str, image_size: int) -> _Samples:
    for key in (f"{prefix}images", f"{prefix}labels"):
        if key not in arrays:
            raise ValueError(f"dataset={name!r}: {key} is missing, found {sorted(arrays)}")
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"dataset={name!r}: {prefix}images are {images.dtype} {list(images.shape)}, "
            "expected uint8 [N, H, W] or [N, H, W, C] with C 1 or 3"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"dataset={name!r}: {prefix}labels are {labels.dtype} {list(labels.shape)}, "
            f"expected integers [{len(images)}], one for each image"
        )
    return _Samples(fit(images, image_size), labels)


def _load_folder(name: str, path: Path, image_size: int) -> Dataset:
    if not path.is_dir():
        raise ValueError(f"dataset={name!r}: {path} is not a folder")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise ValueError(f"dataset={name!r}: {path} has no sub-folders, expected one for each class")
    images, labels = [], []
    for label, folder in enumerate(folders):
        files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
        if not files:
            raise ValueError(f"dataset={name!r}: {folder} holds no images, expected at least one in each class")
        for file in files:
            images.append(fit(_read_picture(name, file)[None], image_size)[0])
            labels.append(label)
    channels = max(image.shape[-1] for image in images)
    stacked = np.stack([np.broadcast_to(image, (image_size, image_size, channels)) for image in images])
    return _dataset(name, _Samples(stacked, np.array(labels)), None, tuple(folder.name for folder in folders))


def _read_picture(name: str, path: Path) -> np.ndarray:
    """Return a picture as uint8 [H, W, C], with one channel where its mode is a grey one and three elsewhere."""
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode in _SIXTEEN_BIT_MODES:
                return (np.asarray(picture) >> 8).astype(np.uint8)[..., None]
            if picture.mode in ("I", "F"):
                raise ValueError(f"pixel mode {picture.mode}, expected 8 or 16 bits a channel")
            if picture.mode in _GREY_MODES:
                return np.asarray(picture.convert("L"))[..., None]
            return np.asarray(picture.convert("RGB"))
    except Exception as error:  # Pillow's decoders fail in many ways: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"dataset={name!r}: cannot read the image {path} ({_reason(error)})") from error


def _load_tfds(
    name: str, argument: str, image_size: int, data_dir: str | None, make_builder: Callable[[str, str | None], Any]
) -> Dataset:
    """Read 'train' and, if there is one, 'test' from the TensorFlow Datasets builder that ``make_builder`` returns."""
    builder = make_builder(argument, data_dir)
    features = builder.info.features
    if "image" not in features or "label" not in features or not hasattr(features["label"], "names"):
        raise ValueError(f"dataset={name!r}: features={list(features)}, expected 'image' and a class 'label'")
    if not builder.is_prepared():
        _prepare_tfds(name, builder)
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(f"dataset={name!r}: splits={list(splits)}, expected 'train'")
    train = _tfds_samples(name, builder, "train", image_size)
    test = _tfds_samples(name, builder, "test", image_size) if "test" in splits else None
    return _dataset(name, train, test, tuple(features["label"].names))


def _tfds_builder(argument: str, data_dir: str | None) -> Any:
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ValueError(f"dataset='tfds:{argument}' needs the package tensorflow-datasets")
    import tensorflow_datasets

    try:
        return tensorflow_datasets.builder(argument, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError) as error:
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
        for example in builder.as_data_source(split=split):
            images.append(fit(np.asarray(example["image"])[None], image_size)[0])
            labels.append(int(example["label"]))
        return _Samples(np.stack(images), np.array(labels))
    except Exception as error:  # another file format, a damaged file, images of a type that has no place here
        raise ValueError(
            f"dataset={name!r}: cannot read split {split!r} in {builder.data_dir} ({_reason(error)}); "
            "expected uint8 images prepared with file_format='array_record'"
        ) from error


def _dataset(name: str, train: _Samples, test: _Samples | None, class_names: tuple[str, ...]) -> Dataset:
    """Check what every source promises and put it together, splitting off a test part where there is none."""
    if test is None:
        train_indices, test_indices = stratified_split(train.labels)
        test = _Samples(train.images[test_indices], train.labels[test_indices])
        train = _Samples(train.images[train_indices], train.labels[train_indices])
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
    return _with_fingerprint(
        Dataset(
            name,
            np.ascontiguousarray(train.images),
            train.labels.astype(np.int32),
            np.ascontiguousarray(test.images),
            test.labels.astype(np.int32),
            class_names,
            fingerprint="",
        )
    )


def _with_fingerprint(dataset: Dataset) -> Dataset:
    digest = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        digest.update(str(array.shape).encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return dataset._replace(fingerprint=digest.hexdigest())
