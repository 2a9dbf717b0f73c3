"""Functions are timed in turn, arithmetic is counted as it is written, and busy cores are seen."""

import math
import multiprocessing
import time

import jax
import jax.numpy as jnp
import pytest

from gan_leak.runs import timing
from gan_leak.runs.timing import busy_share, gemm_peak, matmul_flops, time_in_turn


def test_functions_take_turns():
    """After their first two calls each function is called once before any is called again."""
    calls = []
    functions = {name: lambda name=name: calls.append(name) or time.sleep(0.002) for name in "ab"}
    timings = time_in_turn(functions, repeats=3, least_seconds=0.001)
    assert calls == ["a", "a", "b", "b", *"ababab"]
    assert all(timing.measurements == 3 for timing in timings.values())


def test_a_time_is_that_of_one_call(monkeypatch):
    """Median and least of what a clock says, divided by the number of calls that one measurement needs."""
    now = 0.0
    lengths = iter([0.5, 0.25, *[1.0] * 4, *[3.0] * 4, *[2.0] * 4])

    def call():
        nonlocal now
        now += next(lengths)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert time_in_turn({"only": call}, repeats=3, least_seconds=1.0) == {"only": timing.Timing(2.0, 1.0, 3)}
    with pytest.raises(ValueError, match="repeats=0: expected at least 1"):
        time_in_turn({"only": call}, repeats=0)


def ones(*shape):
    return jnp.ones(shape, jnp.float32)


def scanned(left, right):
    return jax.lax.scan(lambda carry, _: (carry @ right, None), left, length=7)[0]


def conditional(left, right):
    return jax.lax.cond(left[0, 0] > 0, lambda: left @ right, lambda: left @ right @ right)


def convolved(left, right):
    images, kernel = left[None, :, :, None], right[:2, :3, None, None]
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda left, right: left @ right, 2 * 4 * 5 * 5),
        (jax.jit(lambda left, right: left @ right + 1), 2 * 4 * 5 * 5),
        (jax.vmap(lambda row, right: row @ right, in_axes=(0, None)), 2 * 4 * 5 * 5),
        (scanned, 7 * 2 * 4 * 5 * 5),
        (conditional, 2 * 2 * 4 * 5 * 5),
        (convolved, 2 * (3 * 3) * (2 * 3)),
        (lambda left, right: left * 2, 0),
        # The product, and one for the gradient of each factor.
        (jax.grad(lambda left, right: jnp.sum((left @ right) ** 2), argnums=(0, 1)), 3 * 2 * 4 * 5 * 5),
    ],
)
def test_arithmetic_is_counted(function, expected):
    assert matmul_flops(function, ones(4, 5), ones(5, 5)) == expected


def test_a_loop_of_unknown_length_cannot_be_counted():
    def endless(left, right):
        return jax.lax.while_loop(lambda carry: carry[0, 0] < 9, lambda carry: carry @ right, left)

    with pytest.raises(ValueError, match="known number of iterations"):
        matmul_flops(endless, ones(4, 5), ones(5, 5))


def test_the_peak_is_that_of_the_fastest_product(monkeypatch):
    monkeypatch.setattr(timing, "_GEMM_SIZES", (8, 16))
    seconds = {"8": timing.Timing(1.0, 0.5, 7), "16": timing.Timing(9.0, 2.0, 7)}
    monkeypatch.setattr(timing, "time_in_turn", lambda functions, repeats: {name: seconds[name] for name in functions})
    assert gemm_peak() == max(2 * 8**3 / 0.5, 2 * 16**3 / 2.0)


def _spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_busy_cores_are_seen(monkeypatch, tmp_path):
    """A process that computes is seen; without a table of the kernel nothing is claimed."""
    spinning = multiprocessing.get_context("spawn").Process(target=_spin, args=(30.0,))
    spinning.start()
    try:
        deadline = time.monotonic() + 20
        while busy_share(0.5) * len(timing.usable_cores()) < 0.6 and time.monotonic() < deadline:
            pass
        assert busy_share(0.5) * len(timing.usable_cores()) > 0.4
    finally:
        spinning.kill()
        spinning.join()
    monkeypatch.setattr(timing, "_PROCESSOR_TIMES", tmp_path / "nothing")
    assert math.isnan(busy_share(0.0))
