"""Controls of identification: the same pictures, scored as another client's, and clients that are not there.

All functions take the distances of ``gan_leak.evaluation.identification``, so no attack is run again. Independent and
identically distributed data, auxiliary images alone, and a shuffled federation are controls by their data: they need no
functions.
"""

from __future__ import annotations

import numpy as np

from gan_leak.evaluation.criteria import Interval
from gan_leak.evaluation.identification import checked_victims, shares
from gan_leak.evaluation.intervals import bootstrap_interval


def derangement(clients: int, *, seed: int) -> np.ndarray:
    """A random permutation [K] without a fixed point, uniform over all of them.

    Raises ValueError for fewer than two clients, which have none.
    """
    if clients < 2:
        raise ValueError(f"clients={clients}: expected at least 2")
    rng = np.random.default_rng(seed)
    # About one permutation in e has no fixed point.
    while np.any((order := rng.permutation(clients)) == np.arange(clients)):
        pass
    return order


def scored_as(table: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """The distances [K, M, K] of the pictures of client ``assignment[i]``, claimed to show client i.

    A swap: the attack is run on one client and scored as another. If the pictures identify their client, the rate of
    identified pictures is below chance. Labels must be reordered in the same way.
    """
    return table[np.asarray(assignment)]


def identified_as_others(table: np.ndarray, *, victims: np.ndarray | None = None, seed: int) -> Interval:
    """The share of pictures that identify client i although they were made for another, with 95% interval over i.

    The expected rate under a random derangement of the identities, computed exactly: all others count equally. It is
    (1 - rate) / (K - 1) for the rate of identified pictures of the attack, so below 1 / K if the attack is above it.

    table: distances [V, M, K] of the pictures of V victims. victims: their clients; None: all. One victim has no others
    (NaN).
    """
    victims = checked_victims(victims, table.shape[2])
    confusion = shares(table).mean(axis=1)[:, victims]
    if len(victims) < 2:
        return bootstrap_interval(np.full(1, np.nan), seed=seed)
    others = (confusion.sum(axis=0) - np.diagonal(confusion)) / (len(victims) - 1)
    return bootstrap_interval(others, seed=seed)


def identified_as_outsiders(
    table: np.ndarray, to_outsiders: np.ndarray, *, victims: np.ndarray | None = None, seed: int
) -> Interval:
    """The share of pictures that identify a claimed victim outside of the federation, with 95% interval over victims.

    table: distances [V, M, K]. to_outsiders: distances [V, M, O] of the same pictures to galleries of O people outside,
    of the same size. Each outsider takes the place of the victim among the K candidates, so the rate of pictures that
    have nothing to do with it is 1 / K on average over outsiders that resemble the clients. victims: the clients that
    the pictures were made for; None: all.
    """
    victims = checked_victims(victims, table.shape[2])
    rates = np.zeros(to_outsiders.shape[::2])
    for row, victim in enumerate(victims):
        for outsider in range(to_outsiders.shape[2]):
            candidates = table[row].copy()
            candidates[:, victim] = to_outsiders[row, :, outsider]
            rates[row, outsider] = shares(candidates)[:, victim].mean()
    return bootstrap_interval(rates.mean(axis=1), seed=seed)
