"""The first parameters are those of Flax, from one program for equal modules."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.models import initialization
from gan_leak.models.initialization import init_params


class Scaled(nn.Module):
    """A dense layer with dropout; ``scale`` may be anything, also what has no hash."""

    scale: Any

    @nn.compact
    def __call__(self, inputs, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(inputs) * jnp.sum(jnp.asarray(self.scale)))


@pytest.mark.parametrize("scale", [2.0, np.ones(2)], ids=["with a hash", "without a hash"])
def test_parameters_are_those_of_flax(scale):
    module, key = Scaled(scale), jax.random.key(5)
    expected = module.init(key, jnp.zeros((1, 4)), train=False)["params"]
    jax.tree.map(np.testing.assert_array_equal, init_params(module, key, (1, 4), train=False), expected)


def test_another_key_draws_other_parameters():
    first, second = (init_params(nn.Dense(3), jax.random.key(seed), (1, 4))["kernel"] for seed in (0, 1))
    assert np.all(np.asarray(first) != np.asarray(second))


def test_equal_modules_share_a_program_and_others_do_not():
    programs = initialization._compiled_init._cache_size
    key = jax.random.key(0)
    init_params(nn.Dense(7), key, (1, 4))
    before = programs()
    init_params(nn.Dense(7), key, (1, 4))
    assert programs() == before
    for module, shape in ((nn.Dense(8), (1, 4)), (nn.Dense(7), (1, 5))):
        init_params(module, key, shape)
    assert programs() == before + 2


def test_a_module_without_parameters_has_none():
    assert init_params(nn.Dropout(0.5, deterministic=True), jax.random.key(0), (1, 4)) == {}
