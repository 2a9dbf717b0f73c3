"""The trunk of a classifier: the input of its last layer, for networks that share it and have other output layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_leak.models.layered import LayeredModel, split_after
from gan_leak.types import Array, Model, PyTree


class Trunk(NamedTuple):
    """A classifier with its features: ``apply(params, inputs [B, ...]) -> (features [B, F], logits [B, K])``.

    params: those of the whole classifier. feature_size, num_outputs: F and K.
    """

    apply: Callable[[PyTree, Array], tuple[Array, Array]]
    feature_size: int
    num_outputs: int


def trunk_of_layered(network: LayeredModel) -> Trunk:
    """The trunk of a network in named layers: all layers but the last.

    >>> from gan_leak.models import mgan_ai_classifier
    >>> trunk_of_layered(mgan_ai_classifier(10, image_size=28)).feature_size
    12544
    """
    split = split_after(network, network.names[-2])

    def apply(params: PyTree, inputs: Array) -> tuple[Array, Array]:
        features = split.client.apply(params, inputs)
        return _flat(features), split.cloud.apply(params, features)

    return _trunk(apply, Model(network.init, split.client.apply), network.input_shape)


def trunk_of_flax(model: Model, input_shape: tuple[int, ...], *, last_layer: str = "output_layer") -> Trunk:
    """The trunk of a model that was made from a Flax module, such as the classifiers of ``gan_leak.models``.

    last_layer: the name of the module that makes the logits; in a module inside others, the path with slashes. The
    features are the input of its one call. input_shape: the shape of one input, without the batch axis.

    Raises ValueError unless the model calls a module of that name once.

    >>> from gan_leak.models import classifier_for
    >>> trunk = trunk_of_flax(classifier_for(32, 10, channels=1), (32, 32, 1))
    >>> trunk.feature_size, trunk.num_outputs
    (200, 10)
    """

    def apply(params: PyTree, inputs: Array) -> tuple[Array, Array]:
        captured: list[Array] = []

        def keep_input(function: Callable, arguments: tuple, named: dict, context: Any) -> Any:
            if "/".join(context.module.path) == last_layer and context.method_name == "__call__":
                captured.append(arguments[0])
            return function(*arguments, **named)

        with nn.intercept_methods(keep_input):
            logits = model.apply(params, inputs)
        if len(captured) != 1:
            raise ValueError(
                f"last_layer={last_layer!r}: called {len(captured)} times, expected the name of a module that the "
                "model calls once"
            )
        return _flat(captured[0]), logits

    return _trunk(apply, model, input_shape)


def _flat(features: Array) -> Array:
    return features.reshape(len(features), -1)


def _trunk(apply: Callable[[PyTree, Array], tuple[Array, Array]], model: Model, input_shape: tuple[int, ...]) -> Trunk:
    shapes = jax.eval_shape(lambda key: apply(model.init(key), jnp.zeros((1, *input_shape))), jax.random.key(0))
    return Trunk(apply, shapes[0].shape[1], shapes[1].shape[1])
