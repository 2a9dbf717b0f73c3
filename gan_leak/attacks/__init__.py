"""Published attacks, one a file."""

from gan_leak.attacks.gan import GanAttackHyperParameters, gan_attack
from gan_leak.attacks.model_inversion import ModelInversionInfo, clip_to_range, gaussian_smoothing, model_inversion

__all__ = [
    "GanAttackHyperParameters",
    "ModelInversionInfo",
    "clip_to_range",
    "gan_attack",
    "gaussian_smoothing",
    "model_inversion",
]
