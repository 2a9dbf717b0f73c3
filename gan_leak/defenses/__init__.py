"""Published defenses, one a file, in one registry; each says what it promises, to whom and at what cost."""

from gan_leak.defenses.accounting import (
    PrivacyLoss,
    dp_sgd_epsilon,
    dp_sgd_schedule,
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
from gan_leak.defenses.contract import Claim, Defense, HyperParameter
from gan_leak.defenses.dp_sgd import check_dp_sgd, dp_sgd, dp_sgd_training
from gan_leak.defenses.dropout import dropout
from gan_leak.defenses.gaussian import gaussian_noise
from gan_leak.defenses.laplace import laplace_noise
from gan_leak.defenses.pruning import prune_smallest
from gan_leak.defenses.quantization import quantize
from gan_leak.defenses.registry import DEFENSES
from gan_leak.defenses.sparse_vector import check_sparse_vector, sparse_vector_upload

__all__ = [
    "DEFENSES",
    "Claim",
    "Defense",
    "HyperParameter",
    "PrivacyLoss",
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
    "local_training_of",
    "noise_multiplier_for",
    "parse_composition",
    "protect",
    "prune_smallest",
    "quantize",
    "sparse_vector_charged",
    "sparse_vector_epsilon",
    "sparse_vector_upload",
    "upload_of",
]
