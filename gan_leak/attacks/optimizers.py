"""The optimization step, the training loop, and the optimizers of the released codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_leak import trees
from gan_leak.attacks.procedure import Procedure
from gan_leak.types import Array, PyTree


class Position(NamedTuple):
    """The state of a descent: the values, and the state of the optimizer."""

    values: PyTree
    optimizer: PyTree


def descend(
    objective: Callable[[PyTree], Array],
    optimizer: optax.GradientTransformation,
    position: Position,
    project: Callable[[PyTree], PyTree] | None = None,
) -> tuple[Position, Array]:
    """One step of an optimizer on ``objective(values) -> []``, then ``project`` -> (position, objective before it)."""
    loss, gradients = jax.value_and_grad(objective)(position.values)
    updates, state = optimizer.update(gradients, position.optimizer, position.values)
    values = optax.apply_updates(position.values, updates)
    return Position(values if project is None else project(values), state), loss


class _AmsgradState(NamedTuple):
    steps: Array
    mean: PyTree
    square: PyTree
    largest: PyTree


def amsgrad(
    learning_rate: float | optax.Schedule, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-3
) -> optax.GradientTransformation:
    """AMSGrad of PyTorch 1.0, which He, Zhang and Lee 2019 used with epsilon 1e-3.

    The largest second moment is kept without bias correction, and epsilon is added before the correction:
    step = lr * sqrt(1 - beta2^t) / (1 - beta1^t) * mean / (sqrt(largest) + epsilon). With such a large epsilon the
    first steps are much shorter than in ``optax.amsgrad``.
    """

    def init(params: PyTree) -> _AmsgradState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _AmsgradState(jnp.zeros((), jnp.int32), zeros, zeros, zeros)

    def update(gradients: PyTree, state: _AmsgradState, params: PyTree = None) -> tuple[PyTree, _AmsgradState]:
        count = state.steps + 1
        mean = jax.tree.map(lambda old, new: beta1 * old + (1 - beta1) * new, state.mean, gradients)
        square = jax.tree.map(lambda old, new: beta2 * old + (1 - beta2) * new**2, state.square, gradients)
        largest = jax.tree.map(jnp.maximum, state.largest, square)
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        rate = rate * jnp.sqrt(1 - beta2**count) / (1 - beta1**count)
        updates = jax.tree.map(lambda first, second: -rate * first / (jnp.sqrt(second) + epsilon), mean, largest)
        return updates, _AmsgradState(count, mean, square, largest)

    return optax.GradientTransformation(init, update)


class _QuasiNewtonState(NamedTuple):
    """The state of L-BFGS: vectors [D], and pairs [memory, D] with the newest last."""

    started: Array
    gradient: Array
    move: Array
    moves: Array
    changes: Array
    inverses: Array
    scale: Array


def signed_adam(learning_rate: float, iterations: int) -> optax.GradientTransformation:
    """Adam on the sign of the gradient; the rate is divided by 10 at 3/8, 5/8 and 7/8 of the iterations.

    The optimizer of Geiping et al. 2020 (released code of Inverting Gradients).
    """
    milestones = {round(iterations * fraction): 0.1 for fraction in (3 / 8, 5 / 8, 7 / 8)}
    return optax.chain(
        optax.stateless_with_tree_map(lambda gradient, _: jnp.sign(gradient)),
        optax.adam(optax.piecewise_constant_schedule(learning_rate, milestones)),
    )


def limited_memory_bfgs(*, memory: int = 100, learning_rate: float = 1.0) -> optax.GradientTransformation:
    """PyTorch's L-BFGS without a line search: the optimizer of the released DLG and iDLG.

    A pair of a move s and a change of gradient y is kept only if s.y > 1e-10. ``optax.lbfgs`` keeps all pairs, and goes
    uphill after one of negative curvature. The first move has an L1 norm of at most ``learning_rate``. There is no move
    if the direction descends by less than 1e-9, or if no entry of the gradient exceeds 1e-7.
    """

    def init(params: PyTree) -> _QuasiNewtonState:
        return _without_pairs(trees.ravel(params)[0], memory)

    def update(gradients: PyTree, state: _QuasiNewtonState, params: PyTree = None) -> tuple[PyTree, _QuasiNewtonState]:
        gradient, unravel = trees.ravel(gradients)
        state = _remember(gradient, state)
        direction = _inverse_times(state, gradient)
        first = jnp.minimum(1.0, 1.0 / jnp.maximum(jnp.sum(jnp.abs(gradient)), jnp.finfo(gradient.dtype).tiny))
        move = -learning_rate * jnp.where(state.started, 1.0, first) * direction
        done = (jnp.vdot(gradient, direction) < 1e-9) | (jnp.max(jnp.abs(gradient)) <= 1e-7)
        move = jnp.where(done, 0.0, move)
        return unravel(move), state._replace(started=jnp.ones((), bool), move=move)

    return optax.GradientTransformation(init, update)


def _without_pairs(values: Array, memory: int) -> _QuasiNewtonState:
    zeros = jnp.zeros_like(values)
    pairs = jnp.zeros((memory, *zeros.shape), zeros.dtype)
    return _QuasiNewtonState(
        jnp.zeros((), bool), zeros, zeros, pairs, pairs, jnp.zeros(memory, zeros.dtype), jnp.ones((), zeros.dtype)
    )


def _remember(gradient: Array, state: _QuasiNewtonState) -> _QuasiNewtonState:
    """The state with this gradient, and with the pair of the last move if its curvature is positive."""
    change = gradient - state.gradient
    curvature = jnp.vdot(change, state.move)
    counts = state.started & (curvature > 1e-10)

    def remember(history: Array, newest: Array) -> Array:
        return jnp.where(counts, jnp.concatenate([history[1:], newest[None]]), history)

    return state._replace(
        gradient=gradient,
        moves=remember(state.moves, state.move),
        changes=remember(state.changes, change),
        inverses=remember(state.inverses, 1.0 / jnp.where(counts, curvature, 1.0)),
        scale=jnp.where(counts, curvature / jnp.where(counts, jnp.vdot(change, change), 1.0), state.scale),
    )


def _inverse_times(state: _QuasiNewtonState, vector: Array) -> Array:
    """The remembered inverse Hessian times a vector [D], by the two loops of Nocedal 1980."""

    def newest_first(rest: Array, pair: tuple) -> tuple[Array, Array]:
        move, change, inverse = pair
        weight = inverse * jnp.vdot(move, rest)
        return rest - weight * change, weight

    def oldest_first(direction: Array, pair: tuple) -> tuple[Array, None]:
        move, change, inverse, weight = pair
        return direction + move * (weight - inverse * jnp.vdot(change, direction)), None

    # An empty place has an inverse of zero and changes nothing.
    pairs = (state.moves, state.changes, state.inverses)
    rest, weights = jax.lax.scan(newest_first, vector, pairs, reverse=True)
    return jax.lax.scan(oldest_first, state.scale * rest, (*pairs, weights))[0]


# Backtracking: the part of the expected decrease that must be reached, the factor between tries, and their number.
_DECREASE = 1e-4
_SHORTER = 0.25
_TRIES = 10
# The first try moves the entry of the largest slope by this part of the range.
_FIRST_MOVE = 0.25


def start_in_box(values: Array, memory: int) -> Position:
    """The start of ``descend_in_box`` with ``memory`` pairs."""
    return Position(values, _without_pairs(values.reshape(-1), memory))


def descend_in_box(
    objective: Callable[[Array], Array], position: Position, *, low: float, high: float
) -> tuple[Position, Array]:
    """One step of L-BFGS on an array whose entries stay in [low, high] -> (position, objective before it).

    Entries at a bound that the gradient pushes outward do not move; the others move by L-BFGS, clipped, with
    backtracking (two-metric projection, Bertsekas 1982). The objective never increases. If no try decreases it, the
    pairs are forgotten and the next step is along the gradient. scipy's L-BFGS-B has the same problem and other steps.
    """
    loss, slope = jax.value_and_grad(objective)(position.values)
    values, gradient = position.values.reshape(-1), slope.reshape(-1)
    state: _QuasiNewtonState = _remember(gradient, position.optimizer)
    pinned = ((values <= low) & (gradient > 0)) | ((values >= high) & (gradient < 0))
    free = jnp.where(pinned, 0.0, gradient)
    # PyTorch's first move, of an L1 norm of at most 1, is lost in rounding where there are many entries.
    first = _FIRST_MOVE * (high - low) / jnp.maximum(jnp.max(jnp.abs(free)), jnp.finfo(free.dtype).tiny)
    direction = jnp.where(state.started, 1.0, first) * jnp.where(pinned, 0.0, _inverse_times(state, free))

    def moved(factor: Array) -> Array:
        return jnp.clip(values - factor * direction, low, high)

    def decreases(factor: Array) -> Array:
        new = moved(factor)
        expected = jnp.vdot(gradient, values - new)
        return (expected > 0) & (objective(new.reshape(slope.shape)) <= loss - _DECREASE * expected)

    def shorter(search: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tries, factor, _ = search
        return tries + 1, _SHORTER * factor, decreases(_SHORTER * factor)

    one = jnp.ones((), values.dtype)
    _, factor, found = jax.lax.while_loop(
        lambda search: ~search[2] & (search[0] < _TRIES), shorter, (jnp.int32(1), one, decreases(one))
    )
    new = jnp.where(found, moved(factor), values)
    kept = state._replace(started=jnp.ones((), bool), move=new - values)
    forgotten = _without_pairs(values, len(state.inverses))
    state = jax.tree.map(lambda some, none: jnp.where(found, some, none), kept, forgotten)
    return Position(new.reshape(slope.shape), state), loss


class TrainingData(NamedTuple):
    """The data of a training. samples: a tree with a leading axis [N, ...]. context: other input of the loss."""

    samples: PyTree
    context: PyTree = None


def training(
    init: Callable[[Array], PyTree],
    loss: Callable[[PyTree, PyTree, PyTree], Array],
    optimizer: optax.GradientTransformation,
    *,
    samples: int,
    batch_size: int,
    shuffled: bool = True,
) -> Procedure:
    """Training of ``init(key)`` on ``loss(params, batch, context) -> []``; a step is an epoch, the result the params.

    The evidence is ``TrainingData`` with ``samples`` samples, the info the mean loss [] of the epoch. Samples that do
    not fill a last batch are left out: different ones in each epoch if ``shuffled``. Raises ValueError if there are
    fewer samples than one batch has.
    """
    batches = samples // batch_size
    if not batches:
        raise ValueError(f"batch_size={batch_size}: expected at most {samples}, the number of samples")

    def start(key: Array, data: TrainingData) -> Position:
        params = init(key)
        return Position(params, optimizer.init(params))

    def epoch(key: Array, position: Position, data: TrainingData) -> tuple[Position, Array]:
        def step(position: Position, indices: Array) -> tuple[Position, Array]:
            batch = jax.tree.map(lambda leaf: leaf[indices], data.samples)
            return descend(lambda params: loss(params, batch, data.context), optimizer, position)

        order = jax.random.permutation(key, samples) if shuffled else jnp.arange(samples)
        position, losses = jax.lax.scan(step, position, order[: batches * batch_size].reshape(batches, batch_size))
        return position, jnp.mean(losses)

    return Procedure(start, epoch, lambda position, data: position.values)


def halving_training(
    init: Callable[[Array], PyTree],
    loss: Callable[[PyTree, PyTree, PyTree], Array],
    *,
    samples: int,
    batch_size: int,
    learning_rate: float,
    epochs_between_halvings: int,
    shuffled: bool = True,
) -> Procedure:
    """``training`` by ``halving_amsgrad``."""
    optimizer = halving_amsgrad(
        learning_rate, samples=samples, batch_size=batch_size, epochs_between_halvings=epochs_between_halvings
    )
    return training(init, loss, optimizer, samples=samples, batch_size=batch_size, shuffled=shuffled)


def halving_amsgrad(
    learning_rate: float, *, samples: int, batch_size: int, epochs_between_halvings: int
) -> optax.GradientTransformation:
    """``amsgrad`` whose rate halves every so many epochs: all trainings of He, Zhang and Lee 2019 (released code)."""
    steps = epochs_between_halvings * (samples // batch_size)
    return amsgrad(optax.exponential_decay(learning_rate, steps, 0.5, staircase=True))
