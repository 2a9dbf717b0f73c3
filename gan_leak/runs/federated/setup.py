"""The setup of a run from its configuration: partitioned data, models, the round, images to measure leakage with.

All errors of the input are found here, before any training.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.collaboration import (
    AGGREGATORS,
    RoundHyperParameters,
    init_federation,
    make_round,
    selective_upload,
)
from gan_leak.collaboration.participant import local_sgd
from gan_leak.collaboration.round_parts import RoundFunction
from gan_leak.collaboration.sharding import own_positions
from gan_leak.config import RunConfig, validate
from gan_leak.data import (
    Dataset,
    Spectrogram,
    find_class,
    gather,
    load,
    load_class_names,
    make_lookup,
    parse_participant_classes,
    partition,
    split_off_judge_pool,
    to_float,
)
from gan_leak.defenses import aggregator_of, local_training_of, parse_composition, upload_of
from gan_leak.defenses.settings import defense_hyperparameters
from gan_leak.evaluation.leakage import LEAST_IMAGES, NEIGHBOURS
from gan_leak.models import classifier_for, dcgan_generator
from gan_leak.settings import hyperparameters_for, program_of
from gan_leak.types import Aggregator, Array, FederationData, FederationState, Model, RoundAttack, UploadTransform

# Enough for stable medians and neighbors, and few enough for a measurement in seconds.
_GALLERY_IMAGES = 4000
_PRIOR_IMAGES_PER_CLASS = 300
_UNOWNED_PRIVATE_IMAGES = 1000
# Half of the fresh images define a score of 1, the other half check it.
_FRESH_IMAGES = 2 * (NEIGHBOURS + 1)
# Test images may be few. Images of the federation that no participant owns are as good, and make the scale exact.
_ENOUGH_FRESH_IMAGES = 200
_LEAST_FURTHER_IMAGES, _MOST_FURTHER_IMAGES = 30, 500
_LEAST_FRESH_IMAGES = LEAST_IMAGES + 2
# With fewer test images, the judge's accuracy is too uncertain. Then all other images that it did not see are added.
_FEW_TEST_IMAGES = 1000


class Images(NamedTuple):
    """Images [M, H, W, C], float32 in [-1, 1] unless said otherwise, and labels int32 [M]."""

    images: np.ndarray
    labels: np.ndarray


class AttackData(NamedTuple):
    """The images of a run by their use. Participants see only ``federation``.

    private: the victims' images of the target class; if no participant owns it, images that could have been theirs.
    fresh: test images of the target class. If they are few, images without an owner follow, then some that the judge
    was trained on. unowned: further images of the class without an owner, by that name, if there are enough.
    judge_pool: real images uint8 of all classes that no participant owns. gallery: some of them. own_classes: the
    adversary's images of each of its classes. common_knowledge: the assumed knowledge of an adversary without images,
    the gallery's other classes and their average. test: test images of the classes that participants own. judge_test:
    images that the judge was not trained on. held_classes: the classes of each participant's images. notes: remarks on
    how the data set was read, a line each. spectrogram: how the images were made from sound, None if they were not.
    """

    federation: FederationData
    private: np.ndarray
    fresh: np.ndarray
    unowned: dict[str, np.ndarray]
    judge_pool: Images
    gallery: Images
    own_classes: dict[str, np.ndarray]
    common_knowledge: dict[str, np.ndarray]
    test: Images
    judge_test: Images
    class_names: tuple[str, ...]
    fingerprint: str
    target_is_owned: bool
    held_classes: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    spectrogram: Spectrogram | None = None


class Functions(NamedTuple):
    """The pure functions of a run."""

    classifier: Model
    transform: UploadTransform
    aggregator: Aggregator
    attack: RoundAttack | None
    round: RoundFunction
    delay: int


class Experiment(NamedTuple):
    """The pure functions of a run and their hyperparameters."""

    classifier: Model
    transform: UploadTransform
    aggregator: Aggregator
    attack: RoundAttack | None
    round: RoundFunction
    delay: int
    hyperparameters: RoundHyperParameters


@functools.lru_cache(maxsize=2)
def _load_bundled(name: str, *, image_size: int) -> Dataset:
    return load(name, image_size=image_size)


def class_number(dataset: str, text: str) -> int:
    """The number of the class that a text names. Raises ValueError if it names no class, or two."""
    try:
        return find_class(make_lookup(load_class_names(dataset)), text)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("dataset=") else f"target_class={error}") from error


def prepare_data(config: RunConfig, mesh: Mesh | None = None) -> AttackData:
    """Load the data set and partition it.

    mesh: the devices, if all participants stay on devices of several processes. Then each process holds the images of
    its own participants only.

    Raises ValueError if the data do not fit the configuration.
    """
    validate(config)
    settings, target, drawn = config.data, config.attack.target_class, config.federation.participants_per_round
    # A user's files may change between calls, so only bundled data are cached.
    read = load if ":" in settings.dataset else _load_bundled
    dataset = read(settings.dataset, image_size=settings.image_size)
    num_classes = len(dataset.class_names)
    if target >= num_classes:
        raise ValueError(f"target_class={target}: expected 0 to {num_classes - 1} for {settings.dataset}")
    participant_classes = parse_participant_classes(settings.participant_classes, dataset.class_names)
    if len(participant_classes) < 2 and settings.partition != "centralised":
        raise ValueError(f"participant_classes={settings.participant_classes!r}: expected at least two participants")
    if drawn > len(participant_classes):
        raise ValueError(
            f"participants_per_round={drawn}: expected at most {len(participant_classes)}, the number of participants"
        )
    candidates, judge_indices = split_off_judge_pool(dataset.train_labels, settings.judge_samples)
    owned = partition(
        dataset.train_labels,
        scheme=settings.partition,
        participant_classes=participant_classes,
        samples_per_participant=settings.samples_per_participant,
        adversary=config.attack.adversary,
        target_class=target,
        dirichlet_concentration=settings.dirichlet_concentration,
        rng=np.random.default_rng(config.seed),
        candidates=candidates,
    )
    if not any(map(len, owned)):
        raise ValueError(f"participant_classes={settings.participant_classes!r}: expected a participant with images")
    smallest = min(len(indices) for indices in owned if len(indices))
    if config.federation.batch_size > smallest:
        raise ValueError(
            f"batch_size={config.federation.batch_size}: expected at most {smallest}, the data of one participant"
        )
    only = None if mesh is None or drawn else own_positions(len(owned), mesh)
    federation = gather(dataset.train_images, dataset.train_labels, owned, only=only)
    return _assemble(config, dataset, owned, candidates, judge_indices, federation)


def _assemble(
    config: RunConfig,
    dataset: Dataset,
    owned: tuple[np.ndarray, ...],
    candidates: np.ndarray,
    judge_indices: np.ndarray,
    federation: FederationData,
) -> AttackData:
    labels, target = dataset.train_labels, config.attack.target_class
    victims = np.concatenate(
        [
            indices
            for index, indices in enumerate(owned)
            if index != config.attack.adversary or config.data.partition == "centralised"
        ]
    )
    private = victims[labels[victims] == target]
    target_is_owned = len(private) > 0
    if not target_is_owned:
        private = candidates[labels[candidates] == target][:_UNOWNED_PRIVATE_IMAGES]
    unowned = np.setdiff1d(candidates, np.concatenate([*owned, private]))
    unowned = unowned[labels[unowned] == target]
    fresh, seen_by_judge, further = _fresh_images(dataset, target, unowned, judge_indices)
    gallery = judge_indices[:: max(1, len(judge_indices) // _GALLERY_IMAGES)]
    _check_counts(config, len(private), len(fresh), seen_by_judge, int(np.sum(labels[gallery] == target)))
    own = owned[config.attack.adversary]
    if config.attack.own_images_per_batch and not len(own):
        raise ValueError(
            f"own_images_per_batch={config.attack.own_images_per_batch}: expected 0, since the adversary has no images"
        )
    own_classes = {
        f"own class {dataset.class_names[label]}": _floats(dataset.train_images, own[labels[own] == label])
        for label in np.unique(labels[own])
        if label != target
    }
    present = np.isin(dataset.test_labels, np.unique(labels[np.concatenate(owned)]))
    return AttackData(
        federation=federation,
        private=to_float(dataset.train_images[private]),
        fresh=fresh,
        unowned={"not dealt to anybody": further} if len(further) >= _LEAST_FURTHER_IMAGES else {},
        judge_pool=Images(dataset.train_images[judge_indices], labels[judge_indices]),
        gallery=Images(to_float(dataset.train_images[gallery]), labels[gallery]),
        own_classes=own_classes,
        common_knowledge={} if len(own) else _common_knowledge(dataset, gallery[labels[gallery] != target]),
        test=Images(to_float(dataset.test_images[present]), dataset.test_labels[present]),
        judge_test=_judge_test(dataset, candidates),
        class_names=dataset.class_names,
        fingerprint=dataset.fingerprint,
        target_is_owned=target_is_owned,
        held_classes=tuple(tuple(map(int, np.unique(labels[indices]))) for indices in owned),
        notes=dataset.notes,
        spectrogram=dataset.spectrogram,
    )


def _fresh_images(
    dataset: Dataset, target_class: int, unowned: np.ndarray, judge_indices: np.ndarray
) -> tuple[np.ndarray, int, np.ndarray]:
    """Fresh images of the target class, how many of them the judge was trained on, and further unowned images.

    unowned: indices of the class without an owner; those that are not needed are returned last. The judge maps images
    of its training set closer together than new ones, so that they make its view stricter.
    """
    tested = dataset.test_images[dataset.test_labels == target_class]
    spare, further = np.split(unowned, [max(0, _ENOUGH_FRESH_IMAGES - len(tested))])
    pool = judge_indices[dataset.train_labels[judge_indices] == target_class]
    pool = pool[: max(0, _FRESH_IMAGES - len(tested) - len(spare))]
    fresh = np.concatenate([tested, dataset.train_images[np.concatenate([spare, pool])]])
    return to_float(fresh), len(pool), to_float(dataset.train_images[further[:_MOST_FURTHER_IMAGES]])


def _check_counts(config: RunConfig, private: int, fresh: int, seen_by_judge: int, in_gallery: int) -> None:
    """Raise ValueError for a target class with too few private images, fresh images, or images in the gallery."""
    target = f"target_class={config.attack.target_class}"
    if private < LEAST_IMAGES:
        raise ValueError(f"{target}: {private} private images in the federation, expected at least {LEAST_IMAGES}")
    if in_gallery < LEAST_IMAGES:
        raise ValueError(
            f"judge_samples={config.data.judge_samples}: {in_gallery} images of {target} for the judge, expected at "
            f"least {LEAST_IMAGES}"
        )
    if fresh < _LEAST_FRESH_IMAGES:
        raise ValueError(
            f"{target}: {fresh - seen_by_judge} images without an owner and {seen_by_judge} for the judge, expected at "
            f"least {_LEAST_FRESH_IMAGES} in all"
        )


def _common_knowledge(dataset: Dataset, others: np.ndarray) -> dict[str, np.ndarray]:
    images = to_float(dataset.train_images[others])
    return {"other classes": images, "average of other classes": images.mean(axis=0, keepdims=True)}


def _judge_test(dataset: Dataset, candidates: np.ndarray) -> Images:
    images, labels = dataset.test_images, dataset.test_labels
    if len(labels) < _FEW_TEST_IMAGES:
        images = np.concatenate([images, dataset.train_images[candidates]])
        labels = np.concatenate([labels, dataset.train_labels[candidates]])
    return Images(to_float(images), labels)


def _floats(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return to_float(images[indices[:_PRIOR_IMAGES_PER_CLASS]])


def build_experiment(config: RunConfig, data: AttackData, mesh: Mesh | None = None) -> Experiment:
    """Build the models, the attack and the round. The fake class is the output after the real classes.

    mesh: the devices over which the participants of a synchronous round are sharded. Configurations that differ only in
    data and hyperparameters get the same function objects, so that JAX compiles them once.

    Raises ValueError for a target_epsilon: the noise must be solved for before.
    """
    if config.defense.target_epsilon:
        raise ValueError(
            f"target_epsilon={config.defense.target_epsilon}: expected 0; gan_leak.runs.federated.privacy solves for "
            "the noise"
        )
    fake_class = len(data.class_names)
    _, height, width, channels = data.private.shape
    functions = _functions((height, width, channels), fake_class, program_of(config), mesh)
    attack_hyperparameters = (
        hyperparameters_for(GanAttackHyperParameters, config, fake_class=fake_class) if functions.attack else ()
    )
    hyperparameters = hyperparameters_for(
        RoundHyperParameters,
        config,
        defense=defense_hyperparameters(config.defense),
        attack=attack_hyperparameters,
        server_attack=(),
    )
    return Experiment(*functions, hyperparameters)


def start_federation(experiment: Experiment, key: Array, participants: int) -> FederationState:
    """The federation of an experiment before its first round."""
    return init_federation(
        key,
        experiment.classifier,
        experiment.transform,
        participants,
        experiment.attack,
        aggregator=experiment.aggregator,
        delay=experiment.delay,
    )


@functools.lru_cache(maxsize=16)
def _functions(image_shape: tuple[int, int, int], fake_class: int, program: RunConfig, mesh: Mesh | None) -> Functions:
    """The functions of a run; program: see ``gan_leak.settings.program_of``."""
    channels, image_size = image_shape[-1], program.data.image_size
    convolution = program.performance.convolution
    classifier = classifier_for(
        image_size,
        fake_class + 1,
        channels,
        implementation=convolution,
        batchnorm=program.federation.normalization == "batch",
    )
    federation, defenses = program.federation, parse_composition(program.defense.kind)
    transform = upload_of(defenses, selective_upload(federation.upload_criterion))
    aggregator = aggregator_of(defenses, AGGREGATORS[federation.aggregation]())
    attack = _insider(program, classifier, image_shape) if program.attack.kind != "none" else None
    round_fn = make_round(
        classifier,
        transform,
        schedule=federation.schedule,
        delay=federation.delay,
        delays=federation.delays,
        aggregator=aggregator,
        download_criterion=federation.download_criterion,
        local_epochs=federation.local_epochs,
        batch_size=federation.batch_size,
        local_training=local_training_of(defenses, local_sgd),
        attack=attack,
        adversary=program.attack.adversary if attack else None,
        participant_mapping=program.performance.participant_mapping,
        mesh=mesh,
    )
    return Functions(classifier, transform, aggregator, attack, round_fn, federation.delay)


def _insider(program: RunConfig, classifier: Model, image_shape: tuple[int, int, int]) -> RoundAttack:
    settings = program.attack
    generator = dcgan_generator(
        program.data.image_size,
        image_shape[-1],
        width=settings.generator_width,
        implementation=program.performance.convolution,
    )
    return gan_attack(
        classifier,
        generator,
        image_shape,
        generator_steps=settings.generator_steps,
        generator_batch_size=settings.generator_batch_size,
        generator_optimizer=settings.generator_optimizer,
        fakes_per_round=settings.fakes_per_round if settings.kind == "active" else 0,
        fake_memory_rounds=settings.fake_memory_rounds,
        discriminator=settings.discriminator,
        first_turn=settings.first_turn,
        own_images_per_batch=settings.own_images_per_batch,
    )
