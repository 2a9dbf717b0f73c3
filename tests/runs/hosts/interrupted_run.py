"""Stands in for ``python -m experiments.gan_attack``, with networks that compile in a moment.

It comes to a place that it would leave after hours only. A script; arguments: place, flags.
"""

import functools
import hashlib
import runpy
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from gan_leak.runs.federated import measurement, placement, train
from gan_leak.runs.storage import checkpoints
from reference.quick import use_linear_networks


def loading(*_):
    print("here", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def compiling(*_):
    def step(values):
        return jnp.sort(jnp.sin(values), axis=0)

    # Traced 14 times, and compiled 16,384 times.
    for _ in range(14):
        step = jax.jit(functools.partial(lambda step, values: step(step(values)), step))
    lowered = step.lower(jnp.ones((8, 8)))
    jax.config.update("jax_disable_most_optimizations", False)
    print("here", flush=True)
    lowered.compile()


def training(*_):
    program = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2.0, jnp.sin, x)).lower(1.0).compile()
    print("here", flush=True)
    program(1.0).block_until_ready()


def slowly(function):
    def call(*arguments):
        print("here", flush=True)
        time.sleep(1)
        return function(*arguments)

    return call


def after_three_rounds(work):
    place_all = placement.place_all

    def place(*arguments, **options):
        placed = place_all(*arguments, **options)

        def advance(state, count):
            if int(state.round) == 3:
                work()
            return placed.advance(state, count)

        return placed._replace(advance=advance)

    return place


def prepare(place):
    patch = pytest.MonkeyPatch()
    use_linear_networks(patch)
    if place == "loading":
        patch.setattr(train, "prepare_data", loading)
    elif place == "judge":
        patch.setattr(measurement, "load_or_train_judge", training)
    elif place == "saving":
        patch.setattr(checkpoints, "_prune", slowly(checkpoints._prune))
    elif place in ("compiling", "training"):
        patch.setattr(train, "place_all", after_three_rounds(globals()[place]))


if __name__ == "__main__":
    prepare(sys.argv.pop(1))
    runpy.run_module("experiments.gan_attack", run_name="__main__", alter_sys=True)
