"""Published attacks, one per file."""

from gan_leak.attacks.gradient.contract import GradientAttack, GradientEvidence, GradientInversion, GradientTask
from gan_leak.attacks.gradient.deep_leakage import deep_leakage
from gan_leak.attacks.gradient.grnn import grnn
from gan_leak.attacks.gradient.inverting_gradients import inverting_gradients
from gan_leak.attacks.gradient.registry import GRADIENT_ATTACKS
from gan_leak.attacks.insider.gan import GanAttackHyperParameters, gan_attack
from gan_leak.attacks.model.model_inversion import (
    InversionTarget,
    ModelInversion,
    ModelInversionInfo,
    clip_to_range,
    gaussian_smoothing,
    model_inversion,
)
from gan_leak.attacks.procedure import Procedure, advance, run_procedure
from gan_leak.attacks.server.mgan_ai import known_labels, mgan_ai
from gan_leak.attacks.server.mgan_ai_training import AuxiliaryImages, MganAiHyperParameters
from gan_leak.attacks.split.inverse_network import inverse_network
from gan_leak.attacks.split.model_reconstruction import reconstructed_model
from gan_leak.attacks.split.regularized_likelihood import regularized_likelihood
from gan_leak.attacks.split.shadow_model import shadow_model

__all__ = [
    "GRADIENT_ATTACKS",
    "AuxiliaryImages",
    "GanAttackHyperParameters",
    "GradientAttack",
    "GradientEvidence",
    "GradientInversion",
    "GradientTask",
    "InversionTarget",
    "MganAiHyperParameters",
    "ModelInversion",
    "ModelInversionInfo",
    "Procedure",
    "advance",
    "clip_to_range",
    "deep_leakage",
    "gan_attack",
    "gaussian_smoothing",
    "grnn",
    "inverse_network",
    "inverting_gradients",
    "known_labels",
    "mgan_ai",
    "model_inversion",
    "reconstructed_model",
    "regularized_likelihood",
    "run_procedure",
    "shadow_model",
]
