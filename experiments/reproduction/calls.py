"""The calls on the directory of a reproduction: their commands and times."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from gan_leak.runs.storage.directory import write_atomic
from gan_leak.runs.storage.integrity import DamagedError, read_file, read_json, sealed_json, set_aside

CALLS_NAME = "calls.json"


def earlier_calls(workdir: pathlib.Path, show: Callable[[str], None]) -> list[dict[str, Any]]:
    """Read the calls before this one, each with its "command" and "seconds"; a damaged list is renamed and shown."""
    path = workdir / CALLS_NAME
    try:
        return _read_calls(path) if os.path.lexists(path) else []
    except DamagedError as error:
        show(f"{error}: renamed to {set_aside(path).name}; the report will not count the time of earlier calls")
        return []


def record_call(
    workdir: pathlib.Path, earlier: Sequence[dict[str, Any]], arguments: Sequence[str], began: float
) -> list[dict[str, Any]]:
    """Write the list of calls with this one at its end, and return it; began: its start by ``time.monotonic``."""
    command = shlex.join(["python", "-m", "experiments.reproduce", *arguments])
    calls = [*earlier, {"command": command, "seconds": time.monotonic() - began}]
    write_atomic(workdir / CALLS_NAME, sealed_json(CALLS_NAME, {"calls": calls}))
    return calls


def _read_calls(path: pathlib.Path) -> list[dict[str, Any]]:
    # Without a digest, it is a list.
    if read_file(path).startswith(b"["):
        try:
            calls = json.loads(read_file(path))
        except (ValueError, RecursionError):
            calls = None
    else:
        calls = read_json(path, ())[0]["calls"]
    if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
        raise DamagedError(f"{path}: damaged (holds no list of calls)")
    return calls


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, dict) and isinstance(call.get("command"), str) and isinstance(call.get("seconds"), int | float)
    )
