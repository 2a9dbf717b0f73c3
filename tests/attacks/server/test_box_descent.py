"""L-BFGS in a box: against scipy's, and what it never does."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import strategies as st

from gan_leak.attacks.optimizers import descend_in_box, start_in_box


def least_squares(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(12, 8)), 3 * rng.normal(size=12)


@jax.jit
def descend_quadratic(position, matrix, target):
    def objective(values):
        return jnp.sum((matrix @ values.reshape(-1) - target) ** 2)

    return descend_in_box(objective, position, low=-1.0, high=1.0)


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(0, 10_000))
def test_a_quadratic_ends_where_scipy_ends_and_never_rises(seed):
    matrix, target = least_squares(seed)
    position, losses = start_in_box(jnp.zeros((4, 2)), 10), []
    for _ in range(60):
        position, loss = descend_quadratic(position, jnp.asarray(matrix), jnp.asarray(target))
        losses.append(float(loss))
        assert np.max(np.abs(position.values)) <= 1.0
    assert (np.diff(losses) <= 1e-6 * np.array(losses[:-1])).all()
    found = scipy.optimize.minimize(
        lambda values: np.sum((matrix @ values - target) ** 2), np.zeros(8), bounds=[(-1, 1)] * 8, method="L-BFGS-B"
    )
    np.testing.assert_allclose(losses[-1], found.fun, rtol=1e-3)
    np.testing.assert_allclose(position.values.reshape(-1), found.x, atol=0.02)
    # The control: some entries of the free solution lie outside, so that clipping it is not the answer.
    free = np.linalg.lstsq(matrix, target, rcond=None)[0]
    hypothesis.assume(np.max(np.abs(free)) > 1.0)
    assert losses[-1] <= np.sum((matrix @ np.clip(free, -1, 1) - target) ** 2) * (1 + 1e-5)


def test_curved_valleys_and_the_scale_of_the_objective():
    """Rosenbrock's function ends at its minimum, (1, 1), also a million times smaller and larger."""
    for scale in (1e-6, 1.0, 1e6):

        def objective(values, scale=scale):
            return scale * ((1 - values[0]) ** 2 + 100 * (values[1] - values[0] ** 2) ** 2)

        step = jax.jit(lambda position, objective=objective: descend_in_box(objective, position, low=-2.0, high=2.0))
        position = start_in_box(jnp.array([-1.2, 1.0]), 10)
        for _ in range(100):
            position, _ = step(position)
        np.testing.assert_allclose(position.values, 1.0, atol=0.02)


@pytest.mark.slow
def test_where_nothing_decreases_nothing_moves():
    """At a minimum, in a corner, and where the objective is not a number."""
    for objective, values in (
        (lambda values: jnp.sum(values**2), jnp.zeros(3)),
        (lambda values: -jnp.sum(values), jnp.ones(3)),
        (lambda values: jnp.sum(values) * jnp.nan, jnp.full(3, 0.5)),
    ):
        position, _ = descend_in_box(objective, start_in_box(values, 5), low=-1.0, high=1.0)
        np.testing.assert_array_equal(position.values, values)
