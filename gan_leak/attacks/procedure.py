"""The contract of iterative computations outside the round, and its runner over a traced number of steps.

Attacks on a gradient, on features and on a model, and the training of the networks that some of them need, all have
this form. ``gan_leak.runs.storage.resumable.run_in_parts`` runs a long one in parts that are saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak.types import Array, PyTree

# Step keys branch off here, far from the numbers by which ``init`` may split its key.
_STEPS_BRANCH = 2**31 - 1


class Procedure(NamedTuple):
    """An iterative computation as pure functions, for ``jit`` and ``vmap``; static choices are closed over.

    ``init(key, evidence) -> state``; ``step(key, state, evidence) -> (state, info)``;
    ``extract(state, evidence) -> result``. evidence: all that the computation reads, such as the view of an adversary
    with what it knows, or training data. state: what the next step needs. info: diagnostics, mostly the objective [].
    finished: ``finished(state) -> bool []`` is True where no further step changes the result; None if it never is.
    """

    init: Callable[[Array, PyTree], PyTree]
    step: Callable[[Array, PyTree, PyTree], tuple[PyTree, PyTree]]
    extract: Callable[[PyTree, PyTree], PyTree]
    finished: Callable[[PyTree], Array] | None = None


def advance(
    key: Array, procedure: Procedure, state: PyTree, evidence: PyTree, steps: Array | int, *, first: Array | int = 0
) -> PyTree:
    """The state after ``steps`` further steps, of which the first is number ``first`` of all; both may be traced.

    Step n gets the key ``fold_in(key, n)``, so that any division into parts gives the same result. A finished procedure
    takes no step.
    """

    def step(number: Array | int, state: PyTree) -> PyTree:
        return procedure.step(jax.random.fold_in(key, number), state, evidence)[0]

    finished = procedure.finished
    if finished is None:
        return jax.lax.fori_loop(first, first + steps, step, state)
    last = jnp.asarray(first + steps)

    def unfinished(progress: tuple[Array, PyTree]) -> Array:
        return ~finished(progress[1]) & (progress[0] < last)

    def next_step(progress: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        return progress[0] + 1, step(*progress)

    return jax.lax.while_loop(unfinished, next_step, (jnp.asarray(first, last.dtype), state))[1]


def run_procedure(key: Array, procedure: Procedure, evidence: PyTree, steps: Array | int) -> PyTree:
    """The result after so many steps from ``init(key, evidence)``; the keys of the steps are derived from ``key``.

    Raises ValueError for a negative number of steps, unless it is traced.
    """
    if not isinstance(steps, jax.core.Tracer) and steps < 0:
        raise ValueError(f"steps={steps}: expected at least 0")
    state = procedure.init(key, evidence)
    state = advance(jax.random.fold_in(key, _STEPS_BRANCH), procedure, state, evidence, steps)
    return procedure.extract(state, evidence)
