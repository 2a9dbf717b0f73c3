"""JAX's cache of compiled programs on disk, so that a run reuses the programs of earlier runs."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
from collections.abc import Mapping

import jax

from gan_leak.files import cache_root, check_writable_name, user_path

NO_CACHE = "off"
_DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
_ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
_SETTINGS = {
    # A run compiles several hundred small programs, which together take as long as the large ones.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.1,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}
_PROCESSOR = pathlib.Path("/proc/cpuinfo")


def keep_compiled_programs(where: str | None = None) -> None:
    """Turn on the cache for this process and its children: in directory ``where``, or the user's cache directory.

    ``off`` turns it off. Without ``where``, a cache that JAX's own settings name stays unchanged, and there is no cache
    if the user's cache directory is not writable. Raises ValueError for a ``where`` that is not writable.
    """
    if where == NO_CACHE:
        _set({_ENABLED: False})
    elif where is not None:
        path = check_writable_name("compilation_cache", user_path("compilation_cache", where))
        if not _is_writable(path):
            raise ValueError(f"compilation_cache={where}: expected a directory that can be written, or {NO_CACHE!r}")
        _set({_ENABLED: True, _DIRECTORY: str(path.absolute()), **_SETTINGS})
    elif jax.config.values[_DIRECTORY.lower()] is None and (root := cache_root()) is not None:
        directory = root / "gan_leak" / "programs" / _machine()
        if _is_writable(directory):
            _set({_DIRECTORY: str(directory), **_SETTINGS})


def _is_writable(directory: pathlib.Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def _machine() -> str:
    """A name for this kind of processor. A program compiled for another kind may use instructions that it lacks."""
    abilities = {line for line in _processor_lines() if line.startswith(("flags", "Features", "model name"))}
    return hashlib.sha256("\n".join([platform.machine(), *sorted(abilities)]).encode()).hexdigest()[:16]


def _processor_lines() -> list[str]:
    return _PROCESSOR.read_text().splitlines() if _PROCESSOR.exists() else [platform.processor()]


def _set(settings: Mapping[str, object]) -> None:
    # The environment is for child processes; this process has read its environment already, so JAX is set as well.
    for name, value in settings.items():
        os.environ[name] = str(value)
        jax.config.update(name.lower(), value)
