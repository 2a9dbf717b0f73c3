"""One participant's turn, written without a participant axis: download, local training, update, upload."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.types import (
    Array,
    Contribution,
    LocalData,
    LocalTraining,
    Model,
    ParticipantState,
    PyTree,
    RoundHyperParameters,
    Upload,
    UploadTransform,
)


class TurnInfo(NamedTuple):
    """The log of a turn: mean loss over its samples, their number, coordinates sent, L2 norm of the update."""

    loss: Array
    samples: Array
    uploaded: Array
    update_norm: Array


def init_participant(params: PyTree, transform: UploadTransform) -> ParticipantState:
    """The state of a participant that starts from the shared initial parameters."""
    return ParticipantState(params, jnp.zeros((), jnp.int32), transform.init(params))


def join(data: LocalData, contribution: Contribution) -> LocalData:
    """Local data [N] with an adversary's contribution [F] appended -> [N + F]."""
    return LocalData(*(jnp.concatenate(pair) for pair in zip(data, contribution, strict=True)))


def masked_cross_entropy(model: Model, params: PyTree, inputs: Array, labels: Array, mask: Array) -> Array:
    """Mean negative log-likelihood over the samples that the mask marks; 0 where it marks none."""
    log_probabilities = jax.nn.log_softmax(model.apply(params, inputs))
    losses = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    return jnp.sum(jnp.where(mask, losses, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def zero_padding(inputs: Array, mask: Array) -> Array:
    """Inputs [B, ...] with zeros wherever the mask [B] is False.

    A masked loss is not enough: zero times a padding value may be NaN in the gradient.
    """
    return jnp.where(mask.reshape(-1, *[1] * (inputs.ndim - 1)), inputs, 0.0)


def _shuffle(key: Array, mask: Array, length: int) -> Array:
    """A random order of the real samples, then padding up to ``length`` -> int32 [length]."""
    order = jnp.argsort(jnp.where(mask, jax.random.uniform(key, mask.shape), jnp.inf))
    return jnp.pad(order, (0, length - mask.size))


def torch_learning_rate(hyperparameters: RoundHyperParameters, optimizer_steps: Array) -> Array:
    """Torch's rate of SGD step t, counted over the whole run: ``learning_rate / (1 + t * learning_rate_decay)``."""
    return hyperparameters.learning_rate / (1.0 + optimizer_steps * hyperparameters.learning_rate_decay)


def local_sgd(
    key: Array,
    model: Model,
    params: PyTree,
    optimizer_steps: Array,
    data: LocalData,
    hyperparameters: RoundHyperParameters,
    *,
    epochs: int,
    batch_size: int,
) -> tuple[PyTree, Array, Array]:
    """Minibatch SGD over shuffled local data -> (params, optimizer_steps, mean loss over the samples seen).

    data: inputs [N, ...], labels [N], mask [N]. ``hyperparameters`` has learning_rate and learning_rate_decay.
    The last batch of an epoch may be partial; its mean is over its real samples. The number of steps depends on the
    real samples only; without samples there are none.
    """
    samples = jnp.sum(data.mask)
    steps_per_epoch = -(-samples // batch_size)
    padded_length = -(-data.mask.size // batch_size) * batch_size

    def step(index: Array, carry: tuple) -> tuple:
        order, params, optimizer_steps, total_loss = carry
        batch = jax.lax.dynamic_slice(order, (index * batch_size,), (batch_size,))
        mask = index * batch_size + jnp.arange(batch_size) < samples
        # Real samples in the places of the padding, which the loss leaves out: BatchNorm reads all places.
        batch = batch[jnp.arange(batch_size) % jnp.minimum(samples - index * batch_size, batch_size)]
        inputs = data.inputs[batch]
        loss, gradients = jax.value_and_grad(
            lambda weights: masked_cross_entropy(model, weights, inputs, data.labels[batch], mask)
        )(params)
        rate = torch_learning_rate(hyperparameters, optimizer_steps)
        params = jax.tree.map(lambda weight, gradient: weight - rate * gradient, params, gradients)
        return order, params, optimizer_steps + 1, total_loss + loss * jnp.sum(mask)

    def epoch(index: Array, carry: tuple) -> tuple:
        order = _shuffle(jax.random.fold_in(key, index), data.mask, padded_length)
        return jax.lax.fori_loop(0, steps_per_epoch, step, (order, *carry))[1:]

    params, optimizer_steps, total_loss = jax.lax.fori_loop(0, epochs, epoch, (params, optimizer_steps, jnp.zeros(())))
    return params, optimizer_steps, total_loss / jnp.maximum(samples * epochs, 1)


def train_and_upload(
    key: Array,
    model: Model,
    transform: UploadTransform,
    state: ParticipantState,
    downloaded: PyTree,
    data: LocalData,
    hyperparameters: PyTree,
    *,
    epochs: int,
    batch_size: int,
    local_training: LocalTraining = local_sgd,
) -> tuple[ParticipantState, Upload, TurnInfo]:
    """The part of a turn after download: local training from ``downloaded``, then the transformed difference.

    The participant keeps all trained parameters and sends only the upload (Shokri and Shmatikov 2015).
    """
    key_training, key_upload = jax.random.split(key)
    params, optimizer_steps, loss = local_training(
        key_training,
        model,
        downloaded,
        state.optimizer_steps,
        data,
        hyperparameters,
        epochs=epochs,
        batch_size=batch_size,
    )
    update, _ = trees.ravel(trees.subtract(params, downloaded))
    # A participant without samples sends nothing, so its coordinates must not be counted as updated.
    everything = Upload(update, jnp.full(update.shape, jnp.any(data.mask)))
    upload, upload_state, transform_info = transform.apply(
        key_upload, everything, state.upload_state, params=downloaded, hyperparameters=hyperparameters
    )
    info = TurnInfo(loss, jnp.sum(data.mask), transform_info.uploaded, jnp.linalg.norm(update))
    return ParticipantState(params, optimizer_steps, upload_state), upload, info
