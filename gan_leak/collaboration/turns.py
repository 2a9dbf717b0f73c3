"""The beginning of a turn: positions and numbers of participants, keys, download."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.collaboration.server import download
from gan_leak.types import (
    Array,
    FederationData,
    FlatServer,
    LocalData,
    ParticipantState,
    PyTree,
    RoundAttack,
    RoundHyperParameters,
)


class Insider(NamedTuple):
    """An attack and the number of the participant that runs it."""

    attack: RoundAttack
    participant: int


class StartedTurn(NamedTuple):
    """A turn after its download: parameters, downloaded coordinates bool [D], and keys for attack and training."""

    params: PyTree
    downloaded: Array
    key_attack: Array
    key_train: Array


def check_insider(insider: Insider | None, data: FederationData) -> None:
    """Raise ValueError for an insider that is not a participant."""
    participants = data.sizes.shape[0]
    # A cohort of a larger federation need not include the adversary.
    if insider is not None and data.participants is None and not 0 <= insider.participant < participants:
        raise ValueError(f"adversary={insider.participant}: expected 0 to {participants - 1}, one of the participants")


def local_data(data: FederationData, position: Array | int) -> LocalData:
    """The data of the participant at one position: inputs [N, ...], labels [N], mask [N]."""
    inputs, labels, size, _ = trees.take(data, position)
    return LocalData(inputs, labels, jnp.arange(labels.shape[0]) < size)


def identities_of(data: FederationData) -> Array:
    """The numbers of the participants, int32 [P]."""
    return jnp.arange(data.sizes.shape[0]) if data.participants is None else data.participants


def position_of(data: FederationData, adversary: int) -> Array | int:
    """The position of the adversary; 0 if it is not among these participants."""
    return adversary if data.participants is None else jnp.argmax(data.participants == adversary)


def turn_keys(key: Array, participant: Array | int) -> tuple[Array, Array, Array]:
    """The keys of one turn for download, attack and training.

    They depend on the participant, not on its position, so that a schedule changes only the order of turns.
    """
    key_download, key_attack, key_train = jax.random.split(jax.random.fold_in(key, participant), 3)
    return key_download, key_attack, key_train


def begin_turn(
    key: Array,
    server: FlatServer,
    participant: Array | int,
    own: ParticipantState,
    hyperparameters: RoundHyperParameters,
    download_criterion: str,
    insider: Insider | None,
) -> StartedTurn:
    """Start a turn with the download of what this participant is sent."""
    key_download, key_attack, key_train = turn_keys(key, participant)
    fraction: Array | float = hyperparameters.download_fraction
    if insider is not None:
        own_fraction = jnp.asarray(hyperparameters.adversary_download_fraction)
        departs = (participant == insider.participant) & (own_fraction > 0)
        fraction = jnp.where(departs, own_fraction, fraction)
    params, downloaded = download(key_download, server, own.params, fraction, download_criterion)
    return StartedTurn(params, downloaded, key_attack, key_train)
