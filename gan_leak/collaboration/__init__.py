"""Collaborative learning: selective SGD of Shokri and Shmatikov 2015 and federated averaging.

>>> import jax
>>> import jax.numpy as jnp
>>> from gan_leak import FederationData, mlp_classifier
>>> classifier, transform = mlp_classifier(3, image_size=4, hidden=()), selective_upload("largest")
>>> data = FederationData(jnp.zeros((2, 6, 4, 4, 1)), jnp.zeros((2, 6), int), sizes=jnp.array([6, 4]))
>>> state = init_federation(jax.random.key(0), classifier, transform, participants=2)
>>> one_round = make_round(classifier, transform, schedule="synchronous", aggregator=average(), batch_size=2)
>>> rounds = jax.jit(make_rounds(one_round, 3))
>>> state, info = rounds(jax.random.key(1), state, data, RoundHyperParameters(learning_rate=0.1), 3)
>>> info.turns.samples
Array([[6, 4],
       [6, 4],
       [6, 4]], dtype=int32)
"""

from gan_leak.collaboration.aggregation import AGGREGATORS, add, average
from gan_leak.collaboration.round import (
    RoundInfo,
    init_federation,
    make_round,
    make_rounds,
)
from gan_leak.collaboration.selection import selective_upload
from gan_leak.types import RoundHyperParameters

__all__ = [
    "AGGREGATORS",
    "RoundHyperParameters",
    "RoundInfo",
    "add",
    "average",
    "init_federation",
    "make_round",
    "make_rounds",
    "selective_upload",
]
