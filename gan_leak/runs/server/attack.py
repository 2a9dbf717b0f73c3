"""The attack on a federation: representatives of every client, and mGAN-AI on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak import trees
from gan_leak.attacks.server.mgan_ai import AuxiliaryImages, MganAiHyperParameters, known_labels, mgan_ai
from gan_leak.attacks.server.mgan_ai_training import MganAiState, image_generator
from gan_leak.attacks.server.representative_labels import InferredLabels, class_probabilities, infer_labels
from gan_leak.attacks.server.representative_memory import latest
from gan_leak.attacks.server.representatives import (
    Matcher,
    lbfgs_representatives,
    matcher,
    signed_adam_representatives,
    unrolled,
)
from gan_leak.attacks.server.settings import MganAiConfig, ServerFederationConfig
from gan_leak.attacks.server.shuffled_senders import shuffled_senders
from gan_leak.models import conditional_generator, dcgan_generator, mgan_ai_generator
from gan_leak.models.hitaj_generators import LATENT_SIZE
from gan_leak.models.mgan_ai_networks import EMBEDDING_SIZE, ConditionalGenerator
from gan_leak.runs.server.federation import OwnedFederation, Variant, steps_of
from gan_leak.runs.server.rounds import Rounds, run_rounds
from gan_leak.runs.storage.resumable import SavedProgress
from gan_leak.types import Array, PyTree, ServerAttack

GENERATOR_WIDTH = 32
# Images of the generator in one batch, and of the discriminator.
BATCH = 64
# Auxiliary images, evenly spaced in the data set, that tell the probabilities of the model for each class.
MOST_SHOWN = 500


class Outcome(NamedTuple):
    """What the server found, as arrays that can be saved.

    Of V victims: representatives [V, R, H, W, C] and representative_labels [V, R] of the last attacked round, generated
    [V, M, H, W, C] and generated_labels [V, M], and distances [V] of the representatives. accuracy: [rounds], of the
    shared model on held-out images. losses: [rounds], mean over clients. params: [D], the shared parameters at the end.
    """

    representatives: np.ndarray
    representative_labels: np.ndarray
    generated: np.ndarray
    generated_labels: np.ndarray
    distances: np.ndarray
    accuracy: np.ndarray
    losses: np.ndarray
    params: np.ndarray


def conditional_generator_for(name: str, federation: OwnedFederation, identities: int) -> ConditionalGenerator:
    """The generator that goes with the shared model of this name."""
    side, _, channels = federation.image_shape
    classes = federation.num_classes
    if name == "mgan_ai":
        return mgan_ai_generator(categories=classes, identities=identities, image_size=side, channels=channels)
    size = LATENT_SIZE + 2 * EMBEDDING_SIZE
    dcgan = dcgan_generator(side, channels=channels, width=GENERATOR_WIDTH, latent_size=size)
    return conditional_generator(dcgan, categories=classes, identities=identities)


def build_attack(
    federation: OwnedFederation, variant: Variant, config: MganAiConfig, options: ServerFederationConfig
) -> tuple[ServerAttack, ConditionalGenerator]:
    """The ``ServerAttack`` of a configuration, and its generator."""
    identities = federation.clients if config.identity == "all" else 2
    generator = conditional_generator_for(options.classifier, federation, identities)
    attack = mgan_ai(
        federation.trunk,
        generator,
        matcher_of(federation, variant, config, options),
        labels_of(federation, config),
        clients=federation.clients,
        auxiliary=federation.auxiliary,
        identity=config.identity,
        active=variant.mode == "active",
        batch_size=BATCH,
        memory_rounds=config.memory_rounds,
        warm_start=True,
    )
    return shuffled_senders(attack, federation.clients) if variant.mode == "shuffled" else attack, generator


def matcher_of(
    federation: OwnedFederation, variant: Variant, config: MganAiConfig, options: ServerFederationConfig
) -> Matcher:
    """The search for representatives of a configuration."""
    steps = steps_of(variant, federation)
    simulate = None
    if config.matching_steps == "unrolled" and steps > 1:
        size = min(config.representatives, variant.batch_size or config.representatives)
        simulate = unrolled(federation.model, learning_rate=options.learning_rate, steps=steps, batch_size=size)
    shared: dict[str, Any] = {"starts": config.matching_starts, "simulate": simulate}
    if config.matching == "signed_adam":
        procedure = signed_adam_representatives(
            federation.model, federation.image_shape, iterations=config.matching_iterations, **shared
        )
    else:
        procedure = lbfgs_representatives(federation.model, federation.image_shape, **shared)
    return matcher(procedure, config.matching_iterations)


def labels_of(federation: OwnedFederation, config: MganAiConfig) -> Callable[[PyTree, Array], Array]:
    """The labels of the representatives, of known counts or of counts that the last layer shows."""
    if config.known_labels:
        return known_labels(_spread(federation, config.representatives))
    sizes = jnp.asarray(federation.data.sizes)
    return lambda params, updates: inferred_labels(federation, params, updates, sizes, config.representatives).labels


def inferred_labels(
    federation: OwnedFederation, params: PyTree, updates: Array, sizes: Array, representatives: int
) -> InferredLabels:
    """The labels that updates in units of a gradient show; with auxiliary images, by the probabilities of these."""
    auxiliary, classes = federation.auxiliary, federation.num_classes
    probabilities = None
    if auxiliary is not None:
        every = -(-len(auxiliary.labels) // MOST_SHOWN)
        shown = AuxiliaryImages(*(part[::every] for part in auxiliary))
        probabilities = jax.vmap(lambda own: class_probabilities(federation.model, own, *shown, classes))(params)
    return infer_labels(
        params,
        updates,
        sizes,
        num_classes=classes,
        representatives=representatives,
        probabilities=probabilities,
    )


def _spread(federation: OwnedFederation, count: int) -> np.ndarray:
    """Labels [K, count] in the proportions of each client's own."""
    sizes = federation.data.sizes
    ordered = [np.sort(labels[:size]) for labels, size in zip(federation.data.labels, sizes, strict=True)]
    return np.stack([own[(np.arange(count) * len(own)) // count] for own in ordered])


def attack_hyperparameters(
    federation: OwnedFederation, variant: Variant, config: MganAiConfig, options: ServerFederationConfig, victim: int
) -> MganAiHyperParameters:
    """The traced numbers of mGAN-AI in a variant, for one victim."""
    return MganAiHyperParameters(
        victim,
        options.learning_rate,
        client_steps=steps_of(variant, federation),
        first_round=config.first_round,
        discriminator_steps=config.discriminator_steps,
        generator_steps=config.generator_steps,
        learning_rate=config.attack_learning_rate,
        identity_weight=config.identity_weight,
    )


def run_attack(
    key: Array,
    federation: OwnedFederation,
    variant: Variant,
    victims: Sequence[int],
    config: MganAiConfig,
    options: ServerFederationConfig,
    progress: SavedProgress,
) -> Outcome:
    """Attack the victims: in one federation if all can be victims at once, otherwise in one federation for each."""
    attack, generator = build_attack(federation, variant, config, options)
    key_rounds, key_draws = jax.random.split(key)
    draw = jax.jit(image_generator(generator, BATCH))
    labels = jnp.tile(jnp.arange(federation.num_classes), config.drawn_per_class)
    together = config.identity == "all" and variant.mode != "active"
    found = []
    for victim in victims[:1] if together else victims:
        own = progress._replace(path=progress.path and progress.path.with_suffix(f".{victim}.npz"))
        numbers = attack_hyperparameters(federation, variant, config, options, victim)
        # The federation is the same for every victim.
        rounds = run_rounds(jax.random.clone(key_rounds), federation, variant, attack, numbers, options, own)
        state: MganAiState = rounds.federation.server_attack
        drawn = [
            draw(
                jax.random.fold_in(key_draws, number),
                state,
                jnp.full(labels.shape, number if config.identity == "all" else 1),
                labels,
            )
            for number in (victims if together else [victim])
        ]
        own = trees.take(latest(state.memory), np.asarray(victims if together else [victim]))
        found.append((rounds, own, np.stack(drawn)))
    return _joined(found, np.asarray(labels))


def _joined(found: list[tuple[Rounds, PyTree, np.ndarray]], labels: np.ndarray) -> Outcome:
    """One outcome of the runs, each with what it found of its victims."""
    rounds = found[0][0]
    memory = jax.tree.map(lambda *parts: np.concatenate(parts), *(own for _, own, _ in found))
    drawn = np.concatenate([images for _, _, images in found])
    return Outcome(
        memory.images,
        memory.labels,
        drawn,
        np.broadcast_to(labels, (len(drawn), len(labels))),
        memory.distances,
        np.asarray(rounds.accuracy),
        np.asarray(rounds.losses),
        np.asarray(trees.ravel(rounds.federation.server.params)[0]),
    )
