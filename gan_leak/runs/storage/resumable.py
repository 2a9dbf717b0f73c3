"""Long procedures in parts: each part is reported and saved, so that a later call continues from it."""

from __future__ import annotations

import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.procedure import Procedure, advance
from gan_leak.runs.hosts.interruption import on_interruption, uninterrupted
from gan_leak.runs.storage.directory import npz_bytes, write_atomic
from gan_leak.runs.storage.integrity import DamagedError, read_npz, sealed_npz, set_aside
from gan_leak.types import Array, PyTree

_SECONDS_OF_A_PART = 20.0


class SavedProgress(NamedTuple):
    """The file in which a long procedure saves its state (None: no file), and the function that shows its progress.

    The caller deletes the file when the result is saved.
    """

    path: pathlib.Path | None
    tell: Callable[[str], None]


# Nothing is saved or shown.
UNSAVED = SavedProgress(None, lambda line: None)


class Keys(NamedTuple):
    """The key of ``Procedure.init``, and the key from which ``advance`` derives the keys of the steps."""

    init: Array
    steps: Array


def lane_keys(key: Array, count: int) -> Keys:
    """Keys [count] for ``count`` lanes."""
    return Keys(jax.random.split(key, count), jax.random.split(jax.random.fold_in(key, count), count))


class Lanes(NamedTuple):
    """How a procedure runs over a leading axis of keys, states and evidence.

    evidence: the axes of the evidence, as ``in_axes`` of ``vmap``; must be hashable. at_a_time: number of lanes in one
    call of the vectorized program; then all evidence must have the axis. None: all lanes.
    """

    evidence: PyTree = 0
    at_a_time: int | None = None


class Programs(NamedTuple):
    """The compiled parts of a procedure: ``init(key, evidence)``, ``advance(seed, state, evidence, first, steps)``,
    ``extract(state, evidence)`` and ``finished(state) -> bool []``.

    seed: the data of the key of the steps. A key itself could be used in one call only.
    """

    init: Callable[[Array, PyTree], PyTree]
    advance: Callable[[Array, PyTree, PyTree, Array, Array], PyTree]
    extract: Callable[[PyTree, PyTree], PyTree]
    finished: Callable[[PyTree], Array | bool]


@functools.lru_cache(maxsize=16)
def compile_procedure(procedure: Procedure, lanes: Lanes | None = None) -> Programs:
    """The programs of a procedure. They are compiled once for the same procedure object."""

    def spread(function: Callable[..., PyTree], *axes: PyTree) -> Callable[..., PyTree]:
        if lanes is None:
            return function
        if lanes.at_a_time is None:
            return jax.vmap(function, in_axes=axes)
        return lambda *arguments: jax.lax.map(lambda lane: function(*lane), arguments, batch_size=lanes.at_a_time)

    of_evidence = None if lanes is None else lanes.evidence
    finished = procedure.finished

    @jax.jit
    def further(seed: Array, state: PyTree, evidence: PyTree, first: Array, steps: Array) -> PyTree:
        def of_lane(seed: Array, state: PyTree, evidence: PyTree) -> PyTree:
            return advance(jax.random.wrap_key_data(seed), procedure, state, evidence, steps, first=first)

        return spread(of_lane, 0, 0, of_evidence)(seed, state, evidence)

    return Programs(
        jax.jit(spread(procedure.init, 0, of_evidence)),
        further,
        jax.jit(spread(procedure.extract, 0, of_evidence)),
        (lambda state: False) if finished is None else jax.jit(lambda state: jnp.all(spread(finished, 0)(state))),
    )


def run_in_parts(
    keys: Keys,
    procedure: Procedure,
    evidence: PyTree,
    *,
    steps: int,
    unit: str,
    progress: SavedProgress,
    lanes: Lanes | None = None,
) -> PyTree:
    """The result after ``steps`` steps, in calls of about 20 s. An interruption loses at most one call.

    keys, evidence: with the leading axes of ``lanes``. unit: the name of a step in lines of progress. A saved file is
    continued if its arrays have the shapes and types of this procedure's state.
    """
    # Copied to the device once, and not with every call.
    evidence = jax.device_put(evidence)
    programs = compile_procedure(procedure, lanes)
    state = _reached(keys, programs, evidence, steps=steps, unit=unit, progress=progress)
    return programs.extract(state, evidence)


def _reached(
    keys: Keys, programs: Programs, evidence: PyTree, *, steps: int, unit: str, progress: SavedProgress
) -> PyTree:
    """The state after all steps, or after the step with which it is finished."""
    shapes = {
        "done": jax.ShapeDtypeStruct((), np.int64),
        "state": jax.eval_shape(programs.init, keys.init, evidence),
    }
    saved = None if progress.path is None else read_tree(progress.path, shapes, progress.tell)
    done = 0 if saved is None else int(saved["done"])
    state = programs.init(keys.init, evidence) if saved is None else jax.tree.map(jnp.asarray, saved["state"])
    seed = jax.random.key_data(keys.steps)
    count, compiled, written = 1, False, done

    def save() -> None:
        nonlocal written
        if progress.path is not None and done > written:
            write_tree(progress.path, {"done": np.int64(done), "state": state})
            written = done

    with on_interruption(save):
        while done < steps and not programs.finished(state):
            began = time.monotonic()
            count = min(count, steps - done)
            new_state = jax.block_until_ready(
                programs.advance(seed, state, evidence, jnp.int32(done), jnp.int32(count))
            )
            seconds = time.monotonic() - began
            with uninterrupted():
                state, done = new_state, done + count
                if seconds > _SECONDS_OF_A_PART / 4:
                    save()
            # The first call includes the compilation, so its time is not used.
            if compiled:
                progress.tell(f"  {unit} {done}/{steps}, {seconds / count * (steps - done):.0f} s left")
            count = max(1, min(10 * count, round(count * _SECONDS_OF_A_PART / seconds)))
            compiled = True
    return state


def write_tree(path: pathlib.Path, tree: PyTree) -> None:
    """Save the arrays of a tree, atomically and with their digest."""
    leaves = enumerate(jax.tree.leaves(tree))
    archive = npz_bytes(**{f"leaf_{place}": np.asarray(leaf) for place, leaf in leaves})
    write_atomic(path, sealed_npz(path.name, archive))


def read_tree(path: pathlib.Path, shapes: PyTree, tell: Callable[[str], None]) -> PyTree | None:
    """The tree in a file, or None if there is no file or its arrays have other shapes or types.

    A damaged file is renamed, which ``tell`` reports.
    """
    if not os.path.lexists(path):
        return None
    expected, structure = jax.tree.flatten(shapes)
    try:
        saved, sealed = read_npz(path)
    except DamagedError as error:
        tell(f"{error}: renamed to {set_aside(path).name} and computed again")
        return None
    if not sealed:
        tell(f"{path}: of a version without digests; an altered number in it would not be noticed")
    names = [f"leaf_{place}" for place in range(len(expected))]
    if set(saved) != set(names):
        return None
    leaves = [saved[name] for name in names]
    if any((leaf.shape, leaf.dtype) != (like.shape, like.dtype) for leaf, like in zip(leaves, expected, strict=True)):
        return None
    return jax.tree.unflatten(structure, leaves)
