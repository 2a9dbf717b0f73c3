"""The settings of data divided by owner, and the federation that they describe."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from gan_leak.data.dataset import Dataset, rotations
from gan_leak.data.owners import OwnerSplit, split_by_owner, split_iid
from gan_leak.data.sources import IMAGE_SIZES, load
from gan_leak.settings import at_least, option


def _owner_list(name: str, text: str) -> tuple[int, ...]:
    """The owners of a text such as '3,5'. Raises ValueError with the name of the setting for another text."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name}={text!r}: expected numbers of owners such as '3,5'") from None


def _check_owner_list(name: str, text: str) -> None:
    if text:
        _owner_list(name, text)


def _client_lists(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(_owner_list("client_owners", group) for group in text.split(";"))


def _check_client_lists(text: str) -> None:
    if text:
        _client_lists(text)


@dataclasses.dataclass(frozen=True)
class OwnerConfig:
    """A data set with owners, and its division among clients and people outside of the federation."""

    dataset: str = option(
        "orl_faces",
        "Data set with owners: 'orl_faces' (the person), 'mnist' with --owners, 'npz:<path>' with the array 'owners', "
        "or 'folder:<path>' with folders class/owner.",
        kind="host",
    )
    owners: str = option(
        "",
        "Owners of 'mnist': 'qmnist:<path>', the label file of QMNIST's training part (Yadav and Bottou 2019).",
        kind="host",
    )
    series: int = option(
        -1,
        "Series that all owners are of, such as 0 (employees) or 4 (students) of QMNIST; -1 = the only one there is. "
        "Series are never mixed, since clients would be told apart by them.",
        bounds=at_least(-1),
        kind="host",
    )
    categories: str = option(
        "rotations",
        "Categories that the shared model tells apart: 'none' = the classes of the data set as they are; 'rotations' = "
        "each image in four rotations, the category is the rotation (ours). Use it where classes are owners.",
        choices=("none", "rotations"),
        kind="host",
    )
    image_size: int = option(32, "Side of the square images in pixels.", choices=IMAGE_SIZES)
    partition: str = option(
        "by_owner",
        "'by_owner': each client has the images of its own owners; 'iid': a control, in which the same images are "
        "dealt to the clients at random.",
        choices=("by_owner", "iid"),
        kind="host",
    )
    clients: int = option(10, "Number of clients (Wang et al. 2019 use 10).", bounds=at_least(2))
    owners_per_client: int = option(4, "Owners of each client (open).", bounds=at_least(1), kind="host")
    sent_per_class: int = option(
        4, "Images of each class that an owner's client trains on (open).", bounds=at_least(1), kind="host"
    )
    held_out_per_class: int = option(
        4,
        "Images of each class and owner that no client trains on, for the galleries of the measures (ours).",
        bounds=at_least(1),
        kind="host",
    )
    balanced: bool = option(
        True,
        "Whether owners send equally many images of each class; if not, equally many in total, with classes as they "
        "fall. Galleries are always balanced.",
        kind="host",
    )
    auxiliary_owners: int = option(
        0,
        "Number of people outside of the federation whose images the adversary has (open).",
        bounds=at_least(0),
        kind="host",
    )
    third_party_owners: int = option(
        0,
        "Number of people that neither the federation nor the adversary has; their images train the owner embedding "
        "of the measures (ours).",
        bounds=at_least(0),
        kind="host",
    )
    client_owners: str = option(
        "",
        "Owners of each client by number, such as '3,5;7,9': clients separated by ';', owners by ','. If left out, "
        "they are drawn.",
        check=_check_client_lists,
        kind="host",
    )
    auxiliary_owner_list: str = option(
        "",
        "Numbers of the auxiliary owners, such as '3,5', instead of --auxiliary_owners.",
        check=functools.partial(_check_owner_list, "auxiliary_owner_list"),
        kind="host",
    )
    third_party_owner_list: str = option(
        "",
        "Numbers of the third-party owners, such as '3,5', instead of --third_party_owners.",
        check=functools.partial(_check_owner_list, "third_party_owner_list"),
        kind="host",
    )


def load_owned(config: OwnerConfig) -> Dataset:
    """Load the data set of a configuration, with its categories.

    Raises ValueError as ``load`` does, and for a data set without owners.
    """
    dataset = load(config.dataset, image_size=config.image_size, owners=config.owners)
    if dataset.train_owners is None:
        raise ValueError(
            f"dataset={config.dataset!r}: it has no owners, expected 'orl_faces', 'mnist' with --owners=qmnist:<path>, "
            "an npz file with the array 'owners', or a folder of class/owner"
        )
    return rotations(dataset) if config.categories == "rotations" else dataset


def split_owned(config: OwnerConfig, dataset: Dataset, rng: np.random.Generator) -> OwnerSplit:
    """Divide the training part of ``load_owned(config)`` by ``split_by_owner``, or by ``split_iid`` after it.

    With 'iid', the same people are drawn as with 'by_owner' and an equal generator. Raises ValueError as
    ``split_by_owner`` does.
    """
    of_owners, of_control = rng.spawn(2)
    auxiliary, third = config.auxiliary_owner_list, config.third_party_owner_list
    split = split_by_owner(
        dataset.train_labels,
        dataset.train_owners,
        clients=config.clients,
        owners_per_client=config.owners_per_client,
        sent_per_class=config.sent_per_class,
        held_out_per_class=config.held_out_per_class,
        balanced=config.balanced,
        auxiliary_owners=_owner_list("auxiliary_owner_list", auxiliary) if auxiliary else config.auxiliary_owners,
        third_party_owners=_owner_list("third_party_owner_list", third) if third else config.third_party_owners,
        rng=of_owners,
        series=dataset.train_series,
        only_series=None if config.series < 0 else config.series,
        records=dataset.train_records,
        client_owners=_client_lists(config.client_owners) if config.client_owners else None,
    )
    if config.partition == "iid":
        return split_iid(split, dataset.train_labels, rng=of_control, records=dataset.train_records)
    return split
