"""The insider's GAN run at the server: a class-level baseline of user-level attacks.

Hitaj et al. (CCS 2017) train a generator against the shared model. A server holds that model, too, and needs no data
for it. Such a generator shows what a class looks like in the whole federation and not in one participant's data, so an
attack on one participant must do better.

>>> from gan_leak import classifier_for, dcgan_generator
>>> classifier, generator = classifier_for(32, 2, channels=1), dcgan_generator(32, channels=1, width=4)
>>> attack = class_gan(classifier, generator, (32, 32, 1), 2, generator_steps=1, generator_batch_size=4)
>>> state = jax.eval_shape(attack.init, jax.random.key(0), jax.eval_shape(classifier.init, jax.random.key(1)))
>>> jax.eval_shape(lambda state: images_by_class(jax.random.key(2), attack, state, 2, 3), state).shape
(2, 3, 32, 32, 1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_leak.attacks.insider.gan import GanAttackHyperParameters, GanAttackInfo, GanAttackState, gan_attack
from gan_leak.attacks.server.broadcasts import send_shared
from gan_leak.types import Array, InsiderView, Model, PyTree, ServerAttack, ServerView


class ClassGanHyperParameters(NamedTuple):
    """The traced hyperparameters of the generators, see ``GanAttackHyperParameters``."""

    generator_learning_rate: Array | float
    generator_averaging: Array | float = 0.0


def class_gan(
    classifier: Model,
    generator: Model,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    generator_steps: int,
    generator_batch_size: int,
    generator_optimizer: str = "sgd",
) -> ServerAttack:
    """Build a passive server that trains one generator for each of the classes 0 to ``classes`` - 1.

    After each round, every generator takes ``generator_steps`` on the negative log-likelihood of its class under the
    shared parameters after the round, as ``gan_attack`` does without adding data. Of the view only these parameters are
    read, so secure aggregation does not change the attack. The state has a leading axis [classes]; the info is that of
    the insider, with the same axis.

    ``reconstruct(key, state, count)``: image i shows class i modulo ``classes``; see ``images_by_class``.

    Raises ValueError for fewer than one class, and as ``gan_attack`` does.
    """
    if classes < 1:
        raise ValueError(f"classes={classes}: expected at least 1")
    insider = gan_attack(
        classifier,
        generator,
        input_shape,
        generator_steps=generator_steps,
        generator_batch_size=generator_batch_size,
        generator_optimizer=generator_optimizer,
        fakes_per_round=0,
    )

    def for_each_class(fun: Callable[..., PyTree], key: Array, *trees: PyTree) -> PyTree:
        """``fun(key, class, *trees)`` for one class after the other, since generators are large."""
        numbers = jnp.arange(classes)
        return jax.lax.map(lambda entry: fun(jax.random.fold_in(key, entry[0]), *entry), (numbers, *trees))

    def init(key: Array, params: PyTree) -> GanAttackState:
        return for_each_class(lambda own_key, number: insider.init(own_key), key)

    def step(
        key: Array, state: GanAttackState, view: ServerView, hyperparameters: ClassGanHyperParameters
    ) -> tuple[GanAttackState, GanAttackInfo]:
        def train(own_key: Array, number: Array, own: GanAttackState) -> tuple[GanAttackState, GanAttackInfo]:
            # Without fakes, their label has no effect.
            numbers = GanAttackHyperParameters(number, 0, *hyperparameters)
            own, _, info = insider.step(own_key, own, InsiderView(view.params), numbers)
            return own, info

        return for_each_class(train, key, state)

    def reconstruct(key: Array, state: GanAttackState, count: int) -> Array:
        each = -(-count // classes)
        images = for_each_class(lambda own_key, number, own: insider.reconstruct(own_key, own, each), key, state)
        return jnp.swapaxes(images, 0, 1).reshape(-1, *images.shape[2:])[:count]

    return ServerAttack(init, send_shared, step, reconstruct)


def images_by_class(key: Array, attack: ServerAttack, state: PyTree, classes: int, count: int) -> Array:
    """Draw ``count`` images of each class from a ``class_gan`` -> [classes, count, ...]."""
    images = attack.reconstruct(key, state, classes * count)
    return jnp.swapaxes(images.reshape(count, classes, *images.shape[1:]), 0, 1)
