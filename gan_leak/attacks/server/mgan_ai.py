"""mGAN-AI, the attack of a malicious server (Wang et al., INFOCOM 2019, arXiv 1812.00535).

The server matches the update of each client with synthetic images, its representatives. It trains a discriminator with
three outputs (category, real or fake, identity of the client) on the trunk of the shared model, and a generator that is
conditioned on category and identity. A passive server only analyzes what it receives. An active server isolates the
victim on a copy of the model that only the victim's updates move.

The full texts were not available, so this implements the published idea. Wang et al. state the three outputs, the
identity as a condition, representatives, both modes, and that the passive attack is invisible. Open in our sources, and
chosen here: the losses and their weights, the order of updates, which images train which output, the memory, and the
optimizer (Adam with a rate of 2e-4 and beta1 0.5, of the ACGAN example that their shapes match).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak import trees
from gan_leak.attacks.server.broadcasts import isolate, send_shared
from gan_leak.attacks.server.mgan_ai_training import (
    IDENTITY_FORMS,
    AuxiliaryImages,
    Design,
    Matcher,
    MganAiHyperParameters,
    MganAiInfo,
    MganAiState,
    adam,
    image_generator,
    image_shape_of,
    train_discriminator,
    train_generator,
)
from gan_leak.attacks.server.multi_task import Discriminator, init_heads, judge_images, weighted_mean
from gan_leak.attacks.server.observed_updates import (
    ClientUpdates,
    ObserveUpdates,
    as_gradients,
    seen_updates,
    updates_of_clients,
)
from gan_leak.attacks.server.representative_memory import RepresentativeMemory, empty_memory, latest, remember
from gan_leak.attacks.server.representatives import UpdateEvidence
from gan_leak.models.mgan_ai_networks import ConditionalGenerator
from gan_leak.models.trunks import Trunk
from gan_leak.types import Array, PyTree, Sent, ServerAttack, ServerView

# The number of a participant that does not exist; -1 marks padding.
_NO_PARTICIPANT = -2


def _seen(design: Design, view: ServerView) -> ClientUpdates:
    return updates_of_clients(view, design.observe(view), design.clients)


def _match(
    key: Array, design: Design, memory: RepresentativeMemory, seen: ClientUpdates, hyperparameters: PyTree
) -> RepresentativeMemory:
    """The memory with the representatives of this round."""
    key_match, key_start = jax.random.split(key)
    updates = as_gradients(seen.updates, hyperparameters.client_learning_rate, hyperparameters.client_steps)
    labels = design.label(seen.params, updates)
    start = None
    if design.warm_start:
        newest = latest(memory)
        drawn = jax.random.uniform(key_start, newest.images.shape, minval=-1.0, maxval=1.0)
        start = jnp.where(jnp.expand_dims(newest.known, tuple(range(1, drawn.ndim))), newest.images, drawn)
    found = design.match(key_match, UpdateEvidence(seen.params, updates, labels), start)
    return remember(memory, found.images, labels, found.distances, seen.present)


def _follow_victim(
    state: MganAiState, view: ServerView, seen: ClientUpdates, hyperparameters: MganAiHyperParameters
) -> MganAiState:
    """The state with the victim's copy after its update; before the first attacked round the copy is the shared model.

    A server that averages one client adds its whole update.
    """
    flat, unravel = trees.ravel(state.own_params)
    isolated = view.round >= hyperparameters.first_round
    moved = unravel(flat + seen.updates[hyperparameters.victim])
    own = jax.tree.map(lambda copy, shared: jnp.where(isolated, copy, shared), moved, view.params)
    return state._replace(own_params=own)


def mgan_ai(
    trunk: Trunk,
    generator: ConditionalGenerator,
    match: Matcher,
    label: Callable[[PyTree, Array], Array],
    *,
    clients: int,
    auxiliary: AuxiliaryImages | None = None,
    identity: str = "all",
    active: bool = False,
    observe: ObserveUpdates = seen_updates,
    batch_size: int = 64,
    memory_rounds: int = 1,
    train_trunk: bool = True,
    warm_start: bool = False,
) -> ServerAttack:
    """Build the attack; its hyperparameters are ``MganAiHyperParameters``, its state is ``MganAiState``.

    An attacked round matches the updates, puts the parameters after the round (active: of the victim's copy) into the
    discriminator, trains the discriminator, and then the generator against it. The heads of the discriminator persist.

    trunk: that of the shared model. match: finds the representatives [K, R, ...] of all clients. label:
    ``label(params, updates) -> int32 [K, R]``, their labels, from parameters with a leading K axis and updates [K, D]
    in units of a gradient. clients: K; participants with higher numbers are ignored. auxiliary: None means none.
    identity: "all" has one output for each client, "victim" one output for one victim; in both, all identities are
    equally frequent in training. observe: what the server sees of uploads. batch_size: representatives and auxiliary
    images, and as many fakes, in an update. memory_rounds: T attacked rounds whose representatives are kept.
    train_trunk: whether the trunk and the category head are trained within a round, before the next shared model
    replaces them (open; ours). warm_start: whether matching starts from the last representatives.

    ``reconstruct`` draws the victim in all categories in turn.

    Raises ValueError for an unknown form of identity, for a generator with other conditions than the form needs, and
    for sizes below 1.
    """
    design = Design(
        trunk,
        generator,
        match,
        label,
        clients,
        active,
        _checked_auxiliary(auxiliary),
        identity,
        observe,
        batch_size,
        memory_rounds,
        train_trunk,
        warm_start,
    )
    _check(design)
    generate = image_generator(generator, batch_size)

    def reconstruct(key: Array, state: MganAiState, count: int) -> Array:
        identities = jnp.broadcast_to(design.identities(state.victim)[state.victim], count)
        return generate(key, state, identities, jnp.arange(count) % generator.categories)

    return ServerAttack(
        _initialization(design), _isolating_broadcast if active else send_shared, _step(design), reconstruct
    )


def _initialization(design: Design) -> Callable[[Array, PyTree], MganAiState]:
    def init(key: Array, params: PyTree) -> MganAiState:
        key_heads, key_generator = jax.random.split(key)
        size = trees.ravel(params)[0].size
        everyone = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (design.clients, *leaf.shape)), params)
        labels = jax.eval_shape(design.label, everyone, jnp.zeros((design.clients, size)))
        if labels.shape[:1] != (design.clients,) or len(labels.shape) != 2:
            raise ValueError(f"label: labels of shape {labels.shape}, expected ({design.clients}, R)")
        heads = init_heads(key_heads, design.trunk, 1 if design.identity == "victim" else design.clients)
        generator = design.generator.init(key_generator)
        zero = jnp.zeros((), jnp.int32)
        return MganAiState(
            Discriminator(params, heads),
            adam().init(heads),
            generator,
            adam().init(generator),
            empty_memory(design.memory_rounds, labels.shape, image_shape_of(design.generator)),
            params if design.active else (),
            zero,
            zero,
        )

    return init


def _isolating_broadcast(
    key: Array, state: MganAiState, params: PyTree, participant: Array, hyperparameters: MganAiHyperParameters
) -> Sent:
    isolating = state.round >= hyperparameters.first_round
    return isolate(params, state.own_params, participant, jnp.where(isolating, hyperparameters.victim, _NO_PARTICIPANT))


def _step(
    design: Design,
) -> Callable[[Array, MganAiState, ServerView, MganAiHyperParameters], tuple[MganAiState, MganAiInfo]]:
    def step(
        key: Array, state: MganAiState, view: ServerView, hyperparameters: MganAiHyperParameters
    ) -> tuple[MganAiState, MganAiInfo]:
        if design.active:
            state = _follow_victim(state, view, _seen(design, view), hyperparameters)
        victim = jnp.asarray(hyperparameters.victim, jnp.int32)
        state = state._replace(victim=victim, round=view.round + 1)
        after = view.round - hyperparameters.first_round

        def attack() -> tuple[MganAiState, MganAiInfo]:
            key_match, key_discriminator, key_generator = jax.random.split(key, 3)
            memory = _match(key_match, design, state.memory, _seen(design, view), hyperparameters)
            shared = state.own_params if design.active else view.params
            attacked = state._replace(memory=memory, discriminator=state.discriminator._replace(shared=shared))
            identities = design.identities(victim)
            attacked, of_discriminator = train_discriminator(
                key_discriminator, design, attacked, identities, hyperparameters
            )
            attacked, of_generator = train_generator(key_generator, design, attacked, hyperparameters)
            distance = weighted_mean(memory.distances[0], memory.known[0])
            info = MganAiInfo(jnp.ones((), bool), of_discriminator, of_generator, distance)
            return attacked, info

        def skip() -> tuple[MganAiState, MganAiInfo]:
            return state, trees.zeros(jax.eval_shape(attack)[1])

        return jax.lax.cond((after >= 0) & (after % hyperparameters.every == 0), attack, skip)

    return step


def _checked_auxiliary(auxiliary: AuxiliaryImages | None) -> AuxiliaryImages | None:
    """The auxiliary images as arrays; None if there are none."""
    if auxiliary is None or not len(auxiliary.labels):
        return None
    if len(auxiliary.images) != len(auxiliary.labels):
        raise ValueError(
            f"auxiliary: {len(auxiliary.images)} images and {len(auxiliary.labels)} labels, expected as many"
        )
    return AuxiliaryImages(jnp.asarray(auxiliary.images, jnp.float32), jnp.asarray(auxiliary.labels, jnp.int32))


def _check(design: Design) -> None:
    if design.identity not in IDENTITY_FORMS:
        raise ValueError(f"identity={design.identity!r}: allowed are {', '.join(map(repr, IDENTITY_FORMS))}")
    least = {"clients": 2, "batch_size": 2 if design.auxiliary else 1, "memory_rounds": 1}
    for name, smallest in least.items():
        if getattr(design, name) < smallest:
            raise ValueError(f"{name}={getattr(design, name)}: expected at least {smallest}")
    generator, trunk = design.generator, design.trunk
    identities = design.clients if design.identity == "all" else 2
    if generator.identities != identities:
        raise ValueError(
            f"generator.identities={generator.identities}: expected {identities} for identity={design.identity!r}"
        )
    if generator.categories > trunk.num_outputs:
        raise ValueError(f"generator.categories={generator.categories}: expected at most {trunk.num_outputs} outputs")
    if design.auxiliary is None:
        return
    if design.auxiliary.images.shape[1:] != image_shape_of(generator):
        shape = design.auxiliary.images.shape[1:]
        raise ValueError(f"auxiliary: images of shape {shape}, expected {image_shape_of(generator)}, the generator's")
    labels = np.asarray(design.auxiliary.labels)
    if labels.min() < 0 or labels.max() >= trunk.num_outputs:
        raise ValueError(f"auxiliary: labels {labels.min()} to {labels.max()}, expected 0 to {trunk.num_outputs - 1}")


def known_labels(labels: Array | np.ndarray) -> Callable[[PyTree, Array], Array]:
    """The ``label`` of a server that assumes the labels [K, R], whatever it observes."""
    fixed = jnp.asarray(labels, jnp.int32)
    return lambda params, updates: fixed


def identity_scores(trunk: Trunk, state: MganAiState, images: Array) -> Array:
    """The identity logits of the discriminator for images [B, H, W, C]: [B, 1] of the victim, or [B, K] of all clients.

    On held-out real images they tell whether the identity head transfers from representatives to data.
    """
    return judge_images(trunk, state.discriminator, images).identities
