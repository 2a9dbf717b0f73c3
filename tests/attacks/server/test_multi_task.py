"""The losses of the multi-task discriminator by hand, and balanced draws of representatives."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan_leak.attacks.server.multi_task import (
    Discriminator,
    FakeBatch,
    Heads,
    RealBatch,
    discriminator_losses,
    generator_losses,
    identity_losses,
    init_heads,
    judge_images,
    weighted_mean,
    weighted_sum,
)
from gan_leak.attacks.server.representative_memory import (
    draw_representatives,
    empty_memory,
    latest,
    remember,
    shares,
)
from gan_leak.models.trunks import Trunk

# Two pixels, which are the features; the logits of both categories are the pixels, too.
TRUNK = Trunk(lambda shared, images: (images.reshape(-1, 2), shared * images.reshape(-1, 2)), 2, 2)


def head(kernel, bias):
    return {"Dense_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}


def images(*rows):
    return jnp.asarray(rows, jnp.float32).reshape(-1, 1, 2, 1)


# Reality: the first pixel. Identity: the second, or (the first, the second, 0).
ONE_VICTIM = Discriminator(jnp.ones(()), Heads(head([[1.0], [0.0]], [0.0]), head([[0.0], [1.0]], [0.0])))
ALL = ONE_VICTIM._replace(heads=Heads(ONE_VICTIM.heads.real, head([[1.0, 0, 0], [0, 1.0, 0]], [0.0, 0, 0])))


def softplus(value):
    return math.log(1 + math.exp(value))


def test_the_losses_of_the_discriminator_by_hand():
    """One representative of the victim, one of another, one auxiliary image without an identity, two fakes."""
    batch = RealBatch(
        images((2, 1), (0, -1), (1, 3)),
        jnp.array([0, 1, 1]),
        jnp.array([1, 0, 0]),
        jnp.ones(3),
        jnp.array([1.0, 1.0, 0.0]),
    )
    losses = discriminator_losses(TRUNK, ONE_VICTIM, batch, images((3, 0), (-2, 5)))
    reals = (softplus(-2) + softplus(0) + softplus(-1)) / 3
    fakes = (softplus(3) + softplus(-2)) / 2
    assert float(losses.real) == pytest.approx((reals + fakes) / 2, rel=1e-5)
    # -log softmax of two logits is the softplus of other minus own.
    assert float(losses.category) == pytest.approx((softplus(-1) + softplus(1) + softplus(-2)) / 3, rel=1e-5)
    # The victim has the logit 1, the other one -1.
    assert float(losses.identity) == pytest.approx(softplus(-1), rel=1e-5)
    assert float(weighted_sum(losses, 2.0, 0.5)) == pytest.approx(
        float(losses.real + 2 * losses.category + 0.5 * losses.identity), rel=1e-6
    )


def test_without_representatives_only_fakes_and_auxiliary_images_count():
    batch = RealBatch(images((9, 9), (1, 3)), jnp.array([0, 1]), jnp.array([0, 0]), jnp.array([0.0, 1.0]), jnp.zeros(2))
    losses = discriminator_losses(TRUNK, ALL, batch, images((3, 0)))
    assert float(losses.real) == pytest.approx((softplus(-1) + softplus(3)) / 2, rel=1e-5)
    assert float(losses.category) == pytest.approx(softplus(-2), rel=1e-5)
    assert float(losses.identity) == 0


def test_the_losses_of_the_generator_by_hand():
    """Its images should count as real, of the category and the identity of their condition."""
    fakes = FakeBatch(images((2, 1), (0, -1)), jnp.array([0, 0]), jnp.array([0, 2]))
    losses = generator_losses(TRUNK, ALL, fakes)
    assert float(losses.real) == pytest.approx((softplus(-2) + softplus(0)) / 2, rel=1e-5)
    assert float(losses.category) == pytest.approx((softplus(-1) + softplus(-1)) / 2, rel=1e-5)
    first = math.log(math.exp(2) + math.exp(1) + 1) - 2
    second = math.log(1 + math.exp(-1) + 1) - 0
    assert float(losses.identity) == pytest.approx((first + second) / 2, rel=1e-5)


def test_both_forms_of_the_identity_loss():
    """One output is a sigmoid, several are a softmax."""
    np.testing.assert_allclose(
        identity_losses(jnp.array([[2.0], [2.0]]), jnp.array([1, 0])), [softplus(-2), softplus(2)], rtol=1e-5
    )
    np.testing.assert_allclose(
        identity_losses(jnp.array([[2.0, 0.0], [2.0, 0.0]]), jnp.array([0, 1])),
        [softplus(-2), softplus(2)],
        rtol=1e-5,
    )


def test_the_category_head_is_that_of_the_shared_model_and_heads_have_their_sizes():
    heads = init_heads(jax.random.key(0), TRUNK, 3)
    judgment = judge_images(TRUNK, Discriminator(jnp.float32(5), heads), images((1, 2)))
    assert judgment.categories.tolist() == [[5, 10]]
    assert (judgment.real.shape, judgment.identities.shape) == ((1,), (1, 3))
    # The keys of both heads differ.
    assert not np.isin(heads.real["Dense_0"]["kernel"], heads.identity["Dense_0"]["kernel"]).any()


def test_a_mean_without_weights_is_zero():
    assert float(weighted_mean(jnp.array([3.0, 5.0]), jnp.array([1.0, 3.0]))) == 4.5
    assert float(weighted_mean(jnp.array([3.0, 5.0]), jnp.zeros(2))) == 0
    assert float(weighted_mean(jnp.array([3.0, 5.0]), jnp.array([0.25, 0.0]))) == 3


CLIENTS, EACH, SHAPE = 4, 2, (1, 1, 1)
SHARES = jax.jit(shares, static_argnums=2)
DRAW = jax.jit(draw_representatives, static_argnums=(3, 4))


def numbered(round_number):
    """Images whose one pixel tells round, client and place: 100 t + 10 k + r."""
    values = 100 * round_number + 10 * np.arange(CLIENTS)[:, None] + np.arange(EACH)[None]
    return jnp.asarray(values, jnp.float32).reshape(CLIENTS, EACH, *SHAPE)


def a_memory(presence):
    """A memory of as many rounds as there are rows in ``presence``, oldest first."""
    memory = empty_memory(2, (CLIENTS, EACH), SHAPE)
    labels = jnp.broadcast_to(jnp.arange(EACH)[None], (CLIENTS, EACH))
    for number, present in enumerate(presence):
        memory = remember(memory, numbered(number), labels, jnp.full(CLIENTS, 1.0 + number), jnp.array(present))
    return memory


def test_a_memory_keeps_the_last_rounds_and_the_latest_of_each_client():
    memory = a_memory([[True] * 4, [True, True, True, False], [True, False, True, False]])
    assert memory.known.tolist() == [[True, False, True, False], [True, True, True, False]]
    newest = latest(memory)
    assert newest.images[:, 1, 0, 0, 0].tolist() == [201, 111, 221, 0]
    assert newest.known.tolist() == [True, True, True, False]
    assert newest.distances.tolist() == [3, 2, 3, 0]


def test_representatives_that_are_not_finite_are_left_out():
    memory = empty_memory(1, (CLIENTS, EACH), SHAPE)
    broken = numbered(0).at[2, 1].set(jnp.nan).at[3, 0].set(jnp.inf)
    memory = remember(
        memory, broken, jnp.zeros((CLIENTS, EACH), jnp.int32), jnp.full(CLIENTS, jnp.nan), jnp.ones(CLIENTS, bool)
    )
    assert memory.known.tolist() == [[True, True, False, False]]
    assert bool(jnp.all(jnp.isfinite(memory.images)))


@given(
    known=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
    identities=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_every_identity_with_a_representative_has_the_same_share(known, identities):
    found = np.asarray(SHARES(jnp.array(known), jnp.array(identities), 3))
    totals = collections.defaultdict(float)
    for row, present in zip(found, known, strict=True):
        for share, here, identity in zip(row, present, identities, strict=True):
            assert (share > 0) == here
            totals[identity] += share
    assert all(total == pytest.approx(1, abs=1e-5) or total == 0 for total in totals.values())


def test_draws_are_balanced_and_carry_their_labels():
    """One victim of three known clients is drawn every second time, and never one who is not known."""
    memory = a_memory([[True, True, True, False]])
    drawn = DRAW(jax.random.key(0), memory, jnp.array([0, 1, 0, 0]), 2, 4000)
    pixels = np.asarray(drawn.images)[:, 0, 0, 0].astype(int)
    counts = collections.Counter(pixels // 10)
    assert set(counts) == {0, 1, 2}
    assert counts[1] == pytest.approx(2000, abs=150)
    assert counts[0] == pytest.approx(1000, abs=150)
    np.testing.assert_array_equal(pixels % 10, drawn.labels)
    np.testing.assert_array_equal(pixels // 10 == 1, drawn.identities)
    assert float(drawn.weight) == 1
    nothing = DRAW(jax.random.key(0), empty_memory(1, (CLIENTS, EACH), SHAPE), jnp.arange(4), 4, 3)
    assert float(nothing.weight) == 0
    assert bool(jnp.all(jnp.isfinite(nothing.images)))
