"""Whole rounds against the naive twin: the server, its counters, and what every participant keeps.

The code under test is watched, not re-derived: which images a step sees, what a participant starts from and what it
sends. The twin refuses what the protocol forbids and computes the rest by itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.collaboration import AGGREGATORS, RoundHyperParameters, init_federation, make_round, selective_upload
from gan_leak.collaboration.selection import chain
from gan_leak.types import TransformInfo, UploadTransform
from reference.federation import Federation, Settings, Turn
from reference.small import CLASSES, federation_data, linear_classifier

SIZES = (7, 0, 4)
DATA = federation_data(SIZES)
ROUNDS = 3
SELECTIVE = Settings(0.2, 0.05, 0.32, 0.6, "largest", 0.0, 0.02, 0.5, 2, 3, CLASSES)
FULL = Settings(0.2, 0.0, 1.0, 1.0, "largest", 0.0, np.inf, 1.0, 1, 3, CLASSES)
RANDOM = Settings(0.1, 1e-7, 0.4, 0.3, "random", 0.01, 0.05, 1.0, 1, 2, CLASSES)


class Observer:
    """Collects what passes by during one round."""

    def __init__(self, data):
        self.numbers = [
            {np.asarray(image).tobytes(): number for number, image in enumerate(images[:size])}
            for images, size in zip(data.inputs, data.sizes, strict=True)
        ]
        self.turns, self.batches, self.start = [], [], None

    def see_batch(self, images):
        self.batches.append(np.array(images))

    def see_start(self, who, params):
        self.start = (int(who), np.array(params))

    def see_sent(self, mask):
        who, start = self.start
        self.turns.append(Turn(who, start, self._sample_numbers(who), np.array(mask)))
        self.batches = []

    def _sample_numbers(self, who):
        """The real samples of each batch: the rows behind the last real sample of an epoch are padding."""
        numbers, left = [], 0
        for batch in self.batches:
            left = left or len(self.numbers[who])
            real = min(left, len(batch))
            numbers.append([self.numbers[who][image.tobytes()] for image in batch[:real]])
            left -= real
        return numbers


def observing(observer):
    """Two transforms that change nothing: one before the selection, with a participant's name as state, one behind."""

    def before(key, upload, state, *, params, hyperparameters, **extra):
        jax.debug.callback(observer.see_start, state, trees.ravel(params)[0], ordered=True)
        return upload, state, TransformInfo(jnp.int32(0))

    def behind(key, upload, state, *, params, hyperparameters, **extra):
        jax.debug.callback(observer.see_sent, upload.mask, ordered=True)
        return upload, state, TransformInfo(jnp.int32(0))

    return UploadTransform(lambda params: jnp.int32(0), before), UploadTransform(lambda params: (), behind)


def hyperparameters_of(settings):
    return RoundHyperParameters(
        settings.learning_rate,
        settings.learning_rate_decay,
        settings.upload_fraction,
        settings.download_fraction,
        settings.upload_threshold,
        settings.upload_bound,
        settings.update_count_decay,
    )


@functools.cache
def watched_round(criterion, download_criterion, schedule, delay, delays, aggregation, epochs, batch_size):
    """A compiled round and who watches it."""
    observer = Observer(DATA)
    model = linear_classifier(observer.see_batch)
    before, behind = observing(observer)
    transform = chain(before, selective_upload(criterion), behind)
    round_fn = make_round(
        model,
        transform,
        schedule=schedule,
        delay=delay,
        delays=delays,
        aggregator=AGGREGATORS[aggregation](),
        download_criterion=download_criterion,
        local_epochs=epochs,
        batch_size=batch_size,
        participant_mapping="map",
    )
    return observer, model, transform, jax.jit(round_fn)


def run_beside_twin(settings, schedule, aggregation="add", delay=0, delays="fixed", allowed=None, twin=None, **wrong):
    """Runs three rounds of both, comparing everything after each; returns the orders of the turns.

    ``wrong`` changes hyper-parameters of the code under test behind the twin's back. ``allowed`` are the delays that
    the twin allows, ``twin`` its settings if they are other ones.
    """
    observer, model, transform, round_fn = watched_round(
        settings.criterion,
        settings.download_criterion,
        schedule,
        delay,
        delays,
        aggregation,
        settings.epochs,
        settings.batch_size,
    )
    allowed = allowed or ((delay,) if delays == "fixed" else range(delay + 1))
    state = init_federation(jax.random.key(1), model, transform, len(SIZES), delay=delay)
    names = jnp.arange(len(SIZES), dtype=jnp.int32)
    _, selection_state, behind_state = state.participants.upload_state
    participants = state.participants._replace(upload_state=(names, selection_state, behind_state))
    state = state._replace(participants=participants)
    hyperparameters = hyperparameters_of(settings)._replace(**wrong)
    flatten = jax.vmap(lambda params: trees.ravel(params)[0])
    believed = twin or settings
    twin = Federation(trees.ravel(state.server.params)[0], len(SIZES))
    owned = [(np.asarray(DATA.inputs[p, :n]), np.asarray(DATA.labels[p, :n])) for p, n in enumerate(SIZES)]
    weights = [size / sum(SIZES) if aggregation == "average" else 1.0 for size in SIZES]
    orders = []
    for number in range(ROUNDS):
        observer.turns.clear()
        state, info = round_fn(jax.random.key(number), state, DATA, hyperparameters)
        jax.effects_barrier()
        turns = observer.turns
        orders.append([turn.participant for turn in turns])
        assert sorted(orders[-1]) == list(range(len(SIZES)))
        if schedule == "synchronous":
            losses = twin.synchronous_round(turns, owned, believed, weights)
        else:
            losses = twin.sequential_round(turns, owned, believed, allowed)
        close = {"rtol": 0, "atol": 1e-5}
        np.testing.assert_allclose(trees.ravel(state.server.params)[0], twin.server, **close)
        np.testing.assert_allclose(state.server.update_counts, twin.counts, **close)
        np.testing.assert_allclose(flatten(state.participants.params), twin.local, **close)
        np.testing.assert_allclose(info.turns.loss, [losses[p] for p in range(len(SIZES))], **close)
        sent = {turn.participant: int(turn.sent.sum()) for turn in turns}
        assert info.turns.uploaded.tolist() == [sent[p] for p in range(len(SIZES))]
        assert info.turns.samples.tolist() == list(SIZES)
        assert state.participants.optimizer_steps.tolist() == twin.steps
    assert np.abs(twin.server - np.asarray(trees.ravel(model.init(jax.random.key(1)))[0])).max() > 0.01
    return orders


@pytest.mark.parametrize(
    ("settings", "schedule"),
    [
        (FULL, "round_robin"),
        (SELECTIVE, "round_robin"),
        (SELECTIVE, "random_order"),
        (RANDOM, "random_order"),
        (RANDOM._replace(upload_fraction=1.0), "round_robin"),
        (SELECTIVE._replace(download_criterion="random"), "round_robin"),
    ],
)
def test_sequential_rounds_equal_the_twin(settings, schedule):
    """Three rounds of downloads, epochs, selections and uploads by loops give the same parameters and counters."""
    orders = run_beside_twin(settings, schedule)
    if schedule == "round_robin":
        assert orders == [[0, 1, 2]] * ROUNDS
    else:
        assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize(
    ("settings", "delay", "delays"),
    [(FULL, 1, "fixed"), (SELECTIVE, 5, "fixed"), (FULL, 4, "drawn")],
)
def test_asynchronous_rounds_equal_the_twin(settings, delay, delays):
    """Participants work from states of the server that are some turns old; their uploads are added to the newest."""
    orders = run_beside_twin(settings, "asynchronous", delay=delay, delays=delays)
    assert orders == [[0, 1, 2]] * ROUNDS


@pytest.mark.parametrize(("delays", "allowed"), [("fixed", (1,)), ("fixed", (3,)), ("drawn", (0, 1))])
def test_twin_rejects_another_delay(delays, allowed):
    with pytest.raises(AssertionError, match="explains the start"):
        run_beside_twin(FULL, "asynchronous", delay=2, delays=delays, allowed=allowed)


def test_twin_rejects_another_choice_of_coordinates():
    """Random coordinates are not the most-updated ones."""
    with pytest.raises(AssertionError):
        run_beside_twin(SELECTIVE._replace(download_criterion="random"), "round_robin", twin=SELECTIVE)


@pytest.mark.parametrize(("settings", "aggregation"), [(SELECTIVE, "add"), (FULL, "average"), (RANDOM, "average")])
def test_synchronous_rounds_equal_the_twin(settings, aggregation):
    """Everyone from one server state: the sum of the updates, or their average weighted by samples (FedAvg)."""
    run_beside_twin(settings, "synchronous", aggregation)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate_decay": 0.0},
        {"upload_fraction": 0.33},
        {"download_fraction": 0.61},
        {"upload_bound": 0.021},
        {"update_count_decay": 0.51},
    ],
)
def test_twin_rejects_a_round_with_another_number(wrong):
    """The comparison notices every number of the protocol being slightly off."""
    with pytest.raises(AssertionError):
        run_beside_twin(SELECTIVE, "round_robin", **wrong)
