"""Cases of the benchmark: a function that JAX compiles, its number of operations, and its PyTorch baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import torch_baselines
from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.collaboration import RoundHyperParameters, add, average, init_federation, make_round, selective_upload
from gan_leak.collaboration.participant import masked_cross_entropy
from gan_leak.collaboration.sharding import device_mesh, shard
from gan_leak.defenses import sparse_vector_upload
from gan_leak.models import classifier_for, dcgan_generator
from gan_leak.performance import PerformanceOptions
from gan_leak.runs.timing import matmul_flops
from gan_leak.types import FederationData, InsiderView, Model, PyTree, TransformInfo, Upload

_STEPS = 10
_LEARNING_RATE = 0.01


class Case(NamedTuple):
    """A function of ``arguments`` to be compiled and timed.

    flops: operations of the matrix products of one call. units: steps, rounds and so on in one call. torch_baseline:
    builds the function that does the same in PyTorch, or None.
    """

    name: str
    unit: str
    function: Callable[..., PyTree]
    arguments: tuple
    flops: int
    units: int = 1
    torch_baseline: Callable[[], Callable[[], None]] | None = None


def _outputs(image_size: int) -> int:
    return 11 if image_size == 32 else 41


def _images(*shape: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), shape, minval=-1.0, maxval=1.0)


def _labels(image_size: int, *shape: int) -> jax.Array:
    return jax.random.randint(jax.random.key(2), shape, 0, _outputs(image_size))


def _classifier(image_size: int, performance: PerformanceOptions) -> Model:
    return classifier_for(image_size, _outputs(image_size), 1, implementation=performance.convolution)


# The floor counts matrix products, for every implementation of convolutions.
_FLOOR = PerformanceOptions(convolution="matmul")


def _step_flops(image_size: int, batch_size: int) -> int:
    model = _classifier(image_size, _FLOOR)
    params = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 1), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)

    def gradients(params: PyTree, images: jax.Array, labels: jax.Array) -> PyTree:
        mask = jnp.ones(labels.shape, bool)
        return jax.grad(lambda weights: masked_cross_entropy(model, weights, images, labels, mask))(params)

    return matmul_flops(gradients, params, images, labels)


def local_step(image_size: int, batch_size: int, performance: PerformanceOptions) -> Case:
    """One step of local SGD in a loop, as in a round."""
    model = _classifier(image_size, performance)
    images, labels = _images(batch_size, image_size, image_size, 1), _labels(image_size, batch_size)
    mask = jnp.ones(batch_size, bool)

    def steps(params: PyTree, images: jax.Array) -> PyTree:
        def step(_: int, params: PyTree) -> PyTree:
            gradients = jax.grad(lambda weights: masked_cross_entropy(model, weights, images, labels, mask))(params)
            return jax.tree.map(lambda weight, gradient: weight - _LEARNING_RATE * gradient, params, gradients)

        return jax.lax.fori_loop(0, _STEPS, step, params)

    return Case(
        f"local step, {image_size} pixels, batch {batch_size}",
        "step",
        steps,
        (model.init(jax.random.key(0)), images),
        _STEPS * _step_flops(image_size, batch_size),
        _STEPS,
        lambda: torch_baselines.local_steps(image_size, _outputs(image_size), batch_size, _STEPS),
    )


def generator_step(image_size: int, performance: PerformanceOptions, batch_size: int = 64, width: int = 64) -> Case:
    """One step of the generator against the frozen classifier (Hitaj et al. 2017, Algorithm 1, line 17)."""
    steps, arguments = _generator_steps(image_size, performance, batch_size, width)
    floor, _ = _generator_steps(image_size, _FLOOR, batch_size, width)
    return Case(
        f"generator step, {image_size} pixels, batch {batch_size}",
        "step",
        steps,
        arguments,
        matmul_flops(floor, *arguments),
        _STEPS,
        lambda: torch_baselines.generator_steps(image_size, _outputs(image_size), batch_size, width, _STEPS),
    )


def _generator_steps(
    image_size: int, performance: PerformanceOptions, batch_size: int, width: int
) -> tuple[Callable[..., PyTree], tuple]:
    classifier = _classifier(image_size, performance)
    attack = gan_attack(
        classifier,
        dcgan_generator(image_size, 1, width=width, implementation=performance.convolution),
        (image_size, image_size, 1),
        generator_steps=_STEPS,
        generator_batch_size=batch_size,
        fakes_per_round=0,
    )
    hyperparameters = GanAttackHyperParameters(3, _outputs(image_size) - 1, _LEARNING_RATE)

    def steps(state: PyTree, view: InsiderView) -> PyTree:
        return attack.step(jax.random.key(3), state, view, hyperparameters)[0]

    return steps, (attack.init(jax.random.key(4)), InsiderView(classifier.init(jax.random.key(0))))


def local_round(
    image_size: int,
    participants: int,
    samples: int,
    batch_size: int,
    performance: PerformanceOptions,
    *,
    schedule: str = "synchronous",
    with_torch_baseline: bool = False,
) -> Case:
    """One round without an attack: federated averaging if it is synchronous, else one participant after another.

    The participants of a synchronous round are sharded over all devices.
    """
    model = _classifier(image_size, performance)
    transform = selective_upload("largest")
    synchronous = schedule == "synchronous"
    mesh = device_mesh() if synchronous and jax.device_count() > 1 else None
    round_fn = make_round(
        model,
        transform,
        schedule=schedule,
        aggregator=average() if synchronous else add(),
        batch_size=batch_size,
        participant_mapping=performance.participant_mapping,
        mesh=mesh,
    )
    data = FederationData(
        _images(participants, samples, image_size, image_size, 1),
        _labels(image_size, participants, samples),
        jnp.full(participants, samples, jnp.int32),
    )
    state = jax.jit(lambda key: init_federation(key, model, transform, participants))(jax.random.key(0))
    if mesh is not None:
        state, data = shard(state, data, mesh)
    last = samples % batch_size or batch_size
    flops = samples // batch_size * _step_flops(image_size, batch_size)
    flops += _step_flops(image_size, last) if last < batch_size else 0
    kind = "averaging round" if synchronous else f"{schedule.replace('_', ' ')} round"

    def torch_baseline() -> Callable[[], None]:
        return torch_baselines.local_round(
            image_size, _outputs(image_size), participants, samples, batch_size, average=synchronous
        )

    return Case(
        f"{kind}, {image_size} pixels, {participants} x {samples} images, batch {batch_size}",
        "round",
        lambda state, data: round_fn(jax.random.key(5), state, data, RoundHyperParameters(_LEARNING_RATE)),
        (state, data),
        participants * flops,
        torch_baseline=torch_baseline if with_torch_baseline else None,
    )


def sparse_vector_uploads_of(image_size: int, releases: float) -> Case:
    """The differentially private uploads of two participants, as a round maps them.

    releases: the released fraction.
    """
    model = _classifier(image_size, PerformanceOptions())
    params = model.init(jax.random.key(0))
    transform = sparse_vector_upload(0.002, 1.0)
    hyperparameters = RoundHyperParameters(
        _LEARNING_RATE, upload_fraction=releases, upload_threshold=1e-4, upload_bound=1e-3
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    values = 1e-3 * jax.random.normal(jax.random.key(6), (2, size))

    def upload(key: jax.Array, values: jax.Array) -> tuple[Upload, PyTree, TransformInfo]:
        everything = Upload(values, jnp.ones(size, bool))
        return transform.apply(key, everything, transform.init(params), params=params, hyperparameters=hyperparameters)

    keys = jax.random.split(jax.random.key(7), 2)
    name = f"sparse vector uploads of 2 participants, {size} coordinates, {releases:g} released"
    return Case(name, "upload", jax.vmap(upload), (keys, values), 0)


GROUPS = ("steps", "rounds", "upload", "inversions", "participants", "samples", "start", "sweep")
_COUNTS = (2, 8, 32, 128, 512, 1000)
_SAMPLES = (64, 256, 1024, 4096)


def cases_of(group: str, performance: PerformanceOptions) -> list[Case]:
    """The cases of a group: steps, rounds, upload, and rounds of more and more participants or samples."""
    if group == "steps":
        return [
            local_step(32, 64, performance),
            local_step(64, 1, performance),
            local_step(64, 16, performance),
            generator_step(32, performance),
            generator_step(64, performance, batch_size=16),
        ]
    if group == "rounds":
        return [
            local_round(32, 10, 500, 64, performance, with_torch_baseline=True),
            local_round(64, 41, 10, 1, performance, schedule="round_robin", with_torch_baseline=True),
            local_round(64, 1, 10, 1, performance, schedule="round_robin"),
        ]
    if group == "upload":
        return [
            sparse_vector_uploads_of(32, 1.0),
            sparse_vector_uploads_of(64, 1.0),
            local_round(32, 1, 1000, 64, performance),
        ]
    if group == "participants":
        return [local_round(32, count, 16, 16, performance) for count in _COUNTS]
    if group == "samples":
        return [local_round(32, 2, count, 64, performance) for count in _SAMPLES]
    return []
