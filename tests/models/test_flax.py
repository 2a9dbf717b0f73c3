"""A user's Flax module as a model: in evaluation mode, a pure function of its parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.models import as_model
from gan_leak.types import Model
from reference.small import same_bits

INPUTS = np.random.default_rng(0).normal(3, 2, (6, 4)).astype(np.float32)


class DropoutAndBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=True):
        hidden = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(5)(inputs))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(hidden))


class AlwaysDropout(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(inputs))


class AlwaysBatchStatistics(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(inputs))


class NoBatchAxis(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs).sum()


def trained_variables(module):
    """Running statistics as training leaves them: not those of an initialization."""
    variables = module.init(jax.random.key(0), INPUTS, train=False)
    _, updated = module.apply(
        variables, INPUTS, train=True, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"]
    )
    return {**variables, **updated}


def test_a_module_without_modes_keeps_its_parameters_and_outputs():
    module = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])
    model = as_model(module, (4,))
    assert isinstance(model, Model)
    params = model.init(jax.random.key(0))
    assert same_bits(params, module.init(jax.random.key(0), jnp.zeros((1, 4)))["params"])
    assert same_bits(model.apply(params, INPUTS), module.apply({"params": params}, INPUTS))


def test_a_trained_module_is_wrapped_in_evaluation_mode():
    """Its own running statistics are used and stay; dropout is off."""
    module = DropoutAndBatchNorm()
    variables = trained_variables(module)
    model = as_model(module, (4,), variables=variables)
    outputs = model.apply(variables["params"], INPUTS)
    np.testing.assert_array_equal(outputs, module.apply(variables, INPUTS, train=False))
    assert set(model.init(jax.random.key(2))) == set(variables["params"])


def test_an_example_does_not_depend_on_the_others_of_its_batch():
    model = as_model(DropoutAndBatchNorm(), (4,))
    params = model.init(jax.random.key(0))
    together = model.apply(params, INPUTS)
    alone = jnp.concatenate([model.apply(params, row[None]) for row in INPUTS])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (AlwaysDropout(), r"^module=AlwaysDropout: expected one that draws no random numbers .* PRNG for .dropout."),
        (AlwaysBatchStatistics(), r"^module=AlwaysBatchStatistics: expected one that .* changes no collection"),
        (NoBatchAxis(), r"^module=NoBatchAxis: its output has no batch axis, expected an array \[B, \.\.\.\]$"),
        (np.tanh, r"^module=ufunc: expected a flax\.linen\.Module$"),
    ],
)
def test_what_is_no_pure_function_of_its_parameters_is_refused(module, message):
    with pytest.raises(ValueError, match=message) as refused:
        as_model(module, (4,))
    assert len(str(refused.value).splitlines()) == 1
