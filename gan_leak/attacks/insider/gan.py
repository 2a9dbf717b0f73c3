"""The GAN attack of Hitaj, Ateniese and Perez-Cruz (CCS 2017), sections 7 and 8."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_leak.models.hitaj_generators import sample_images, sample_latents
from gan_leak.types import Array, Contribution, InsiderView, Model, PyTree, RoundAttack


class GanAttackHyperParameters(NamedTuple):
    """The traced hyperparameters of the attack: target class, label of the fakes, learning rate of the generator.

    generator_averaging: the weight of the earlier average after each round; 0 uses the last generator, as in the paper.
    """

    target_class: Array | int
    fake_class: Array | int
    generator_learning_rate: Array | float
    generator_averaging: Array | float = 0.0


class GanAttackState(NamedTuple):
    """The generator, its average for reconstructions, the optimizer, fakes [M, F, ...] of M rounds and mask [M, F]."""

    generator: PyTree
    averaged_generator: PyTree
    optimizer: PyTree
    fakes: Array
    fakes_mask: Array
    steps: Array


class GanAttackInfo(NamedTuple):
    """Mean generator loss of the round, and the target's probability for the last batch under the downloaded model."""

    generator_loss: Array
    target_probability: Array


_OPTIMIZERS = {"sgd": optax.identity, "adam": lambda: optax.scale_by_adam(b1=0.5)}
GENERATOR_OPTIMIZERS = tuple(_OPTIMIZERS)


def _check_choices(generator_optimizer: str, *, fakes_per_round: int, **counts: int) -> None:
    if generator_optimizer not in _OPTIMIZERS:
        raise ValueError(
            f"generator_optimizer={generator_optimizer!r}: allowed are {', '.join(map(repr, _OPTIMIZERS))}"
        )
    if fakes_per_round < 0:
        raise ValueError(f"fakes_per_round={fakes_per_round}: expected at least 0")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")


def _average(state: GanAttackState, params: PyTree, weight: Array | float) -> PyTree:
    """The average of the generators with one more; ``weight`` is that of the earlier ones."""
    # The untrained generator is not averaged.
    kept = jnp.where(state.steps == 0, 0.0, weight)
    return jax.tree.map(lambda old, new: new + kept * (old - new), state.averaged_generator, params)


def _remember(state: GanAttackState, drawn: Array) -> tuple[Array, Array]:
    """The fakes and their mask, with the oldest round replaced by the drawn images [F, ...]."""
    slot = state.steps % state.fakes.shape[0]
    return state.fakes.at[slot].set(drawn), state.fakes_mask.at[slot].set(True)


def _target_loss(
    classifier: Model, generator: Model, view: InsiderView, target_class: Array | int
) -> Callable[[PyTree, Array], Array]:
    """The negative log-likelihood of the target class, by the generator's parameters and latents [B, Z]."""

    def loss(params: PyTree, latents: Array) -> Array:
        logits = classifier.apply(view.params, generator.apply(params, latents))
        return -jnp.mean(jax.nn.log_softmax(logits)[:, target_class])

    return loss


def _train_generator(
    key: Array,
    state: GanAttackState,
    loss: Callable[[PyTree, Array], Array],
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
        value, gradients = jax.value_and_grad(loss)(params, latents)
        direction, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        params = jax.tree.map(lambda weight, change: weight - learning_rate * change, params, direction)
        return params, optimizer_state, total + value, value

    begin = (state.generator, state.optimizer, jnp.zeros(()), jnp.zeros(()))
    return jax.lax.fori_loop(0, steps, update, begin)


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
) -> RoundAttack:
    """Build the insider's attack: it trains a generator against the downloaded model, and trains on labeled fakes.

    At each of the adversary's turns the downloaded model is the fixed discriminator. The generator takes
    ``generator_steps`` on the negative log-likelihood of the target class. Then ``fakes_per_round`` samples, labeled
    with the fake class, join the adversary's data for ``fake_memory_rounds`` rounds (1 replaces, more accumulates).
    With ``fakes_per_round=0`` the attack is passive: it adds no data (section 9.3).

    Reconstructions may use an exponential average of the generators of all rounds (Yazici et al. 2019, arXiv
    1806.04498), which reduces changes between rounds. Fakes always use the last generator.

    Raises ValueError for an unknown optimizer and for counts that are too small.
    """
    _check_choices(
        generator_optimizer,
        generator_steps=generator_steps,
        generator_batch_size=generator_batch_size,
        fakes_per_round=fakes_per_round,
        fake_memory_rounds=fake_memory_rounds,
    )
    optimizer = _OPTIMIZERS[generator_optimizer]()

    def init(key: Array) -> GanAttackState:
        params, shape = generator.init(key), (fake_memory_rounds, fakes_per_round)
        fakes, mask = jnp.zeros((*shape, *input_shape)), jnp.zeros(shape, bool)
        return GanAttackState(params, params, optimizer.init(params), fakes, mask, jnp.zeros((), jnp.int32))

    def step(
        key: Array, state: GanAttackState, view: InsiderView, hyperparameters: GanAttackHyperParameters
    ) -> tuple[GanAttackState, Contribution, GanAttackInfo]:
        key_latents, key_fakes = jax.random.split(key)
        params, optimizer_state, total, last = _train_generator(
            key_latents,
            state,
            _target_loss(classifier, generator, view, hyperparameters.target_class),
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
        averaged = _average(state, params, hyperparameters.generator_averaging)
        new_state = GanAttackState(params, averaged, optimizer_state, fakes, fakes_mask, state.steps + 1)
        return new_state, contribution, GanAttackInfo(total / generator_steps, jnp.exp(-last))

    def reconstruct(key: Array, state: GanAttackState, count: int) -> Array:
        return sample_images(generator, state.averaged_generator, key, count, generator_batch_size)

    return RoundAttack(init, step, reconstruct)
