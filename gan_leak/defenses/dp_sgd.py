"""Local training by differentially private SGD (Abadi et al. 2016, "Deep Learning with Differential Privacy").

The claim, for one participant: every step draws a lot from its records by Poisson sampling, clips the gradient of each
record to L2 norm C, sums, and adds N(0, (z C)^2) to each coordinate of the sum. Adding or removing one record changes
the sum by at most C in L2 norm. So for every network a step is the Gaussian mechanism with noise multiplier z on a
Poisson-sampled lot. All later steps (division by the expected lot size, learning rate, selection and sum of uploads)
are post-processing. ``gan_leak.defenses.accounting`` turns z, the sampling
probability and the number of steps of a whole run into (epsilon, delta).

What is not covered:

- The unit is one record of one participant, not the participant and not a class. With many pictures of one person,
  each picture is protected, but not the person.
- The number of a participant's records is public: it determines the sampling probability, the number of steps and the
  divisor.
- The loss and the norm of the update in ``TurnInfo`` are diagnostics without noise. The participant must not send them.
- Arithmetic is in float32: sensitivities hold up to rounding, and floating-point noise is not the Gaussian of the proof
  (Mironov 2012, "On significance of the least significant bits for differential privacy"). It is for research.
- A gradient that is NaN, or has no finite norm, turns the whole update into NaN, so that divergence is visible. The
  promise does not cover the fact that this happened.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gan_leak.collaboration.participant import masked_cross_entropy, torch_learning_rate, zero_padding
from gan_leak.defenses.contract import LOCAL_TRAINING, Claim, Defense, HyperParameter
from gan_leak.defenses.promises import dp_sgd_details, dp_sgd_note, dp_sgd_promise, least_noise_multiplier
from gan_leak.machine import has_core_for_each_device
from gan_leak.settings import above, at_least
from gan_leak.types import Array, LocalData, LocalTraining, Model, PyTree, RoundHyperParameters


def check_dp_sgd(*, clipping_norm: float, noise_multiplier: float) -> None:
    """Check the hyperparameters of DP-SGD on the host, before they are traced.

    Raises ValueError for a clipping norm that is not above 0, a noise multiplier that is not a finite number of at
    least 0, and for noise without clipping.
    """
    if not clipping_norm > 0.0:
        raise ValueError(f"clipping_norm={clipping_norm}: expected a number above 0, or inf")
    if not 0.0 <= noise_multiplier < math.inf:
        raise ValueError(f"noise_multiplier={noise_multiplier}: expected a finite number of at least 0")
    if math.isinf(clipping_norm) and noise_multiplier > 0.0:
        raise ValueError(f"clipping_norm={clipping_norm}: expected a finite number with noise_multiplier above 0")


def clipping_scale(gradient: PyTree, clipping_norm: Array | float) -> Array:
    """The factor in [0, 1] that clips a gradient to L2 norm ``clipping_norm`` over all its leaves together.

    For every finite gradient the scaled gradient has a norm of at most ``clipping_norm``, up to rounding. A shorter
    gradient and the zero gradient are unchanged, and an infinite ``clipping_norm`` clips nothing. If the norm is NaN or
    infinite, also by overflow, the factor is NaN: C / inf = 0 would hide a diverged example.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    return jnp.where(jnp.isfinite(norm), jnp.minimum(1.0, clipping_norm / norm), jnp.nan)


def poisson_sample(key: Array, mask: Array, probability: Array | float) -> Array:
    """Draw each sample of the mask with the same probability, independently of all others -> bool [N]."""
    return mask & (jax.random.uniform(key, mask.shape) < probability)


def clipped_gradient_sum(
    model: Model,
    params: PyTree,
    data: LocalData,
    chosen: Array,
    clipping_norm: Array | float,
    *,
    microbatch_size: int | None = None,
) -> tuple[PyTree, Array]:
    """The sum of the clipped gradients of the chosen samples (bool [N]) -> (sum, sum of their losses).

    Sensitivity: choosing one sample more or less changes the sum by at most ``clipping_norm`` in L2 norm. The sum of
    losses has no bound.

    Memory holds ``microbatch_size`` per-example gradients. The number of microbatches depends on the chosen samples, so
    a lot of any size is complete. A buffer of limited size would have to replace one sample by another, which changes
    the sum by up to twice the norm. None is the fastest size measured: one if each device has its own core, else 8.
    """
    microbatch_size = microbatch_size or (1 if has_core_for_each_device() else 8)
    count = jnp.sum(chosen)
    order = jnp.pad(jnp.nonzero(chosen, size=chosen.size, fill_value=0)[0], (0, -chosen.size % microbatch_size))

    def example(single: Array, label: Array, real: Array) -> tuple[Array, PyTree, Array]:
        loss, gradient = jax.value_and_grad(
            lambda weights: masked_cross_entropy(model, weights, single[None], label[None], real[None])
        )(params)
        return loss, gradient, clipping_scale(gradient, clipping_norm)

    def microbatch(index: Array, carry: tuple) -> tuple:
        samples = jax.lax.dynamic_slice(order, (index * microbatch_size,), (microbatch_size,))
        real = index * microbatch_size + jnp.arange(microbatch_size) < count
        inputs = zero_padding(data.inputs[samples], real)
        losses, gradients, scales = jax.vmap(example)(inputs, data.labels[samples], real)
        # One product with the scales: scaling and then summing takes five times as long on a CPU.
        total = jax.tree.map(lambda left, right: left + jnp.tensordot(scales, right, axes=1), carry[0], gradients)
        return total, carry[1] + jnp.sum(losses)

    zeros = (jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))
    return jax.lax.fori_loop(0, -(-count // microbatch_size), microbatch, zeros)


def add_gaussian_noise(key: Array, tree: PyTree, standard_deviation: Array | float) -> PyTree:
    """Add independent N(0, standard_deviation^2) to every coordinate of every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + standard_deviation * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        for leaf, leaf_key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def dp_sgd(
    key: Array,
    model: Model,
    params: PyTree,
    optimizer_steps: Array,
    data: LocalData,
    hyperparameters: RoundHyperParameters,
    *,
    epochs: int,
    batch_size: int,
    clipping_norm: Array | float,
    noise_multiplier: Array | float,
    microbatch_size: int | None = None,
) -> tuple[PyTree, Array, Array]:
    """Differentially private SGD over local data -> (params, optimizer_steps, mean loss over the samples drawn).

    ``dp_sgd_training`` binds ``clipping_norm`` and ``noise_multiplier``; the result is a ``LocalTraining`` in place of
    ``collaboration.participant.local_sgd``, with the same learning rates. With n real samples there are
    ``epochs * ceil(n / batch_size)`` steps. Each step draws its own lot, every sample with probability
    ``q = min(1, batch_size / n)``, and moves against

        (sum of gradients clipped to clipping_norm + N(0, (noise_multiplier * clipping_norm)^2 I)) / (q n).

    The noise is calibrated to the sum and added to the sum. The divisor is the expected lot size q n, which is
    ``batch_size`` if there are that many samples. It is never the actual size of a lot, which depends on the data. With
    an empty lot the step is noise alone. Each step is the Poisson-subsampled Gaussian mechanism with q and
    ``noise_multiplier``, per record, under adding or removing one record (see above for what is not covered).

    ``microbatch_size`` affects speed and memory; it changes no result beyond float tolerance.
    """
    samples = jnp.sum(data.mask)
    lot_size = jnp.minimum(batch_size, jnp.maximum(samples, 1)).astype(jnp.float32)
    probability = jnp.minimum(1.0, batch_size / jnp.maximum(samples, 1))
    # Without noise the norm may be infinite, and zero times infinity is NaN.
    deviation = jnp.where(noise_multiplier > 0, noise_multiplier * clipping_norm, 0.0)

    def step(index: Array, carry: tuple) -> tuple:
        params, optimizer_steps, total_loss, drawn = carry
        key_lot, key_noise = jax.random.split(jax.random.fold_in(key, index))
        lot = poisson_sample(key_lot, data.mask, probability)
        total, loss = clipped_gradient_sum(model, params, data, lot, clipping_norm, microbatch_size=microbatch_size)
        noisy = add_gaussian_noise(key_noise, total, deviation)
        rate = torch_learning_rate(hyperparameters, optimizer_steps) / lot_size
        params = jax.tree.map(lambda weight, gradient: weight - rate * gradient, params, noisy)
        return params, optimizer_steps + 1, total_loss + loss, drawn + jnp.sum(lot)

    carry = (params, optimizer_steps, jnp.zeros(()), jnp.zeros((), jnp.int32))
    params, optimizer_steps, total_loss, drawn = jax.lax.fori_loop(0, epochs * -(-samples // batch_size), step, carry)
    return params, optimizer_steps, total_loss / jnp.maximum(drawn, 1)


def dp_sgd_training(clipping_norm: Array | float, noise_multiplier: Array | float) -> LocalTraining:
    """``dp_sgd`` with its two hyperparameters bound; they may be traced."""
    return functools.partial(dp_sgd, clipping_norm=clipping_norm, noise_multiplier=noise_multiplier)


def _check_hyperparameters(settings: Mapping[str, float]) -> None:
    check_dp_sgd(clipping_norm=settings["clipping_norm"], noise_multiplier=settings["noise_multiplier"])


DEFENSE = Defense(
    name="dp_sgd",
    stages=(LOCAL_TRAINING,),
    build=dp_sgd_training,
    hyperparameters=(
        HyperParameter(
            "clipping_norm",
            1.0,
            "DP-SGD: L2 norm that the gradient of one record is clipped to (Abadi et al.).",
            above(0),
            neutral=math.inf,
            later=False,
        ),
        HyperParameter(
            "noise_multiplier",
            1.0,
            "DP-SGD: standard deviation of the noise on the sum of gradients, in units of clipping_norm (Abadi et "
            "al.).",
            at_least(0),
            later=False,
        ),
    ),
    claim=Claim(
        mechanism="DP-SGD",
        sensitivity="one record changes a sum of clipped gradients by at most clipping_norm in L2 norm",
        unit="record",
        noise_added_by="each participant, in every step of its local training",
        against="everybody who sees the uploads",
        covers="the uploads of every participant but an adversary that attacks; not the losses and norms in the "
        "metrics",
        total="composition of the subsampled Gaussian mechanism over all steps of all rounds",
        promise=dp_sgd_promise,
        solved_for="noise_multiplier",
        solve=least_noise_multiplier,
        details=dp_sgd_details,
        note=dp_sgd_note,
    ),
    check=_check_hyperparameters,
)
