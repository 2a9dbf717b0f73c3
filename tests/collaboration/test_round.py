"""Rounds as a whole: every way to run them agrees, an adversary changes what it must and sees what it may."""

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
    average,
    init_federation,
    make_round,
    make_rounds,
    selective_upload,
)
from gan_leak.collaboration.participant import join, train_and_upload
from gan_leak.collaboration.schedule import turn_order
from gan_leak.collaboration.server import download, flatten
from gan_leak.collaboration.turns import local_data, turn_keys
from gan_leak.types import Contribution, FlatServer, InsiderView, RoundAttack, ServerState
from reference.small import (
    FAKE_CLASS,
    IMAGE_SHAPE,
    federation_data,
    largest_difference,
    linear_classifier,
    linear_generator,
    same_bits,
)

SIZES = (7, 0, 4)
DATA = federation_data(SIZES)
MODEL = linear_classifier()
TRANSFORM = selective_upload("largest")
FAKES = 5
KEY_SEED = 3
TRACES: dict = {}


@functools.cache
def an_attack(kind):
    if kind == "none":
        return None
    return gan_attack(
        MODEL,
        linear_generator(),
        IMAGE_SHAPE,
        generator_steps=3,
        generator_batch_size=4,
        fakes_per_round=FAKES if kind == "active" else 0,
        fake_memory_rounds=2,
    )


def numbers(learning_rate=0.3, attack="none", target_class=1, **values):
    attack_numbers = () if attack == "none" else GanAttackHyperParameters(target_class, FAKE_CLASS, 0.5)
    return RoundHyperParameters(learning_rate, attack=attack_numbers, **values)


def plain_round(schedule, attack, adversary, mapping="map", aggregation="add"):
    return make_round(
        MODEL,
        TRANSFORM,
        schedule=schedule,
        aggregator=AGGREGATORS[aggregation](),
        batch_size=3,
        attack=an_attack(attack),
        adversary=adversary,
        participant_mapping=mapping,
    )


@functools.cache
def jitted_round(*arguments):
    """Compiled once for all tests that ask for the same round in the same words; counts its traces."""
    round_fn = plain_round(*arguments)

    def counted(*inputs):
        TRACES[arguments] = TRACES.get(arguments, 0) + 1
        return round_fn(*inputs)

    return jax.jit(counted)


def start(attack="none", seed=0):
    return init_federation(jax.random.key(seed), MODEL, TRANSFORM, len(SIZES), an_attack(attack))


def run(schedule, attack="none", adversary=None, mapping="map", aggregation="add", rounds=2, data=DATA, **values):
    """The state and info after some rounds."""
    state, info = start(attack), None
    for number in range(rounds):
        key = jax.random.fold_in(jax.random.key(KEY_SEED), number)
        state, info = jitted_round(schedule, attack, adversary, mapping, aggregation)(
            key, state, data, numbers(attack=attack, **values)
        )
    return state, info


def test_everyone_starts_from_one_initialisation():
    """Server and participants hold the same parameters, no counter has moved, and the seed matters."""
    state = start("active")
    for participant in range(len(SIZES)):
        assert same_bits(trees.take(state.participants.params, participant), state.server.params)
    assert not state.server.update_counts.any()
    assert int(state.round) == 0
    assert not same_bits(start("active", seed=1).server.params, state.server.params)
    assert not same_bits(start("active", seed=1).attack.generator, state.attack.generator)


@pytest.mark.parametrize(
    ("attack", "adversary", "aggregation", "fraction"), [("none", None, "average", 1.0), ("active", 2, "add", 0.5)]
)
def test_vmap_map_and_loop_over_participants_agree(attack, adversary, aggregation, fraction):
    """How a synchronous round runs its participants changes nothing beyond float tolerance."""
    values = {"upload_fraction": fraction, "download_fraction": fraction, "learning_rate_decay": 0.1}
    expected = run("synchronous", attack, adversary, "loop", aggregation, **values)
    assert largest_difference(expected[0].server.params, start().server.params) > 1e-2
    for mapping in ("vmap", "map"):
        result = run("synchronous", attack, adversary, mapping, aggregation, **values)
        assert jax.tree.structure(result) == jax.tree.structure(expected)
        assert largest_difference(result, expected) < 1e-6


@pytest.mark.parametrize(("schedule", "rounds"), [("round_robin", 1), ("synchronous", 2)])
def test_only_the_adversary_downloads_its_own_fraction(schedule, rounds):
    """The same fraction gives the same bits; a larger one changes what the adversary, the last, ends with, no other."""
    results = {
        own: run(schedule, "active", 2, rounds=rounds, download_fraction=0.5, adversary_download_fraction=own)
        for own in (0.0, 0.5, 1.0)
    }
    assert same_bits(results[0.5], results[0.0])
    (same, _), (other, _) = results[0.0], results[1.0]
    assert not same_bits(trees.take(other.participants.params, 2), trees.take(same.participants.params, 2))
    for participant in range(2):
        assert same_bits(trees.take(other.participants, participant), trees.take(same.participants, participant))
    honest = run(schedule, rounds=1, download_fraction=0.5, adversary_download_fraction=1.0)
    assert same_bits(honest, run(schedule, rounds=1, download_fraction=0.5))


@pytest.mark.parametrize("schedule", ["round_robin", "synchronous"])
def test_the_adversary_sees_its_own_samples_and_no_others(schedule):
    """Without what it adds itself."""

    def step(key, state, view, hyperparameters):
        fakes = Contribution(jnp.ones((FAKES, *IMAGE_SHAPE)), jnp.zeros(FAKES, jnp.int32), jnp.ones(FAKES, bool))
        return state, fakes, view.own

    attack = RoundAttack(lambda key: (), step, lambda key, state, count: jnp.zeros((count, *IMAGE_SHAPE)))
    round_fn = make_round(MODEL, TRANSFORM, schedule=schedule, batch_size=3, attack=attack, adversary=2)
    state = init_federation(jax.random.key(0), MODEL, TRANSFORM, len(SIZES), attack)
    for number in range(2):
        state, info = jax.jit(round_fn)(jax.random.key(number), state, DATA, numbers())
        assert same_bits(info.attack, local_data(DATA, 2))
        assert info.attack.mask.tolist() == [True] * 4 + [False] * 3


@pytest.mark.slow
@pytest.mark.parametrize("own_fraction", [0.0, 0.9])
def test_random_order_equals_a_loop_over_turns(own_fraction):
    """Download, attack, join, train, upload, turn by turn in Python, with an adversary in the middle."""
    train = jax.jit(functools.partial(train_and_upload, epochs=1, batch_size=3), static_argnums=(1, 2))
    attack, adversary = an_attack("active"), 2
    hyperparameters = numbers(
        attack="active", upload_fraction=0.5, download_fraction=0.5, adversary_download_fraction=own_fraction
    )
    round_fn, key = jitted_round("random_order", "active", adversary, "map", "add"), jax.random.key(1)
    # After a first round the server, its counters and what each participant holds are different.
    state, _ = round_fn(jax.random.key(0), start("active"), DATA, hyperparameters)
    expected, expected_info = round_fn(key, state, DATA, hyperparameters)
    key_order, key_turns = jax.random.split(jax.random.clone(key))
    (server, unravel), participants, attack_state = flatten(state.server), state.participants, state.attack
    order = turn_order(key_order, "random_order", len(SIZES)).tolist()
    assert order[1] == adversary
    assert order != sorted(order)
    for participant in order:
        key_download, key_attack, key_train = turn_keys(key_turns, participant)
        own = trees.take(participants, participant)
        fraction = own_fraction if own_fraction and participant == adversary else 0.5
        downloaded, _ = download(key_download, server, own.params, fraction)
        samples = local_data(DATA, participant)
        if participant == adversary:
            attack_state, contribution, attack_info = attack.step(
                key_attack, attack_state, InsiderView(downloaded), hyperparameters.attack
            )
            samples = join(samples, contribution)
        own, upload, _ = train(key_train, MODEL, TRANSFORM, own, downloaded, _padded(samples), hyperparameters)
        server = FlatServer(server.params + upload.values, server.update_counts + upload.mask)
        participants = trees.put(participants, participant, own)
    assert largest_difference(ServerState(unravel(server.params), server.update_counts), expected.server) < 1e-6
    assert largest_difference(participants, expected.participants) < 1e-6
    assert largest_difference(attack_state, expected.attack) < 1e-6
    assert largest_difference(attack_info, expected_info.attack) < 1e-6
    assert expected_info.turns.samples.tolist() == [7, 0, 4 + 2 * FAKES]


def _padded(samples):
    """Room for the fakes behind the data: in a scan over turns all have one shape, which a shuffle depends on."""
    missing = DATA.labels.shape[1] + 2 * FAKES - len(samples.mask)
    return jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1)), samples)


@pytest.mark.slow
def test_results_do_not_depend_on_how_rounds_are_cut():
    """Three rounds and then two are bit for bit five at once, whatever the most; one at a time is close."""
    round_fn = plain_round("random_order", "active", 2)
    by_five, by_three = jax.jit(make_rounds(round_fn, 5)), jax.jit(make_rounds(round_fn, 3))
    hyperparameters, seed = numbers(attack="active", download_fraction=0.5), 11
    whole, whole_info = by_five(jax.random.key(seed), start("active"), DATA, hyperparameters, 5)
    for most in (by_five, by_three):
        half, first_info = most(jax.random.key(seed), start("active"), DATA, hyperparameters, 3)
        rest, second_info = most(jax.random.key(seed), half, DATA, hyperparameters, 2)
        assert int(half.round) == 3
        assert same_bits(rest, whole)
        cut = jax.tree.map(lambda a, b: jnp.concatenate([a[:3], b[:2]]), first_info, second_info)
        assert same_bits(cut, whole_info)
        assert all(not leaf[2:].any() for leaf in jax.tree.leaves(second_info))
    state = start("active")
    for number in range(5):
        key = jax.random.fold_in(jax.random.key(seed), number)
        state, _ = jitted_round("random_order", "active", 2, "map", "add")(key, state, DATA, hyperparameters)
    assert largest_difference(state, whole) < 1e-6


def _entry(swept, index):
    return jax.tree.map(lambda leaf: leaf[index] if isinstance(leaf, jax.Array) else leaf, swept)


@pytest.mark.slow
def test_a_vmapped_sweep_equals_separate_runs():
    """Learning rates, fractions, target classes and seeds in one call give what each gives alone."""
    single = jitted_round("round_robin", "active", 2, "map", "add")
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda key: init_federation(key, MODEL, TRANSFORM, 3, an_attack("active")))(
        jax.random.clone(keys)
    )
    swept = RoundHyperParameters(
        jnp.array([0.1, 0.2, 0.3]),
        jnp.array([0.0, 0.1, 1.0]),
        jnp.array([1.0, 0.6, 0.4]),
        jnp.array([0.4, 1.0, 0.6]),
        attack=GanAttackHyperParameters(jnp.array([0, 1, 2]), jnp.array([4, 4, 3]), jnp.array([0.1, 0.5, 1.0])),
    )
    axes = jax.tree.map(lambda leaf: 0 if isinstance(leaf, jax.Array) else None, swept)
    together = jax.jit(jax.vmap(plain_round("round_robin", "active", 2), in_axes=(0, 0, None, axes)))(
        keys, states, DATA, swept
    )
    for index in range(3):
        one = _entry(swept, index)
        alone = single(jax.random.clone(keys)[index], trees.take(states, index), DATA, one)
        assert largest_difference(trees.take(together, index), alone) < 1e-5


@pytest.mark.parametrize(("schedule", "adversary"), [("random_order", 2), ("synchronous", 1)])
def test_one_compilation_serves_a_sweep(schedule, adversary):
    """The round is traced once for all learning rates, decays, fractions, thresholds, bounds and attack numbers."""
    arguments = (schedule, "active", adversary, "map", "add")
    servers = []
    for number, fraction in enumerate([1.0, 0.5, 0.1]):
        hyperparameters = RoundHyperParameters(
            0.1 + number,
            0.1 * number,
            fraction,
            fraction,
            0.01 * number,
            1.0 + number,
            1.0 - 0.1 * number,
            attack=GanAttackHyperParameters(number, FAKE_CLASS, 0.1 * number),
        )
        servers.append(jitted_round(*arguments)(jax.random.key(0), start("active"), DATA, hyperparameters)[0].server)
    assert TRACES[arguments] == 1
    # Whoever has no image uploads nothing, unless it is the adversary with its fakes.
    uploading = sum(size > 0 or index == adversary for index, size in enumerate(SIZES))
    assert int(servers[0].update_counts.sum()) == uploading * 85
    assert largest_difference(servers[0].params, servers[1].params) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["round_robin", "synchronous"])
def test_a_passive_adversary_leaves_the_federation_alone(schedule):
    """Watching changes no parameter and no counter of anyone, while the generator learns."""
    honest, honest_info = run(schedule)
    watched, watched_info = run(schedule, "passive", 1)
    assert largest_difference(watched.server, honest.server) < 1e-7
    assert largest_difference(watched.participants, honest.participants) < 1e-7
    assert same_bits(watched_info.turns.samples, honest_info.turns.samples)
    assert largest_difference(watched.attack.generator, start("passive").attack.generator) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "adversary"),
    [("round_robin", 0), ("round_robin", 2), ("synchronous", 0), ("synchronous", 1), ("synchronous", 2)],
)
def test_an_active_adversary_of_any_index_changes_the_model_from_its_turn_on(schedule, adversary):
    """Who trains before the adversary's first turn is as without it; its fakes teach the model the fake class."""
    honest, _ = run(schedule, rounds=1)
    attacked, info = run(schedule, "active", adversary, rounds=1)
    for participant in range(len(SIZES)):
        difference = largest_difference(
            trees.take(attacked.participants.params, participant), trees.take(honest.participants.params, participant)
        )
        untouched = participant != adversary if schedule == "synchronous" else participant < adversary
        # Room for fakes in a scan of turns is room in the shuffle, too: the same samples come in another order.
        limit = 1e-6 if schedule == "synchronous" else 0.1
        assert (difference < limit) if untouched else (difference > 1e-3)
    gain = attacked.server.params["bias"] - honest.server.params["bias"]
    assert int(jnp.argmax(gain)) == FAKE_CLASS
    expected = list(SIZES)
    expected[adversary] += FAKES
    assert info.turns.samples.tolist() == expected
    _, later = run(schedule, "active", adversary, rounds=3)
    expected[adversary] += FAKES
    assert later.turns.samples.tolist() == expected


def test_an_adversary_without_data_trains_on_its_fakes_alone():
    """Participant 1 owns nothing: its turn learns the fake class and nothing else."""
    honest, honest_info = run("synchronous", rounds=1)
    attacked, info = run("synchronous", "active", 1, rounds=1)
    own = trees.subtract(trees.take(attacked.participants.params, 1), start().server.params)
    assert float(own["bias"][FAKE_CLASS]) > 0
    assert (np.delete(np.asarray(own["bias"]), FAKE_CLASS) < 0).all()
    assert same_bits(trees.take(honest.participants.params, 1), start().server.params)
    assert float(honest_info.turns.loss[1]) == 0 < float(info.turns.loss[1])


@pytest.mark.parametrize(("mapping", "adversary"), [("vmap", 2), ("map", 0), ("loop", 2)])
def test_the_adversary_sees_only_what_it_downloads(mapping, adversary):
    """With all that others own and all counters replaced by NaN, its state, pictures and parameters are bit-equal."""
    state, _ = run("synchronous", "active", adversary, mapping, rounds=1)
    others = np.arange(len(SIZES)) != adversary

    def hide(leaf):
        hidden = jnp.asarray(others).reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(hidden, jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 77, leaf)

    blinded_data = DATA._replace(inputs=hide(DATA.inputs), labels=hide(DATA.labels))
    blinded_data = blinded_data._replace(sizes=jnp.where(others, 5, DATA.sizes))
    blinded_state = state._replace(
        server=state.server._replace(update_counts=jnp.full_like(state.server.update_counts, jnp.nan)),
        participants=jax.tree.map(hide, state.participants),
    )
    round_fn = jitted_round("synchronous", "active", adversary, mapping, "add")
    seen, seen_info = round_fn(jax.random.key(5), state, DATA, numbers(attack="active"))
    blind, blind_info = round_fn(jax.random.key(5), blinded_state, blinded_data, numbers(attack="active"))
    assert same_bits(blind.attack, seen.attack)
    assert same_bits(blind_info.attack, seen_info.attack)
    assert same_bits(trees.take(blind.participants, adversary), trees.take(seen.participants, adversary))
    reconstruct = an_attack("active").reconstruct
    pictures = reconstruct(jax.random.key(6), blind.attack, 3)
    assert same_bits(pictures, reconstruct(jax.random.key(6), seen.attack, 3))
    assert np.isfinite(pictures).all()
    # The blindfold was real: whoever may see the others does notice.
    assert not trees.all_finite(blind.server.params)
    assert not trees.all_finite(trees.take(blind.participants.params, np.flatnonzero(others)[0]))


def test_a_hidden_field_that_is_used_would_be_noticed():
    """The counterpart: with a partial download the counters matter, and hiding them shows in the attack."""
    state, _ = run("synchronous", "active", 0, rounds=2, upload_fraction=0.5)
    # NaN everywhere ties, so one coordinate that was never sent is put first.
    counts = state.server.update_counts.at[jnp.argmin(state.server.update_counts)].set(jnp.nan)
    blinded = state._replace(server=state.server._replace(update_counts=counts))
    moved = jax.tree.map(lambda leaf: leaf + 1, state.server.params)
    results = [
        jitted_round("synchronous", "active", 0, "map", "add")(
            jax.random.key(5),
            given._replace(server=given.server._replace(params=moved)),
            DATA,
            numbers(attack="active", download_fraction=0.1),
        )[0]
        for given in (state, blinded)
    ]
    assert not same_bits(results[0].attack, results[1].attack)


def test_adversary_state_moves_only_at_its_turn():
    """In a sequential round the attack takes one step a round, whoever else has a turn."""
    state, info = run("random_order", "active", 2, rounds=3)
    assert int(state.attack.steps) == 3
    assert info.attack.generator_loss.shape == ()


def cohort_round(schedule, attack, adversary, cohort, **values):
    """One round of some of the participants, from the state after a round of all: what all hold before and they after.

    Whoever is -1 is nobody: there to fill a place, with data that must not matter.
    """
    before, _ = run(schedule, attack, adversary, rounds=1, **values)
    rows = np.maximum(cohort, 0)
    drawn = trees.take(DATA, rows)._replace(participants=jnp.asarray(cohort, jnp.int32))
    drawn = drawn._replace(sizes=jnp.where(drawn.participants < 0, 0, drawn.sizes))
    after, info = jitted_round(schedule, attack, adversary, "map", "add")(
        jax.random.fold_in(jax.random.key(KEY_SEED), 1),
        before._replace(participants=trees.take(before.participants, rows)),
        drawn,
        numbers(attack=attack, **values),
    )
    return before, after, info


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["round_robin", "synchronous"])
@pytest.mark.parametrize(("attack", "adversary"), [("none", None), ("active", 0), ("active", 2)])
def test_a_round_of_some_is_one_in_which_the_others_have_nothing(schedule, attack, adversary):
    """Participant 1 owns no image, so that without it the server, and all that the others hold, come out the same."""
    values = {"upload_fraction": 0.5, "download_fraction": 0.5}
    whole, whole_info = run(schedule, attack, adversary, rounds=2, **values)
    for cohort in ([0, 2], [0, 2, -1]):
        _, part, info = cohort_round(schedule, attack, adversary, cohort, **values)
        assert largest_difference((part.server, part.attack), (whole.server, whole.attack)) < 1e-6
        assert (
            largest_difference(
                trees.take(part.participants, slice(2)), trees.take(whole.participants, np.array([0, 2]))
            )
            < 1e-6
        )
        assert (
            largest_difference(
                (trees.take(info.turns, slice(2)), info.attack),
                (trees.take(whole_info.turns, np.array([0, 2])), whole_info.attack),
            )
            < 1e-6
        )
    assert (
        largest_difference(whole.server.params, run(schedule, attack, adversary, rounds=1, **values)[0].server.params)
        > 0.1
    )


def asynchronous_rounds(delay, attack, adversary, rounds):
    round_fn = jax.jit(
        make_round(
            MODEL,
            TRANSFORM,
            schedule="asynchronous",
            delay=delay,
            batch_size=3,
            attack=an_attack(attack),
            adversary=adversary,
        )
    )
    state = init_federation(jax.random.key(0), MODEL, TRANSFORM, len(SIZES), an_attack(attack), delay=delay)
    for number in range(rounds):
        key = jax.random.fold_in(jax.random.key(KEY_SEED), number)
        state, info = round_fn(key, state, DATA, numbers(attack=attack, download_fraction=0.5))
    return state, info


def test_an_asynchronous_schedule_without_delay_is_round_robin():
    assert same_bits(
        asynchronous_rounds(0, "active", 2, rounds=2), run("round_robin", "active", 2, download_fraction=0.5)
    )


def test_a_first_round_in_which_all_read_before_anybody_writes_is_synchronous():
    """A delay of P - 1 turns; the updates are added one by one, so that only rounding differs."""
    state, info = asynchronous_rounds(len(SIZES) - 1, "active", 2, rounds=1)
    expected, expected_info = run("synchronous", "active", 2, rounds=1, download_fraction=0.5)
    assert largest_difference(info, expected_info) < 1e-6
    assert largest_difference(state._replace(past=()), expected) < 1e-6
    other, _ = run("round_robin", "active", 2, rounds=1, download_fraction=0.5)
    assert largest_difference(other.server.params, state.server.params) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["round_robin", "synchronous"])
@pytest.mark.parametrize("cohort", [[1, 2], [1, 2, -1]])
def test_an_adversary_who_sits_out_does_nothing(schedule, cohort):
    before, after, info = cohort_round(schedule, "active", 0, cohort)
    assert same_bits(after.attack, before.attack)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(info.attack))
    assert info.turns.samples.tolist() == [SIZES[max(who, 0)] * (who >= 0) for who in cohort]
    assert largest_difference(after.server.params, before.server.params) > 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"schedule": "gossip"},
            "schedule='gossip': allowed are 'round_robin', 'random_order', 'asynchronous', 'synchronous'",
        ),
        ({"aggregator": average()}, "schedule='round_robin': an aggregator that merges whole rounds needs"),
        ({"delay": 1}, "delay=1 with schedule='round_robin': expected 0, or more with 'asynchronous'"),
        ({"schedule": "asynchronous", "delay": -1}, "delay=-1 with schedule='asynchronous': expected 0"),
        ({"schedule": "asynchronous", "delays": "random"}, "delays='random': allowed are 'fixed', 'drawn'"),
        ({"download_criterion": "largest"}, "download_criterion='largest': allowed are 'most_updated', 'random'"),
        ({"participant_mapping": "pmap"}, "participant_mapping='pmap': allowed are"),
        ({"adversary": 1}, "adversary=1: an attack and an adversary go together"),
        ({"attack": "active"}, "adversary=None: an attack and an adversary go together"),
    ],
)
def test_impossible_rounds_are_refused(arguments, message):
    """One line that names the argument, its value and what is allowed."""
    arguments = {"schedule": "round_robin"} | arguments
    if "attack" in arguments:
        arguments["attack"] = an_attack(arguments["attack"])
    with pytest.raises(ValueError, match=message) as caught:
        make_round(MODEL, TRANSFORM, **arguments)
    assert "\n" not in str(caught.value)
