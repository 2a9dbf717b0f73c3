"""The directory of one run: its configuration (config.json), its measurements (metrics.jsonl), and its lock.

Files are replaced atomically, and ``gan_leak.runs.federated.resumption`` drops an incomplete line after a crash. Only
one process at a time holds a run directory. A refused run leaves the directory unchanged.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import gan_leak
from gan_leak.machine import usable_cores
from gan_leak.runs.storage.disk import name_in_errors
from gan_leak.runs.storage.integrity import DamagedError, RefusedError, is_leftover, leftovers, read_json, sealed_json
from gan_leak.settings import encoded_values, settings_of, to_json, with_defaults

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
LOCK_NAME = "lock"
_DISTRIBUTIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")
_SHOWN_DIFFERENCES = 4
# Top-level fields of a config.json that was written without a digest.
_UNSEALED = ("config", "inputs", "versions", "backend", "device_kind", "device_count", "cpu_count")
# Attempts to open folder and lock. Another, refused process may remove a folder or lock that it made.
_TRIES = 100


class RunDirectory(NamedTuple):
    """A run directory that this process holds locked until ``close_run`` or its end.

    resumed: whether the directory already held a run. differences: changes since that run began (versions, backend,
    devices, cores, performance options), one readable line each. A resumed run is bit-identical only without changes.
    """

    path: pathlib.Path
    resumed: bool
    differences: tuple[str, ...]
    lock_descriptor: int


def write_atomic(path: pathlib.Path, data: bytes) -> None:
    """Replace the file atomically and durably: at any time, also after a crash, it has the old bytes or the new ones.

    Raises OSError if the directory cannot be written. Then no temporary file remains.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with name_in_errors(path), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def npz_bytes(**arrays: np.ndarray) -> bytes:
    """The bytes of an npz file with these arrays and no pickle."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def sync_directory(path: pathlib.Path) -> None:
    """Make the names in a directory durable, as fsync makes the bytes of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_run(
    workdir: pathlib.Path,
    config: object,
    *,
    resume: bool,
    inputs: Mapping[str, str] | None = None,
    privacy: Mapping[str, Any] | None = None,
    check: Callable[[pathlib.Path], object] | None = None,
) -> RunDirectory:
    """Create the directory of a new run, or resume that of the same configuration, and lock it.

    ``resume`` with a missing or empty directory starts a new run, so that one command line serves every start.
    inputs: digests of the run's inputs, by name. privacy: the promise of the run, saved with the configuration; of a
    resumed run only the noise is compared. check: called with the directory of a resumed run before any change; its
    ValueError refuses the run. A field marked ``later`` that an earlier version did not write counts as its default.
    Temporary files of a killed process are removed.

    Raises ValueError, and changes nothing, if the directory holds a run of another configuration, or the same and
    ``resume`` is False; if its inputs or its noise differ; if it holds other files or a damaged config.json; if another
    process holds it; if it cannot be written.
    """
    with contextlib.ExitStack() as undo:
        try:
            descriptor = _claim(workdir, undo)
            run = _start_or_resume(workdir, config, resume, dict(inputs or {}), dict(privacy or {}), descriptor, check)
        except OSError as error:
            raise ValueError(f"workdir={workdir}: cannot be written ({error.strerror or error})") from error
        undo.pop_all()
    return run


def close_run(run: RunDirectory) -> None:
    """Release the lock. The RunDirectory must not be used afterwards."""
    os.close(run.lock_descriptor)


def append_metrics(run: RunDirectory, record: Mapping[str, object]) -> None:
    """Add one durable JSON line to metrics.jsonl. NaN and infinities become null, arrays become numbers or lists.

    Raises ValueError if the record has no round of type int.
    """
    encoded = _strict(dict(record))
    if type(encoded.get("round")) is not int:
        raise ValueError(f"round={encoded.get('round')!r}: expected an int in every metrics record")
    line = json.dumps(encoded, allow_nan=False) + "\n"
    path = run.path / METRICS_NAME
    created = not path.exists()
    with name_in_errors(path), path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
    if created:
        sync_directory(run.path)


def read_metrics(run: RunDirectory) -> list[dict[str, Any]]:
    """Read the records of metrics.jsonl, without an incomplete last line; an empty list if there is no such file.

    Raises ValueError naming the line if another one is damaged.
    """
    path = run.path / METRICS_NAME
    return metrics_records(path, path.read_bytes()) if path.exists() else []


def read_config_file(workdir: pathlib.Path) -> dict[str, Any]:
    """The content of config.json: the configuration as "config", versions, machine, and digests of inputs.

    Raises ``DamagedError`` if it does not hold what was written.
    """
    path = workdir / CONFIG_NAME
    try:
        stored, _ = read_json(path, _UNSEALED)
        for name in ("config", "inputs", "versions"):
            if not isinstance(stored.get(name, {} if name == "inputs" else None), dict):
                raise DamagedError(f"{path}: damaged (no object {name!r} in it)")
    except DamagedError as error:
        raise DamagedError(f"{error}; choose another --workdir") from None
    return stored


def metrics_records(path: pathlib.Path, data: bytes) -> list[dict[str, Any]]:
    """The records in the bytes of a metrics file, without an incomplete last line.

    Raises ``DamagedError`` naming the line if another one is damaged.
    """
    return [_parse_line(path, number, line) for number, line in enumerate(data.split(b"\n")[:-1], start=1)]


def _claim(workdir: pathlib.Path, undo: contextlib.ExitStack) -> int:
    """Make and lock the directory of a run. ``undo`` removes new folders and releases the lock."""
    for attempt in range(_TRIES):
        try:
            _make_folders(workdir, undo)
            check_is_run(workdir)
            return _lock(workdir, undo)
        except (FileNotFoundError, FileExistsError):
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _make_folders(workdir: pathlib.Path, undo: contextlib.ExitStack) -> None:
    for folder in reversed([folder for folder in (workdir, *workdir.parents) if not folder.exists()]):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            undo.callback(_remove_empty, folder)
    # Raises an error if the path is a file.
    workdir.mkdir(exist_ok=True)


def _remove_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def check_is_run(workdir: pathlib.Path) -> None:
    """Raise ``RefusedError`` if a directory holds files but no run."""
    others = sorted(path.name for path in workdir.iterdir() if path.name != LOCK_NAME and not is_leftover(path.name))
    if others and CONFIG_NAME not in others:
        raise RefusedError(
            f"workdir={workdir}: holds {others[0]!r} but no {CONFIG_NAME}; choose an empty or a new directory"
        )


def _lock(workdir: pathlib.Path, undo: contextlib.ExitStack) -> int:
    """The descriptor of the locked lock file. Raises FileNotFoundError if it was removed in the meantime."""
    path = workdir / LOCK_NAME
    try:
        descriptor, created = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        descriptor, created = os.open(path, os.O_RDWR), False
    with contextlib.ExitStack() as close:
        close.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"workdir={workdir}: another process is writing this run") from None
        # Another, refused process may have removed the file after it was opened and before it was locked.
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(path)
        undo.push(close.pop_all())
    if created:
        # Runs while the lock is held, so that no other process can have locked the file.
        undo.callback(path.unlink, missing_ok=True)
    return descriptor


def _start_or_resume(
    workdir: pathlib.Path,
    config: object,
    resume: bool,
    inputs: dict[str, str],
    privacy: dict[str, Any],
    descriptor: int,
    check: Callable[[pathlib.Path], object] | None,
) -> RunDirectory:
    environment = _environment()
    # Encode as JSON and decode, so that the comparison is between contents of files.
    lasting = with_defaults(config, lambda setting: setting.effect == "call")
    wanted = json.loads(json.dumps(to_json(lasting), allow_nan=False))
    path = workdir / CONFIG_NAME
    if not path.exists():
        _remove_leftovers(workdir)
        beside = {name: section for name, section in (("inputs", inputs), ("privacy", privacy)) if section}
        write_atomic(path, sealed_json(path.name, {"config": wanted, **beside, **environment}, indent=2))
        return RunDirectory(workdir, False, (), descriptor)
    stored = read_config_file(workdir)
    changed_settings = _differing({**_defaults_of_missing(stored["config"], config), **stored["config"]}, wanted)
    # The speed of a run may change when it is resumed; its results may not.
    differing = [change for change in changed_settings if _decides_result(type(config), change[0])]
    if differing:
        shown = "; ".join(f"{name} was {old}, now {new}" for name, old, new in differing[:_SHOWN_DIFFERENCES])
        more = f"; and {len(differing) - _SHOWN_DIFFERENCES} more" if len(differing) > _SHOWN_DIFFERENCES else ""
        raise ValueError(f"workdir={workdir}: holds a run of another configuration ({shown}{more})")
    if not resume:
        raise ValueError(
            f"workdir={workdir}: already holds this run; pass --resume to continue it or choose another --workdir"
        )
    if changed := _differing(stored.pop("inputs", {}), inputs):
        name, old, new = changed[0]
        raise ValueError(f"workdir={workdir}: holds a run on another {name} (SHA-256 was {old}, now {new})")
    noise = [name for name, setting in settings_of(type(config)).items() if setting.solved_for]
    _check_noise(workdir, stored.pop("privacy", {}), privacy, noise)
    if check is not None:
        check(workdir)
    _remove_leftovers(workdir)
    stored.pop("config")
    changes = tuple(
        f"{name} was {old} when the run began, now {new}"
        for name, old, new in [*changed_settings, *_differing(stored, environment)]
    )
    return RunDirectory(workdir, True, changes, descriptor)


def _defaults_of_missing(stored: Mapping[str, object], config: object) -> dict[str, object]:
    settings = settings_of(type(config)).items()
    missing = [name for name, setting in settings if setting.later and name not in stored]
    defaults = encoded_values(with_defaults(config, lambda setting: setting.name in missing))
    return {name: defaults[name] for name in missing}


def _decides_result(config_class: type, name: str) -> bool:
    """Whether the field of this name in config.json decides the result of a run."""
    settings = settings_of(config_class)
    if name in settings:
        return settings[name].decides_result
    # The field of another version decides nothing if no setting of its part decides a result.
    part = [setting for other, setting in settings.items() if other.rpartition(".")[0] == name.rpartition(".")[0] != ""]
    return not part or any(setting.decides_result for setting in part)


def _check_noise(workdir: pathlib.Path, stored: object, privacy: dict[str, Any], noise: Sequence[str]) -> None:
    """Raise ValueError if the noise is not that of the interrupted run: other versions may solve for another noise."""
    if not isinstance(stored, dict):
        raise ValueError(f"workdir={workdir}: the section 'privacy' of {CONFIG_NAME} is damaged")
    for name, old, new in _differing(stored, privacy) if stored else ():
        if name.rpartition(".")[2] in noise and "absent" not in (old, new):
            raise ValueError(
                f"workdir={workdir}: holds a run with {name}={old}, for which this installation finds {new}; continue "
                "it with its own installation or choose another --workdir"
            )


def _remove_leftovers(workdir: pathlib.Path) -> None:
    for path in leftovers(workdir):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _environment() -> dict[str, object]:
    return {
        "versions": {
            "python": platform.python_version(),
            "gan_leak": gan_leak.__version__,
            **{name: _version(name) for name in _DISTRIBUTIONS},
        },
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "cpu_count": len(usable_cores()),
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _differing(stored: Mapping[str, object], wanted: Mapping[str, object]) -> list[tuple[str, str, str]]:
    old, new = _flat(stored), _flat(wanted)
    names = [*new, *(name for name in old if name not in new)]
    return [
        (name, old.get(name, "absent"), new.get(name, "absent")) for name in names if old.get(name) != new.get(name)
    ]


def _flat(nested: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = json.dumps(value)
    return flat


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if hasattr(value, "tolist"):
        return _strict(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _parse_line(path: pathlib.Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or type(record.get("round")) is not int:
        raise DamagedError(f"{path}, line {number}: damaged record")
    return record
