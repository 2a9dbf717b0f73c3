"""Errors of the disk: which errors are caused by the disk, and at which file."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
from collections.abc import Iterator

# Full, over a quota, larger than a file may be, broken, read-only.
_REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
# The form of the code in a ValueError of TensorStore, which Orbax uses.
_CODE = re.compile(r"os_error_code='(\d+)'")


@contextlib.contextmanager
def name_in_errors(path: pathlib.Path) -> Iterator[None]:
    """Make every error of the disk within a block an OSError that names a file, by default ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except ValueError as error:
        match = _CODE.search(str(error))
        if match is None:
            raise
        code = int(match[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def refusal(error: BaseException) -> str | None:
    """The error of the disk and its file in a line; None for an error with another cause."""
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
