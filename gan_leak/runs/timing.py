"""Timing: functions in turn within one process, their number of float operations, and the peak of the machine.

The functions alternate, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from gan_leak.machine import usable_cores
from gan_leak.types import PyTree

_GEMM_SIZES = (512, 1024, 2048)
_PROCESSOR_TIMES = pathlib.Path("/proc/stat")


class Timing(NamedTuple):
    """Seconds of one call: the median and the minimum of ``measurements``."""

    median: float
    least: float
    measurements: int


def time_in_turn(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, least_seconds: float = 0.05
) -> dict[str, Timing]:
    """Time functions in turn, each ``repeats`` times. A function must finish its work before it returns.

    Each runs twice beforehand. A function faster than ``least_seconds`` is called several times for one measurement.

    Raises ValueError for fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: expected at least 1")
    calls = {}
    for name, function in functions.items():
        function()
        calls[name] = max(1, math.ceil(least_seconds / max(_seconds(function, 1), 1e-9)))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            taken[name].append(_seconds(function, calls[name]) / calls[name])
    return {name: Timing(statistics.median(seconds), min(seconds), repeats) for name, seconds in taken.items()}


def _seconds(function: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - began


def gemm_peak(*, repeats: int = 7) -> float:
    """The peak float operations per second of float32 matrix products on this backend, over several sizes."""
    product = jax.jit(lambda left: left @ left)

    def finished(square: jax.Array) -> None:
        jax.block_until_ready(product(square))

    squares = {str(size): jnp.ones((size, size), jnp.float32) for size in _GEMM_SIZES}
    calls = {name: functools.partial(finished, square) for name, square in squares.items()}
    timings = time_in_turn(calls, repeats=repeats)
    return max(2.0 * size**3 / timings[str(size)].least for size in _GEMM_SIZES)


def busy_share(seconds: float) -> float:
    """The load of the processor cores while the caller sleeps, in [0, 1]; NaN if the system does not report it."""
    before = _processor_times()
    time.sleep(seconds)
    total, idle = (later - earlier for earlier, later in zip(before, _processor_times(), strict=True))
    return 1.0 - idle / total if total > 0 else math.nan


def _processor_times() -> tuple[int, int]:
    """Clock ticks of the cores that this process may use, in all and idle."""
    if not _PROCESSOR_TIMES.exists():
        return 0, 0
    names = {f"cpu{core}" for core in usable_cores()}
    ticks = [line.split() for line in _PROCESSOR_TIMES.read_text().splitlines()]
    used = [[int(value) for value in fields[1:9]] for fields in ticks if fields and fields[0] in names]
    return sum(map(sum, used)), sum(values[3] + values[4] for values in used)


def matmul_flops(function: Callable[..., PyTree], *arguments: PyTree) -> int:
    """The number of multiplications and additions in the matrix products and convolutions of one call.

    The body of a loop counts once for each iteration; of branches, the costliest one counts. Raises ValueError for a
    product in a loop with an unknown number of iterations.
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr: Jaxpr) -> int:
    return sum(_flops_of(equation) for equation in jaxpr.eqns)


def _flops_of(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // outputs
    inner = [_flops(jaxpr) for jaxpr in _inner(params.values())]
    if name == "while" and any(inner):
        raise ValueError(
            f"function={equation.source_info.name_stack}: expected loops with a known number of iterations"
        )
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _shape(atom: Literal | Var) -> tuple[int, ...]:
    return cast(jax.core.ShapedArray, atom.aval).shape


def _inner(values: Iterable[object]) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)
