"""Flax modules as models: two pure functions of the parameters, in evaluation mode."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from gan_leak.models.initialization import init_params
from gan_leak.types import Array, Model, PyTree

_EVALUATION_ARGUMENTS = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


def evaluation_arguments(module: nn.Module) -> dict[str, bool]:
    """The arguments of a module's ``__call__`` that select evaluation mode, by their usual names.

    train, training, is_training: False; deterministic, use_running_average: True. Empty if the module has none of them.

    >>> import flax.linen as nn
    >>> evaluation_arguments(nn.Dropout(0.5)), evaluation_arguments(nn.Dense(3))
    ({'deterministic': True}, {})
    """
    parameters = inspect.signature(module.__call__).parameters
    return {name: value for name, value in _EVALUATION_ARGUMENTS.items() if name in parameters}


def stateless_model(module: nn.Module, example_shape: tuple[int, ...]) -> Model:
    """Wrap a Linen module that has only parameters and one mode, without checks.

    example_shape: the shape of one input, without the batch axis.
    """
    return _wrap(module, example_shape, arguments={}, constants={})


def as_model(
    module: nn.Module, example_shape: tuple[int, ...], *, variables: Mapping[str, PyTree] | None = None
) -> Model:
    """Wrap a Linen module as a ``Model`` in evaluation mode.

    example_shape: the shape of one input, without the batch axis. The module is called with
    ``evaluation_arguments(module)``. Dropout is off. BatchNorm normalizes by its running statistics and never updates
    them, also in federated training. All collections but ``params`` are constants of the model: those of ``variables``
    (of a trained module), or else their initial values. ``init(key)`` draws new parameters. To use those of a trained
    module, pass ``variables["params"]`` to ``apply``.

    Raises ValueError if the module is not a Linen module, if a call draws random numbers or changes a collection, and
    if its output has no batch axis.

    >>> import flax.linen as nn
    >>> import jax
    >>> model = as_model(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)]), (5,))
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jax.numpy.ones((2, 5))).shape
    (2, 3)
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module={type(module).__name__}: expected a flax.linen.Module")
    arguments: dict[str, Any] = evaluation_arguments(module)
    example = jnp.zeros((1, *example_shape))

    def init_all() -> Mapping[str, PyTree]:
        return module.init(jax.random.key(0), example, **arguments)

    shapes = jax.eval_shape(init_all)
    constants = _without_parameters(shapes)
    if variables is not None:
        constants = _without_parameters(variables)
    elif constants:
        constants = _without_parameters(init_all())
    model = _wrap(module, example_shape, arguments=arguments, constants=constants)
    _check(module, model, shapes.get("params", {}), example)
    return model


def _wrap(
    module: nn.Module,
    example_shape: tuple[int, ...],
    *,
    arguments: Mapping[str, Any],
    constants: Mapping[str, PyTree],
) -> Model:
    def init(key: Array) -> PyTree:
        return init_params(module, key, (1, *example_shape), **arguments)

    def apply(params: PyTree, inputs: Array) -> Array:
        return cast(Array, module.apply({"params": params, **constants}, inputs, **arguments))

    return Model(init, apply)


def _without_parameters(variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    return {name: collection for name, collection in variables.items() if name != "params"}


def _check(module: nn.Module, model: Model, params: PyTree, example: Array) -> None:
    """Raise ValueError unless the model is a pure function that keeps the batch axis."""
    name = type(module).__name__
    try:
        outputs = jax.eval_shape(model.apply, params, example)
    except FlaxError as error:
        raise ValueError(
            f"module={name}: expected one that draws no random numbers and changes no collection in evaluation mode, "
            f"which is selected by an argument ({', '.join(_EVALUATION_ARGUMENTS)}) or a field of the module; "
            f"{str(error).partition(' (http')[0]}"
        ) from error
    if not hasattr(outputs, "shape") or outputs.shape[:1] != (1,):
        raise ValueError(f"module={name}: its output has no batch axis, expected an array [B, ...]")
