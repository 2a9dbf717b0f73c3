"""The first parameters of a Flax module, drawn by one program."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_leak.types import Array, PyTree


def init_params(module: nn.Module, key: Array, input_shape: tuple[int, ...], **arguments: Any) -> PyTree:
    """``module.init(key, jnp.zeros(input_shape), **arguments)["params"]``, or {} for a module without parameters.

    Called outside of jit, Flax compiles a program for every draw and for every operation on the zeros. Equal modules
    share one program here. A module with a field that has no hash is initialized as Flax does it.

    >>> init_params(nn.Dense(3), jax.random.key(0), (1, 2))["kernel"].shape
    (2, 3)
    """
    options = tuple(sorted(arguments.items()))
    try:
        hash((module, options))
    except TypeError:
        return _init(module, input_shape, options, key)
    return _compiled_init(module, input_shape, options, key)


def _init(module: nn.Module, input_shape: tuple[int, ...], options: tuple[tuple[str, Any], ...], key: Array) -> PyTree:
    return module.init(key, jnp.zeros(input_shape), **dict(options)).get("params", {})


_compiled_init = functools.partial(jax.jit, static_argnums=(0, 1, 2))(_init)
