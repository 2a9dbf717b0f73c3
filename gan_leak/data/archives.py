"""Safe reading of untrusted npz files: headers are checked before arrays are unpacked."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gan_leak.files import open_regular
from gan_leak.machine import check_fits

# The longest header that NumPy writes for an array without named fields is shorter.
_MOST_HEADER_BYTES = 16_384
# A larger archive with better compression is refused: it holds almost only one repeated value.
_MOST_EXPANSION = 100
_HARMLESS_BYTES = 2**30
_SUFFIX = ".npy"


class ArrayHeader(NamedTuple):
    """The header of one array of an npz file. size: bytes of the array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int


def with_float32_copy(headers: Mapping[str, ArrayHeader]) -> None:
    """Raise ValueError unless the arrays and a float32 copy of them fit into half of the memory."""
    values = sum(math.prod(header.shape) for header in headers.values())
    check_fits("the arrays and a float32 copy need", 4 * values + sum(header.size for header in headers.values()))


def read_archive(
    path: Path,
    wanted: Collection[str] | None = None,
    check: Callable[[Mapping[str, ArrayHeader]], None] = with_float32_copy,
) -> dict[str, np.ndarray]:
    """The arrays of an npz file, or only the ``wanted`` ones.

    ``check`` gets the headers of these arrays, and raises ValueError for arrays that must not be unpacked.

    Raises ValueError if the file cannot be read. Raises it before unpacking if the arrays do not fit into half of the
    memory, if they expand more than 100 times to more than 1 GiB, or if their headers contradict the directory of the
    archive.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("a single array, not an npz archive")
            with zipfile.ZipFile(file) as archive:
                members = _members(archive, wanted)
                headers = {name: _read_header(archive, member) for name, member in members.items()}
                check(headers)
                _check_sizes(headers, size)
                return {name: _read_array(archive, member) for name, member in members.items()}
    except ValueError as error:
        raise ValueError(first_line(error)) from error
    except Exception as error:  # a damaged archive fails in any layer: zip, inflate, array header
        raise ValueError(f"{type(error).__name__}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).splitlines()), "")


def _members(archive: zipfile.ZipFile, wanted: Collection[str] | None) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(_SUFFIX)
        if wanted is not None and name not in wanted:
            continue
        if name == member.filename:
            raise ValueError(f"{name!r} is no array, expected names that end in {_SUFFIX}")
        if name in members:
            raise ValueError(f"{member.filename} is there twice")
        members[name] = member
    return members


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    with archive.open(member) as packed:
        start = io.BytesIO(packed.read(_MOST_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{member.filename} is of format {version}, expected (1, 0) or (2, 0)")
    shape, _, dtype = readers[version](start)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds pickled objects, expected numbers")
    size = math.prod(shape) * dtype.itemsize
    if size + start.tell() != member.file_size:
        raise ValueError(f"{member.filename} holds {member.file_size} bytes, its header says {size + start.tell()}")
    return ArrayHeader(shape, dtype, size)


def _check_sizes(headers: Mapping[str, ArrayHeader], file_size: int) -> None:
    total = sum(header.size for header in headers.values())
    if total > max(_HARMLESS_BYTES, _MOST_EXPANSION * file_size):
        raise ValueError(
            f"{file_size / 1e6:,.0f} MB expand to {total / 1e6:,.0f} MB, expected at most {_MOST_EXPANSION} times as "
            "much, or 1 GiB"
        )
    check_fits("the arrays need", total)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as packed:
        array = np.lib.format.read_array(packed, allow_pickle=False)
        # The checksum is compared only at the end of the file.
        packed.read(1)
    return array
