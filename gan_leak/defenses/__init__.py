"""Published defenses, one per file, in one registry; each states its privacy claim.

A defense of the round replaces local training or the upload transform:

>>> import functools
>>> import jax
>>> import jax.numpy as jnp
>>> from gan_leak import FederationData, RoundHyperParameters, init_federation, make_round, mlp_classifier
>>> classifier = mlp_classifier(3, image_size=4, hidden=())
>>> transform = sparse_vector_upload(sensitivity=0.002, epsilon_per_release=0.5)
>>> training = functools.partial(dp_sgd, clipping_norm=1.0, noise_multiplier=1.0)
>>> one_round = make_round(classifier, transform, schedule="synchronous", batch_size=2, local_training=training)
>>> data = FederationData(jnp.zeros((2, 6, 4, 4, 1)), jnp.zeros((2, 6), int), sizes=jnp.array([6, 4]))
>>> state = init_federation(jax.random.key(0), classifier, transform, participants=2)
>>> hyperparameters = RoundHyperParameters(0.1, upload_fraction=0.1, upload_bound=0.001)
>>> state, info = jax.jit(one_round)(jax.random.key(1), state, data, hyperparameters)
>>> bool(jnp.all(info.turns.uploaded <= 5))
True

The promise of a run:

>>> sparse_vector_epsilon(epsilon_per_release=0.5, upload_fraction=0.1, coordinates=51, uploads=2).epsilon
5.0
>>> round(dp_sgd_epsilon(noise_multiplier=1.0, sampling_probability=1.0, steps=1, delta=1e-5).epsilon, 2)
4.38
"""

from gan_leak.defenses.accounting import (
    PrivacyLoss,
    dp_sgd_epsilon,
    dp_sgd_schedule,
    local_gaussian_epsilon,
    noise_multiplier_for,
    sparse_vector_charged,
    sparse_vector_epsilon,
)
from gan_leak.defenses.clipping import clip_norm
from gan_leak.defenses.composition import (
    aggregator_of,
    claim_of,
    local_training_of,
    parse_composition,
    protect,
    upload_of,
)
from gan_leak.defenses.contract import Claim, Defense, HyperParameter, Secrecy
from gan_leak.defenses.dp_sgd import check_dp_sgd, dp_sgd, dp_sgd_training
from gan_leak.defenses.dropout import dropout
from gan_leak.defenses.gaussian import gaussian_noise
from gan_leak.defenses.laplace import laplace_noise
from gan_leak.defenses.pruning import prune_smallest
from gan_leak.defenses.quantization import quantize
from gan_leak.defenses.registry import DEFENSES
from gan_leak.defenses.secure_aggregation import SecureSumInfo, quantization_bound, secure_average
from gan_leak.defenses.sparse_vector import check_sparse_vector, sparse_vector_upload

__all__ = [
    "DEFENSES",
    "Claim",
    "Defense",
    "HyperParameter",
    "PrivacyLoss",
    "Secrecy",
    "SecureSumInfo",
    "aggregator_of",
    "check_dp_sgd",
    "check_sparse_vector",
    "claim_of",
    "clip_norm",
    "dp_sgd",
    "dp_sgd_epsilon",
    "dp_sgd_schedule",
    "dp_sgd_training",
    "dropout",
    "gaussian_noise",
    "laplace_noise",
    "local_gaussian_epsilon",
    "local_training_of",
    "noise_multiplier_for",
    "parse_composition",
    "protect",
    "prune_smallest",
    "quantization_bound",
    "quantize",
    "secure_average",
    "sparse_vector_charged",
    "sparse_vector_epsilon",
    "sparse_vector_upload",
    "upload_of",
]
