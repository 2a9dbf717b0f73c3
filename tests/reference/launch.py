"""Runs a binary of ``experiments`` with some attributes of its modules replaced, or many binaries one after another.

python tests/reference/launch.py '{"gan_leak.runs.storage.resumable": {"_SECONDS_OF_A_PART": 1}}' experiments.sweep
python tests/reference/launch.py --serve

The server imports what all binaries share, and runs each in a process of its own that it forks before JAX has started
a backend. A request is a JSON line with patches, module, arguments, a file for standard error and a time limit in
seconds; the answer is a line with the exit status, negative after a signal, or "timeout".
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import pathlib
import runpy
import signal
import sys
import time
import traceback
import types

LINEAR_NETWORKS = "linear networks"
SHARED = (
    *("absl.app", "dm_pix", "flax.linen", "matplotlib.figure", "matplotlib.backends.backend_agg", "optax"),
    *("orbax.checkpoint.experimental.v1", "scipy.optimize", "scipy.stats"),
)


class Patching(importlib.abc.MetaPathFinder):
    """Replaces attributes of modules right after their import, so that nothing is imported before the binary's own."""

    def __init__(self, patches):
        self.patches = dict(patches)

    def find_spec(self, name, path, target=None):
        if name not in self.patches:
            return None
        attributes = self.patches.pop(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module):
            execute(module)
            replace(module, attributes)

        spec.loader.exec_module = execute_and_patch
        return spec


def replace(module, attributes):
    """Sets attributes; one that was a path stays one. The name LINEAR_NETWORKS sets those that such networks take."""
    for name, value in attributes.items():
        if name == LINEAR_NETWORKS:
            from reference.quick import use_linear_networks

            use_linear_networks(types.SimpleNamespace(setattr=setattr))
            continue
        path = isinstance(getattr(module, name), pathlib.Path)
        setattr(module, name, pathlib.Path(value) if path else value)


def run(patches, module, arguments):
    """Runs a module as the main one, as ``python -m`` does."""
    sys.meta_path.insert(0, Patching(patches))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def status_of_forked(request):
    """Runs one request in a forked process and returns its exit status, or "timeout"."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor, place in ((nothing, 0), (nothing, 1), (errors, 2)):
                os.dup2(descriptor, place)
            run(request["patches"], request["module"], request["arguments"])
            status = 0
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    ends = time.monotonic() + request["limit"]
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout"
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def serve():
    """Answers requests until standard input ends."""
    for name in SHARED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(status_of_forked(json.loads(line))), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        run(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:])
