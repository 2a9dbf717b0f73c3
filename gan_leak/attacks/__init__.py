"""Published attacks, one a file."""

from gan_leak.attacks.gan import GanAttackHyperParameters, gan_attack

__all__ = ["GanAttackHyperParameters", "gan_attack"]
