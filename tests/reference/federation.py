"""One collaborative round in plain loops, from the description of the protocol.

Shokri and Shmatikov 2015 (the five steps of a participant, the server's counters) and Hitaj et al. 2017, Algorithm 1,
on a linear softmax classifier whose gradient is written by hand. Parameters are one list of numbers: K biases, then the
weights [F, K] row by row. What the protocol leaves to chance (order of turns, shuffles, ties of the download, which of
the passing coordinates go up) is handed in as it happened in the code under test, and refused where the protocol
forbids it.
"""

import contextlib
import math
from typing import NamedTuple

import numpy as np

from reference.selection import (
    count_of_fraction,
    indices_of_largest,
    is_some_choice_above,
    is_some_largest,
    mask_of_indices,
    truncated,
)


class Settings(NamedTuple):
    """What the participants agree on before they start."""

    learning_rate: float
    learning_rate_decay: float
    upload_fraction: float
    download_fraction: float
    criterion: str
    upload_threshold: float
    upload_bound: float
    update_count_decay: float
    epochs: int
    batch_size: int
    classes: int
    download_criterion: str = "most_updated"


class Turn(NamedTuple):
    """What chance decided in one turn: who, the parameters after download, the batches, the coordinates sent."""

    participant: int
    start: np.ndarray
    batches: list
    sent: np.ndarray


def loss_and_gradient(params, images, labels, classes):
    """Mean negative log-likelihood of a linear softmax classifier and its gradient, a sample at a time."""
    total, gradient = 0.0, np.zeros(len(params))
    for image, label in zip(images, labels, strict=True):
        pixels = image.reshape(-1).astype(np.float64)
        logits = [params[k] + sum(pixels * params[classes + k :: classes]) for k in range(classes)]
        largest = max(logits)
        exponentials = [math.exp(logit - largest) for logit in logits]
        probabilities = [value / sum(exponentials) for value in exponentials]
        total -= math.log(probabilities[label])
        for k in range(classes):
            error = probabilities[k] - (1.0 if k == label else 0.0)
            gradient[k] += error
            gradient[classes + k :: classes] += error * pixels
    return total / len(labels), gradient / len(labels)


def local_sgd(params, images, labels, steps, batches, settings):
    """Minibatch SGD over the given batches of sample numbers -> (params, steps, mean loss over the samples seen)."""
    params, losses = np.array(params, np.float64), []
    for batch in batches:
        loss, gradient = loss_and_gradient(
            params, [images[n] for n in batch], [labels[n] for n in batch], settings.classes
        )
        rate = settings.learning_rate / (1 + steps * settings.learning_rate_decay)
        params = params - rate * gradient
        steps += 1
        losses += [loss] * len(batch)
    return params, steps, (sum(losses) / len(losses) if losses else 0.0)


def check_batches(batches, samples, settings):
    """Refuses batches that do not visit every sample once an epoch, in full batches but for the last."""
    for_epoch = math.ceil(samples / settings.batch_size)
    assert len(batches) == for_epoch * settings.epochs
    for epoch in range(settings.epochs):
        visited = batches[epoch * for_epoch : (epoch + 1) * for_epoch]
        assert sorted(n for batch in visited for n in batch) == list(range(samples))
        assert all(len(batch) == settings.batch_size for batch in visited[:-1])


def overwritten(start, server, local, counts, count):
    """Which coordinates a download took from the server, told from the result; refused unless the highest counts.

    Where server and participant agree, either may be the source: the most-updated of those make up the count.
    """
    size = len(server)
    from_server = [abs(start[i] - server[i]) < 2e-6 for i in range(size)]
    from_local = [abs(start[i] - local[i]) < 2e-6 for i in range(size)]
    assert all(from_server[i] or from_local[i] for i in range(size))
    certain = {i for i in range(size) if from_server[i] and not from_local[i]}
    either = sorted((i for i in range(size) if from_server[i] and from_local[i]), key=lambda i: -counts[i])
    mask = mask_of_indices(certain | set(either[: max(0, count - len(certain))]), size)
    assert is_some_largest(mask, counts, count)
    return mask


class Federation:
    """The server's parameters and counters, and every participant's own parameters and number of SGD steps."""

    def __init__(self, params, participants):
        self.server = np.array(params, np.float64)
        self.counts = np.zeros(len(params))
        self.local = [np.array(params, np.float64) for _ in range(participants)]
        self.steps = [0] * participants
        self.past = []

    def sequential_round(self, turns, data, settings, delays=(0,)):
        """Everyone in turn: what one has uploaded, the next one can download.

        delays: how many turns ago a participant may have downloaded. What it began with tells which of them it was.
        """
        losses = {}
        for turn in turns:
            self.past.append((self.server.copy(), self.counts.copy()))
            server, counts = self._read(turn, delays, settings)
            update, losses[turn.participant] = self._train(turn, server, counts, data, settings)
            self.counts *= settings.update_count_decay
            self._add(update, turn.sent, 1.0)
        return losses

    def synchronous_round(self, turns, data, settings, weights):
        """Everyone from the same server; the updates are added with the weights."""
        server, counts, losses = self.server.copy(), self.counts.copy(), {}
        self.counts *= settings.update_count_decay
        for turn in turns:
            update, losses[turn.participant] = self._train(turn, server, counts, data, settings)
            self._add(update, turn.sent, weights[turn.participant])
        return losses

    def _read(self, turn, delays, settings):
        """The first allowed state of the server from which the participant may have begun."""
        for delay in delays:
            server, counts = self.past[max(0, len(self.past) - 1 - delay)]
            with contextlib.suppress(AssertionError):
                self._downloaded(turn, server, counts, settings)
                return server, counts
        raise AssertionError("no allowed state of the server explains the start")

    def _downloaded(self, turn, server, counts, settings):
        scores = counts if settings.download_criterion == "most_updated" else np.zeros(len(server))
        count = count_of_fraction(settings.download_fraction, len(server))
        return overwritten(turn.start, server, self.local[turn.participant], scores, count)

    def _add(self, update, sent, weight):
        for index in range(len(update)):
            self.server[index] += weight * update[index]
            self.counts[index] += 1 if sent[index] else 0

    def _train(self, turn, server, counts, data, settings):
        size, (images, labels) = len(server), data[turn.participant]
        who = turn.participant
        downloaded = self._downloaded(turn, server, counts, settings)
        start = np.array([server[i] if downloaded[i] else self.local[who][i] for i in range(size)])
        check_batches(turn.batches, len(labels), settings)
        trained, self.steps[who], loss = local_sgd(start, images, labels, self.steps[who], turn.batches, settings)
        self.local[who] = trained
        change = trained - start
        allowed = count_of_fraction(settings.upload_fraction, size) if len(labels) else 0
        if settings.criterion == "largest":
            expected = mask_of_indices(indices_of_largest(np.abs(change), allowed), size)
            assert np.array_equal(turn.sent, expected)
        else:
            assert is_some_choice_above(turn.sent, change, settings.upload_threshold, allowed)
        update = [truncated(change[i], settings.upload_bound) if turn.sent[i] else 0.0 for i in range(size)]
        return update, loss
