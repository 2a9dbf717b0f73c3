"""The same computations in fast PyTorch: channels_last, and tanh after the pooling as in our models.

PyTorch is imported when a baseline is built, so that the benchmark also runs without PyTorch.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

_LEARNING_RATE = 0.01


def torch_is_installed() -> bool:
    """Whether PyTorch can be imported."""
    return importlib.util.find_spec("torch") is not None


def set_threads(count: int) -> None:
    """Set the number of threads of PyTorch's operations."""
    import torch

    torch.set_num_threads(count)


def torch_classifier(image_size: int, outputs: int) -> Any:
    """The classifier of ``classifier_for`` as a PyTorch module."""
    from torch import nn

    blocks = [(1, 32, 3), (32, 64, 2)] if image_size == 32 else [(1, 32, 3), (32, 64, 2), (64, 128, 2)]
    layers: list[Any] = []
    side = image_size
    for channels, features, pool in blocks:
        layers += [nn.Conv2d(channels, features, 5), nn.MaxPool2d(pool), nn.Tanh()]
        side = (side - 4) // pool
    hidden = 200 if image_size == 32 else 400
    layers += [nn.Flatten(), nn.Linear(blocks[-1][1] * side * side, hidden), nn.Tanh(), nn.Linear(hidden, outputs)]
    return _channels_last(nn.Sequential(*layers))


def torch_generator(image_size: int, width: int) -> Any:
    """The generator of ``dcgan_generator`` for one channel as a PyTorch module."""
    from torch import nn

    features = width * image_size // 8
    layers: list[Any] = [nn.ConvTranspose2d(100, features, 4, 1, 0, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
    side = 4
    while side < image_size // 2:
        layers += [nn.ConvTranspose2d(features, features // 2, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(features // 2), nn.ReLU()]
        features, side = features // 2, 2 * side
    layers += [nn.ConvTranspose2d(features, 1, 4, 2, 1, bias=False), nn.Tanh()]
    return _channels_last(nn.Sequential(*layers))


def _channels_last(module_or_tensor: Any) -> Any:
    import torch

    return module_or_tensor.to(memory_format=torch.channels_last)


def _data(image_size: int, outputs: int, count: int) -> tuple[Any, Any]:
    import torch

    images = _channels_last(torch.rand(count, 1, image_size, image_size) * 2 - 1)
    return images, torch.randint(0, outputs, (count,))


def _sgd_step(module: Any, images: Any, labels: Any) -> None:
    import torch

    parameters = list(module.parameters())
    loss = torch.nn.functional.cross_entropy(module(images), labels)
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        torch._foreach_add_(parameters, gradients, alpha=-_LEARNING_RATE)


def local_steps(image_size: int, outputs: int, batch_size: int, steps: int) -> Callable[[], None]:
    """Steps of SGD on one batch."""
    module = torch_classifier(image_size, outputs)
    images, labels = _data(image_size, outputs, batch_size)

    def run() -> None:
        for _ in range(steps):
            _sgd_step(module, images, labels)

    return run


def generator_steps(image_size: int, outputs: int, batch_size: int, width: int, steps: int) -> Callable[[], None]:
    """Steps of the generator against a frozen classifier."""
    import torch

    classifier = torch_classifier(image_size, outputs).requires_grad_(False)
    generator = torch_generator(image_size, width)
    parameters = list(generator.parameters())

    def run() -> None:
        for _ in range(steps):
            images = generator(torch.rand(batch_size, 100, 1, 1) * 2 - 1)
            loss = -torch.log_softmax(classifier(images), 1)[:, 3].mean()
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-_LEARNING_RATE)

    return run


def local_round(
    image_size: int, outputs: int, participants: int, samples: int, batch_size: int, *, average: bool
) -> Callable[[], None]:
    """One round, one participant after another; updates are averaged at the end or added after each turn."""
    import torch

    server = list(torch_classifier(image_size, outputs).parameters())
    module = copy.deepcopy(torch_classifier(image_size, outputs))
    parameters = list(module.parameters())
    data = [_data(image_size, outputs, samples) for _ in range(participants)]

    def turn(images: Any, labels: Any) -> list[Any]:
        with torch.no_grad():
            torch._foreach_copy_(parameters, server)
        for batch in torch.randperm(samples).split(batch_size):
            _sgd_step(module, images[batch], labels[batch])
        with torch.no_grad():
            return list(torch._foreach_sub(parameters, server))

    def run() -> None:
        total: list[Any] = []
        for images, labels in data:
            update = turn(images, labels)
            with torch.no_grad():
                if not average:
                    torch._foreach_add_(server, update)
                elif not total:
                    total = update
                else:
                    torch._foreach_add_(total, update)
        if average:
            with torch.no_grad():
                torch._foreach_add_(server, total, alpha=1 / participants)

    return run
