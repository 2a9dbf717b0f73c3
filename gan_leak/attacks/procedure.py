"""The contract of iterative computations outside the round, and its runner over a traced number of steps.

Attacks on a gradient, on features and on a model have this form, and so does the training of networks for them.
``gan_leak.runs.storage.resumable.run_in_parts`` runs a long one in parts and saves each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak.types import Array, PyTree

# Step keys are folded in under this number, far from the indices that ``init`` may fold into its key.
_STEPS_BRANCH = 2**31 - 1


class Procedure(NamedTuple):
    """An iterative computation as pure functions, for ``jit`` and ``vmap``; static choices are closed over.

    ``init(key, evidence) -> state``; ``step(key, state, evidence) -> (state, info)``;
    ``extract(state, evidence) -> result``. evidence: all input, such as the view and the knowledge of an adversary, or
    training data. state: the input of the next step. info: diagnostics, mostly the objective []. finished:
    ``finished(state) -> bool []`` is True if no further step changes the result; None means never.
    """

    init: Callable[[Array, PyTree], PyTree]
    step: Callable[[Array, PyTree, PyTree], tuple[PyTree, PyTree]]
    extract: Callable[[PyTree, PyTree], PyTree]
    finished: Callable[[PyTree], Array] | None = None


def advance(
    key: Array, procedure: Procedure, state: PyTree, evidence: PyTree, steps: Array | int, *, first: Array | int = 0
) -> PyTree:
    """The state after the steps ``first`` to ``first + steps - 1``; both numbers may be traced.

    Step n gets the key ``fold_in(key, n)``, so any division into parts gives the same result. A finished procedure
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
    """The result after ``steps`` steps from ``init(key, evidence)``; ``key`` also gives the keys of the steps.

    Raises ValueError for a negative number of steps, unless it is traced.
    """
    if not isinstance(steps, jax.core.Tracer) and steps < 0:
        raise ValueError(f"steps={steps}: expected at least 0")
    state = procedure.init(key, evidence)
    state = advance(jax.random.fold_in(key, _STEPS_BRANCH), procedure, state, evidence, steps)
    return procedure.extract(state, evidence)
