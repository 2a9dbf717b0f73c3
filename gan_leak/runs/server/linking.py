"""Linkability in a federation: which anonymous update of the last round comes from which one of the first?"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak import trees
from gan_leak.attacks.gradient.observation import update_of
from gan_leak.attacks.server.linkability import (
    cosine_distances,
    label_distances,
    siamese,
    siamese_distances,
)
from gan_leak.attacks.server.observed_updates import as_gradients
from gan_leak.attacks.server.representatives import UpdateEvidence
from gan_leak.attacks.server.settings import MganAiConfig, ServerFederationConfig
from gan_leak.runs.server.attack import inferred_labels, matcher_of
from gan_leak.runs.server.federation import OwnedFederation, Variant, shared_model, steps_of
from gan_leak.runs.server.rounds import Recorded, RoundPair
from gan_leak.runs.storage.resumable import Keys, SavedProgress, run_in_parts
from gan_leak.types import Array, PyTree

# The outputs of the Siamese network, and its updates (open; ours).
EMBEDDING_OUTPUTS = 32
SIAMESE_STEPS = 500
LEAST_SIMULATED = 2


def update_distances(pair: RoundPair) -> np.ndarray:
    """Cosine distances [K, K] of the raw updates of the two rounds; needs no network."""
    return np.asarray(cosine_distances(pair.first.changes, pair.last.changes))


def count_distances(
    federation: OwnedFederation, variant: Variant, pair: RoundPair, options: ServerFederationConfig
) -> np.ndarray:
    """Distances [K, K] of the label counts that the last layer shows in the two rounds; needs no network."""
    sizes = jnp.asarray(federation.data.sizes)

    def counts(recorded: Recorded) -> Array:
        updates = as_gradients(recorded.changes, options.learning_rate, steps_of(variant, federation))
        return inferred_labels(federation, recorded.sent, updates, sizes, 1).counts

    return np.asarray(label_distances(*(jax.jit(counts)(recorded) for recorded in pair)))


def simulated_clients(rng: np.random.Generator, federation: OwnedFederation, owners_per_client: int) -> np.ndarray:
    """Images of clients that the server makes up of auxiliary people: indices [A, n] into the auxiliary images.

    Each has ``owners_per_client`` people and n images of theirs, as many as a client, or as the fewest that there are.
    """
    owners = rng.permutation(np.unique(federation.auxiliary_owners))
    count = len(owners) // owners_per_client
    groups = owners[: count * owners_per_client].reshape(count, owners_per_client)
    places = [np.flatnonzero(np.isin(federation.auxiliary_owners, group)) for group in groups]
    size = min([int(np.min(federation.data.sizes)), *map(len, places)])
    drawn = [rng.choice(own, size, replace=False) for own in places]
    return np.stack(drawn) if drawn else np.zeros((0, 0), np.int64)


def representative_distances(
    key: Array,
    federation: OwnedFederation,
    variant: Variant,
    pair: RoundPair,
    simulated: np.ndarray,
    config: MganAiConfig,
    options: ServerFederationConfig,
    progress: SavedProgress,
) -> np.ndarray:
    """Distances [K, K] of the clients of two rounds by a Siamese network on their representatives (Song et al. 2020).

    simulated: images of the clients that the network is trained on, see ``simulated_clients``. Their representatives
    are found like those of the clients, with the parameters of both rounds.
    """
    key_match, *keys = jax.random.split(key, 3)
    represent = jax.jit(_represent(federation, variant, config, options))
    simulate = jax.jit(_simulate(federation, variant, options, simulated))
    sizes = jnp.asarray(federation.data.sizes)
    of_clients, of_simulated = [], []
    for number, recorded in enumerate(pair):
        key_clients, key_simulated = jax.random.split(jax.random.fold_in(key_match, number))
        of_clients.append(represent(key_clients, recorded.sent, recorded.changes, sizes))
        trained = simulate(trees.take(recorded.sent, 0))
        of_simulated.append(represent(key_simulated, *trained, jnp.full(len(simulated), simulated.shape[1])))
    network, _ = shared_model(options.classifier, federation.image_shape, EMBEDDING_OUTPUTS)
    params = run_in_parts(
        Keys(*keys),
        siamese(network),
        jnp.stack(of_simulated, axis=1),
        steps=SIAMESE_STEPS,
        unit="step of the Siamese network",
        progress=progress,
    )
    return np.asarray(siamese_distances(network, params, *of_clients))


def _represent(
    federation: OwnedFederation, variant: Variant, config: MganAiConfig, options: ServerFederationConfig
) -> Callable[[Array, PyTree, Array, Array], Array]:
    """The representatives of changes [K, D] of parameters with a leading K axis, of clients with ``sizes`` images."""
    match = matcher_of(federation, variant, config, options)
    steps = steps_of(variant, federation)

    def represent(key: Array, params: PyTree, changes: Array, sizes: Array) -> Array:
        updates = as_gradients(changes, options.learning_rate, steps)
        found = inferred_labels(federation, params, updates, sizes, config.representatives)
        return match(key, UpdateEvidence(params, updates, found.labels)).images

    return represent


def _simulate(
    federation: OwnedFederation, variant: Variant, options: ServerFederationConfig, simulated: np.ndarray
) -> Callable[[PyTree], tuple[PyTree, Array]]:
    """The parameters that simulated clients are sent, with a leading A axis, and their changes [A, D]."""
    auxiliary = federation.auxiliary
    assert auxiliary is not None
    images = auxiliary.images[simulated]
    targets = jax.nn.one_hot(auxiliary.labels[simulated], federation.num_classes)

    def simulate(params: PyTree) -> tuple[PyTree, Array]:
        def train(images: Array, targets: Array) -> Array:
            update = update_of(
                federation.model,
                params,
                images,
                targets,
                learning_rate=options.learning_rate,
                steps=steps_of(variant, federation),
                # All images in a step: a batch size of the clients need not divide their number here.
                batch_size=len(images),
            )
            return -options.learning_rate * trees.ravel(update)[0]

        sent = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (len(images), *leaf.shape)), params)
        return sent, jax.vmap(train)(images, targets)

    return simulate
