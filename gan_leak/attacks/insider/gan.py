"""The GAN attack of Hitaj, Ateniese and Perez-Cruz (CCS 2017), sections 7 and 8."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_leak import trees
from gan_leak.models.hitaj_generators import sample_images, sample_latents
from gan_leak.types import Array, Contribution, InsiderView, LocalData, Model, PyTree, RoundAttack


class GanAttackHyperParameters(NamedTuple):
    """The traced hyperparameters of the attack: target class, label of the fakes, learning rate of the generator.

    generator_averaging: the weight of the earlier average after each round; 0 uses the last generator, as in the paper.
    """

    target_class: Array | int
    fake_class: Array | int
    generator_learning_rate: Array | float
    generator_averaging: Array | float = 0.0


class Remembered(NamedTuple):
    """What the server has sent so far: the last value of every parameter [D], and where there is one, bool [D]."""

    values: Array
    known: Array


class GanAttackState(NamedTuple):
    """The generator, its average for reconstructions, the optimizer, fakes [M, F, ...] of M rounds and mask [M, F].

    remembered: () if the discriminator is the local model.
    """

    generator: PyTree
    averaged_generator: PyTree
    optimizer: PyTree
    fakes: Array
    fakes_mask: Array
    steps: Array
    remembered: PyTree = ()


class GanAttackInfo(NamedTuple):
    """Mean generator loss of the round, and the target's probability for the last batch under the downloaded model."""

    generator_loss: Array
    target_probability: Array


_OPTIMIZERS = {"sgd": optax.identity, "adam": lambda: optax.scale_by_adam(b1=0.5)}
GENERATOR_OPTIMIZERS = tuple(_OPTIMIZERS)
DISCRIMINATORS = ("local", "remembered")


def _check_choices(
    generator_optimizer: str,
    discriminator: str,
    *,
    fakes_per_round: int,
    first_turn: int,
    own_images_per_batch: int,
    **counts: int,
) -> None:
    if discriminator not in DISCRIMINATORS:
        raise ValueError(f"discriminator={discriminator!r}: allowed are {', '.join(map(repr, DISCRIMINATORS))}")
    if generator_optimizer not in _OPTIMIZERS:
        raise ValueError(
            f"generator_optimizer={generator_optimizer!r}: allowed are {', '.join(map(repr, _OPTIMIZERS))}"
        )
    may_be_zero = {
        "fakes_per_round": fakes_per_round,
        "first_turn": first_turn,
        "own_images_per_batch": own_images_per_batch,
    }
    for name, count in may_be_zero.items():
        if count < 0:
            raise ValueError(f"{name}={count}: expected at least 0")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")


def _average(state: GanAttackState, params: PyTree, weight: Array | float) -> PyTree:
    """The average of the generators with one more; ``weight`` is that of the earlier ones."""
    return jax.tree.map(lambda old, new: new + weight * (old - new), state.averaged_generator, params)


def _remember(state: GanAttackState, drawn: Array) -> tuple[Array, Array]:
    """The fakes and their mask, with the oldest round replaced by the drawn images [F, ...]."""
    slot = state.steps % state.fakes.shape[0]
    return state.fakes.at[slot].set(drawn), state.fakes_mask.at[slot].set(True)


def _nothing_remembered(classifier: Model) -> Remembered:
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(classifier.init, jax.random.key(0))))
    return Remembered(jnp.zeros(size), jnp.zeros(size, bool))


def _listen(remembered: Remembered, view: InsiderView) -> tuple[Remembered, PyTree]:
    """What is remembered after a download, and the model of it; of parameters never sent it has the adversary's own."""
    local, unravel = trees.ravel(view.params)
    sent = jnp.ones(local.shape, bool) if view.downloaded is None else view.downloaded
    known = remembered.known | sent
    values = jnp.where(sent | ~known, local, remembered.values)
    return Remembered(values, known), unravel(values)


def _target_loss(
    classifier: Model,
    generator: Model,
    discriminator: PyTree,
    target_class: Array | int,
    beside: Callable[[Array], Array] | None,
) -> Callable[[PyTree, Array, Array], Array]:
    """The negative log-likelihood of the target class, by the generator's parameters, latents [B, Z] and the step.

    beside: the real images that share the discriminator's batch, by step; None for none.
    """

    def loss(params: PyTree, latents: Array, index: Array) -> Array:
        images = generator.apply(params, latents)
        if beside is not None:
            images = jnp.concatenate([images, beside(index)])
        logits = classifier.apply(discriminator, images)[: latents.shape[0]]
        return -jnp.mean(jax.nn.log_softmax(logits)[:, target_class])

    return loss


def _own_images(own: LocalData | None, key: Array, count: int) -> Callable[[Array], Array] | None:
    """Random images [count, ...] of the adversary by step; None for no images."""
    if not count:
        return None
    if own is None:
        raise ValueError(f"own_images_per_batch={count}: expected 0 where the attack has no data of its own")

    def draw(index: Array) -> Array:
        places = jax.random.randint(jax.random.fold_in(key, index), (count,), 0, jnp.sum(own.mask))
        return own.inputs[places]

    return draw


def _train_generator(
    key: Array,
    state: GanAttackState,
    loss: Callable[[PyTree, Array, Array], Array],
    optimizer: optax.GradientTransformation,
    learning_rate: Array | float,
    *,
    steps: int,
    batch_size: int,
) -> tuple[PyTree, PyTree, Array, Array]:
    """Train the generator for ``steps`` -> (parameters, optimizer state, sum of the losses, last loss)."""

    def update(index: Array, carry: tuple) -> tuple:
        params, optimizer_state, total, _ = carry
        latents = sample_latents(jax.random.fold_in(key, index), batch_size)
        value, gradients = jax.value_and_grad(loss)(params, latents, index)
        direction, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        params = jax.tree.map(lambda weight, change: weight - learning_rate * change, params, direction)
        return params, optimizer_state, total + value, value

    begin = (state.generator, state.optimizer, jnp.zeros(()), jnp.zeros(()))
    return jax.lax.fori_loop(0, steps, update, begin)


def _from_turn(
    first_turn: int, attack: Callable[[], tuple[GanAttackState, Contribution, GanAttackInfo]], state: GanAttackState
) -> tuple[GanAttackState, Contribution, GanAttackInfo]:
    """The attack from this turn of the adversary on; before, a turn without a contribution."""
    if not first_turn:
        return attack()

    def wait() -> tuple[GanAttackState, Contribution, GanAttackInfo]:
        _, contribution, info = trees.zeros(jax.eval_shape(attack))
        return state._replace(steps=state.steps + 1), contribution, info

    return jax.lax.cond(state.steps < first_turn, wait, attack)


def gan_attack(
    classifier: Model,
    generator: Model,
    input_shape: tuple[int, ...],
    *,
    generator_steps: int,
    generator_batch_size: int,
    generator_optimizer: str = "sgd",
    fakes_per_round: int,
    fake_memory_rounds: int = 1,
    discriminator: str = "local",
    first_turn: int = 0,
    own_images_per_batch: int = 0,
) -> RoundAttack:
    """Build the insider's attack: it trains a generator against the downloaded model, and trains on labeled fakes.

    At each of the adversary's turns the downloaded model is the fixed discriminator. The generator takes
    ``generator_steps`` on the negative log-likelihood of the target class. Then ``fakes_per_round`` samples, labeled
    with the fake class, join the adversary's data for ``fake_memory_rounds`` rounds (1 replaces, more accumulates).
    With ``fakes_per_round=0`` the attack is passive: it adds no data (section 9.3).

    After a partial download, the local model mixes the server's parameters with the adversary's own. The discriminator
    ``remembered`` has the last value that the server sent of every parameter; local training is not changed.

    Before ``first_turn`` the adversary is an ordinary participant.

    With ``own_images_per_batch`` the generator's batch shares the discriminator's batch with so many random images of
    the adversary. They matter only if the model normalizes by the batch: then the statistics are like those in
    training, and not of generated images alone.

    Reconstructions may use an exponential average of the generators of all rounds (Yazici et al. 2019, arXiv
    1806.04498), which reduces changes between rounds. Fakes always use the last generator.

    Raises ValueError for an unknown optimizer or discriminator, and for counts that are too small.
    """
    _check_choices(
        generator_optimizer,
        discriminator,
        generator_steps=generator_steps,
        generator_batch_size=generator_batch_size,
        fakes_per_round=fakes_per_round,
        fake_memory_rounds=fake_memory_rounds,
        first_turn=first_turn,
        own_images_per_batch=own_images_per_batch,
    )
    optimizer = _OPTIMIZERS[generator_optimizer]()

    def init(key: Array) -> GanAttackState:
        params, shape = generator.init(key), (fake_memory_rounds, fakes_per_round)
        fakes, mask = jnp.zeros((*shape, *input_shape)), jnp.zeros(shape, bool)
        remembered = _nothing_remembered(classifier) if discriminator == "remembered" else ()
        return GanAttackState(params, params, optimizer.init(params), fakes, mask, jnp.zeros((), jnp.int32), remembered)

    def attack(
        key: Array, state: GanAttackState, view: InsiderView, hyperparameters: GanAttackHyperParameters
    ) -> tuple[GanAttackState, Contribution, GanAttackInfo]:
        key_latents, key_fakes = jax.random.split(key)
        beside = _own_images(view.own, jax.random.fold_in(key_latents, generator_steps), own_images_per_batch)
        params, optimizer_state, total, last = _train_generator(
            key_latents,
            state,
            _target_loss(classifier, generator, view.params, hyperparameters.target_class, beside),
            optimizer,
            hyperparameters.generator_learning_rate,
            steps=generator_steps,
            batch_size=generator_batch_size,
        )
        fakes, fakes_mask = state.fakes, state.fakes_mask
        if fakes_per_round:
            drawn = sample_images(generator, params, key_fakes, fakes_per_round, generator_batch_size)
            fakes, fakes_mask = _remember(state, drawn)
        labels = jnp.full(fakes_mask.size, hyperparameters.fake_class, jnp.int32)
        contribution = Contribution(fakes.reshape(-1, *input_shape), labels, fakes_mask.reshape(-1))
        # The untrained generator is not averaged.
        weight = jnp.where(state.steps == first_turn, 0.0, hyperparameters.generator_averaging)
        averaged = _average(state, params, weight)
        new_state = GanAttackState(
            params, averaged, optimizer_state, fakes, fakes_mask, state.steps + 1, state.remembered
        )
        return new_state, contribution, GanAttackInfo(total / generator_steps, jnp.exp(-last))

    def step(
        key: Array, state: GanAttackState, view: InsiderView, hyperparameters: GanAttackHyperParameters
    ) -> tuple[GanAttackState, Contribution, GanAttackInfo]:
        if discriminator == "remembered":
            remembered, params = _listen(state.remembered, view)
            state, view = state._replace(remembered=remembered), view._replace(params=params)
        return _from_turn(first_turn, functools.partial(attack, key, state, view, hyperparameters), state)

    def reconstruct(key: Array, state: GanAttackState, count: int) -> Array:
        return sample_images(generator, state.averaged_generator, key, count, generator_batch_size)

    return RoundAttack(init, step, reconstruct)
