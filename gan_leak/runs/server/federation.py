"""A federation under a malicious server: its data, its rounds with the attack, and what the attack found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak import trees
from gan_leak.attacks.procedure import Procedure
from gan_leak.attacks.server.broadcasts import send_shared
from gan_leak.attacks.server.local_models import LocalModels, change_params
from gan_leak.attacks.server.mgan_ai import AuxiliaryImages, MganAiHyperParameters, known_labels, mgan_ai
from gan_leak.attacks.server.mgan_ai_training import MganAiState, image_generator
from gan_leak.attacks.server.observed_updates import seen_updates
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
from gan_leak.collaboration import average, init_federation, make_round, selective_upload
from gan_leak.data import OwnerSplit, gather, to_float
from gan_leak.data.dataset import Dataset
from gan_leak.defenses.composition import aggregator_of, upload_of
from gan_leak.defenses.contract import Defense
from gan_leak.models import (
    classifier_for,
    conditional_generator,
    dcgan_generator,
    mgan_ai_classifier,
    mgan_ai_generator,
)
from gan_leak.models.hitaj_generators import LATENT_SIZE
from gan_leak.models.layered import whole
from gan_leak.models.mgan_ai_networks import EMBEDDING_SIZE, ConditionalGenerator
from gan_leak.models.trunks import Trunk, trunk_of_flax, trunk_of_layered
from gan_leak.runs.storage.resumable import Keys, SavedProgress, run_in_parts
from gan_leak.types import (
    Array,
    FederationData,
    FederationState,
    Model,
    PyTree,
    RoundHyperParameters,
    ServerAttack,
    ServerView,
)

GENERATOR_WIDTH = 32
# Images of the generator in one batch, and of the discriminator.
BATCH = 64
# Auxiliary images, evenly spaced in the data set, that tell the probabilities of the model for each class.
MOST_SHOWN = 500
# The upload of all coordinates; defenses change it before.
_EVERYTHING = "largest"


class OwnedFederation(NamedTuple):
    """The federation: data of the clients, held-out images, auxiliary images and the shared model.

    data: NumPy arrays. held_out: images float32 [K, G, H, W, C] in [-1, 1] and labels int32 [K, G]. auxiliary: None
    without people outside. auxiliary_owners: int64 [A], the owner of each. model, trunk: the shared model.
    """

    split: OwnerSplit
    data: FederationData
    held_out: np.ndarray
    held_out_labels: np.ndarray
    auxiliary: AuxiliaryImages | None
    auxiliary_owners: np.ndarray
    model: Model
    trunk: Trunk
    num_classes: int

    @property
    def clients(self) -> int:
        return len(self.data.sizes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.data.inputs.shape[2:]
        return height, width, channels


class Variant(NamedTuple):
    """One federation to attack: its local training, its defenses with their numbers, and the mode of the server."""

    local_epochs: int
    batch_size: int
    defenses: tuple[Defense, ...]
    strengths: dict[str, float]
    active: bool


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


def build_federation(dataset: Dataset, split: OwnerSplit, classifier: str) -> OwnedFederation:
    """Collect the images of all sides, and build the shared model."""
    images, labels = dataset.train_images, dataset.train_labels
    held_out = np.stack([to_float(images[indices]) for indices in split.held_out])
    held_out_labels = np.stack([labels[indices] for indices in split.held_out])
    auxiliary = None
    if len(split.auxiliary):
        outside = split.auxiliary
        auxiliary = AuxiliaryImages(jnp.asarray(to_float(images[outside])), jnp.asarray(labels[outside]))
    shape = held_out.shape[2:]
    model, trunk = shared_model(classifier, shape, len(dataset.class_names))
    data = gather(images, labels, split.sent)
    assert dataset.train_owners is not None
    owners = dataset.train_owners[split.auxiliary]
    return OwnedFederation(
        split, data, held_out, held_out_labels, auxiliary, owners, model, trunk, len(dataset.class_names)
    )


def shared_model(name: str, shape: tuple[int, int, int], classes: int) -> tuple[Model, Trunk]:
    """The classifier of this name for images [H, W, C], and its trunk."""
    side, _, channels = shape
    if name == "mgan_ai":
        network = mgan_ai_classifier(classes, image_size=side, channels=channels)
        return whole(network), trunk_of_layered(network)
    model = classifier_for(side, classes, channels=channels)
    return model, trunk_of_flax(model, shape)


def conditional_generator_for(name: str, federation: OwnedFederation, identities: int) -> ConditionalGenerator:
    """The generator that goes with the shared model of this name."""
    side, _, channels = federation.image_shape
    classes = federation.num_classes
    if name == "mgan_ai":
        return mgan_ai_generator(categories=classes, identities=identities, image_size=side, channels=channels)
    size = LATENT_SIZE + 2 * EMBEDDING_SIZE
    dcgan = dcgan_generator(side, channels=channels, width=GENERATOR_WIDTH, latent_size=size)
    return conditional_generator(dcgan, categories=classes, identities=identities)


def steps_of(variant: Variant, federation: OwnedFederation) -> int:
    """The number of local steps of a client in one round."""
    most = int(np.max(federation.data.sizes))
    return variant.local_epochs * -(-most // (variant.batch_size or most))


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
        active=variant.active,
        batch_size=BATCH,
        memory_rounds=config.memory_rounds,
        warm_start=True,
    )
    return attack, generator


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


class Rounds(NamedTuple):
    """The state of a federation in progress: the federation, and the log of all its rounds, filled so far."""

    federation: FederationState
    accuracy: Array
    losses: Array


class RoundsInput(NamedTuple):
    """The input of ``rounds_procedure``: data, held-out images [N, ...] with labels [N], and the traced numbers."""

    data: FederationData
    held_out: Array
    held_out_labels: Array
    hyperparameters: RoundHyperParameters


def rounds_procedure(federation: OwnedFederation, variant: Variant, attack: ServerAttack, rounds: int) -> Procedure:
    """The rounds of a federation as a ``Procedure``; a step is a round, and the result is ``Rounds``."""
    aggregator = aggregator_of(variant.defenses, average())
    transform = upload_of(variant.defenses, selective_upload(_EVERYTHING))
    most = int(np.max(federation.data.sizes))
    round_fn = make_round(
        federation.model,
        transform,
        schedule="synchronous",
        aggregator=aggregator,
        local_epochs=variant.local_epochs,
        batch_size=variant.batch_size or most,
        server_attack=attack,
    )

    def init(key: Array, given: RoundsInput) -> Rounds:
        state = init_federation(
            key, federation.model, transform, federation.clients, aggregator=aggregator, server_attack=attack
        )
        return Rounds(state, jnp.zeros(rounds), jnp.zeros(rounds))

    def step(key: Array, progress: Rounds, given: RoundsInput) -> tuple[Rounds, PyTree]:
        number = progress.federation.round
        state, info = round_fn(key, progress.federation, given.data, given.hyperparameters)
        logits = federation.model.apply(state.server.params, given.held_out)
        accuracy = jnp.mean(jnp.argmax(logits, axis=1) == given.held_out_labels)
        loss = jnp.mean(info.turns.loss)
        return Rounds(
            state, progress.accuracy.at[number].set(accuracy), progress.losses.at[number].set(loss)
        ), info.server_attack

    return Procedure(init, step, lambda progress, given: progress)


def run_rounds(
    key: Array,
    federation: OwnedFederation,
    variant: Variant,
    attack: ServerAttack,
    attack_hyperparameters: PyTree,
    options: ServerFederationConfig,
    progress: SavedProgress,
) -> Rounds:
    """Run all rounds in parts; ``key`` also determines the initial parameters, so attacks meet the same federation."""
    held_out = federation.held_out.reshape(-1, *federation.image_shape)
    given = RoundsInput(
        FederationData(*(jnp.asarray(array) for array in federation.data[:3])),
        jnp.asarray(held_out),
        jnp.asarray(federation.held_out_labels.reshape(-1)),
        RoundHyperParameters(options.learning_rate, defense=variant.strengths, server_attack=attack_hyperparameters),
    )
    procedure = rounds_procedure(federation, variant, attack, options.rounds)
    keys = Keys(*jax.random.split(key))
    return run_in_parts(keys, procedure, given, steps=options.rounds, unit="round", progress=progress)


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
    together = config.identity == "all" and not variant.active
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


class Recorded(NamedTuple):
    """A round that a passive server recorded: what it sent [K, ...], changes [K, D], and who took part [K]."""

    sent: PyTree
    changes: Array
    present: Array


class RoundPair(NamedTuple):
    """The messages of all K clients in the first attacked round and in the last one."""

    first: Recorded
    last: Recorded


def recording(clients: int, first_round: int = 0) -> ServerAttack:
    """A passive server that keeps the messages of two rounds and draws nothing; its state is ``RoundPair``."""

    def init(key: Array, params: PyTree) -> RoundPair:
        sent = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (clients, *leaf.shape)), params)
        size = trees.ravel(params)[0].size
        empty = Recorded(sent, jnp.zeros((clients, size)), jnp.zeros(clients, bool))
        return RoundPair(empty, empty)

    def step(key: Array, state: RoundPair, view: ServerView, hyperparameters: PyTree) -> tuple[RoundPair, tuple[()]]:
        now = Recorded(view.sent, *seen_updates(view))
        is_first = view.round == first_round
        return RoundPair(jax.tree.map(lambda old, new: jnp.where(is_first, new, old), state.first, now), now), ()

    def reconstruct(key: Array, state: RoundPair, count: int) -> Array:
        raise ValueError("recording: expected no reconstruction of a server that only records")

    return ServerAttack(init, send_shared, step, reconstruct)


def record_rounds(
    key: Array,
    federation: OwnedFederation,
    variant: Variant,
    first_round: int,
    options: ServerFederationConfig,
    progress: SavedProgress,
) -> RoundPair:
    """The messages of the federation that ``run_attack`` with this key attacks."""
    key_rounds, _ = jax.random.split(key)
    attack = recording(federation.clients, first_round)
    return run_rounds(key_rounds, federation, variant, attack, (), options, progress).federation.server_attack


def local_models_of(recorded: Recorded) -> LocalModels:
    """The local models of the recorded round."""
    return LocalModels(change_params(recorded.sent, recorded.changes), recorded.present)
