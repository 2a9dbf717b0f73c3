"""Long computations in parts: each tells how far it is and is kept, so that another call goes on from there."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.runs.hosts.interruption import on_interruption, uninterrupted
from gan_leak.runs.storage.directory import npz_bytes, write_atomic
from gan_leak.runs.storage.integrity import DamagedError, read_npz, sealed_npz, set_aside
from gan_leak.types import Array, PyTree

_SECONDS_OF_A_PART = 20.0


class Course(NamedTuple):
    """What a long computation leaves on its way: lines of progress, and a file from which another call goes on.

    Whoever names the file removes it; None keeps nothing.
    """

    keep: pathlib.Path | None
    tell: Callable[[str], None]


def in_parts(
    begin: Callable[[], PyTree],
    go_on: Callable[[PyTree, Array, Array], PyTree],
    *,
    total: int,
    unit: str,
    course: Course,
) -> PyTree:
    """The state after ``total`` steps from ``begin()``, in calls of about 20 s; an interruption loses one at most.

    ``go_on(state, done, steps)`` takes so many steps more; ``begin`` can be traced. unit: what a step is called.
    """
    shapes = {"done": jax.ShapeDtypeStruct((), np.int64), "state": jax.eval_shape(begin)}
    kept = None if course.keep is None else read_tree(course.keep, shapes, course.tell)
    done = 0 if kept is None else int(kept["done"])
    state = begin() if kept is None else jax.tree.map(jnp.asarray, kept["state"])
    steps, compiled, written = 1, False, done

    def keep() -> None:
        nonlocal written
        if course.keep is not None and done > written:
            write_tree(course.keep, {"done": np.int64(done), "state": state})
            written = done

    with on_interruption(keep):
        while done < total:
            began = time.monotonic()
            steps = min(steps, total - done)
            new_state = jax.block_until_ready(go_on(state, jnp.int32(done), jnp.int32(steps)))
            seconds = time.monotonic() - began
            with uninterrupted():
                state, done = new_state, done + steps
                if seconds > _SECONDS_OF_A_PART / 4:
                    keep()
            # The first call compiles, so that its time says little.
            if compiled:
                course.tell(f"  {unit} {done}/{total}, {seconds / steps * (total - done):.0f} s left")
            steps = max(1, min(10 * steps, round(steps * _SECONDS_OF_A_PART / seconds)))
            compiled = True
    return state


def write_tree(path: pathlib.Path, tree: PyTree) -> None:
    """Keeps the arrays of a tree, atomically and with their digest."""
    leaves = enumerate(jax.tree.leaves(tree))
    archive = npz_bytes(**{f"leaf_{place}": np.asarray(leaf) for place, leaf in leaves})
    write_atomic(path, sealed_npz(path.name, archive))


def read_tree(path: pathlib.Path, shapes: PyTree, say: Callable[[str], None]) -> PyTree | None:
    """The tree that a file holds, if there is one and its arrays have these shapes and types.

    A damaged file is renamed, and ``say`` is told.
    """
    if not os.path.lexists(path):
        return None
    expected, structure = jax.tree.flatten(shapes)
    try:
        saved, sealed = read_npz(path)
    except DamagedError as error:
        say(f"{error}: renamed to {set_aside(path).name} and computed again")
        return None
    if not sealed:
        say(f"{path}: of a version without digests; an altered number in it would not be noticed")
    names = [f"leaf_{place}" for place in range(len(expected))]
    if set(saved) != set(names):
        return None
    leaves = [saved[name] for name in names]
    if any((leaf.shape, leaf.dtype) != (like.shape, like.dtype) for leaf, like in zip(leaves, expected, strict=True)):
        return None
    return jax.tree.unflatten(structure, leaves)
