"""Published defences, one a file; the docstring of each carries what it promises, to whom and at what cost."""

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
