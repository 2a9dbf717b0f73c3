"""Benchmark cases of the attacks on features and gradients, and the same steps in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.cases import Case
from gan_leak.attacks.gradient.contract import GradientEvidence
from gan_leak.attacks.gradient.deep_leakage import deep_leakage
from gan_leak.attacks.gradient.grnn import grnn
from gan_leak.attacks.gradient.observation import gradient_of
from gan_leak.attacks.procedure import Procedure, advance
from gan_leak.attacks.split.regularized_likelihood import regularized_likelihood
from gan_leak.models.gradient_networks import dlg_lenet, with_uniform_init
from gan_leak.models.grnn_generator import grnn_generator
from gan_leak.models.layered import he_lenet, split_after
from gan_leak.performance import PerformanceOptions
from gan_leak.runs.timing import matmul_flops
from gan_leak.types import GradientView, Model, PyTree, SplitView

# A function to be compiled and timed, and its arguments.
Program = tuple[Callable[..., PyTree], tuple]

_STEPS = 20
_CLASSES = 10


def inversion_cases(performance: PerformanceOptions) -> list[Case]:
    """White box on ten images together, DLG and GRNN on one image of 32 pixels in color."""
    return [
        _white_box(performance),
        _gradient_case("DLG", _dlg, performance, dlg_torch_baseline),
        _gradient_case("GRNN", _grnn, performance, grnn_torch_baseline),
    ]


def _white_box(performance: PerformanceOptions, count: int = 10) -> Case:
    def program(implementation: str) -> Program:
        network = he_lenet(implementation=implementation)
        client = split_after(network, "ReLU2").client
        params = network.init(jax.random.key(0))
        features = client.apply(params, jax.random.normal(jax.random.key(1), (count, *network.input_shape)))

        def one(params: PyTree, features: jax.Array) -> jax.Array:
            view, key = SplitView(features, params), jax.random.key(2)
            search = regularized_likelihood(client, (28, 28, 1), total_variation=1.0)
            return search.extract(advance(key, search, search.init(key, view), view, _STEPS), view)

        return jax.vmap(one, in_axes=(None, 0)), (params, features)

    function, arguments = program(performance.convolution)
    return Case(
        f"white box, ReLU2 of the MNIST network, {count} images",
        "step",
        function,
        arguments,
        matmul_flops(*_floor(program)),
        _STEPS,
        lambda: white_box_torch_baseline(count),
    )


def _floor(program: Callable[[str], Program]) -> tuple:
    function, arguments = program("matmul")
    return function, *arguments


def _dlg(implementation: str) -> Procedure:
    return deep_leakage(_victim(implementation), (1, 32, 32, 3), _CLASSES)


def _grnn(implementation: str) -> Procedure:
    return grnn(_victim(implementation), grnn_generator(_CLASSES, implementation=implementation), 1)


def _victim(implementation: str) -> Model:
    return with_uniform_init(dlg_lenet(_CLASSES, implementation=implementation))


def _gradient_case(
    name: str,
    attack_of: Callable[[str], Procedure],
    performance: PerformanceOptions,
    torch_baseline: Callable[[], Callable[[], None]],
) -> Case:
    def program(implementation: str) -> Program:
        model, attack = _victim(implementation), attack_of(implementation)
        params = model.init(jax.random.key(0))
        labels = jax.nn.one_hot(jnp.array([3]), _CLASSES)
        images = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3))
        view = GradientView(params, jax.jit(lambda params: gradient_of(model, params, images, labels))(params))
        key, evidence = jax.random.key(2), GradientEvidence(view, labels)
        state = jax.jit(attack.init)(key, evidence)
        return lambda state, evidence: advance(key, attack, state, evidence, _STEPS), (state, evidence)

    function, arguments = program(performance.convolution)
    return Case(
        f"{name}, LeNet of DLG, one image",
        "step",
        function,
        arguments,
        matmul_flops(*_floor(program)),
        _STEPS,
        torch_baseline,
    )


def torch_lenet() -> Any:
    """DLG's LeNet, every parameter drawn from U(-0.5, 0.5)."""
    from torch import nn

    layers: list[Any] = []
    for channels, stride in ((3, 2), (12, 2), (12, 1)):
        layers += [nn.Conv2d(channels, 12, 5, padding=2, stride=stride), nn.Sigmoid()]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, _CLASSES))
    for parameter in module.parameters():
        parameter.data.uniform_(-0.5, 0.5)
    return module


def torch_gradient(module: Any, images: Any, labels: Any) -> list[Any]:
    """The gradient of a PyTorch module, itself differentiable; labels [B, K]."""
    import torch

    loss = -(labels * torch.log_softmax(module(images), 1)).sum(1).mean()
    return list(torch.autograd.grad(loss, list(module.parameters()), create_graph=True))


def _observed_gradient(module: Any) -> list[Any]:
    import torch

    labels = torch.nn.functional.one_hot(torch.tensor([3]), _CLASSES).float()
    return [gradient.detach() for gradient in torch_gradient(module, torch.rand(1, 3, 32, 32), labels)]


def dlg_torch_baseline() -> Callable[[], None]:
    """DLG with PyTorch's own L-BFGS: evaluates the objective once for each of our steps."""
    import torch

    module = torch_lenet()
    observed = _observed_gradient(module)
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    logits = torch.randn(1, _CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([images, logits], max_iter=_STEPS, max_eval=_STEPS)

    def objective() -> Any:
        optimizer.zero_grad()
        gradients = torch_gradient(module, images, torch.softmax(logits, 1))
        distance = torch.stack([((a - b) ** 2).sum() for a, b in zip(gradients, observed, strict=True)]).sum()
        distance.backward()
        return distance

    return lambda: optimizer.step(objective)


def torch_grnn_generator(noise_size: int = 128) -> tuple[Any, Any]:
    """GRNN's two branches: images, and soft labels."""
    import torch
    from torch import nn

    class Gate(nn.Module):
        def forward(self, values: Any) -> Any:
            passed, gate = values.chunk(2, 1)
            return passed * torch.sigmoid(gate)

    layers: list[Any] = [nn.ConvTranspose2d(noise_size, 256, 4), Gate()]
    for inputs, outputs in ((128, 64), (64, 32), (32, 3)):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, 2 * outputs, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(2 * outputs), Gate()]
    return nn.Sequential(*layers, nn.Sigmoid()), nn.Sequential(nn.Linear(noise_size, _CLASSES), nn.Softmax(1))


def grnn_torch_baseline() -> Callable[[], None]:
    """GRNN's loss as released, with RMSprop."""
    import torch

    module = torch_lenet()
    observed = torch.cat([gradient.flatten() for gradient in _observed_gradient(module)])
    images_branch, labels_branch = torch_grnn_generator()
    noise = torch.randn(1, 128)
    parameters = [*images_branch.parameters(), *labels_branch.parameters()]
    optimizer = torch.optim.RMSprop(parameters, lr=1e-4, momentum=0.99)

    def run() -> None:
        for _ in range(_STEPS):
            optimizer.zero_grad()
            images, labels = images_branch(noise[:, :, None, None]), labels_branch(noise)
            gradients = torch.cat([gradient.flatten() for gradient in torch_gradient(module, images, labels)])
            squared = ((gradients - observed) ** 2).sum()
            variation = (images[:, :, 1:] - images[:, :, :-1]).pow(2).mean()
            variation = variation + (images[..., 1:] - images[..., :-1]).pow(2).mean()
            (squared + squared.sqrt() + 2e-3 * variation).backward()
            optimizer.step()

    return run


def white_box_torch_baseline(count: int) -> Callable[[], None]:
    """All images as one batch: their objectives are independent."""
    import torch
    from torch import nn

    client = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU())
    client.requires_grad_(False)
    features = client(torch.randn(count, 1, 28, 28))
    inputs = torch.zeros(count, 1, 28, 28, requires_grad=True)
    optimizer = torch.optim.Adam([inputs], lr=1e-2, eps=1e-3, amsgrad=True)

    def run() -> None:
        for _ in range(_STEPS):
            optimizer.zero_grad()
            error = (client(inputs) - features).pow(2).mean((1, 2, 3))
            variation = (inputs[:, :, 1:] - inputs[:, :, :-1]).pow(2).mean((1, 2, 3))
            variation = variation + (inputs[..., 1:] - inputs[..., :-1]).pow(2).mean((1, 2, 3))
            (error + variation).sum().backward()
            optimizer.step()

    return run
