"""How much private training data leaks out of collaborative deep learning, measured in JAX.

The public names load what they need when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "GanAttackHyperParameters": "gan_leak.attacks",
    "GradientEvidence": "gan_leak.attacks",
    "GradientView": "gan_leak.types",
    "InversionTarget": "gan_leak.attacks",
    "ModelView": "gan_leak.types",
    "Procedure": "gan_leak.attacks",
    "RoundHyperParameters": "gan_leak.collaboration",
    "RunConfig": "gan_leak.config",
    "SplitView": "gan_leak.types",
    "build_references": "gan_leak.evaluation.leakage",
    "classifier_for": "gan_leak.models",
    "dcgan_generator": "gan_leak.models",
    "deep_leakage": "gan_leak.attacks",
    "gan_attack": "gan_leak.attacks",
    "grnn": "gan_leak.attacks",
    "init_federation": "gan_leak.collaboration",
    "inverse_network": "gan_leak.attacks",
    "inverting_gradients": "gan_leak.attacks",
    "load": "gan_leak.data",
    "load_or_train_judge": "gan_leak.evaluation.judge",
    "make_config": "gan_leak.config",
    "make_round": "gan_leak.collaboration",
    "make_rounds": "gan_leak.collaboration",
    "measure_leakage": "gan_leak.evaluation.leakage",
    "mlp_classifier": "gan_leak.models",
    "model_inversion": "gan_leak.attacks",
    "partition": "gan_leak.data",
    "regularized_likelihood": "gan_leak.attacks",
    "run_procedure": "gan_leak.attacks",
    "selective_upload": "gan_leak.collaboration",
    "shadow_model": "gan_leak.attacks",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gan_leak' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
