"""Writers of MNIST: read from packed and plain label files, and refused unless they are those of the images."""

import gzip
import hashlib
import os

import numpy as np
import pytest

from gan_leak.data import Dataset, load
from gan_leak.data.qmnist import TEST_NAMES, read_writers, with_writers

TRAIN_LABELS, TEST_LABELS = np.array([5, 0, 4, 1], np.int32), np.array([7, 2], np.int32)


def idx(digits, series, writers):
    rows = np.zeros((len(digits), 8), ">i4")
    rows[:, 0], rows[:, 1], rows[:, 2] = digits, series, writers
    return b"\x00\x00\x0c\x02" + len(digits).to_bytes(4) + (8).to_bytes(4) + rows.tobytes()


TRAIN = idx([5, 0, 4, 1], [4, 0, 4, 4], [2154, 30, 2232, 2154])
# One row more than MNIST has test images.
TEST = idx([7, 2, 9], [4, 4, 0], [2578, 2359, 11])
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in (("train", TRAIN), ("test", TEST))}


def dataset():
    images = np.zeros((6, 32, 32, 1), np.uint8)
    return Dataset("mnist", images[:4], TRAIN_LABELS, images[4:], TEST_LABELS, tuple("0123456789"), "before")


@pytest.mark.parametrize("name", ["labels.gz", "labels"])
@pytest.mark.parametrize("test_name", TEST_NAMES)
def test_writers_and_series_of_both_parts(tmp_path, name, test_name):
    (tmp_path / name).write_bytes(gzip.compress(TRAIN) if name.endswith("gz") else TRAIN)
    alone = with_writers(dataset(), tmp_path / name, sha256=SHA256)
    assert alone.train_owners.tolist() == [2154, 30, 2232, 2154]
    assert alone.train_series.tolist() == [4, 0, 4, 4]
    assert alone.train_owners.dtype == alone.train_series.dtype == np.int64
    assert alone.test_owners is alone.test_series is None
    (tmp_path / test_name).write_bytes(gzip.compress(TEST) if test_name.endswith("gz") else TEST)
    both = with_writers(dataset(), tmp_path / name, sha256=SHA256)
    assert both.test_owners.tolist() == [2578, 2359]
    assert both.test_series.tolist() == [4, 4]
    assert len({"before", alone.fingerprint, both.fingerprint}) == 3


def swapped(content, at, value):
    return content[:at] + bytes([value]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Another writer, in the lowest byte of row 0, column 2.
        (swapped(TRAIN, 23, 1), "of the unpacked file, expected " + SHA256["train"]),
        (swapped(TRAIN, 15, 3), "1 of 4 digits are not MNIST's labels"),
        (idx([7, 2, 9, 5], [4] * 4, [1] * 4), "4 of 4 digits are not MNIST's labels"),
        (idx([5, 0, 4], [4] * 3, [1] * 3), "3 rows, expected at least 4"),
        (TRAIN[:-1], "139 bytes, expected 140 for 4 rows"),
        (TRAIN + b"\0", "141 bytes, expected 140 for 4 rows"),
        (swapped(TRAIN, 2, 8), "header 000008020000000400000008, expected IDX of int32 [N, 8]"),
        (swapped(TRAIN, 11, 7), "expected IDX of int32 [N, 8]"),
        (swapped(TRAIN, 4, 255), "with N up to 60000"),
        (TRAIN[:9], "expected IDX"),
        (b"", "header , expected IDX"),
        (gzip.compress(TRAIN, mtime=0)[:-12], "cannot be read (EOFError"),
        (swapped(gzip.compress(TRAIN, mtime=0), 25, 0), "cannot be read ("),
        (b"\x1f\x8b and then text", "cannot be read (BadGzipFile"),
        # Unpacks to 10 MB: reading ends at the size of the published files.
        (gzip.compress(TRAIN + bytes(10**7), mtime=0), "at least 1920013 bytes, expected 140"),
    ],
)
def test_a_file_that_does_not_match_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="owners=qmnist:") as caught:
        read_writers(path, TRAIN_LABELS, sha256=SHA256["train"])
    assert str(caught.value).startswith(f"owners=qmnist:{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_test_file_that_does_not_match_is_refused(tmp_path):
    (tmp_path / "labels").write_bytes(TRAIN)
    (tmp_path / TEST_NAMES[0]).write_bytes(gzip.compress(TRAIN))
    with pytest.raises(ValueError, match=f"{TEST_NAMES[0]}: 2 of 2 digits are not"):
        with_writers(dataset(), tmp_path / "labels", sha256=SHA256)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("none", "No such file"), (".", "a folder, expected a file"), ("pipe", "a pipe")):
        with pytest.raises(ValueError, match=f"cannot be read .*{message}"):
            read_writers(tmp_path / name, TRAIN_LABELS, sha256="")


def test_only_mnist_takes_owners_from_a_file_and_only_from_qmnist(refuses, tmp_path):
    refuses("orl_faces", "owners='qmnist:x': expected none with dataset='orl_faces'", owners="qmnist:x")
    refuses("mnist", "owners='emnist:x': expected 'qmnist:<path>'", owners="emnist:x")
    refuses("mnist", "owners='qmnist:': path='': expected a path", owners="qmnist:")
    (tmp_path / "labels").write_bytes(TRAIN)
    refuses("mnist", "4 rows, expected at least 60000", owners=f"qmnist:{tmp_path / 'labels'}")


def test_owners_that_are_not_as_published_are_refused_although_their_digits_agree(refuses, tmp_path):
    labels = load("mnist").train_labels
    (tmp_path / "labels").write_bytes(idx(labels, 4, 7))
    refuses("mnist", "of the unpacked file, expected bb1b6e1e", owners=f"qmnist:{tmp_path / 'labels'}")
