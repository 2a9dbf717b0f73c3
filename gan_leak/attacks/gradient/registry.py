"""All attacks on a gradient by name. A new attack needs one file in this folder and one entry here."""

from __future__ import annotations

from gan_leak.attacks.gradient.contract import GradientAttack
from gan_leak.attacks.gradient.deep_leakage import DLG, IDLG
from gan_leak.attacks.gradient.grnn import GRNN
from gan_leak.attacks.gradient.inverting_gradients import INVERTING_GRADIENTS

GRADIENT_ATTACKS: dict[str, GradientAttack] = {
    attack.name: attack
    for attack in (
        DLG,
        IDLG,
        INVERTING_GRADIENTS,
        GRNN,
    )
}
