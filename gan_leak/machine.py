"""What this process may use of the machine."""

from __future__ import annotations

import os

import jax


def usable_cores() -> list[int]:
    """The processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def has_core_for_each_device() -> bool:
    """Whether this is a CPU with at most one core for each device: work within one program has no cores to share."""
    return jax.default_backend() == "cpu" and len(usable_cores()) <= jax.local_device_count()
