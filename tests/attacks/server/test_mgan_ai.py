"""mGAN-AI in the round: what it sees and changes, when it works, and that it learns one client's data."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.attacks.server.mgan_ai import identity_scores, mgan_ai
from gan_leak.attacks.server.mgan_ai_training import AuxiliaryImages, image_generator
from gan_leak.attacks.server.observed_updates import Observed, seen_updates
from gan_leak.attacks.server.representative_memory import latest
from gan_leak.attacks.server.representatives import Representatives
from gan_leak.collaboration import (
    AGGREGATORS,
    RoundHyperParameters,
    init_federation,
    make_round,
    make_rounds,
    selective_upload,
)
from gan_leak.types import Aggregator, FlatServer, Received, ServerView, TransformInfo, Upload, UploadTransform
from reference.mgan_ai import (
    linear_trunk,
    one_of_each,
    quick_numbers,
    read_representatives,
    small_generator,
    small_mgan_ai,
)
from reference.small import (
    CLASSES,
    FAKE_CLASS,
    IMAGE_SHAPE,
    federation_data,
    largest_difference,
    linear_classifier,
    same_bits,
)

CLIENTS = 3
DATA = federation_data((2, 1, 2), length=2)
MODEL = linear_classifier()
TRANSFORM = selective_upload("largest")
AUXILIARY = AuxiliaryImages(
    np.random.default_rng(5).uniform(-1, 1, (6, *IMAGE_SHAPE)).astype(np.float32), np.arange(6) % FAKE_CLASS
)


@functools.cache
def attack_of(kind):
    kinds = {
        "passive": lambda: small_mgan_ai(CLIENTS, auxiliary=AUXILIARY, memory_rounds=2),
        "victim": lambda: small_mgan_ai(CLIENTS, identity="victim", warm_start=True, match=from_start),
        "frozen": lambda: small_mgan_ai(CLIENTS, train_trunk=False),
        "active": lambda: small_mgan_ai(CLIENTS, active=True, identity="victim"),
        "secure": lambda: small_mgan_ai(CLIENTS, observe=see_mean),
    }
    return None if kind == "none" else kinds[kind]()


def from_start(key, evidence, start):
    """Representatives that tell what the matcher was given."""
    assert start.shape == (CLIENTS, CLASSES, *IMAGE_SHAPE)
    return Representatives(0.5 * start, jnp.zeros(CLIENTS))


@functools.cache
def rounds_of(kind, mapping="map", aggregation="average"):
    """At most three rounds of all clients with one full-batch step each."""
    aggregator = mean_only() if aggregation == "secure" else AGGREGATORS[aggregation]()
    round_fn = make_round(
        MODEL,
        TRANSFORM,
        schedule="synchronous",
        aggregator=aggregator,
        batch_size=2,
        server_attack=attack_of(kind),
        participant_mapping=mapping,
    )
    return jax.jit(make_rounds(round_fn, 3))


def run(kind, mapping="map", aggregation="average", data=DATA, rounds=3, victim=1, **values):
    state = init_federation(
        jax.random.key(0), MODEL, TRANSFORM, len(data.sizes), server_attack=attack_of(kind), aggregator=None
    )
    numbers = RoundHyperParameters(0.5, server_attack=() if kind == "none" else quick_numbers(victim, **values))
    return rounds_of(kind, mapping, aggregation)(jax.random.key(1), state, data, numbers, rounds)


class Mean(NamedTuple):
    """What a server sees under a secure sum: the mean, and who took part."""

    mean: jax.Array
    sent: jax.Array


def see_mean(view):
    mean, sent = view.visible
    return Observed(jnp.broadcast_to(mean[None], (len(sent), *mean.shape)), sent)


def mean_only():
    """The ideal functionality of a secure sum."""

    def apply(key, server, uploads, weights, state, *, hyperparameters, merged=None, **extra):
        mean = jnp.mean(uploads.values, axis=0)
        return FlatServer(server.params + mean, server.update_counts), state, Mean(mean, weights > 0), ()

    return Aggregator(lambda params: (), apply)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mapping", "aggregation"),
    [
        ("map", "average"),
        *(pytest.param(*way, marks=pytest.mark.slow) for way in (("vmap", "add"), ("loop", "average"))),
    ],
)
def test_a_passive_attack_changes_no_bit_of_training(mapping, aggregation):
    plain, plain_info = run("none", mapping, aggregation)
    watched, info = run("passive", mapping, aggregation)
    assert same_bits(watched._replace(server_attack=()), plain)
    assert same_bits(info._replace(server_attack=()), plain_info)
    # It did work meanwhile.
    assert info.server_attack.attacked.tolist() == [True] * 3
    assert float(info.server_attack.discriminator.identity[2]) > 0


@pytest.mark.slow
def test_the_representatives_are_matched_to_each_clients_update():
    """Client 1 has one sample, which the ratio of its gradients is, for every class."""
    state, info = run("passive")
    memory = state.server_attack.memory
    assert memory.images.shape == (2, CLIENTS, CLASSES, *IMAGE_SHAPE)
    assert bool(memory.known.all())
    own = np.broadcast_to(DATA.inputs[1, 0], (CLASSES, *IMAGE_SHAPE))
    np.testing.assert_allclose(latest(memory).images[1], own, atol=1e-4)
    np.testing.assert_allclose(memory.images[1, 1], own, atol=1e-4)
    assert float(jnp.abs(latest(memory).images[0] - own).max()) > 0.1
    assert memory.distances.tolist() == [[1, 2, 3]] * 2
    np.testing.assert_allclose(info.server_attack.distance, 2.0)


def test_without_updates_of_the_networks_only_representatives_and_the_trunk_change():
    state, _ = run("passive", rounds=1, discriminator_steps=0, generator_steps=0)
    before = init_federation(jax.random.key(0), MODEL, TRANSFORM, CLIENTS, server_attack=attack_of("passive"))
    after, start = state.server_attack, before.server_attack
    assert same_bits(after.discriminator.shared, state.server.params)
    assert largest_difference(after.discriminator.shared, start.discriminator.shared) > 1e-2
    assert after.memory.known[0].tolist() == [True] * CLIENTS
    for field in ("head_moments", "generator", "generator_moments"):
        assert same_bits(getattr(after, field), getattr(start, field))
    assert same_bits(after.discriminator.heads, start.discriminator.heads)


@pytest.mark.slow
def test_a_frozen_trunk_is_the_shared_model_while_the_heads_learn_and_persist():
    """Only the heads move; their optimizer counts the updates of all rounds."""
    for rounds in (1, 2):
        state, _ = run("frozen", rounds=rounds)
        attack = state.server_attack
        assert same_bits(attack.discriminator.shared, state.server.params)
        assert int(attack.head_moments.count) == int(attack.generator_moments.count) == 2 * rounds
    start = init_federation(jax.random.key(0), MODEL, TRANSFORM, CLIENTS, server_attack=attack_of("frozen"))
    heads = attack.discriminator.heads
    assert largest_difference(heads, start.server_attack.discriminator.heads) > 1e-3
    # A further round without updates replaces the trunk and keeps the heads.
    numbers = RoundHyperParameters(0.5, server_attack=quick_numbers(1, discriminator_steps=0))
    later, _ = rounds_of("frozen")(jax.random.key(1), state, DATA, numbers, 1)
    assert same_bits(later.server_attack.discriminator.heads, heads)
    assert same_bits(later.server_attack.discriminator.shared, later.server.params)
    assert not same_bits(later.server.params, state.server.params)


def test_a_trained_trunk_starts_from_the_shared_model_of_each_round():
    """Adam's first step moves every parameter by at most the rate, whatever the rounds before."""
    state, _ = run("passive", rounds=3, discriminator_steps=1, learning_rate=1e-3)
    moved = largest_difference(state.server_attack.discriminator.shared, state.server.params)
    assert 0 < moved < 1.01e-3


def test_rounds_before_the_first_and_between_are_skipped():
    """Nothing is matched or trained in them; one program serves all schedules."""
    state, info = run("passive", first_round=1, every=5)
    assert info.server_attack.attacked.tolist() == [False, True, False]
    assert info.server_attack.distance.tolist() == [0, 2, 0]
    assert state.server_attack.memory.known.tolist() == [[True] * CLIENTS, [False] * CLIENTS]
    assert int(state.server_attack.head_moments.count) == 2
    assert int(state.server_attack.round) == 3
    state, info = run("passive", first_round=0, every=2)
    assert info.server_attack.attacked.tolist() == [True, False, True]


def test_a_skipped_round_does_not_run_the_matcher():
    calls = []

    def counted(key, evidence, start):
        jax.debug.callback(lambda: calls.append(1))
        return read_representatives(key, evidence, start)

    attack = small_mgan_ai(CLIENTS, match=counted)
    params = MODEL.init(jax.random.key(0))
    state, step = attack.init(jax.random.key(1), params), jax.jit(attack.step)
    for number, numbers in ((0, quick_numbers(first_round=1)), (1, quick_numbers(first_round=1))):
        jax.block_until_ready(step(jax.random.key(2), state, view_of(params, number), numbers))
        jax.effects_barrier()
        assert len(calls) == number


def view_of(params, number=0, participants=(0, 1, 2), seed=3):
    uploads = jnp.asarray(np.random.default_rng(seed).normal(size=(len(participants), 85)), jnp.float32)
    mask = jnp.ones(uploads.shape, bool)
    sent = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(participants)), params)
    return ServerView(
        jnp.int32(number), jnp.array(participants), sent, mask, Received(Upload(uploads, mask), None), params
    )


def test_clients_are_known_by_their_numbers():
    """In another order, with padding and with a client absent, each has its own representatives."""
    attack = small_mgan_ai(CLIENTS)
    params = MODEL.init(jax.random.key(0))
    state, step = attack.init(jax.random.key(1), params), jax.jit(attack.step)
    full, _ = step(jax.random.key(2), state, view_of(params), quick_numbers())
    view = view_of(params)
    part = view._replace(participants=jnp.array([2, -1, 0]))
    rows = np.array([2, 1, 0])
    part = part._replace(visible=trees.take(view.visible, rows))
    found, info = step(jax.random.key(2), state, part, quick_numbers())
    assert found.memory.known.tolist() == [[True, False, True]]
    for client in (0, 2):
        np.testing.assert_array_equal(found.memory.images[0, client], full.memory.images[0, client])
    assert not found.memory.images[0, 1].any()
    assert float(info.distance) == 2
    assert bool(trees.all_finite([leaf for leaf in jax.tree.leaves(found.generator)]))


@pytest.mark.slow
def test_matching_starts_from_the_last_representatives_on_request():
    """The matcher of this kind halves its start; the first start is drawn in [-1, 1]."""
    first, _ = run("victim", rounds=1)
    images = latest(first.server_attack.memory).images
    assert 0.3 < float(jnp.abs(images).max()) <= 0.5
    second, _ = run("victim", rounds=2)
    np.testing.assert_allclose(latest(second.server_attack.memory).images, 0.5 * images, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_isolated_victim_trains_alone_and_the_others_without_it(victim):
    """From the first attacked round on; before it the victim is a client like the others."""

    def cohort(*clients):
        return trees.take(DATA._replace(participants=jnp.arange(CLIENTS)), np.array(clients))

    others = [client for client in range(CLIENTS) if client != victim]
    state, _ = run("active", victim=victim)
    without, _ = run("none", data=cohort(*others))
    alone, _ = run("none", data=cohort(victim))
    assert largest_difference(state.server, without.server) < 1e-6
    assert largest_difference(trees.take(state.participants, np.array(others)), without.participants) < 1e-6
    assert largest_difference(state.server_attack.own_params, alone.server.params) < 1e-6
    assert largest_difference(state.server.params, alone.server.params) > 1e-2


@pytest.mark.slow
def test_before_the_first_attacked_round_the_victim_is_not_isolated():
    """Two common rounds, then one in which the victim moves its copy from the shared model."""
    state, _ = run("active", rounds=2, first_round=2)
    common, _ = run("none", rounds=2)
    assert same_bits(state.server, common.server)
    assert same_bits(state.server_attack.own_params, common.server.params)
    state, info = run("active", rounds=3, first_round=2)
    common, _ = run("none", rounds=3)
    assert largest_difference(state.server, common.server) > 1e-2
    own = trees.take(state.participants, 1).params
    assert largest_difference(state.server_attack.own_params, own) < 1e-6
    assert info.server_attack.attacked.tolist() == [False, False, True]


@pytest.mark.slow
def test_the_trunk_of_an_active_attack_is_the_victims_copy():
    state, _ = run("active", discriminator_steps=0)
    assert same_bits(state.server_attack.discriminator.shared, state.server_attack.own_params)


@pytest.mark.slow
def test_under_a_secure_sum_all_clients_have_the_same_evidence():
    """The representatives are equal, and do not change if two clients exchange their data."""
    state, _ = run("secure", aggregation="secure")
    images = state.server_attack.memory.images
    assert bool(state.server_attack.memory.known.all())
    assert float(jnp.abs(images).max()) > 0.1
    for client in (1, 2):
        np.testing.assert_array_equal(images[0, client], images[0, 0])
    exchanged, _ = run("secure", aggregation="secure", data=trees.take(DATA, np.array([2, 1, 0])))
    assert largest_difference(exchanged.server_attack.generator, state.server_attack.generator) < 1e-4
    # With separate uploads the exchange does matter.
    seen, _ = run("passive")
    other, _ = run("passive", data=trees.take(DATA, np.array([2, 1, 0])))
    assert largest_difference(other.server_attack.generator, seen.server_attack.generator) > 1e-3


def test_a_secure_sum_without_its_reader_is_refused():
    with pytest.raises(ValueError, match=r"^visible=Mean: expected Received or MaskedSum"):
        run("passive", aggregation="secure")


def scripted_upload():
    """Uploads what its state holds, whatever was trained."""

    def apply(key, upload, state, *, params, hyperparameters, **extra):
        return Upload(state, jnp.ones(state.shape, bool)), state, TransformInfo(jnp.int32(state.size))

    return UploadTransform(lambda params: jnp.sin(jnp.arange(float(trees.ravel(params)[0].size))), apply)


def hide(leaf):
    return jnp.full_like(leaf, jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 77)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["passive", "active"])
def test_the_attack_sees_only_uploads_what_was_sent_and_its_auxiliary_images(kind):
    """With all that stays with the participants replaced by NaN, its state after the round is bit-equal."""
    transform = scripted_upload()
    round_fn = jax.jit(
        make_round(MODEL, transform, schedule="synchronous", batch_size=2, server_attack=attack_of(kind))
    )
    state = init_federation(jax.random.key(0), MODEL, transform, CLIENTS, server_attack=attack_of(kind))
    participants = state.participants._replace(
        params=jax.tree.map(hide, state.participants.params), optimizer_steps=hide(state.participants.optimizer_steps)
    )
    data = DATA._replace(inputs=hide(DATA.inputs), labels=hide(DATA.labels), sizes=jnp.full_like(DATA.sizes, 2))
    numbers = RoundHyperParameters(0.5, server_attack=quick_numbers(1))
    seen, info = round_fn(jax.random.key(1), state, DATA, numbers)
    blind, blind_info = round_fn(jax.random.key(1), state._replace(participants=participants), data, numbers)
    assert same_bits(seen.server_attack, blind.server_attack)
    assert same_bits(info.server_attack, blind_info.server_attack)
    assert bool(trees.all_finite(blind.server_attack))
    assert bool(info.server_attack.attacked)
    # The blindfold was real.
    assert not trees.all_finite(blind.participants.params)


MARKS = (0, 3, 12)


def marked_federation():
    """Clients whose images are noise, but for one corner, which is white: the mark of the client."""
    generator = np.random.default_rng(0)
    data = federation_data((8,) * CLIENTS, length=8)
    images = generator.uniform(-1, 1, data.inputs.shape).astype(np.float32).reshape(CLIENTS, 8, -1)
    for client, mark in enumerate(MARKS):
        images[:, :, mark] = -1
        images[client, :, mark] = 1
    labels = jnp.asarray(np.tile(np.arange(8) % FAKE_CLASS, (CLIENTS, 1)), jnp.int32)
    return data._replace(inputs=jnp.asarray(images.reshape(data.inputs.shape)), labels=labels)


def rolled(shift):
    """An observation in which client k is taken for the sender of the upload of client k - shift(round)."""

    def observe(view):
        values = view.visible.uploads.values
        return Observed(jnp.roll(values, shift(view.round), axis=0), jnp.ones(len(values), bool))

    return observe


# "shuffled" and "swapped" are controls: the senders change in every round, or are those next to the true ones.
OBSERVATIONS = {
    "true": seen_updates,
    "shuffled": rolled(lambda number: number),
    "swapped": rolled(lambda number: 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("senders", OBSERVATIONS)
def test_the_generator_draws_the_mark_of_each_client(senders):
    """Conditioned on a client it draws the mark of the sender, in the mean over four starts; so does the victim."""
    generator = small_generator(CLIENTS, categories=FAKE_CLASS)
    attack = mgan_ai(
        linear_trunk(),
        generator,
        read_representatives,
        one_of_each(CLIENTS),
        clients=CLIENTS,
        observe=OBSERVATIONS[senders],
        batch_size=24,
        memory_rounds=3,
    )
    average = AGGREGATORS["average"]()
    round_fn = make_round(
        MODEL, TRANSFORM, schedule="synchronous", aggregator=average, batch_size=8, server_attack=attack
    )
    data, identities = marked_federation(), jnp.repeat(jnp.arange(CLIENTS), 60)
    attacker = quick_numbers(2, discriminator_steps=30, generator_steps=30, client_learning_rate=0.05)

    def marks_and_scores(key):
        """The mark of images of each identity, that of the victim's, and the identity of the private images."""
        key_init, key_rounds, key_drawn, key_victim = jax.random.split(key, 4)
        state = init_federation(key_init, MODEL, TRANSFORM, CLIENTS, server_attack=attack)
        numbers = RoundHyperParameters(0.05, server_attack=attacker)
        state = make_rounds(round_fn, 9)(key_rounds, state, data, numbers, 9)[0].server_attack
        drawn = image_generator(generator, 24)(key_drawn, state, identities, jnp.arange(180) % FAKE_CLASS)
        pixels = [images.reshape(len(images), -1) for images in (drawn, attack.reconstruct(key_victim, state, 30))]
        scores = identity_scores(linear_trunk(), state, data.inputs.reshape(-1, *IMAGE_SHAPE))
        return *(jnp.argmax(values[:, jnp.array(MARKS)], axis=1) for values in pixels), jnp.argmax(scores, axis=1)

    results = jax.jit(jax.vmap(marks_and_scores))(jax.random.split(jax.random.key(1), 4))
    drawn, victim, judged = map(np.asarray, results)
    private = np.repeat(np.arange(CLIENTS), 8)
    rates = [np.mean(drawn == np.asarray(identities)), np.mean(victim == 2), np.mean(judged == private)]
    least, most = {"true": (0.9, 1), "shuffled": (0, 0.6), "swapped": (0, 0.1)}[senders]
    assert all(least <= rate <= most for rate in rates), rates


def test_a_requested_image_depends_on_its_condition_only_in_place():
    """Images come in the order of the request, also if it does not fill the last batch."""
    generator = small_generator(CLIENTS)
    attack = small_mgan_ai(CLIENTS, batch_size=8)
    state = attack.init(jax.random.key(0), MODEL.init(jax.random.key(1)))
    state = state._replace(generator=jax.tree.map(lambda leaf: 3 * leaf, state.generator))
    generate = jax.jit(image_generator(generator, 8))
    identities, categories = jnp.array([0, 1, 2, 0, 1]), jnp.array([0, 1, 2, 3, 4])
    images = generate(jax.random.key(2), state, identities, categories)
    assert images.shape == (5, *IMAGE_SHAPE)
    other = generate(jax.random.key(2), state, identities.at[3].set(2), categories)
    changed = np.abs(np.asarray(other - images)).reshape(5, -1).max(axis=1) > 1e-4
    assert changed.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"identity": "both"}, "identity='both': allowed are 'victim', 'all'"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"batch_size": 1, "auxiliary": AUXILIARY}, "batch_size=1: expected at least 2"),
        ({"memory_rounds": 0}, "memory_rounds=0: expected at least 1"),
        (
            {"auxiliary": AuxiliaryImages(np.zeros((2, 4, 4, 1)), np.zeros(3, int))},
            "auxiliary: 2 images and 3 labels, expected as many",
        ),
        (
            {"auxiliary": AuxiliaryImages(np.zeros((2, 5, 5, 1)), np.zeros(2, int))},
            r"auxiliary: images of shape \(5, 5, 1\), expected \(4, 4, 1\), the generator's",
        ),
        (
            {"auxiliary": AuxiliaryImages(np.zeros((2, 4, 4, 1)), np.array([0, 5]))},
            "auxiliary: labels 0 to 5, expected 0 to 4",
        ),
    ],
)
def test_bad_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        small_mgan_ai(CLIENTS, **choices)


def test_a_generator_that_does_not_fit_is_refused():
    def build(identities, categories=CLASSES, **choices):
        generator = small_generator(identities, categories)
        return mgan_ai(
            linear_trunk(), generator, read_representatives, one_of_each(CLIENTS), clients=CLIENTS, **choices
        )

    with pytest.raises(ValueError, match=r"^generator.identities=2: expected 3 for identity='all'$"):
        build(2)
    with pytest.raises(ValueError, match=r"^generator.identities=3: expected 2 for identity='victim'$"):
        build(3, identity="victim")
    with pytest.raises(ValueError, match=r"^generator.categories=6: expected at most 5 outputs$"):
        build(3, categories=6)
    attack = small_mgan_ai(2)
    wrong = mgan_ai(linear_trunk(), small_generator(2), read_representatives, one_of_each(3), clients=2)
    params = MODEL.init(jax.random.key(0))
    assert attack.init(jax.random.key(1), params).memory.labels.shape == (1, 2, CLASSES)
    with pytest.raises(ValueError, match=r"^label: labels of shape \(3, 5\), expected \(2, R\)$"):
        wrong.init(jax.random.key(1), params)


def test_without_auxiliary_images_an_empty_set_is_the_same():
    """Zero auxiliary images are none."""
    empty = AuxiliaryImages(np.zeros((0, *IMAGE_SHAPE)), np.zeros(0, int))
    params = MODEL.init(jax.random.key(0))
    results = []
    for auxiliary in (None, empty):
        attack = small_mgan_ai(CLIENTS, auxiliary=auxiliary)
        state = attack.init(jax.random.key(1), params)
        results.append(jax.jit(attack.step)(jax.random.key(2), state, view_of(params), quick_numbers()))
    assert same_bits(*results)
