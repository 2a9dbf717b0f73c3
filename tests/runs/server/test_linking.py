"""Linkability in a federation: what is compared, and on which clients the network of the server is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import user_leakage
from experiments.common.user_config import UserLeakageConfig, variants_of
from gan_leak.attacks.server.linkability import link
from gan_leak.runs.server.attack import inferred_labels
from gan_leak.runs.server.linking import (
    count_distances,
    representative_distances,
    simulated_clients,
    update_distances,
)
from gan_leak.runs.server.rounds import record_rounds
from gan_leak.runs.storage.resumable import UNSAVED
from gan_leak.settings import replace
from reference.mgan_ai import use_linear_people
from reference.quick import people_settings, write_people

CLIENTS = 5


def federation_of(path, **changes):
    settings = people_settings(write_people(path, owners=12)) | {"auxiliary_owners": 6, "rounds": 3}
    config = replace(UserLeakageConfig(), **{**settings, **changes})
    return config, user_leakage.load_data(config)[1]


def test_simulated_clients_have_people_of_their_own_and_as_many_images_as_a_client(tmp_path):
    _, federation = federation_of(tmp_path / "people.npz")
    for each, count in ((1, 6), (2, 3), (4, 1), (7, 0)):
        drawn = simulated_clients(np.random.default_rng(0), federation, each)
        assert drawn.shape == ((count, 4) if count else (0, 0))
        owners = [set(federation.auxiliary_owners[own]) for own in drawn]
        assert all(len(own) <= each and len(set(indices)) == 4 for own, indices in zip(owners, drawn, strict=True))
        assert len(set().union(*owners)) == sum(map(len, owners))
    assert not set(federation.auxiliary_owners) & set(federation.split.owners.ravel())


@pytest.mark.slow
def test_each_method_compares_the_first_attacked_round_with_the_last(tmp_path, monkeypatch):
    """Full batches of the same images point in one direction; in the other order of clients the links move along."""
    use_linear_people(monkeypatch)
    config, federation = federation_of(tmp_path / "people.npz", first_round=1)
    variant = next(iter(variants_of(config).values()))
    pair = record_rounds(jax.random.key(0), federation, variant, 1, config.federation, UNSAVED)
    assert pair.first.changes.shape == pair.last.changes.shape
    assert float(jnp.abs(pair.first.changes - pair.last.changes).max()) > 0
    table = update_distances(pair)
    assert table.shape == (CLIENTS, CLIENTS)
    assert link(np.random.default_rng(0), table).tolist() == list(range(CLIENTS))
    turned = pair._replace(last=jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), pair.last))
    assert link(np.random.default_rng(0), update_distances(turned)).tolist() == [1, 2, 3, 4, 0]
    shares = [
        np.asarray(inferred_labels(federation, recorded.sent, -recorded.changes / 0.05, np.full(CLIENTS, 4), 1).counts)
        / 4
        for recorded in pair
    ]
    counts = count_distances(federation, variant, pair, config.federation)
    for client, other in np.ndindex(CLIENTS, CLIENTS):
        assert counts[client, other] == pytest.approx(np.abs(shares[0][client] - shares[1][other]).sum() / 2)
    simulated = simulated_clients(np.random.default_rng(0), federation, 1)
    found, again = (
        representative_distances(
            jax.random.key(1), federation, variant, rounds, simulated, config.attack, config.federation, UNSAVED
        )
        for rounds in (pair, turned)
    )
    assert found.shape == (CLIENTS, CLIENTS)
    assert np.all(np.isfinite(found))
    assert not np.allclose(found, again)
