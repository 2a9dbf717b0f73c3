"""Aggregators: the server merges uploads into the shared parameters, and sees part of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from gan_leak.types import Aggregator, Array, FlatServer, PyTree, Received, RoundHyperParameters, Upload


def _stateless(params: PyTree) -> tuple[()]:
    return ()


def _leave_out(uploads: Upload, weights: Array, merged: Array | None) -> tuple[Upload, Array]:
    """Uploads and weights, with zeros for those that are not merged."""
    if merged is None:
        return uploads, weights
    mask = uploads.mask & merged[:, None]
    return Upload(jnp.where(mask, uploads.values, 0.0), mask), jnp.where(merged, weights, 0)


def _merge(server: FlatServer, uploads: Upload, factors: Array, count_decay: Array | float) -> FlatServer:
    """The server after adding the uploads times their factors [P] and counting their coordinates."""
    counts = count_decay * server.update_counts + jnp.sum(uploads.mask, axis=0)
    if len(factors) == 1:
        # Exact on every device, unlike a matrix product.
        return FlatServer(server.params + factors[0] * uploads.values[0], counts)
    return FlatServer(server.params + jnp.einsum("p,pd->d", factors, uploads.values), counts)


def _weighted_sum(factors_of: Callable[[Array], Array], *, tells_weights: bool, sequential: bool) -> Aggregator:
    """Add the uploads times ``factors_of(weights [P]) -> [P]``. The server sees the uploads.

    ``tells_weights`` says whether it also sees the sample counts.
    """

    def apply(
        key: Array,
        server: FlatServer,
        uploads: Upload,
        weights: Array,
        state: PyTree,
        *,
        hyperparameters: RoundHyperParameters,
        merged: Array | None = None,
        **extra: Any,
    ) -> tuple[FlatServer, PyTree, Received, tuple[()]]:
        used, counts = _leave_out(uploads, weights, merged)
        server = _merge(server, used, factors_of(counts), hyperparameters.update_count_decay)
        return server, state, Received(uploads, weights if tells_weights else None), ()

    return Aggregator(_stateless, apply, sequential)


def add() -> Aggregator:
    """Add the uploads and count their coordinates, as selective SGD does (Shokri and Shmatikov 2015).

    ``update_count_decay`` multiplies the counters before every merge. The server sees every upload, but no sample
    counts.
    """
    return _weighted_sum(lambda weights: jnp.ones(weights.shape), tells_weights=False, sequential=True)


def average() -> Aggregator:
    """Average the uploads, weighted by sample counts: FederatedAveraging (McMahan et al. 2017, Algorithm 1).

    A coordinate that was not uploaded counts as no change. If no participant has samples, nothing changes. The server
    sees every upload and the sample counts.
    """
    return _weighted_sum(
        lambda weights: weights / jnp.maximum(jnp.sum(weights), 1), tells_weights=True, sequential=False
    )


AGGREGATORS: dict[str, Callable[[], Aggregator]] = {"add": add, "average": average}
