"""Files and folders that a user names: their paths, and which of them are safe to open."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def user_path(name: str, text: str) -> Path:
    """The path that a flag gives, with '~' and '~user' replaced by the home directory.

    Raises ValueError with the ``name`` of the flag for an empty path, one with a null character, and an unknown user.
    """
    problem = ""
    if not text.strip():
        problem = "expected a path"
    elif "\0" in text:
        problem = "expected a path without null characters"
    else:
        try:
            return Path(text).expanduser()
        except RuntimeError:
            problem = "expected a user who has a home directory after '~'"
    raise ValueError(f"{name}={text!r}: {problem}")


def check_writable_name(name: str, path: Path) -> Path:
    """The path to write to. Raises ValueError, with the ``name`` of the flag, if the absolute path is not in UTF-8.

    Orbax (checkpoints) and XLA (compiled programs) accept no other paths.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")
        raise ValueError(f"{name}={shown}: expected a path in UTF-8") from None
    return path


def cache_root() -> Path | None:
    """The user's cache directory: XDG_CACHE_HOME, or .cache in the home directory; None for a user without a home."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def kind_of(mode: int) -> str:
    """The kind, in words, of a file with this ``st_mode`` that is not a regular file."""
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes. Never waits for a writer, and never opens a device.

    Raises OSError if there is no such file, and ValueError for a folder, a pipe, a socket or a device.
    """
    _check_regular(os.stat(path).st_mode)
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    try:
        # Check again: the file may have been replaced before it was opened.
        _check_regular(os.fstat(file.fileno()).st_mode)
    except ValueError:
        file.close()
        raise
    return file


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError(f"{kind_of(mode)}, expected a file")
