"""Checkpoints of a run: Orbax writes them, a SHA-256 of every file beside each one notices what Orbax does not.

``round_000005/`` is Orbax's, ``round_000005.sha256`` is the manifest, written last: a checkpoint without one was never
finished. A restored state has the bits that were saved, or the checkpoint is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak.runs.directory import sync_directory, write_atomic
from gan_leak.runs.disk import naming
from gan_leak.types import Array, PyTree

_NAME = re.compile(r"round_(\d{6,})(.*)")


class Restored(NamedTuple):
    """A restored state, the round after which it was saved, and the names of newer checkpoints that are unusable."""

    round: int
    state: PyTree
    skipped: tuple[str, ...]


def load_library() -> None:
    """Imports Orbax, which takes a second: beforehand, so that saving takes no longer than it must."""
    from orbax.checkpoint import v1  # noqa: F401

    # Orbax raises what it logs there, with all threads that it came by.
    logging.getLogger("absl").addFilter(_is_not_raised)


def _is_not_raised(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def save(directory: pathlib.Path, round: int, state: PyTree, *, keep: int = 2) -> pathlib.Path:
    """Saves the state after ``round`` and returns its path; when this returns, it is complete and on the disk.

    Only then are all but the newest ``keep`` checkpoints deleted, and with them any of a later round: the run that
    saves ``round`` did not continue from those.

    Raises ValueError if ``round`` is negative or ``keep`` below 1, OSError if the disk refuses.
    """
    load_library()
    from orbax.checkpoint import v1 as ocp

    if round < 0 or keep < 1:
        raise ValueError(f"round={round}, keep={keep}: expected round >= 0 and keep >= 1")
    directory.mkdir(parents=True, exist_ok=True)
    # Orbax wants absolute paths.
    path = directory.absolute() / f"round_{round:06d}"
    _delete(path)
    try:
        with naming(path):
            ocp.save(path, _stored(round, state), custom_metadata={"leaves": _describe(state)})
    except OSError:
        # What there is of it takes space and is of no use.
        for unfinished in directory.glob(f"{path.name}.*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    digests = {name: _digest(path / name, sync=True) for name in _files(path)}
    for folder in [path, *(child for child in path.rglob("*") if child.is_dir())]:
        sync_directory(folder)
    write_atomic(_manifest(path), (json.dumps(digests, indent=1, sort_keys=True) + "\n").encode())
    _prune(directory, round, keep)
    return path


def restore_latest(directory: pathlib.Path, template: PyTree) -> Restored | None:
    """Restores the newest checkpoint whose every file has the bits that were saved; None if none was ever finished.

    ``template`` is a state of the structure, shapes and types that were saved, such as a fresh initial state; its
    values are not used, its devices are.

    Raises ValueError if the checkpoint holds a state of another structure than ``template``, or if there are finished
    checkpoints and all are damaged.
    """
    skipped: list[str] = []
    finished_but_damaged = False
    for round, path in _newest_first(directory):
        if _verifies(path):
            return Restored(round, _load(path.absolute(), round, template), tuple(skipped))
        finished_but_damaged |= _manifest(path).exists()
        skipped.append(path.name)
    if finished_but_damaged:
        raise ValueError(f"{directory}: every checkpoint is damaged ({', '.join(skipped)}); choose another --workdir")
    return None


def delete_all(directory: pathlib.Path) -> None:
    """Deletes all checkpoints of a run that needs them no more."""
    for _, path in _newest_first(directory):
        _delete(path)


def _load(path: pathlib.Path, round: int, template: PyTree) -> PyTree:
    from orbax.checkpoint import v1 as ocp

    # Orbax itself would ignore a missing leaf, cast another type, and leave threads behind when it does object.
    _check_same(path, ocp.checkpointables_metadata(path).custom_metadata["leaves"], _describe(template))
    loaded = ocp.load(path, _stored(round, template))
    return jax.tree.map(_like, _as_arrays(template), loaded["state"])


def _as_arrays(state: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, state)


def _stored(round: int, state: PyTree) -> PyTree:
    # Orbax refuses arrays without elements and trees without arrays; an empty tuple stands for the former, and the
    # round keeps the latter away.
    leaves = jax.tree.map(lambda leaf: leaf if leaf.size else (), _as_arrays(state))
    return {"round": jnp.int32(round), "state": leaves}


def _like(template: Array, loaded: PyTree) -> Array:
    if not template.size:
        return template
    if template.committed:
        return loaded
    # Orbax pins what it loads to a device, which would keep it from joining arrays that are spread over several.
    if jnp.issubdtype(template.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jax.device_get(jax.random.key_data(loaded)), impl=jax.random.key_impl(template))
    return jnp.asarray(jax.device_get(loaded))


def _describe(state: PyTree) -> list[list]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(_as_arrays(state))
    return [[jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves]


def _check_same(path: pathlib.Path, saved: list[list], expected: list[list]) -> None:
    if saved == expected:
        return
    only_saved = [leaf for leaf in saved if leaf not in expected]
    only_expected = [leaf for leaf in expected if leaf not in saved]
    raise ValueError(
        f"{path}: holds a state of another structure; first difference: saved {_show(only_saved)}, "
        f"expected {_show(only_expected)}"
    )


def _show(leaves: list[list]) -> str:
    return "{} {} {}".format(*leaves[0]) if leaves else "nothing there"


def _manifest(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")


def _files(path: pathlib.Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())


def _digest(path: pathlib.Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            # Older checkpoints go as soon as this one is finished, so that all of it must outlive a power cut.
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verifies(path: pathlib.Path) -> bool:
    try:
        digests = json.loads(_manifest(path).read_bytes())
        return digests == {name: _digest(path / name) for name in _files(path)}
    except (OSError, ValueError):
        return False


def _newest_first(directory: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    if not directory.is_dir():
        return []
    matches = [(_NAME.fullmatch(path.name), path) for path in directory.iterdir() if path.is_dir()]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _prune(directory: pathlib.Path, round: int, keep: int) -> None:
    checkpoints = _newest_first(directory)
    kept = [path for number, path in checkpoints if number <= round and _manifest(path).exists()][:keep]
    for _, path in checkpoints:
        if path not in kept:
            _delete(path)


def _delete(path: pathlib.Path) -> None:
    # The manifest first: a crash in between leaves a checkpoint that counts as unfinished.
    _manifest(path).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)
