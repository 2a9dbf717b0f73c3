"""Published defenses, one a file; the docstring of each carries what it promises, to whom and at what cost.

A defense of the round takes the place of local training or of the upload transform:

>>> import jax
>>> import jax.numpy as jnp
>>> from gan_leak import FederationData, RoundHyperParameters, init_federation, make_round, mlp_classifier
>>> classifier, transform = mlp_classifier(3, image_size=4, hidden=()), sparse_vector_upload()
>>> data = FederationData(jnp.zeros((2, 6, 4, 4, 1)), jnp.zeros((2, 6), int), sizes=jnp.array([6, 4]))
>>> state = init_federation(jax.random.key(0), classifier, transform, participants=2)
>>> one_round = make_round(classifier, transform, schedule="synchronous", batch_size=2, local_training=dp_sgd)
>>> numbers = RoundHyperParameters(
...     0.1, upload_fraction=0.1, upload_bound=0.001, noise_multiplier=1.0, epsilon_per_release=0.5
... )
>>> state, info = jax.jit(one_round)(jax.random.key(1), state, data, numbers)
>>> bool(jnp.all(info.turns.uploaded <= 5))
True

What a run promises:

>>> sparse_vector_epsilon(epsilon_per_release=0.5, upload_fraction=0.1, coordinates=51, uploads=2).epsilon
5.0
>>> round(dp_sgd_epsilon(noise_multiplier=1.0, sampling_probability=1.0, steps=1, delta=1e-5).epsilon, 2)
4.38
"""

from gan_leak.defenses.accounting import (
    PrivacyLoss,
    dp_sgd_epsilon,
    dp_sgd_schedule,
    noise_multiplier_for,
    sparse_vector_charged,
    sparse_vector_epsilon,
)
from gan_leak.defenses.dp_sgd import check_dp_sgd, dp_sgd
from gan_leak.defenses.sparse_vector import check_sparse_vector, sparse_vector_upload

__all__ = [
    "PrivacyLoss",
    "check_dp_sgd",
    "check_sparse_vector",
    "dp_sgd",
    "dp_sgd_epsilon",
    "dp_sgd_schedule",
    "noise_multiplier_for",
    "sparse_vector_charged",
    "sparse_vector_epsilon",
    "sparse_vector_upload",
]
