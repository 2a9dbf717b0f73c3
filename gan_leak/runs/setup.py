"""From a configuration to what a run works on: data dealt out, models, the round, what leakage is measured by.

All that can be wrong with the input is found here, before any training.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.collaboration import RoundHyperParameters, make_round, selective_upload
from gan_leak.collaboration.participant import local_sgd
from gan_leak.collaboration.round import RoundFunction
from gan_leak.config import AttackConfig, validate
from gan_leak.data import Dataset, gather, load, parse_participant_classes, partition, split_off_judge_pool, to_float
from gan_leak.defenses import dp_sgd, sparse_vector_upload
from gan_leak.evaluation.representatives import NEIGHBOURS
from gan_leak.models import classifier_for, dcgan_generator
from gan_leak.types import FederationData, Model, RoundAttack, UploadTransform

# Enough for stable medians and neighbours, few enough that a measurement takes a moment.
_GALLERY_IMAGES = 4000
_PRIOR_IMAGES_PER_CLASS = 300
_UNOWNED_PRIVATE_IMAGES = 1000


class Images(NamedTuple):
    """Images [M, H, W, C], float32 in [-1, 1] unless said otherwise, and labels int32 [M]."""

    images: np.ndarray
    labels: np.ndarray


class AttackData(NamedTuple):
    """Who and what sees which images; apart from ``federation`` nothing here reaches the participants.

    private: the victims' images of the target class, or, if nobody owns it, images that could have been theirs. fresh:
    test images of the target class. judge_pool: real images uint8 of all classes that no participant owns; gallery:
    some of them. own_classes: the adversary's images of each of its classes. test: test images of the classes that
    somebody owns.
    """

    federation: FederationData
    private: np.ndarray
    fresh: np.ndarray
    judge_pool: Images
    gallery: Images
    own_classes: dict[str, np.ndarray]
    test: Images
    judge_test: Images
    class_names: tuple[str, ...]
    fingerprint: str
    target_is_owned: bool


class Experiment(NamedTuple):
    """The pure functions of a run and the numbers that they take."""

    classifier: Model
    transform: UploadTransform
    attack: RoundAttack | None
    round: RoundFunction
    hyperparameters: RoundHyperParameters


def prepare_data(config: AttackConfig) -> AttackData:
    """Loads the data set and deals it out.

    Raises ValueError for anything about the data that does not fit the configuration.
    """
    validate(config)
    dataset = load(config.dataset, image_size=config.image_size)
    num_classes = len(dataset.class_names)
    if config.target_class >= num_classes:
        raise ValueError(f"target_class={config.target_class}: expected 0 to {num_classes - 1} for {config.dataset}")
    participant_classes = parse_participant_classes(config.participant_classes, num_classes)
    if len(participant_classes) < 2:
        raise ValueError(f"participant_classes={config.participant_classes!r}: expected at least two participants")
    candidates, judge_indices = split_off_judge_pool(dataset.train_labels, config.judge_samples)
    owned = partition(
        dataset.train_labels,
        scheme=config.partition,
        participant_classes=participant_classes,
        samples_per_participant=config.samples_per_participant,
        adversary=config.adversary,
        target_class=config.target_class,
        dirichlet_concentration=config.dirichlet_concentration,
        rng=np.random.default_rng(config.seed),
        candidates=candidates,
    )
    smallest = min(len(indices) for indices in owned if len(indices))
    if config.batch_size > smallest:
        raise ValueError(f"batch_size={config.batch_size}: expected at most {smallest}, the data of one participant")
    return _assemble(config, dataset, owned, candidates, judge_indices)


def _assemble(
    config: AttackConfig,
    dataset: Dataset,
    owned: tuple[np.ndarray, ...],
    candidates: np.ndarray,
    judge_indices: np.ndarray,
) -> AttackData:
    labels = dataset.train_labels
    victims = np.concatenate([indices for index, indices in enumerate(owned) if index != config.adversary])
    private = victims[labels[victims] == config.target_class]
    target_is_owned = len(private) > 0
    if not target_is_owned:
        private = candidates[labels[candidates] == config.target_class][:_UNOWNED_PRIVATE_IMAGES]
    fresh = np.flatnonzero(dataset.test_labels == config.target_class)
    gallery = judge_indices[:: max(1, len(judge_indices) // _GALLERY_IMAGES)]
    in_gallery = np.sum(labels[gallery] == config.target_class)
    # Half of the test images define a score of 1, the other half check it.
    needed = {"private": NEIGHBOURS + 1, "test": 2 * (NEIGHBOURS + 1), "judge": NEIGHBOURS + 1}
    for name, count in {"private": len(private), "test": len(fresh), "judge": in_gallery}.items():
        if count < needed[name]:
            raise ValueError(f"target_class={config.target_class}: {count} {name} images, {needed[name]} are needed")
    own = owned[config.adversary]
    own_classes = {
        f"own class {dataset.class_names[label]}": _floats(dataset.train_images, own[labels[own] == label])
        for label in np.unique(labels[own])
    }
    present = np.isin(dataset.test_labels, np.unique(labels[np.concatenate(owned)]))
    return AttackData(
        federation=gather(dataset.train_images, labels, owned),
        private=to_float(dataset.train_images[private]),
        fresh=to_float(dataset.test_images[fresh]),
        judge_pool=Images(dataset.train_images[judge_indices], labels[judge_indices]),
        gallery=Images(to_float(dataset.train_images[gallery]), labels[gallery]),
        own_classes=own_classes,
        test=Images(to_float(dataset.test_images[present]), dataset.test_labels[present]),
        judge_test=Images(to_float(dataset.test_images), dataset.test_labels),
        class_names=dataset.class_names,
        fingerprint=dataset.fingerprint,
        target_is_owned=target_is_owned,
    )


def _floats(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return to_float(images[indices[:_PRIOR_IMAGES_PER_CLASS]])


def build_experiment(config: AttackConfig, data: AttackData) -> Experiment:
    """Builds the models, the attack and the round; the fake class is the output after the real classes."""
    image_shape = data.private.shape[1:]
    fake_class = len(data.class_names)
    implementation = config.performance.convolution
    classifier = classifier_for(config.image_size, fake_class + 1, image_shape[-1], implementation=implementation)
    private_upload = config.defense == "sparse_vector"
    transform = sparse_vector_upload() if private_upload else selective_upload(config.upload_criterion)
    attack = None
    if config.attack != "none":
        generator = dcgan_generator(
            config.image_size, image_shape[-1], width=config.generator_width, implementation=implementation
        )
        attack = gan_attack(
            classifier,
            generator,
            image_shape,
            generator_steps=config.generator_steps,
            generator_batch_size=config.generator_batch_size,
            generator_optimizer=config.generator_optimizer,
            fakes_per_round=config.fakes_per_round if config.attack == "active" else 0,
            fake_memory_rounds=config.fake_memory_rounds,
        )
    round_fn = make_round(
        classifier,
        transform,
        schedule=config.schedule,
        aggregation=config.aggregation,
        local_epochs=config.local_epochs,
        batch_size=config.batch_size,
        local_training=dp_sgd if config.defense == "dp_sgd" else local_sgd,
        attack=attack,
        adversary=config.adversary if attack else None,
        participant_mapping=config.performance.participant_mapping,
    )
    attack_numbers = GanAttackHyperParameters(config.target_class, fake_class, config.generator_learning_rate)
    hyperparameters = RoundHyperParameters(
        learning_rate=config.learning_rate,
        learning_rate_decay=config.learning_rate_decay,
        upload_fraction=config.upload_fraction,
        download_fraction=config.download_fraction,
        upload_threshold=config.upload_threshold,
        upload_bound=config.upload_bound,
        update_count_decay=config.update_count_decay,
        clipping_norm=config.clipping_norm,
        noise_multiplier=config.noise_multiplier,
        sensitivity=config.sensitivity,
        epsilon_per_release=config.epsilon_per_release,
        attack=attack_numbers if attack else (),
    )
    return Experiment(classifier, transform, attack, round_fn, hyperparameters)
