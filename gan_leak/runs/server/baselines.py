"""Baselines of user-level leakage: what a server finds without representatives and without an identity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.server.class_gan import ClassGanHyperParameters, class_gan, images_by_class
from gan_leak.attacks.server.local_models import LocalInversionTarget, invert_local_models
from gan_leak.attacks.server.settings import MganAiConfig, ServerFederationConfig
from gan_leak.attacks.server.source_inference import source_inference
from gan_leak.evaluation.fidelity import class_means
from gan_leak.models.mgan_ai_networks import ConditionalGenerator
from gan_leak.runs.server.attack import BATCH, conditional_generator_for
from gan_leak.runs.server.federation import OwnedFederation, Variant
from gan_leak.runs.server.rounds import Recorded, local_models_of, run_rounds
from gan_leak.runs.storage.resumable import Keys, SavedProgress, run_in_parts
from gan_leak.types import Array, Model, PyTree

INVERSION_STEPS = 200
# Those of the main job: the rate of the class-level generators, and their updates in every round.
_CLASS_GAN_RATE = 0.02
_CLASS_GAN_STEPS = 5


def mean_images(federation: OwnedFederation) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the images that each client sent of each class: [K, classes, H, W, C] and labels [K, classes].

    No attack finds them; they are what a perfect view of a client's classes would show.
    """
    classes = np.arange(federation.num_classes)
    data = federation.data
    means = [
        class_means(classes, np.asarray(images[:size]), np.asarray(labels[:size]))
        for images, labels, size in zip(data.inputs, data.labels, data.sizes, strict=True)
    ]
    return np.stack(means), np.broadcast_to(classes, (federation.clients, len(classes)))


def auxiliary_images(federation: OwnedFederation, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of people outside, at most ``per_class`` of each class: [K, M, H, W, C] and labels [K, M].

    They are the same for every client, so they have the numbers of chance. Raises ValueError without such people.
    """
    if federation.auxiliary is None:
        raise ValueError("auxiliary: expected images of people outside of the federation")
    images, labels = (np.asarray(part) for part in federation.auxiliary)
    chosen = np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)])
    clients = federation.clients
    return (
        np.broadcast_to(images[chosen], (clients, *images[chosen].shape)),
        np.broadcast_to(labels[chosen], (clients, len(chosen))),
    )


def class_level_images(
    key: Array,
    federation: OwnedFederation,
    variant: Variant,
    config: MganAiConfig,
    options: ServerFederationConfig,
    progress: SavedProgress,
) -> tuple[np.ndarray, np.ndarray]:
    """Images of a generator for each class, trained on the shared model alone: the same for every client."""
    attack = class_gan(
        federation.model,
        _unconditional(conditional_generator_for(options.classifier, federation, identities=2)),
        federation.image_shape,
        federation.num_classes,
        generator_steps=_CLASS_GAN_STEPS,
        generator_batch_size=BATCH // 2,
    )
    key_rounds, key_draws = jax.random.split(key)
    numbers = ClassGanHyperParameters(_CLASS_GAN_RATE)
    rounds = run_rounds(key_rounds, federation, variant, attack, numbers, options, progress)
    drawn = images_by_class(
        key_draws, attack, rounds.federation.server_attack, federation.num_classes, config.drawn_per_class
    )
    labels = np.repeat(np.arange(federation.num_classes), config.drawn_per_class)
    images = np.asarray(drawn).reshape(-1, *federation.image_shape)
    clients = federation.clients
    return np.broadcast_to(images, (clients, *images.shape)), np.broadcast_to(labels, (clients, len(labels)))


def _unconditional(generator: ConditionalGenerator) -> Model:
    """The generator of the attack with the same conditions for all images."""

    def apply(params: PyTree, latents: Array) -> Array:
        first = jnp.zeros(len(latents), jnp.int32)
        return generator.apply(params, latents, first, first)

    return Model(generator.init, apply)


def inverted_images(
    key: Array, federation: OwnedFederation, recorded: Recorded, progress: SavedProgress
) -> tuple[np.ndarray, np.ndarray]:
    """Model inversion (Fredrikson et al. 2015) of every client's local model of a round, for each class."""
    target = LocalInversionTarget(local_models_of(recorded).params, jnp.zeros(federation.image_shape))
    procedure = invert_local_models(federation.model, federation.num_classes)
    found = run_in_parts(
        Keys(*jax.random.split(key)),
        procedure,
        target,
        steps=INVERSION_STEPS,
        unit="step",
        progress=progress,
    )
    labels = np.broadcast_to(np.arange(federation.num_classes), (federation.clients, federation.num_classes))
    return np.asarray(found.image), labels


def source_losses(federation: OwnedFederation, recorded: Recorded) -> tuple[np.ndarray, np.ndarray]:
    """Source inference (Hu et al. 2021): losses [N, K] of all sent records under each local model, and sources [N]."""
    models = local_models_of(recorded)
    data = federation.data
    real = np.arange(data.labels.shape[1]) < data.sizes[:, None]
    clients = np.broadcast_to(np.arange(federation.clients)[:, None], real.shape)[real]
    inputs, labels = jnp.asarray(data.inputs[real]), jnp.asarray(data.labels[real])
    found = jax.jit(lambda models: source_inference(federation.model, models, inputs, labels))(models)
    return np.asarray(found.losses), clients
