"""All defenses, a line each. One that is added here works in every binary that has one of its stages."""

from __future__ import annotations

from gan_leak.defenses.clipping import CLIPPING
from gan_leak.defenses.contract import Defense
from gan_leak.defenses.dp_sgd import DP_SGD
from gan_leak.defenses.dropout import DROPOUT
from gan_leak.defenses.gaussian import GAUSSIAN
from gan_leak.defenses.laplace import LAPLACE
from gan_leak.defenses.pruning import PRUNING
from gan_leak.defenses.quantization import QUANTIZATION
from gan_leak.defenses.sparse_vector import SPARSE_VECTOR

DEFENSES: tuple[Defense, ...] = (
    SPARSE_VECTOR,
    DP_SGD,
    GAUSSIAN,
    LAPLACE,
    CLIPPING,
    PRUNING,
    QUANTIZATION,
    DROPOUT,
)


def in_stages(*stages: str) -> tuple[Defense, ...]:
    """The defenses that work in one of these stages, in the order of the registry."""
    return tuple(defense for defense in DEFENSES if set(defense.stages) & set(stages))


def find(name: str, *stages: str) -> Defense | None:
    """The defense of this name or alias that works in one of these stages, None if there is none."""
    for defense in in_stages(*stages):
        if name in (defense.name, *defense.aliases):
            return defense
    return None
