"""The representatives of the last rounds, and draws from them in which all identities are equally frequent."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak.types import Array


class RepresentativeMemory(NamedTuple):
    """The representatives of T rounds, the newest first.

    images: [T, K, R, H, W, C]; labels: int32 [T, K, R]; distances: [T, K], the matcher's; known: bool [T, K], False
    where a client has none in that round.
    """

    images: Array
    labels: Array
    distances: Array
    known: Array


class DrawnRepresentatives(NamedTuple):
    """Images [B, H, W, C] with labels and identities, int32 [B]; weight: float32 [], 0 if nothing is known, else 1."""

    images: Array
    labels: Array
    identities: Array
    weight: Array


def empty_memory(rounds: int, labels_shape: tuple[int, int], image_shape: tuple[int, ...]) -> RepresentativeMemory:
    """A memory of ``rounds`` without representatives, for labels [K, R]."""
    clients = labels_shape[0]
    return RepresentativeMemory(
        jnp.zeros((rounds, *labels_shape, *image_shape)),
        jnp.zeros((rounds, *labels_shape), jnp.int32),
        jnp.zeros((rounds, clients)),
        jnp.zeros((rounds, clients), bool),
    )


def remember(
    memory: RepresentativeMemory, images: Array, labels: Array, distances: Array, present: Array
) -> RepresentativeMemory:
    """Put in the representatives of a round and drop the oldest.

    images [K, R, H, W, C], labels [K, R], distances [K], present bool [K]. Those of an absent client, and those with a
    value that is not finite, are left out.
    """
    known = present & jnp.all(jnp.isfinite(images), axis=tuple(range(1, images.ndim)))
    kept = jnp.where(jnp.expand_dims(known, tuple(range(1, images.ndim))), images, 0.0)
    newest = RepresentativeMemory(kept, labels, jnp.where(known, distances, 0.0), known)
    return jax.tree.map(lambda new, old: jnp.concatenate([new[None], old[:-1]]), newest, memory)


def latest(memory: RepresentativeMemory) -> RepresentativeMemory:
    """The newest representatives of each client, without the T axis."""
    place = jnp.argmax(memory.known, axis=0)
    clients = jnp.arange(len(place))
    return jax.tree.map(lambda leaf: leaf[place, clients], memory)


def shares(known: Array, identities: Array, identity_count: int) -> Array:
    """The probabilities [T, K] of a draw in which all identities with a representative are equally likely.

    known: bool [T, K]. identities: int32 [K], the identity of each client. The probabilities are not normalized.
    """
    members = identities[:, None] == jnp.arange(identity_count)[None]
    counts = jnp.sum(jnp.sum(known, axis=0)[:, None] * members, axis=0)
    return known / jnp.maximum(counts[identities], 1)[None]


def draw_representatives(
    key: Array, memory: RepresentativeMemory, identities: Array, identity_count: int, count: int
) -> DrawnRepresentatives:
    """Draw ``count`` representatives with replacement: first an identity, then one of its images, each uniformly."""
    key_client, key_image = jax.random.split(key)
    weights = shares(memory.known, identities, identity_count).reshape(-1)
    places = jax.random.choice(key_client, len(weights), (count,), p=weights)
    rounds, clients = places // len(identities), places % len(identities)
    within = jax.random.randint(key_image, (count,), 0, memory.labels.shape[2])
    return DrawnRepresentatives(
        memory.images[rounds, clients, within],
        memory.labels[rounds, clients, within],
        identities[clients],
        jnp.any(memory.known).astype(jnp.float32),
    )
