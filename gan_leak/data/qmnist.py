"""The writers of MNIST's images, from the label files of QMNIST (Yadav and Bottou 2019, arXiv 1905.10498).

QMNIST traces each image of MNIST to the original data of NIST. Its label files are in MNIST's order: IDX, big-endian
int32 [N, 8]. Column 0 is the digit, column 1 the series of forms (0: employees, 4: students), column 2 the writer. The
files are ``qmnist-train-labels-idx2-int.gz`` and ``qmnist-test-labels-idx2-int.gz`` of facebookresearch/qmnist (BSD).
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from gan_leak.data.archives import first_line
from gan_leak.data.dataset import Dataset, with_fingerprint
from gan_leak.files import open_regular

# SHA-256 of the unpacked files, so that a user may keep them packed or not. The packed files, as they are distributed,
# have 2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f (training) and
# 9fbcbe594c3766fdf4f0b15c5165dc0d1e57ac604e01422608bb72c906030d06 (test).
PUBLISHED_SHA256: Mapping[str, str] = MappingProxyType(
    {
        "train": "bb1b6e1ec7b04fd5696f1ed50b5f58f8ef195118edd5c93c81783df9740b8ac5",
        "test": "92d0ccb8c25f9c6534270fb4be7e1d24a1c6d315edfc8a638bfbd31c70f362dd",
    }
)
TEST_NAMES = ("qmnist-test-labels-idx2-int.gz", "qmnist-test-labels-idx2-int")

# The magic number of IDX files: two zeros, int32, two dimensions.
_IDX_MAGIC = bytes((0, 0, 0x0C, 2))
_IDX_HEADER_BYTES = 12
_COLUMNS = 8
_BYTES_PER_ROW = 4 * _COLUMNS
# Both published files have so many rows. A longer file is refused before it is unpacked.
_MOST_ROWS = 60_000
_GZIP_MAGIC = b"\x1f\x8b"


class Writers(NamedTuple):
    """The writer and the series of each image, int64 [N]."""

    owners: np.ndarray
    series: np.ndarray


def with_writers(dataset: Dataset, path: Path, *, sha256: Mapping[str, str] = PUBLISHED_SHA256) -> Dataset:
    """MNIST with its writers as owners, and with their series.

    path: the label file of QMNIST's training part, packed or not. The owners of the test part are the first rows of the
    label file of the test part; they are None unless that file is in the same folder, under its published name. No
    writer is in both parts. sha256: expected of the unpacked files, by part.

    Raises ValueError for a file that cannot be read, is not as published, or whose digits are not the labels.
    """
    train = read_writers(path, dataset.train_labels, sha256=sha256["train"])
    found = [path.with_name(name) for name in TEST_NAMES if path.with_name(name).exists()]
    test = read_writers(found[0], dataset.test_labels, sha256=sha256["test"]) if found else None
    return with_fingerprint(
        dataset._replace(
            train_owners=train.owners,
            train_series=train.series,
            test_owners=test.owners if test else None,
            test_series=test.series if test else None,
        )
    )


def read_writers(path: Path, labels: np.ndarray, *, sha256: str) -> Writers:
    """The writers of the images with these labels [N], from the first N rows of a label file of QMNIST.

    Raises ValueError for a file that cannot be read, has another SHA-256, or whose digits are not the labels.
    """
    what = f"owners=qmnist:{path}"
    try:
        content = _read_content(path)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{what}: cannot be read ({reason}), expected a label file of QMNIST") from error
    rows = _parse(content, what)
    if len(rows) < len(labels):
        raise ValueError(f"{what}: {len(rows)} rows, expected at least {len(labels)}, one for each image")
    if different := int(np.sum(rows[: len(labels), 0] != labels)):
        raise ValueError(
            f"{what}: {different} of {len(labels)} digits are not MNIST's labels, expected the label file of the part "
            "whose images are read"
        )
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{what}: SHA-256 {found} of the unpacked file, expected {sha256}, as published")
    return Writers(rows[: len(labels), 2].astype(np.int64), rows[: len(labels), 1].astype(np.int64))


def _read_content(path: Path) -> bytes:
    """The unpacked content, or its beginning if it is longer than a label file."""
    with open_regular(path) as file:
        is_packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        if not is_packed:
            return _read_most(file)
        with gzip.open(file) as unpacked:
            return _read_most(unpacked)


def _read_most(file: BufferedIOBase) -> bytes:
    return file.read(_IDX_HEADER_BYTES + _MOST_ROWS * _BYTES_PER_ROW + 1)


def _parse(content: bytes, what: str) -> np.ndarray:
    """The rows int32 [N, 8] of an IDX file; ``what`` begins the error."""
    header = content[:_IDX_HEADER_BYTES]
    rows, columns = (int.from_bytes(header[start : start + 4]) for start in (4, 8))
    if header[:4] != _IDX_MAGIC or len(header) < _IDX_HEADER_BYTES or columns != _COLUMNS or not 0 < rows <= _MOST_ROWS:
        raise ValueError(f"{what}: header {header.hex()}, expected IDX of int32 [N, 8] with N up to {_MOST_ROWS}")
    expected = _IDX_HEADER_BYTES + rows * _BYTES_PER_ROW
    if len(content) != expected:
        at_least = "at least " if len(content) > _IDX_HEADER_BYTES + _MOST_ROWS * _BYTES_PER_ROW else ""
        raise ValueError(f"{what}: {at_least}{len(content)} bytes, expected {expected} for {rows} rows")
    return np.frombuffer(content, ">i4", offset=_IDX_HEADER_BYTES).reshape(rows, _COLUMNS)
