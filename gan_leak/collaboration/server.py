"""The parameter server: shared parameters, update counters, and how uploads are merged."""

from __future__ import annotations

import jax.numpy as jnp

from gan_leak import trees
from gan_leak.collaboration.selection import fraction_to_count, largest
from gan_leak.types import Array, PyTree, ServerState, Upload

AGGREGATIONS = ("add", "average")


def init_server(params: PyTree) -> ServerState:
    """A server that holds ``params`` and has seen no upload."""
    flat, _ = trees.ravel(params)
    return ServerState(params, jnp.zeros_like(flat))


def download(key: Array, server: ServerState, local_params: PyTree, fraction: Array | float) -> PyTree:
    """Overwrites the most-updated fraction of a participant's parameters with the server's.

    Ties between update counters are broken at random: by index, a server whose counters are all equal would send the
    same coordinates forever. Fraction 1 is exactly the server's parameters (Shokri and Shmatikov 2015).
    """
    local, unravel = trees.ravel(local_params)
    shared, _ = trees.ravel(server.params)
    mask = largest(server.update_counts, fraction_to_count(fraction, local.size), key=key)
    return unravel(jnp.where(mask, shared, local))


def add_upload(server: ServerState, upload: Upload, count_decay: Array | float) -> ServerState:
    """Adds one upload to the parameters and counts it, as the server of selective SGD does."""
    flat, unravel = trees.ravel(server.params)
    counts = count_decay * server.update_counts + upload.mask
    return ServerState(unravel(flat + upload.values), counts)


def merge_uploads(
    server: ServerState, uploads: Upload, sample_counts: Array, count_decay: Array | float, *, aggregation: str
) -> ServerState:
    """Merges the uploads [P, D] of one synchronous round.

    ``add`` sums them (Shokri and Shmatikov 2015); ``average`` weights them by ``sample_counts`` [P] (McMahan et al.
    2017, FederatedAveraging). A coordinate that a participant did not upload counts as no change.
    """
    weights = jnp.ones_like(sample_counts, jnp.float32)
    if aggregation == "average":
        weights = sample_counts / jnp.maximum(jnp.sum(sample_counts), 1)
    flat, unravel = trees.ravel(server.params)
    counts = count_decay * server.update_counts + jnp.sum(uploads.mask, axis=0)
    return ServerState(unravel(flat + jnp.einsum("p,pd->d", weights, uploads.values)), counts)
