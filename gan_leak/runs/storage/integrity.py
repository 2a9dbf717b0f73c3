"""Files that detect their own damage: JSON and npz files that hold the SHA-256 of their content and name.

Earlier versions of the program wrote files without a digest. Their readers report this and check what they can.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

DIGEST = "sha256"
_ZEROS = "0" * 64
_START_OF_JSON = re.compile(rb'\{\s*"sha256": "([0-9a-f]{64})"')
_LABEL = b"sha256:"
_COMMENT_SIZE = len(_LABEL) + 64
# The record that ends every zip archive: its signature, and its size without the comment.
_END_OF_ZIP = b"PK\x05\x06"
_END_OF_ZIP_SIZE = 22
# A temporary file of ``write_atomic`` and of Orbax that a killed process left behind.
_LEFTOVER_FILE = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_LEFTOVER_FOLDER = re.compile(r"round_\d{6,}\.orbax-checkpoint-tmp.*")


class RefusedError(ValueError):
    """The reason, in one line, why a run cannot start although its flags and its data are valid."""


class DamagedError(RefusedError):
    """A file does not hold what was written to it."""


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sealed_json(name: str, value: Mapping[str, object], *, indent: int | None = None, allow_nan: bool = False) -> bytes:
    """An object as JSON text whose first field is the SHA-256 of the text and of the file's name."""
    # The digest comes first, so that a text without its beginning is no object of the same fields.
    text = json.dumps({DIGEST: _ZEROS, **value}, indent=indent, allow_nan=allow_nan).encode() + b"\n"
    before, _, after = text.partition(_ZEROS.encode())
    return before + _named_digest(name, text) + after


def read_json(path: pathlib.Path, unsealed: Collection[str]) -> tuple[dict[str, Any], bool]:
    """The object that ``sealed_json`` made, without its digest, and whether there was a digest.

    unsealed: the fields that a file without a digest may have. Raises ``DamagedError`` for anything else.
    """
    data = read_file(path)
    match = _START_OF_JSON.match(data)
    if match is not None:
        blank = data[: match.start(1)] + _ZEROS.encode() + data[match.end(1) :]
        if _named_digest(path.name, blank) != match[1]:
            raise DamagedError(f"{path}: damaged (its SHA-256 is another)")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: damaged (not readable as JSON: {error})") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path}: damaged (holds no JSON object)")
    if match is None and (unknown := sorted(value.keys() - set(unsealed))):
        raise DamagedError(f"{path}: damaged (no SHA-256 of itself, and an unknown field {unknown[0]!r})")
    value.pop(DIGEST, None)
    return value, match is not None


def sealed_npz(name: str, data: bytes) -> bytes:
    """The bytes of an npz file with the SHA-256 of its content and name as the archive's comment."""
    body = data[:-2] + struct.pack("<H", _COMMENT_SIZE) + _LABEL
    return body + _named_digest(name, body)


def read_npz(path: pathlib.Path) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of an npz file, and whether it held its digest.

    Raises ``DamagedError`` if it does not hold what was written.
    """
    data = read_file(path)
    sealed = data[-_COMMENT_SIZE:-64] == _LABEL
    if sealed and _named_digest(path.name, data[:-64]) != data[-64:]:
        raise DamagedError(f"{path}: damaged (its SHA-256 is another)")
    end = data[-_END_OF_ZIP_SIZE:]
    if not sealed and not (end.startswith(_END_OF_ZIP) and end.endswith(b"\0\0")):
        raise DamagedError(f"{path}: damaged (not a whole npz file)")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}, sealed
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(f"{path}: damaged ({error})") from None
    except (NotImplementedError, RuntimeError, MemoryError, struct.error) as error:
        # The archive's flags demand a password, another compression or a header of absurd size.
        raise DamagedError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def read_file(path: pathlib.Path) -> bytes:
    """The bytes of an ordinary file. Raises ``DamagedError`` if there is none or it cannot be read."""
    try:
        # Reading a pipe would block.
        if not path.is_file():
            raise DamagedError(f"{path}: {'not an ordinary file' if os.path.lexists(path) else 'missing'}")
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: not readable ({error.strerror or error})") from None


def expect_kinds(directory: pathlib.Path, folders: Collection[str], files: Collection[str]) -> None:
    """Raise ``RefusedError`` if a name for a folder or a file exists as something else."""
    for name in (*folders, *files):
        path, kind = directory / name, "folder" if name in folders else "ordinary file"
        if os.path.lexists(path) and not (path.is_dir() if name in folders else path.is_file()):
            raise RefusedError(f"{path}: expected {'a' if name in folders else 'an'} {kind}")


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Rename a damaged file or folder, so that its name is free. Returns the new path."""
    place, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(place):
        number += 1
        place = path.with_name(f"{path.name}.damaged{number}")
    path.rename(place)
    return place


def leftovers(directory: pathlib.Path) -> list[pathlib.Path]:
    """The temporary files, and the temporary folders of Orbax, that killed processes left below a run directory."""
    found = []
    for folder, folders, files in os.walk(directory):
        if pathlib.Path(folder).name == "checkpoints":
            found += [pathlib.Path(folder) / name for name in folders if _LEFTOVER_FOLDER.fullmatch(name)]
        found += [pathlib.Path(folder) / name for name in files if is_leftover(name)]
    return found


def is_leftover(name: str) -> bool:
    """Whether a file of this name is a temporary file of ``write_atomic``."""
    return _LEFTOVER_FILE.fullmatch(name) is not None


def _named_digest(name: str, data: bytes) -> bytes:
    return sha256(os.fsencode(name) + b"\0" + data).encode()
