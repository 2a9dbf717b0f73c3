"""The parameter server: shared parameters, their upload counts, and downloads."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from gan_leak import trees
from gan_leak.collaboration.selection import fraction_to_count, largest
from gan_leak.types import Array, FlatServer, PyTree, ServerState

DOWNLOAD_CRITERIA = ("most_updated", "random")


def init_server(params: PyTree) -> ServerState:
    """A server that holds ``params`` and has seen no upload."""
    flat, _ = trees.ravel(params)
    return ServerState(params, jnp.zeros_like(flat))


def flatten(server: ServerState) -> tuple[FlatServer, Callable[[Array], PyTree]]:
    """The flat server that a round uses, and the function that turns flat parameters [D] back into the pytree."""
    flat, unravel = trees.ravel(server.params)
    return FlatServer(flat, server.update_counts), unravel


def download(
    key: Array, server: FlatServer, local_params: PyTree, fraction: Array | float, criterion: str = "most_updated"
) -> tuple[PyTree, Array]:
    """Overwrite a fraction of a participant's parameters with the server's -> (parameters, mask).

    mask: bool [D], the coordinates that were overwritten: those with the highest update counters, or a ``random``
    subset. Ties between counters are broken at random. By index, a server with equal counters would always send the
    same coordinates. Fraction 1 gives exactly the server's parameters (Shokri and Shmatikov 2015).
    """
    local, unravel = trees.ravel(local_params)
    # Without a difference between the counters, all is left to the random ties.
    scores = server.update_counts if criterion == "most_updated" else jnp.zeros_like(server.update_counts)
    mask = largest(scores, fraction_to_count(fraction, local.size), key=key)
    return unravel(jnp.where(mask, server.params, local)), mask
