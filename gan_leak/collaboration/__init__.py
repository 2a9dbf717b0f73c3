"""Collaborative learning: selective SGD of Shokri and Shmatikov 2015 and federated averaging."""

from gan_leak.collaboration.aggregation import AGGREGATORS, add, average
from gan_leak.collaboration.round import (
    RoundHyperParameters,
    RoundInfo,
    init_federation,
    make_round,
    make_rounds,
)
from gan_leak.collaboration.selection import selective_upload

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
