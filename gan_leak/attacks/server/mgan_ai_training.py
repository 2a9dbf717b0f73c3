"""The networks of mGAN-AI in a round: hyperparameters, state, batches, and the training of both networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_leak import trees
from gan_leak.attacks.server.multi_task import (
    Discriminator,
    FakeBatch,
    Losses,
    RealBatch,
    discriminator_losses,
    generator_losses,
    weighted_sum,
)
from gan_leak.attacks.server.observed_updates import ObserveUpdates
from gan_leak.attacks.server.representative_memory import RepresentativeMemory, draw_representatives
from gan_leak.attacks.server.representatives import Representatives, UpdateEvidence
from gan_leak.models.mgan_ai_networks import ConditionalGenerator
from gan_leak.models.trunks import Trunk
from gan_leak.types import Array, PyTree

IDENTITY_FORMS = ("victim", "all")
Matcher = Callable[[Array, UpdateEvidence, Array | None], Representatives]
# Of a batch of generated images, the part that was asked for. The others have conditions drawn as in training.
_ASKED = 0.25


class MganAiHyperParameters(NamedTuple):
    """The traced hyperparameters of the attack.

    - victim: the number of the client that ``reconstruct`` draws, that an active server isolates, and that the form
      "victim" of the identity head tells from all others.
    - client_learning_rate, client_steps: the rate and the number of local SGD steps of a client in one round. An update
      over their product is in units of a gradient. A matcher that unrolls the steps needs client_steps = 1.
    - first_round, every: rounds first_round, first_round + every, ... are attacked. Others are skipped and cost
      nothing, except under vmap. An active server isolates its victim in all rounds from first_round on.
    - discriminator_steps, generator_steps: updates in an attacked round.
    - learning_rate: that of Adam in both networks. category_weight, identity_weight: of the terms of both losses.
    """

    victim: Array | int
    client_learning_rate: Array | float
    client_steps: Array | float = 1
    first_round: Array | int = 0
    every: Array | int = 1
    discriminator_steps: Array | int = 100
    generator_steps: Array | int = 100
    learning_rate: Array | float = 2e-4
    category_weight: Array | float = 1.0
    identity_weight: Array | float = 1.0


class AuxiliaryImages(NamedTuple):
    """Images [A, H, W, C] in [-1, 1] of people outside the federation, and their labels, int32 [A]."""

    images: Array
    labels: Array


class MganAiState(NamedTuple):
    """The state of the attack.

    discriminator: after the last attacked round. own_params: the parameters of the victim's copy; () if passive.
    victim: the last one, int32 []. round: the next one, int32 []. The moments are those of Adam; the trunk's begin anew
    in every attacked round.
    """

    discriminator: Discriminator
    head_moments: PyTree
    generator: PyTree
    generator_moments: PyTree
    memory: RepresentativeMemory
    own_params: PyTree
    victim: Array
    round: Array


class MganAiInfo(NamedTuple):
    """The log of a round: whether it was attacked, mean losses over the updates, mean distance of representatives.

    All is zeros in a round that is skipped. The distance of each client is in the memory.
    """

    attacked: Array
    discriminator: Losses
    generator: Losses
    distance: Array


@dataclasses.dataclass(frozen=True)
class Design:
    """The static choices of ``mgan_ai``, which describes them."""

    trunk: Trunk
    generator: ConditionalGenerator
    match: Matcher
    label: Callable[[PyTree, Array], Array]
    clients: int
    active: bool
    auxiliary: AuxiliaryImages | None
    identity: str
    observe: ObserveUpdates
    batch_size: int
    memory_rounds: int
    train_trunk: bool
    warm_start: bool

    def identities(self, victim: Array | int) -> Array:
        """The identity of each client, int32 [K]: its number, or in the form "victim" 1 for the victim and 0 else."""
        clients = jnp.arange(self.clients)
        return clients if self.identity == "all" else (clients == victim).astype(jnp.int32)


def adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.5)


def _move(params: PyTree, gradients: PyTree, moments: PyTree, rate: Array | float) -> tuple[PyTree, PyTree]:
    """One step of Adam -> (params, moments)."""
    directions, moments = adam().update(gradients, moments)
    return jax.tree.map(lambda weight, direction: weight - rate * direction, params, directions), moments


def draw_fakes(key: Array, generator: ConditionalGenerator, params: PyTree, count: int) -> FakeBatch:
    """Generated images, with conditions drawn uniformly and independently."""
    key_latents, key_categories, key_identities = jax.random.split(key, 3)
    latents = jax.random.uniform(key_latents, (count, generator.latent_size), minval=-1.0, maxval=1.0)
    categories = jax.random.randint(key_categories, (count,), 0, generator.categories)
    identities = jax.random.randint(key_identities, (count,), 0, generator.identities)
    return FakeBatch(generator.apply(params, latents, categories, identities), categories, identities)


def _draw_reals(key: Array, design: Design, memory: RepresentativeMemory, identities: Array) -> RealBatch:
    """A batch of representatives; half of it are auxiliary images, if there are any."""
    key_representatives, key_auxiliary = jax.random.split(key)
    auxiliary = design.auxiliary
    others = 0 if auxiliary is None else design.batch_size // 2
    count = design.batch_size - others
    drawn = draw_representatives(key_representatives, memory, identities, design.generator.identities, count)
    weights = jnp.full(count, drawn.weight)
    batch = RealBatch(drawn.images, drawn.labels, drawn.identities, weights, weights)
    if auxiliary is None:
        return batch
    places = jax.random.randint(key_auxiliary, (others,), 0, len(auxiliary.labels))
    outside = RealBatch(
        auxiliary.images[places],
        auxiliary.labels[places],
        jnp.zeros(others, jnp.int32),
        jnp.ones(others),
        jnp.zeros(others),
    )
    return jax.tree.map(lambda first, second: jnp.concatenate([first, second]), batch, outside)


def _no_losses() -> Losses:
    return Losses(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def _mean(total: Losses, steps: Array | int) -> Losses:
    return jax.tree.map(lambda value: value / jnp.maximum(steps, 1), total)


def train_discriminator(
    key: Array, design: Design, state: MganAiState, identities: Array, hyperparameters: MganAiHyperParameters
) -> tuple[MganAiState, Losses]:
    """Train the discriminator of the state on its memory, auxiliary images and new fakes -> (state, mean losses)."""

    def loss(discriminator: Discriminator, batch: RealBatch, fakes: Array) -> tuple[Array, Losses]:
        losses = discriminator_losses(design.trunk, discriminator, batch, fakes)
        return weighted_sum(losses, hyperparameters.category_weight, hyperparameters.identity_weight), losses

    def update(index: Array, carry: tuple) -> tuple:
        discriminator, head_moments, shared_moments, total = carry
        key_reals, key_fakes = jax.random.split(jax.random.fold_in(key, index))
        batch = _draw_reals(key_reals, design, state.memory, identities)
        fakes = draw_fakes(key_fakes, design.generator, state.generator, design.batch_size)
        (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(discriminator, batch, fakes.images)
        rate = hyperparameters.learning_rate
        heads, head_moments = _move(discriminator.heads, gradients.heads, head_moments, rate)
        shared = discriminator.shared
        if design.train_trunk:
            shared, shared_moments = _move(shared, gradients.shared, shared_moments, rate)
        return Discriminator(shared, heads), head_moments, shared_moments, trees.add(total, losses)

    shared_moments = adam().init(state.discriminator.shared) if design.train_trunk else ()
    begin = (state.discriminator, state.head_moments, shared_moments, _no_losses())
    steps = hyperparameters.discriminator_steps
    discriminator, head_moments, _, total = jax.lax.fori_loop(0, steps, update, begin)
    return state._replace(discriminator=discriminator, head_moments=head_moments), _mean(total, steps)


def train_generator(
    key: Array, design: Design, state: MganAiState, hyperparameters: MganAiHyperParameters
) -> tuple[MganAiState, Losses]:
    """Train the generator against the fixed discriminator of the state -> (state, mean losses)."""

    def loss(params: PyTree, key: Array) -> tuple[Array, Losses]:
        fakes = draw_fakes(key, design.generator, params, design.batch_size)
        losses = generator_losses(design.trunk, state.discriminator, fakes)
        return weighted_sum(losses, hyperparameters.category_weight, hyperparameters.identity_weight), losses

    def update(index: Array, carry: tuple) -> tuple:
        params, moments, total = carry
        (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(params, jax.random.fold_in(key, index))
        params, moments = _move(params, gradients, moments, hyperparameters.learning_rate)
        return params, moments, trees.add(total, losses)

    steps = hyperparameters.generator_steps
    begin = (state.generator, state.generator_moments, _no_losses())
    params, moments, total = jax.lax.fori_loop(0, steps, update, begin)
    return state._replace(generator=params, generator_moments=moments), _mean(total, steps)


def image_shape_of(generator: ConditionalGenerator) -> tuple[int, ...]:
    def draw(key: Array) -> Array:
        key_params, key_fakes = jax.random.split(key)
        return draw_fakes(key_fakes, generator, generator.init(key_params), 2).images

    return jax.eval_shape(draw, jax.random.key(0)).shape[1:]


def image_generator(
    generator: ConditionalGenerator, batch_size: int
) -> Callable[[Array, MganAiState, Array, Array], Array]:
    """Build ``generate(key, state, identities [M], categories [M]) -> images [M, H, W, C]``.

    identities: in the form "victim", 1 is the victim and 0 anyone else. A BatchNorm over one identity would remove what
    this identity has in common. So three quarters of each batch are images with random conditions, which are dropped.
    """
    asked = max(1, int(_ASKED * batch_size))

    def generate(key: Array, state: MganAiState, identities: Array, categories: Array) -> Array:
        count = len(identities)
        batches = -(-count // asked)
        keys = jax.random.split(key, 3)
        latents = jax.random.uniform(keys[0], (batches, batch_size, generator.latent_size), minval=-1.0, maxval=1.0)

        def fill(key: Array, conditions: Array, number: int) -> Array:
            missing = batches * asked - count
            rows = jnp.pad(conditions.astype(jnp.int32), (0, missing)).reshape(batches, asked)
            company = jax.random.randint(key, (batches, batch_size - asked), 0, number)
            return jnp.concatenate([rows, company], axis=1)

        conditions = (fill(keys[1], categories, generator.categories), fill(keys[2], identities, generator.identities))
        images = jax.lax.map(lambda batch: generator.apply(state.generator, *batch), (latents, *conditions))
        return images[:, :asked].reshape(-1, *images.shape[2:])[:count]

    return generate
