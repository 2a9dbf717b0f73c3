"""The cores, devices and memory that this process may use."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import jax

# More than any CPU has cores. Each device costs threads and memory.
MOST_CPU_DEVICES = 1024
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def usable_cores() -> list[int]:
    """The processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def has_core_for_each_device() -> bool:
    """Whether the backend is a CPU with at most one core for each device, so that a program runs on one core."""
    return jax.default_backend() == "cpu" and len(usable_cores()) <= jax.local_device_count()


def use_cpu_devices(name: str, count: int) -> None:
    """Split the CPU into ``count`` devices. Raises ValueError, with the option's ``name``, if JAX has others."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        # On other backends the option has no effect.
        if jax.default_backend() == "cpu" and jax.local_device_count() != count:
            raise ValueError(f"{name}={count}: JAX has {jax.local_device_count()} devices already") from None


def check_backend() -> None:
    """Raise ValueError if the backend that a setting such as ``JAX_PLATFORMS=cuda`` requests is not available.

    If no backend or the CPU is requested, JAX is not initialized, so that the number of devices can still be chosen.
    """
    asked = jax.config.values["jax_platforms"] or ""
    if not set(asked.split(",")) - {"", "cpu"}:
        return
    try:
        jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        reason = f" ({error})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={asked}: expected a backend that is installed and has a device{reason}"
        ) from None


def usable_memory() -> int:
    """Bytes of memory that this process may use: those of the machine, or fewer if a limit is set."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(Path, _CGROUP_LIMITS):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)


def check_fits(what: str, size: float) -> None:
    """Raise ValueError, beginning with ``what``, for a size in bytes of more than half of the usable memory.

    The limit is half, since memory may hold data twice: as a copy in another type, or for a checkpoint.
    """
    most = usable_memory() / 2
    if size > most:
        raise ValueError(
            f"{what} at least {size / 1e9:,.1f} GB of memory, expected at most {most / 1e9:,.1f} GB, half of what is "
            "there"
        )
