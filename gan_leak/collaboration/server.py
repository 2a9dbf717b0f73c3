"""The parameter server: shared parameters, how often each was uploaded, and what a download overwrites."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from gan_leak import trees
from gan_leak.collaboration.selection import fraction_to_count, largest
from gan_leak.types import Array, FlatServer, PyTree, ServerState


def init_server(params: PyTree) -> ServerState:
    """A server that holds ``params`` and has seen no upload."""
    flat, _ = trees.ravel(params)
    return ServerState(params, jnp.zeros_like(flat))


def flatten(server: ServerState) -> tuple[FlatServer, Callable[[Array], PyTree]]:
    """The server as a round works on it, and the function that turns flat parameters [D] back into the pytree."""
    flat, unravel = trees.ravel(server.params)
    return FlatServer(flat, server.update_counts), unravel


def download(key: Array, server: FlatServer, local_params: PyTree, fraction: Array | float) -> tuple[PyTree, Array]:
    """Overwrites the most-updated fraction of a participant's parameters with the server's.

    Returns the parameters and which coordinates were overwritten (bool [D]). Ties between update counters are broken at
    random: by index, a server whose counters are all equal would send the same coordinates forever. Fraction 1 is
    exactly the server's parameters (Shokri and Shmatikov 2015).
    """
    local, unravel = trees.ravel(local_params)
    mask = largest(server.update_counts, fraction_to_count(fraction, local.size), key=key)
    return unravel(jnp.where(mask, server.params, local)), mask
