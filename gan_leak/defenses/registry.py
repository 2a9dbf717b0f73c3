"""All defenses, one per line. A new entry works in every binary that has one of its stages."""

from __future__ import annotations

import importlib

from gan_leak.defenses.contract import Defense

# Files of this folder; each ends in ``DEFENSE``.
_FILES = (
    "sparse_vector",
    "dp_sgd",
    "gaussian",
    "laplace",
    "clipping",
    "pruning",
    "quantization",
    "dropout",
    "secure_aggregation",
)

DEFENSES: tuple[Defense, ...] = tuple(importlib.import_module(f"gan_leak.defenses.{name}").DEFENSE for name in _FILES)


def in_stages(*stages: str) -> tuple[Defense, ...]:
    """The defenses that work in one of these stages, in the order of the registry."""
    return tuple(defense for defense in DEFENSES if set(defense.stages) & set(stages))


def find(name: str, *stages: str) -> Defense | None:
    """The defense of this name or alias that works in one of these stages, None if there is none."""
    for defense in in_stages(*stages):
        if name in (defense.name, *defense.aliases):
            return defense
    return None
