"""Checkpoints of a run: Orbax writes them, and a manifest with the SHA-256 of every file detects damage.

Orbax writes ``round_000005/``. The manifest ``round_000005.sha256`` is written last: a checkpoint without one is
unfinished. It also holds its own digest. A restored state has exactly the saved bits; a damaged checkpoint is skipped.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import re
import shutil
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gan_leak.runs.storage.directory import sync_directory, write_atomic
from gan_leak.runs.storage.disk import name_in_errors
from gan_leak.runs.storage.integrity import DamagedError, RefusedError, read_json, sealed_json
from gan_leak.types import Array, PyTree

_NAME = re.compile(r"round_([0-9]{6,})(.*)")
_MANIFEST_SUFFIX = ".sha256"
_DELETIONS = 20
_SECONDS_BETWEEN_DELETIONS = 0.05


class Restored(NamedTuple):
    """A restored state, the round after which it was saved, and the names of newer, unusable checkpoints.

    path: the folder of the checkpoint. It also holds the ``files`` that were saved with it.
    """

    round: int
    state: PyTree
    skipped: tuple[str, ...]
    path: pathlib.Path


def load_library() -> None:
    """Import Orbax, which takes a second. Called early, so that the first save is fast."""
    from orbax.checkpoint import v1  # noqa: F401

    # Orbax also raises the errors that it logs there with long tracebacks.
    logging.getLogger("absl").addFilter(_is_not_raised)


def _is_not_raised(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


class Found(NamedTuple):
    """A checkpoint on the disk.

    finished: whether it has a manifest. problem: why it cannot be used; empty if all its files have the saved bits.
    metadata: JSON that was saved in the manifest; None if an earlier version wrote the manifest without a digest.
    """

    round: int
    path: pathlib.Path
    finished: bool
    problem: str
    metadata: dict[str, Any] | None


def save(
    directory: pathlib.Path,
    round: int,
    state: PyTree,
    *,
    keep: int = 2,
    metadata: Mapping[str, object] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> pathlib.Path:
    """Save the state after ``round`` and return the path of the checkpoint, which is then complete and on the disk.

    Then deletes all but the newest ``keep`` checkpoints. Also deletes those of later rounds, from which this run did
    not continue. metadata: further JSON for the manifest. files: further files of the checkpoint, by name.

    Raises ValueError if ``round`` is negative or ``keep`` below 1, OSError if the disk fails.
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
        with name_in_errors(path):
            ocp.save(path, _stored(round, state), custom_metadata={"leaves": _describe(state)})
            for name, data in (files or {}).items():
                (path / name).write_bytes(data)
    except OSError:
        _delete_unfinished(path)
        raise
    digests = digests_of(path, sync=True)
    for folder in [path, *(child for child in path.rglob("*") if child.is_dir())]:
        sync_directory(folder)
    manifest = _manifest(path)
    write_atomic(manifest, sealed_json(manifest.name, {"files": digests, "beside": dict(metadata or {})}, indent=1))
    _prune(directory, round, keep)
    return path


def find(directory: pathlib.Path) -> list[Found]:
    """All checkpoints of a directory, finished or not, the newest first."""
    return [_find(round, path) for round, path in _newest_first(directory)]


def restore_latest(directory: pathlib.Path, template: PyTree) -> Restored | None:
    """Restore the newest undamaged checkpoint; None if none was ever finished.

    template: a state with the saved structure, shapes and types, such as a fresh initial state. Its values are not
    used, its devices are.

    Raises ``RefusedError`` if the checkpoint holds a state of another structure than ``template``, ``DamagedError`` if
    all finished checkpoints are damaged.
    """
    skipped: list[str] = []
    found = find(directory)
    for one in found:
        if not one.problem:
            try:
                return Restored(one.round, load(one, template), tuple(skipped), one.path)
            except DamagedError:
                pass
        skipped.append(one.path.name)
    if any(one.finished for one in found):
        raise DamagedError(f"{directory}: every checkpoint is damaged ({', '.join(skipped)}); choose another --workdir")
    return None


def load(found: Found, template: PyTree) -> PyTree:
    """The state of a checkpoint without a problem; see ``restore_latest`` for ``template``.

    Raises ``RefusedError`` for a state of another structure, ``DamagedError`` if Orbax cannot read the checkpoint.
    """
    from orbax.checkpoint import v1 as ocp

    path = found.path.absolute()
    try:
        saved = ocp.checkpointables_metadata(path).custom_metadata["leaves"]
    except Exception as error:
        raise _unreadable(path, error) from error
    # Orbax itself ignores a missing leaf and casts another type. When it raises, it leaves threads running.
    _check_same(path, saved, _describe(template))
    context = ocp.Context()
    # The leaves agree. Only fields without leaves can be missing: states of earlier versions lack some.
    context.pytree.loading.partial_load = True
    try:
        with context:
            loaded = ocp.load(path, _stored(found.round, template))
    except Exception as error:
        raise _unreadable(path, error) from error
    return jax.tree.map(_like, _as_arrays(template), loaded["state"])


def _unreadable(path: pathlib.Path, error: Exception) -> DamagedError:
    # Orbax and TensorStore raise errors of many classes, some with long messages.
    return DamagedError(f"{path}: damaged (Orbax cannot read it: {type(error).__name__})")


def delete_all(directory: pathlib.Path) -> None:
    """Delete all checkpoints of a run."""
    for _, path in _newest_first(directory):
        _delete(path)


def _as_arrays(state: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, state)


def _stored(round: int, state: PyTree) -> PyTree:
    # Orbax refuses arrays without elements and trees without arrays. So an empty tuple replaces an empty array, and the
    # round ensures that there is an array.
    leaves = jax.tree.map(lambda leaf: leaf if leaf.size else (), _as_arrays(state))
    return {"round": jnp.int32(round), "state": leaves}


def _like(template: Array, loaded: PyTree) -> Array:
    if not template.size:
        return template
    if template.committed:
        return loaded
    # Orbax commits loaded arrays to a device. They could not be combined with arrays that are sharded over several.
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
    raise RefusedError(
        f"{path}: holds a state of another structure; first difference: saved {_show(only_saved)}, "
        f"expected {_show(only_expected)}"
    )


def _show(leaves: list[list]) -> str:
    return "{} {} {}".format(*leaves[0]) if leaves else "nothing there"


def _manifest(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}{_MANIFEST_SUFFIX}")


def digests_of(path: pathlib.Path, *, sync: bool = False) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by relative name. ``sync`` makes the files durable first."""
    return {name: _digest(path / name, sync=sync) for name in _files(path)}


def _files(path: pathlib.Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())


def _digest(path: pathlib.Path, *, sync: bool) -> str:
    with path.open("rb") as file:
        if sync:
            # Older checkpoints are deleted when this one is finished, so it must survive a power cut.
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find(round: int, path: pathlib.Path) -> Found:
    manifest = _manifest(path)
    if not os.path.lexists(manifest):
        return Found(round, path, False, "unfinished", None)
    try:
        # A manifest without its own digest has only names of files as fields.
        digests, sealed = read_json(manifest, _files(path))
        metadata = digests["beside"] if sealed else None
        if (digests["files"] if sealed else digests) == digests_of(path):
            return Found(round, path, True, "", metadata)
    except (OSError, DamagedError):
        pass
    return Found(round, path, True, "damaged", None)


def _newest_first(directory: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    if not directory.is_dir():
        return []
    found = set()
    for path in directory.iterdir():
        match = _NAME.fullmatch(path.name.removesuffix(_MANIFEST_SUFFIX))
        # Include folders, and anything else with the name of a folder or of a manifest.
        if match and (path.is_dir() or not match[2]):
            found.add((int(match[1]), directory / match[0]))
    return sorted(found, reverse=True)


def _prune(directory: pathlib.Path, round: int, keep: int) -> None:
    checkpoints = _newest_first(directory)
    kept = [path for number, path in checkpoints if number <= round and _manifest(path).exists()][:keep]
    for _, path in checkpoints:
        if path not in kept:
            _delete(path)


def _delete_unfinished(path: pathlib.Path) -> None:
    """Delete what a failed save of the checkpoint left, which only takes space."""
    for _ in range(_DELETIONS):
        if not (found := [*path.parent.glob(f"{path.name}.*")]):
            return
        for unfinished in found:
            shutil.rmtree(unfinished, ignore_errors=True)
        # Other threads of Orbax may still write into it.
        time.sleep(_SECONDS_BETWEEN_DELETIONS)


def _delete(path: pathlib.Path) -> None:
    # Delete the manifest first: after a crash in between, the checkpoint counts as unfinished.
    for each in (_manifest(path), path):
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)
