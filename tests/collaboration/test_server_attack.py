"""The adversary at the server: what it sees, what it sends, and that a passive one changes no bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.collaboration import (
    AGGREGATORS,
    RoundHyperParameters,
    init_federation,
    make_round,
    make_rounds,
    selective_upload,
)
from gan_leak.types import TransformInfo, Upload, UploadTransform
from reference.server_attacks import (
    Victim,
    isolating_attack,
    numbered_broadcast,
    reading_attack,
    recording_attack,
)
from reference.small import (
    FAKE_CLASS,
    IMAGE_SHAPE,
    federation_data,
    largest_difference,
    linear_classifier,
    linear_generator,
    same_bits,
)

SIZES = (1, 0, 1, 1)
DATA = federation_data(SIZES, length=2)
INPUTS = np.asarray(DATA.inputs)[:, 0].reshape(len(SIZES), -1) * np.array(SIZES)[:, None]
MODEL = linear_classifier()
TRANSFORM = selective_upload("largest")
ATTACKS = {
    "none": None,
    "reading": reading_attack(len(SIZES)),
    "isolating": isolating_attack(len(SIZES)),
    "recording": recording_attack(),
    "numbered": recording_attack(numbered_broadcast),
}
WAYS = [
    ("round_robin", "map", "add"),
    ("random_order", "map", "add"),
    ("synchronous", "map", "average"),
    ("synchronous", "vmap", "add"),
]
TRACES: dict = {}


@functools.cache
def insider():
    return gan_attack(
        MODEL, linear_generator(), IMAGE_SHAPE, generator_steps=2, generator_batch_size=3, fakes_per_round=4
    )


def round_of(kind, schedule, mapping, aggregation, transform=TRANSFORM, adversary=None):
    return make_round(
        MODEL,
        transform,
        schedule=schedule,
        aggregator=AGGREGATORS[aggregation](),
        batch_size=3,
        attack=None if adversary is None else insider(),
        adversary=adversary,
        server_attack=ATTACKS[kind],
        participant_mapping=mapping,
    )


@functools.cache
def jitted_rounds(*arguments):
    """At most two rounds, compiled once for all tests that ask for them in the same words; counts its traces."""
    rounds = make_rounds(round_of(*arguments), 2)

    def counted(*inputs):
        TRACES[arguments] = TRACES.get(arguments, 0) + 1
        return rounds(*inputs)

    return jax.jit(counted)


def start(kind, transform=TRANSFORM, adversary=None):
    return init_federation(
        jax.random.key(0),
        MODEL,
        transform,
        len(SIZES),
        None if adversary is None else insider(),
        server_attack=ATTACKS[kind],
    )


def numbers(victim=None, adversary=None, **values):
    return RoundHyperParameters(
        0.5,
        attack=() if adversary is None else GanAttackHyperParameters(1, FAKE_CLASS, 0.5),
        server_attack=() if victim is None else Victim(victim),
        **values,
    )


def run(kind, way, victim=None, cohort=None, rounds=2):
    """The state and info after some rounds of all participants, or of the same cohort every time."""
    state, data = start(kind), DATA
    if cohort is not None:
        rows = np.maximum(cohort, 0)
        data = trees.take(DATA, rows)._replace(participants=jnp.asarray(cohort, jnp.int32))
        data = data._replace(sizes=jnp.where(data.participants < 0, 0, data.sizes))
        state = state._replace(participants=trees.take(state.participants, rows))
    return jitted_rounds(kind, *way)(jax.random.key(1), state, data, numbers(victim), rounds)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_server_reads_the_only_sample_of_a_participant(way):
    """The ratio of the two gradients of a linear layer is the input, in every schedule, mapping and aggregation."""
    state, info = run("reading", way)
    np.testing.assert_allclose(state.server_attack.inputs, INPUTS, atol=2e-5)
    assert state.server_attack.rounds.tolist() == [2, 0, 2, 2]
    assert info.server_attack.read.tolist() == [3, 3]
    drawn = ATTACKS["reading"].reconstruct(jax.random.key(0), state.server_attack, 3)
    np.testing.assert_allclose(drawn, INPUTS[:3], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", [WAYS[0], WAYS[2]])
@pytest.mark.parametrize("cohort", [[0, 2], [1, 3, -1]])
def test_of_a_cohort_the_server_reads_those_who_take_part(way, cohort):
    """By their numbers in the federation; padding is nobody's upload."""
    state, _ = run("reading", way, cohort=cohort)
    present = np.isin(np.arange(len(SIZES)), cohort)
    np.testing.assert_allclose(state.server_attack.inputs, INPUTS * present[:, None], atol=2e-5)
    assert state.server_attack.rounds.tolist() == [
        2 * size * int(here) for size, here in zip(SIZES, present, strict=True)
    ]


@pytest.mark.parametrize("way", [*(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:3]), WAYS[0], WAYS[3]])
def test_a_passive_server_changes_no_bit(way):
    """Parameters, counters, participants and what is logged of turns, for an attack that keeps all that it sees."""
    plain, plain_info = run("none", way)
    watched, info = run("reading", way)
    assert same_bits(watched._replace(server_attack=()), plain)
    assert same_bits(info._replace(server_attack=()), plain_info)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["random_order", "synchronous"])
def test_a_passive_server_changes_no_bit_of_an_insider(schedule):
    """Both seats taken, partial uploads and downloads: the generator and the federation are as without the server's."""
    states = []
    for kind in ("none", "recording"):
        round_fn = jax.jit(round_of(kind, schedule, "map", "add", adversary=3))
        hyperparameters = numbers(adversary=3, upload_fraction=0.5, download_fraction=0.5)
        state, info = start(kind, adversary=3), None
        for number in range(2):
            key = jax.random.fold_in(jax.random.key(2), number)
            state, info = round_fn(key, state, DATA, hyperparameters)
        states.append((state._replace(server_attack=()), info))
    assert same_bits(*states)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["random_order", "synchronous"])
def test_the_view_holds_what_was_sent_and_uploaded(schedule):
    """Every participant starts from what it, and nobody else, was sent; the view is in participant order."""
    round_fn = jax.jit(round_of("numbered", schedule, "map", "add"))
    before = start("numbered")._replace(round=jnp.int32(7))
    after, info = round_fn(jax.random.key(0), before, DATA, numbers(upload_fraction=0.4))
    view = after.server_attack
    assert int(view.round) == 7
    assert view.participants.tolist() == [0, 1, 2, 3]
    assert same_bits(view.params, after.server.params)
    for participant in range(len(SIZES)):
        assert int(jnp.floor(view.sent["kernel"][participant, 0, 0])) == participant
    noise = np.asarray(view.sent["kernel"]) % 1
    assert len(np.unique(noise)) == noise.size
    # Participant 1 trains on nothing, so that it keeps what it was sent.
    assert same_bits(trees.take(after.participants.params, 1), trees.take(view.sent, 1))
    uploads = view.visible.uploads
    assert uploads.mask.sum(axis=1).tolist() == info.turns.uploaded.tolist() == [34, 0, 34, 34]
    assert bool(view.downloaded.all())
    assert view.visible.weights is None
    for participant in (0, 2, 3):
        started, ended = trees.take(view.sent, participant), trees.take(after.participants.params, participant)
        update = np.asarray(trees.ravel(trees.subtract(ended, started))[0])
        mask = np.asarray(uploads.mask[participant])
        np.testing.assert_array_equal(uploads.values[participant][mask], update[mask])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["round_robin", "synchronous"])
def test_the_view_tells_which_coordinates_were_downloaded(schedule):
    """The share that was asked for; the rest of a participant's parameters stays its own."""
    round_fn = jax.jit(round_of("numbered", schedule, "map", "add"))
    before = start("numbered")
    after, _ = round_fn(jax.random.key(0), before, DATA, numbers(download_fraction=0.4))
    view = after.server_attack
    assert view.downloaded.sum(axis=1).tolist() == [34] * 4
    own, sent, kept = (
        trees.ravel(trees.take(tree, 1))[0]
        for tree in (before.participants.params, view.sent, after.participants.params)
    )
    np.testing.assert_array_equal(kept, jnp.where(view.downloaded[1], sent, own))


def scripted_upload():
    """Uploads what its state holds, whatever was trained: all that is private stays at home."""

    def apply(key, upload, state, *, params, hyperparameters, **extra):
        return Upload(state, jnp.ones(state.shape, bool)), state, TransformInfo(jnp.int32(state.size))

    return UploadTransform(lambda params: jnp.arange(float(trees.ravel(params)[0].size)), apply)


def hidden_from_the_server(state, data):
    """The same federation with NaN or 77 wherever the server cannot look, and other numbers of samples."""

    def hide(leaf):
        return jnp.full_like(leaf, jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 77)

    participants = state.participants._replace(
        params=jax.tree.map(hide, state.participants.params),
        optimizer_steps=hide(state.participants.optimizer_steps),
    )
    blinded = data._replace(inputs=hide(data.inputs), labels=hide(data.labels), sizes=jnp.full_like(data.sizes, 2))
    return state._replace(participants=participants), blinded


@pytest.mark.parametrize(
    ("schedule", "aggregation"), [("random_order", "add"), ("synchronous", "add"), ("synchronous", "average")]
)
def test_the_server_sees_only_what_is_sent(schedule, aggregation):
    """With all that stays with the participants replaced by NaN, its view is bit-equal; sample counts show if sent."""
    transform = scripted_upload()
    round_fn = jax.jit(round_of("recording", schedule, "map", aggregation, transform))
    state = start("recording", transform)
    hyperparameters = numbers(download_fraction=0.5)
    seen, _ = round_fn(jax.random.key(0), state, DATA, hyperparameters)
    blind, _ = round_fn(jax.random.key(0), *hidden_from_the_server(state, DATA), hyperparameters)
    views = [seen.server_attack, blind.server_attack]
    assert trees.all_finite(jax.tree.leaves(views[1].sent))
    if aggregation == "average":
        assert views[0].visible.weights.tolist() == list(SIZES)
        assert views[1].visible.weights.tolist() == [2] * 4
        # The average depends on them, too.
        views = [view._replace(params=(), visible=view.visible.uploads) for view in views]
    assert same_bits(*views)
    # The blindfold was real.
    assert not trees.all_finite(blind.participants.params)


def test_an_upload_of_the_update_would_be_noticed():
    """The counterpart: with plain uploads, what the server sees depends on the data."""
    round_fn = jax.jit(round_of("recording", "synchronous", "map", "add"))
    state = start("recording")
    seen, _ = round_fn(jax.random.key(0), state, DATA, numbers())
    blind, _ = round_fn(jax.random.key(0), *hidden_from_the_server(state, DATA), numbers())
    assert trees.all_finite(seen.server_attack.visible.uploads.values)
    assert not trees.all_finite(blind.server_attack.visible.uploads.values)


@pytest.mark.slow
@pytest.mark.parametrize("way", [WAYS[0], WAYS[2]])
@pytest.mark.parametrize("victim", [0, 2])
def test_an_isolated_victim_trains_alone_and_the_others_without_it(way, victim):
    """The shared parameters are those of a federation without the victim; its own model learns from it alone."""
    state, _ = run("isolating", way, victim)
    others = [participant for participant in range(len(SIZES)) if participant != victim]
    without, _ = run("none", way, cohort=others)
    alone, _ = run("none", way, cohort=[victim])
    assert largest_difference(state.server, without.server) < 1e-6
    assert largest_difference(trees.take(state.participants, np.array(others)), without.participants) < 1e-6
    assert largest_difference(state.server_attack.params, alone.server.params) < 1e-6
    assert largest_difference(state.server.params, alone.server.params) > 1e-2
    np.testing.assert_allclose(state.server_attack.found.inputs, INPUTS, atol=2e-5)
    # One program serves every victim.
    assert TRACES["isolating", *way] == 1
