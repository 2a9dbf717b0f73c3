"""Sharding of participants, or of whole runs, over the devices of a mesh.

Inside a device they are mapped as on a single device. Only the uploads travel between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gan_leak import trees
from gan_leak.types import FederationData, FederationState, PyTree

DEVICE_AXIS = "devices"
_Function = TypeVar("_Function", bound=Callable[..., PyTree])


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis over the devices; None means all devices."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DEVICE_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def over_devices(fun: _Function, mesh: Mesh) -> _Function:
    """Run ``fun(shared, each)`` on every device; the leaves of ``each`` are divided along the first axis.

    The function returned raises ValueError if that axis is not a multiple of the number of devices.
    """
    # With check_vma, loops that start from constants would need annotations that they differ between devices.
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

    return cast(_Function, run)


def rows_between(array: np.ndarray, start: int, stop: int, *, fill: int = 0) -> np.ndarray:
    """Entries ``start`` to ``stop`` of the first axis, with ``fill`` beyond its end."""
    taken = array[start:stop]
    return np.pad(
        taken, [(0, stop - start - len(taken)), *[(0, 0)] * (array.ndim - 1)], constant_values=array.dtype.type(fill)
    )


def shard(state: FederationState, data: FederationData, mesh: Mesh) -> tuple[FederationState, FederationData]:
    """Place each participant's state and data on its device, and everything else on all devices.

    Padding participants without data fill the last devices. They upload nothing and are not counted. With several
    processes, each process reads only the rows of its own participants (``own_positions``).
    """
    by_participant = NamedSharding(mesh, PartitionSpec(DEVICE_AXIS))

    def spread(leaf: PyTree, fill: int = 0) -> jax.Array:
        array = np.asarray(leaf)
        rows = -(-len(array) // mesh.size) * mesh.size

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            return rows_between(array, start, stop, fill=fill)

        return jax.make_array_from_callback((rows, *array.shape[1:]), by_participant, part)

    shared = replicate(_without_participants(state), mesh)
    identities = None if data.participants is None else spread(data.participants, fill=-1)
    return (
        shared._replace(participants=jax.tree.map(spread, state.participants)),
        FederationData(spread(data.inputs), spread(data.labels), spread(data.sizes), identities),
    )


def _without_participants(state: FederationState) -> FederationState:
    nothing: PyTree = ()
    return state._replace(participants=nothing)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy arrays to every device; every process must hold them."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    # jax.device_put does not reach the devices of other processes.
    def copy(leaf: PyTree) -> jax.Array:
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(copy(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])

    return jax.tree.map(copy, tree)


def own_positions(participants: int, mesh: Mesh) -> list[int]:
    """The participants whose devices belong to this process, in the order in which ``shard`` places them."""
    each = -(-participants // mesh.size)
    own: list[int] = []
    for place, device in enumerate(mesh.devices.flat):
        if device.process_index == jax.process_index():
            own += range(min(place * each, participants), min((place + 1) * each, participants))
    return own


def unshard(state: FederationState, participants: int) -> FederationState:
    """The state of a federation without the padding of ``shard``, as NumPy arrays, in every process.

    It can be saved, and sharded again over any number of devices.
    """
    everyone = multihost_utils.process_allgather(state.participants, tiled=True)
    shared = jax.device_get(_without_participants(state))
    return shared._replace(participants=trees.take(everyone, slice(participants)))


def round_places(mesh: Mesh) -> tuple[FederationState, NamedSharding]:
    """The placement of the results of a round: states as in ``shard``, the log on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_participant = NamedSharding(mesh, PartitionSpec(DEVICE_AXIS))
    places: PyTree = FederationState._make([everywhere] * len(FederationState._fields))
    return places._replace(participants=by_participant), everywhere
