"""The control of an attack by the server whose uploads come in random order."""

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.server.shuffled_senders import shuffled_senders
from gan_leak.types import ServerAttack, ServerView

CLIENTS = 3
NUMBERS = np.array([2, -1, 0, 1, 7])


def _numbers_seen(seed):
    """What an attack is told of the participants of a round of clients 2, 0, 1 and padding of both kinds."""
    attack = ServerAttack(None, None, lambda key, state, view, numbers: (state + 1, view.participants), None)
    view = ServerView(jnp.zeros((), int), jnp.asarray(NUMBERS), (), jnp.zeros((5, 1)), (), ())
    state, seen = shuffled_senders(attack, CLIENTS).step(jax.random.key(seed), jnp.zeros(()), view, ())
    assert state == 1.0
    return np.asarray(seen)


def test_padding_stays_and_clients_are_exchanged_uniformly():
    drawn = np.stack([_numbers_seen(seed) for seed in range(300)])
    np.testing.assert_array_equal(drawn[:, [1, 4]], np.broadcast_to([-1, 7], (300, 2)))
    clients = drawn[:, [0, 2, 3]]
    np.testing.assert_array_equal(np.sort(clients), np.broadcast_to(np.arange(3), (300, 3)))
    orders, counts = np.unique(clients, axis=0, return_counts=True)
    # Each of six orders is expected 50 times, with a standard deviation of 6.5.
    assert len(orders) == 6
    assert np.all(np.abs(counts - 50) < 26)
