"""Participants, or whole runs, dealt out over the devices of a mesh: each device runs its share.

Inside a device they are mapped as on a single one; between devices travels only what the server merges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gan_leak import trees
from gan_leak.types import FederationData, FederationState, PyTree

DEVICE_AXIS = "devices"


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis over the devices; over all there are if none are given."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DEVICE_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def over_devices(fun: Callable, mesh: Mesh) -> Callable:
    """Runs ``fun(shared, each)`` on every device with its share of ``each``, whose leaves are cut along the first axis.

    The function returned raises ValueError if that axis is no multiple of the number of devices.
    """
    # Loops that start from constants would otherwise have to be told that they differ from device to device.
    mapped = jax.shard_map(
        fun,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(DEVICE_AXIS)),
        out_specs=PartitionSpec(DEVICE_AXIS),
        check_vma=False,
    )

    def run(shared: PyTree, each: PyTree) -> PyTree:
        entries = len(jax.tree.leaves(each)[0])
        if entries % mesh.size:
            raise ValueError(f"entries={entries}: expected a multiple of {mesh.size}, the number of devices")
        return mapped(shared, each)

    return run


def pad_participants(tree: PyTree, multiple: int) -> PyTree:
    """Adds zeros to the leading P axis of data or states, up to the next multiple.

    Who is added has no data (``sizes`` 0), and so uploads and counts nothing.
    """
    return jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, -len(leaf) % multiple), *[(0, 0)] * (leaf.ndim - 1)]),
        tree,
    )


def deal_out(state: FederationState, data: FederationData, mesh: Mesh) -> tuple[FederationState, FederationData]:
    """Places each participant's state and data on its device, and everything else on all of them."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_participant = NamedSharding(mesh, PartitionSpec(DEVICE_AXIS))
    # In the order of its fields: server, participants, attack, round.
    places = FederationState._make([everywhere, by_participant, everywhere, everywhere])
    return jax.device_put(state, places), jax.device_put(data, by_participant)


def gather(state: FederationState, participants: int) -> FederationState:
    """The state of a federation without those whom ``pad_participants`` added, on one device.

    So it can be kept and dealt out again over any number of devices.
    """
    own = state._replace(participants=trees.take(state.participants, slice(participants)))
    return jax.device_put(own, jax.local_devices()[0])
