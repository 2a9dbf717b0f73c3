"""The settings that decide the speed of a run. A test of each shows that it never changes a result."""

from __future__ import annotations

import dataclasses

from gan_leak.collaboration.synchronous import PARTICIPANT_MAPPINGS
from gan_leak.machine import MOST_CPU_DEVICES
from gan_leak.models.layers import IMPLEMENTATIONS
from gan_leak.settings import between, option

# The host holds the diagnostics of all rounds of a chunk in memory.
_MOST_ROUNDS_PER_CHUNK = 10_000


@dataclasses.dataclass(frozen=True)
class PerformanceOptions:
    """Options for speed. None changes a result beyond float tolerance."""

    convolution: str = option(
        "auto",
        "How convolutions run: 'matmul' (patches and one matrix product), 'blocked' (the same, a few images at a "
        "time), 'lax' (the stock convolution) or 'auto' (blocked on a CPU with a core for each device, else matmul).",
        choices=IMPLEMENTATIONS,
        effect="speed",
    )
    participant_mapping: str = option(
        "auto",
        "How a synchronous round runs its participants: 'vmap', 'map', 'loop' (unrolled) or 'auto' (map on a CPU, vmap "
        "elsewhere).",
        choices=PARTICIPANT_MAPPINGS,
        effect="speed",
    )
    seed_mapping: str = option(
        "auto",
        "How one program runs the seeds of a setting: 'vmap', 'map' or 'auto' (map on a CPU, vmap elsewhere).",
        choices=("auto", "vmap", "map"),
        kind="host",
        effect="speed",
    )
    cpu_devices: int = option(
        0,
        "Number of devices into which a CPU is split; they share the participants of a synchronous round. 0 = one for "
        "each core in a synchronous schedule without an attack, else one.",
        bounds=between(0, MOST_CPU_DEVICES),
        kind="host",
        effect="speed",
    )
    rounds_per_chunk: int = option(
        1,
        "Maximum number of rounds in one compiled call, 1 to 10,000.",
        bounds=between(1, _MOST_ROUNDS_PER_CHUNK),
        kind="host",
        effect="speed",
    )
