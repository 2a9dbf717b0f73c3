"""Networks as chains of named layers that can be split after each layer (He, Zhang and Lee 2019: split inference)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_leak.models.initialization import init_params
from gan_leak.models.layers import TorchConvolution, TorchDense, TorchTransposedConvolution, halve
from gan_leak.types import Array, Model, PyTree

# A layer is a Linen module, which has parameters, or a function, which has none.
Layer = nn.Module | Callable[[Array], Array]


class LayeredModel(NamedTuple):
    """A network whose layers have names, in order.

    ``init(key) -> params``, a dictionary by layer; ``apply(params, inputs, first, last)`` runs the layers of the names
    ``first`` to ``last``, both included. input_shape: of one input, without the batch axis.
    """

    names: tuple[str, ...]
    input_shape: tuple[int, ...]
    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array, str, str], Array]


class SplitModel(NamedTuple):
    """Both sides of a split: ``client`` from inputs to features, ``cloud`` from features to logits.

    Both take the parameters of the whole network and read their own. feature_shape: without the batch axis.
    """

    client: Model
    cloud: Model
    feature_shape: tuple[int, ...]


def layered(layers: Sequence[tuple[str, Layer]], input_shape: tuple[int, ...]) -> LayeredModel:
    """Build a ``LayeredModel``. Raises ValueError for a name that occurs twice."""
    by_name = dict(layers)
    names = tuple(by_name)
    if len(names) < len(layers):
        raise ValueError(f"layers={[name for name, _ in layers]}: expected each name once")

    def run(layer: Layer, params: PyTree, inputs: Array) -> Array:
        return cast(Array, layer.apply({"params": params}, inputs)) if isinstance(layer, nn.Module) else layer(inputs)

    def init(key: Array) -> PyTree:
        params: dict[str, PyTree] = {}
        values = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
        for index, (name, layer) in enumerate(layers):
            if isinstance(layer, nn.Module):
                params[name] = init_params(layer, jax.random.fold_in(key, index), values.shape)
            values = jax.eval_shape(functools.partial(run, layer), params.get(name), values)
        return params

    def apply(params: PyTree, inputs: Array, first: str, last: str) -> Array:
        values = inputs
        for name in names[names.index(first) : names.index(last) + 1]:
            values = run(by_name[name], params.get(name), values)
        return values

    return LayeredModel(names, input_shape, init, apply)


def whole(network: LayeredModel) -> Model:
    """The whole network, from inputs to logits."""
    return Model(
        network.init, lambda params, inputs: network.apply(params, inputs, network.names[0], network.names[-1])
    )


def split_after(network: LayeredModel, layer: str) -> SplitModel:
    """Split the network after a layer.

    Raises ValueError, with the names of the layers, for a layer that does not exist and for the last one.
    """
    if layer not in network.names[:-1]:
        raise ValueError(f"split={layer!r}: expected one of {', '.join(network.names[:-1])}")
    first, last = network.names[0], network.names[-1]
    following = network.names[network.names.index(layer) + 1]
    features = jax.eval_shape(
        lambda key: network.apply(network.init(key), jnp.zeros((1, *network.input_shape)), first, layer),
        jax.random.key(0),
    )
    return SplitModel(
        Model(network.init, lambda params, inputs: network.apply(params, inputs, first, layer)),
        Model(network.init, lambda params, features: network.apply(params, features, following, last)),
        features.shape[1:],
    )


def he_lenet(*, num_classes: int = 10, implementation: str = "auto") -> LayeredModel:
    """The MNIST network of He, Zhang and Lee 2019 (released code, LeNet): 28x28 images, 45,278 parameters."""

    def convolution(features: int) -> TorchConvolution:
        return TorchConvolution(features, 5, implementation=implementation)

    return layered(
        [
            ("conv1", convolution(8)),
            ("ReLU1", nn.relu),
            ("pool1", halve),
            ("conv2", convolution(16)),
            ("ReLU2", nn.relu),
            ("pool2", halve),
            ("fc1", _Flat(120)),
            ("fc1act", nn.relu),
            ("fc2", TorchDense(84)),
            ("fc2act", nn.relu),
            ("fc3", TorchDense(num_classes)),
        ],
        (28, 28, 1),
    )


def he_cifar10(*, num_classes: int = 10, implementation: str = "auto") -> LayeredModel:
    """The CIFAR-10 network of He, Zhang and Lee 2019 (released code, CIFAR10CNN): 32x32x3, six 3x3 convolutions."""

    def convolution(features: int) -> TorchConvolution:
        return TorchConvolution(features, 3, padding=1, implementation=implementation)

    layers: list[tuple[str, Layer]] = []
    for block, features in enumerate((64, 128, 128), start=1):
        for index in (1, 2):
            layers += [(f"conv{block}{index}", convolution(features)), (f"ReLU{block}{index}", nn.relu)]
        layers.append((f"pool{block}", halve))
    layers += [("fc1", _Flat(512)), ("fc1act", nn.sigmoid), ("fc2", TorchDense(num_classes))]
    return layered(layers, (32, 32, 3))


def inverse_network_for(network: str, split: str, *, implementation: str = "auto") -> Model:
    """The decoder that inverts a network's layers up to a split (He, Zhang and Lee 2019, released code).

    network: 'mnist' or 'cifar10'. Raises ValueError, with the known splits, for another one.
    """

    def back(
        features: int, size: int, stride: int = 1, padding: int = 0, output_padding: int = 0
    ) -> TorchTransposedConvolution:
        return TorchTransposedConvolution(features, size, stride, padding, output_padding, implementation)

    twice = {"stride": 2, "padding": 1, "output_padding": 1}
    chains: dict[tuple[str, str], tuple[list[Layer], tuple[int, ...]]] = {
        ("mnist", "conv1"): ([TorchConvolution(1, 5, padding=4, implementation=implementation)], (24, 24, 8)),
        ("mnist", "ReLU2"): ([back(8, 5), back(1, 5, stride=2, output_padding=1)], (8, 8, 16)),
        ("cifar10", "conv11"): ([back(3, 3, padding=1)], (32, 32, 64)),
        ("cifar10", "ReLU22"): ([back(64, 3, **twice), back(3, 3, padding=1)], (16, 16, 128)),
        ("cifar10", "ReLU32"): (
            [back(128, 3, **twice), back(64, 3, **twice), back(3, 3, padding=1)],
            (8, 8, 128),
        ),
    }
    return _chain("inverse network", chains, network, split, between=[nn.relu])


def shadow_network_for(network: str, split: str, *, implementation: str = "auto") -> Model:
    """Another structure than the client's, for a shadow of its layers up to a split (released code, "Archi2").

    network: 'mnist' or 'cifar10'. Raises ValueError, with the known splits, for another one.
    """

    def same(features: int, size: int) -> TorchConvolution:
        return TorchConvolution(features, size, padding=size // 2, implementation=implementation)

    def valid(features: int) -> TorchConvolution:
        return TorchConvolution(features, 3, implementation=implementation)

    wide: list[Layer] = [same(64, 5), nn.relu, halve, same(128, 5), nn.relu]
    chains: dict[tuple[str, str], tuple[list[Layer], tuple[int, ...]]] = {
        ("mnist", "conv1"): ([valid(8), valid(8)], (28, 28, 1)),
        ("mnist", "ReLU2"): ([valid(8), valid(16), halve, valid(16), valid(16), nn.relu], (28, 28, 1)),
        ("cifar10", "conv11"): ([same(16, 3), same(64, 3)], (32, 32, 3)),
        ("cifar10", "ReLU22"): (wide, (32, 32, 3)),
        ("cifar10", "ReLU32"): ([*wide, halve, same(128, 5), nn.relu], (32, 32, 3)),
    }
    return _chain("shadow of another structure", chains, network, split, between=[])


def _chain(
    what: str,
    chains: dict[tuple[str, str], tuple[list[Layer], tuple[int, ...]]],
    network: str,
    split: str,
    *,
    between: list[Layer],
) -> Model:
    """The chain of layers for a network's split, with the layers ``between`` any two of them."""
    if (network, split) not in chains:
        known = ", ".join(cut for name, cut in chains if name == network)
        raise ValueError(f"split={split!r}: expected one of {known} for the {what} of {network!r}")
    layers, input_shape = chains[network, split]
    steps = [*layers[:1], *(step for layer in layers[1:] for step in (*between, layer))]
    return whole(layered([(f"layer{index}", step) for index, step in enumerate(steps)], input_shape))


class _Flat(nn.Module):
    """A fully connected layer on all values of an image."""

    features: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        return TorchDense(self.features)(images.reshape(len(images), -1))
