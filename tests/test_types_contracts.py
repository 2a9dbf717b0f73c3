"""Every transform and every attack in a round keeps the contract of gan_leak.types, whatever its method."""

import inspect
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gan_leak
from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.collaboration import RoundHyperParameters, selective_upload
from gan_leak.collaboration.selection import chain, largest_fraction, random_above_threshold, truncate
from gan_leak.defenses import sparse_vector_upload
from gan_leak.types import (
    Contribution,
    InsiderView,
    Received,
    RoundAttack,
    Sent,
    ServerAttack,
    ServerView,
    TransformInfo,
    Upload,
    UploadTransform,
)
from reference.mgan_ai import quick_numbers, small_mgan_ai
from reference.server_attacks import Victim, isolating_attack, reading_attack
from reference.small import (
    FAKE_CLASS,
    IMAGE_SHAPE,
    linear_classifier,
    linear_generator,
    same_bits,
)

# A new transform or attack is added here and has to pass the whole page.
TRANSFORMS = {
    "largest_fraction": largest_fraction(),
    "random_above_threshold": random_above_threshold(),
    "truncate": truncate(),
    "chain of none": chain(),
    "chain of all": chain(truncate(), random_above_threshold(), largest_fraction()),
    "selective_upload largest": selective_upload("largest"),
    "selective_upload random": selective_upload("random"),
    "sparse_vector": sparse_vector_upload(0.002, math.inf),
}


def small_gan_attack(**arguments):
    return gan_attack(
        linear_classifier(),
        linear_generator(),
        IMAGE_SHAPE,
        generator_steps=2,
        generator_batch_size=3,
        **arguments,
    )


GAN_NUMBERS = GanAttackHyperParameters(1, FAKE_CLASS, 0.1)
ATTACKS = {
    "active": (small_gan_attack(fakes_per_round=4, fake_memory_rounds=2), GAN_NUMBERS),
    "passive": (small_gan_attack(fakes_per_round=0), GAN_NUMBERS),
    "adam": (small_gan_attack(fakes_per_round=4, generator_optimizer="adam"), GAN_NUMBERS),
}

PARTICIPANTS = 3
SERVER_ATTACKS = {
    "reading": (reading_attack(PARTICIPANTS), ()),
    "isolating": (isolating_attack(PARTICIPANTS), Victim(1)),
    "mgan_ai": (small_mgan_ai(PARTICIPANTS), quick_numbers(1)),
    "mgan_ai active": (small_mgan_ai(PARTICIPANTS, active=True, identity="victim"), quick_numbers(1)),
}

NUMBERS = RoundHyperParameters(0.1, 0.0, 0.4, 1.0, 0.2, 0.7)
PARAMS = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(14)}


def an_upload():
    mask = np.arange(20) % 4 > 0
    values = np.where(mask, np.random.default_rng(0).normal(size=20), 0)
    return Upload(jnp.asarray(values, jnp.float32), jnp.asarray(mask))


def names(function, kind):
    return [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind == kind]


def avals(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(lambda: tree))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_upload_transforms_have_one_signature(name):
    """init(params); apply(key, upload, state, *, params, hyperparameters, **extra)."""
    transform = TRANSFORMS[name]
    assert isinstance(transform, UploadTransform)
    assert list(inspect.signature(transform.init).parameters) == ["params"]
    assert names(transform.apply, inspect.Parameter.POSITIONAL_OR_KEYWORD) == ["key", "upload", "state"]
    assert names(transform.apply, inspect.Parameter.KEYWORD_ONLY) == ["params", "hyperparameters"]
    assert names(transform.apply, inspect.Parameter.VAR_KEYWORD) == ["extra"]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_upload_transforms_return_uploads(name):
    """Same shapes and types, zero where nothing is sent, an honest count, a state to carry, determined by the key."""
    transform, given = TRANSFORMS[name], an_upload()
    apply = jax.jit(
        lambda key, upload, state: transform.apply(
            key, upload, state, params=PARAMS, hyperparameters=NUMBERS, unknown_extra=1
        )
    )
    state = transform.init(PARAMS)
    result = apply(jax.random.key(0), given, state)
    assert type(result) is tuple
    upload, new_state, info = result
    assert (type(upload), type(info)) == (Upload, TransformInfo)
    assert avals(upload) == avals(given)
    assert avals(new_state) == avals(state)
    assert (info.uploaded.shape, info.uploaded.dtype) == ((), jnp.int32)
    assert int(info.uploaded) == int(upload.mask.sum()) > 0
    assert not np.asarray(upload.values)[~np.asarray(upload.mask)].any()
    assert not (upload.mask & ~given.mask).any()
    assert same_bits(apply(jax.random.key(0), given, state), result)


@pytest.mark.parametrize("name", ATTACKS)
def test_round_attacks_have_one_signature(name):
    """init(key); step(key, state, view, hyperparameters); reconstruct(key, state, count)."""
    attack, _ = ATTACKS[name]
    assert isinstance(attack, RoundAttack)
    assert list(inspect.signature(attack.init).parameters) == ["key"]
    assert list(inspect.signature(attack.step).parameters) == ["key", "state", "view", "hyperparameters"]
    assert list(inspect.signature(attack.reconstruct).parameters) == ["key", "state", "count"]


@pytest.mark.parametrize("name", ATTACKS)
def test_round_attacks_return_contributions(name):
    """A state to carry, images, labels and mask of one length, pictures in [-1, 1], determined by the key."""
    attack, hyperparameters = ATTACKS[name]
    view, step = InsiderView(linear_classifier().init(jax.random.key(0))), jax.jit(attack.step)
    state = attack.init(jax.random.key(1))
    result = step(jax.random.key(2), state, view, hyperparameters)
    assert type(result) is tuple
    new_state, contribution, info = result
    assert type(contribution) is Contribution
    assert avals(new_state) == avals(state)
    count = contribution.mask.shape[0]
    assert avals(contribution) == (
        ((count, *IMAGE_SHAPE), jnp.float32),
        ((count,), jnp.int32),
        ((count,), jnp.bool),
    )
    assert all(leaf.shape == () and jnp.isfinite(leaf) for leaf in jax.tree.leaves(info))
    assert same_bits(step(jax.random.key(2), state, view, hyperparameters), result)
    assert not same_bits(step(jax.random.key(3), state, view, hyperparameters)[0], new_state)
    images = attack.reconstruct(jax.random.key(4), new_state, 5)
    assert (images.shape, images.dtype) == ((5, *IMAGE_SHAPE), jnp.float32)
    assert np.abs(images).max() <= 1


@pytest.mark.parametrize("name", SERVER_ATTACKS)
def test_server_attacks_have_one_signature(name):
    """init(key, params); broadcast(...) for one participant; step(...) once a round; reconstruct(key, state, count)."""
    attack, _ = SERVER_ATTACKS[name]
    assert isinstance(attack, ServerAttack)
    assert list(inspect.signature(attack.init).parameters) == ["key", "params"]
    assert list(inspect.signature(attack.broadcast).parameters) == [
        "key",
        "state",
        "params",
        "participant",
        "hyperparameters",
    ]
    assert list(inspect.signature(attack.step).parameters) == ["key", "state", "view", "hyperparameters"]
    assert list(inspect.signature(attack.reconstruct).parameters) == ["key", "state", "count"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVER_ATTACKS)
def test_server_attacks_send_parameters_and_carry_their_state(name):
    """What is sent has the shapes of the parameters; a state to carry; finite info; the same bits for the same key."""
    attack, hyperparameters = SERVER_ATTACKS[name]
    params = linear_classifier().init(jax.random.key(0))
    state = attack.init(jax.random.key(1), params)
    sent = attack.broadcast(jax.random.key(2), state, params, jnp.int32(1), hyperparameters)
    assert type(sent) is Sent
    assert avals(sent.params) == avals(params)
    assert sent.merged is None or avals(sent.merged) == ((), jnp.bool_)
    uploads = jax.random.normal(jax.random.key(3), (PARTICIPANTS, 85))
    mask = jnp.ones(uploads.shape, bool)
    view = ServerView(
        jnp.int32(0),
        jnp.arange(PARTICIPANTS),
        jax.tree.map(lambda leaf: jnp.stack([leaf] * PARTICIPANTS), params),
        mask,
        Received(Upload(uploads, mask), None),
        params,
    )
    step = jax.jit(attack.step)
    result = step(jax.random.key(4), state, view, hyperparameters)
    new_state, info = result
    assert avals(new_state) == avals(state)
    assert all(leaf.shape == () and jnp.isfinite(leaf) for leaf in jax.tree.leaves(info))
    assert same_bits(step(jax.random.key(4), state, view, hyperparameters), result)
    assert attack.reconstruct(jax.random.key(5), new_state, 2).reshape(2, -1).shape == (2, 16)


IMPORT_PROBE = """
import builtins, sys
imported, original = [], builtins.__import__
def watched(name, globals=None, *arguments, **keywords):
    if globals and str(globals.get("__name__")).startswith("gan_leak"):
        imported.append(name.split(".")[0])
    return original(name, globals, *arguments, **keywords)
builtins.__import__ = watched
import importlib
for module in sys.argv[1:]:
    importlib.import_module(module)
print(",".join(sorted(set(imported))), ",".join(name for name in sys.modules if "." not in name))
"""


def modules_of_the_package():
    root = Path(gan_leak.__file__).parent
    paths = [path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py")]
    return sorted({".".join(path.parts).removesuffix(".__init__") for path in paths})


def test_importing_the_package_imports_no_absl_tensorflow_or_matplotlib():
    """No module asks for one at import time. (optax and flax load absl by themselves.)"""
    modules = modules_of_the_package()
    assert {"gan_leak", "gan_leak.attacks.insider.gan", "gan_leak.collaboration.round"} <= set(modules)
    output = subprocess.run(
        [sys.executable, "-c", IMPORT_PROBE, *modules],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=Path(gan_leak.__file__).parents[1],
    ).stdout.split()
    imported, loaded = (set(names.split(",")) for names in output)
    assert {"jax", "numpy", "gan_leak"} <= imported
    assert not imported & {"absl", "tensorflow", "matplotlib"}
    assert not loaded & {"tensorflow", "matplotlib"}
