"""The measures of user-level leakage of a federation: the instruments, built before any attack, and their numbers."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from gan_leak.data import OwnerSplit, to_float
from gan_leak.data.dataset import Dataset
from gan_leak.evaluation.client_distances import (
    Galleries,
    SentImages,
    Space,
    distances_to_clients,
    pixel_space,
)
from gan_leak.evaluation.criteria import Interval
from gan_leak.evaluation.fidelity import euclidean_distances, flatten
from gan_leak.evaluation.identification import (
    IdentificationNumbers,
    IdentificationReferences,
    build_identification_references,
    measure_identification,
)
from gan_leak.evaluation.identification_controls import identified_as_others, identified_as_outsiders
from gan_leak.evaluation.owner_embedding import (
    embedding_space,
    load_or_train_owner_embedding,
    obstacle_to_embedding,
)
from gan_leak.runs.server.federation import OwnedFederation

PIXELS = "pixels"
EMBEDDING = "embedding"


class UserInstruments(NamedTuple):
    """References of each space, the images that each client sent, and notes for the report.

    outsiders: galleries of people outside, of the size of a client's, for a control; None without such people.

    The galleries of all clients and their labels serve as the judge of categories (``nearest_category``).
    """

    references: dict[str, IdentificationReferences]
    sent: tuple[SentImages, ...]
    outsiders: Galleries | None
    notes: tuple[str, ...]


def build_instruments(federation: OwnedFederation, dataset: Dataset, seed: int) -> UserInstruments:
    """Measure ceiling and floor in every space, and train the owner embedding on third parties if there are enough."""
    data = federation.data
    sent = tuple(
        SentImages(np.asarray(images[:size]), np.asarray(labels[:size]))
        for images, labels, size in zip(data.inputs, data.labels, data.sizes, strict=True)
    )
    spaces: dict[str, Space] = {PIXELS: pixel_space()}
    notes = []
    third = federation.split.third_parties
    assert dataset.train_owners is not None
    obstacle = obstacle_to_embedding(dataset.train_owners[third])
    if obstacle is None:
        embedding = load_or_train_owner_embedding(dataset.train_images[third], dataset.train_owners[third])
        spaces[EMBEDDING] = embedding_space(embedding)
        notes.append(
            f"owner embedding: trained on {embedding.owners} third parties, of whose other images it assigns "
            f"{embedding.accuracy:.2f} to their owner (chance {1 / embedding.owners:.2f})"
        )
    else:
        notes.append(f"owner embedding: not available, {obstacle}")
    galleries = Galleries(federation.held_out, federation.held_out_labels)
    auxiliary = None
    if len(federation.split.auxiliary):
        outside = federation.split.auxiliary
        auxiliary = SentImages(to_float(dataset.train_images[outside]), dataset.train_labels[outside])
    references = {
        name: build_identification_references(galleries, space, auxiliary=auxiliary, seed=seed)
        for name, space in spaces.items()
    }
    notes += [
        f"not measurable by {name}: {found.reason}" for name, found in references.items() if found.reason is not None
    ]
    return UserInstruments(references, sent, outsider_galleries(dataset, federation.split, galleries), tuple(notes))


def outsider_galleries(dataset: Dataset, split: OwnerSplit, galleries: Galleries) -> Galleries | None:
    """Galleries of third parties, with as many images of each class as a client's; None if no group is complete.

    As many people stand in for a client as a client has owners. If clients are mixtures of owners nobody can.
    """
    assert dataset.train_owners is not None
    people = split.owners.shape[1]
    if not people:
        return None
    third = split.third_parties
    owners, labels = dataset.train_owners[third], dataset.train_labels[third]
    classes, counts = np.unique(galleries.labels[0], return_counts=True)
    chosen = {
        owner: [np.flatnonzero((owners == owner) & (labels == label)) for label in classes]
        for owner in np.unique(owners).tolist()
    }
    complete = [
        np.concatenate([own[: count // people] for own, count in zip(of_owner, counts, strict=True)])
        for of_owner in chosen.values()
        if all(len(own) >= count // people for own, count in zip(of_owner, counts, strict=True))
    ]
    groups = [np.concatenate(complete[i : i + people]) for i in range(0, len(complete) - people + 1, people)]
    if not groups:
        return None
    indices = third[np.stack(groups)]
    return Galleries(to_float(dataset.train_images[indices]), dataset.train_labels[indices])


def nearest_category(galleries: Galleries, images: np.ndarray) -> np.ndarray:
    """The class of the nearest held-out image of any client, by pixels: images [N, H, W, C] -> classes [N]."""
    members = galleries.images.reshape(-1, *galleries.images.shape[2:])
    nearest = np.argmin(euclidean_distances(flatten(images), flatten(members)), axis=1)
    return galleries.labels.reshape(-1)[nearest]


def measure(
    instruments: UserInstruments, images: np.ndarray, labels: np.ndarray, victims: np.ndarray
) -> dict[str, Interval]:
    """All measures of reconstructions [V, M, H, W, C] of classes [V, M], by name; those of a space have its prefix.

    victims: the clients that they are claimed to show, int [V].
    """
    found: dict[str, Interval] = {}
    for name, references in instruments.references.items():
        result = measure_identification(
            references,
            images,
            labels,
            victims=victims,
            sent=instruments.sent if name == PIXELS else None,
            predict=functools.partial(nearest_category, references.galleries),
        )
        measured = numbers_of(result.numbers)
        table = distances_to_clients(references.space, images, labels, references.galleries)
        measured["as_another_client"] = identified_as_others(table, victims=victims, seed=references.seed)
        if name == PIXELS and instruments.outsiders is not None:
            to_outsiders = distances_to_clients(references.space, images, labels, instruments.outsiders)
            measured["as_outsider"] = identified_as_outsiders(
                table, to_outsiders, victims=victims, seed=references.seed
            )
        if result.score is not None:
            measured["identification_score"] = result.score
        if name == PIXELS:
            optional = {
                "record_gap": result.record_gap,
                "category_accuracy": result.category_accuracy,
                "similarity": result.similarity,
                "control_similarity": result.control_similarity,
            }
            measured |= {measure: interval for measure, interval in optional.items() if interval is not None}
            measured["chance"] = single(result.chance)
        found |= {_named(name, measure): interval for measure, interval in measured.items()}
    return found


def ceiling(instruments: UserInstruments) -> dict[str, Interval]:
    """The numbers of the clients' own held-out images, by name, as ``measure`` has them."""
    found = {
        _named(name, measure): interval
        for name, references in instruments.references.items()
        for measure, interval in numbers_of(references.ceiling).items()
    }
    clients = len(next(iter(instruments.references.values())).galleries.images)
    return {**found, "chance": single(1.0 / clients)}


def numbers_of(numbers: IdentificationNumbers) -> dict[str, Interval]:
    """The numbers of an identification as intervals by name."""
    return {
        "client_identified": numbers.identified,
        "client_identified_pooled": numbers.identified_pooled,
        "client_rank": numbers.mean_rank,
        "client_auc": numbers.auc,
        "user_gap": numbers.user_gap,
        "p_value": single(numbers.p_value),
    }


def single(value: float) -> Interval:
    """A number without an interval."""
    return Interval(value, math.nan, math.nan, (value,))


def _named(space: str, measure: str) -> str:
    return measure if space == PIXELS else f"{space}_{measure}"
