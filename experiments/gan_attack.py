"""How much of a private class does an insider with a GAN see? (Hitaj, Ateniese and Perez-Cruz, CCS 2017)

python -m experiments.gan_attack
python -m experiments.gan_attack --preset=figure6a --workdir=runs/figure6a
"""

from gan_leak.runs.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

from experiments.flags import run_binary
from gan_leak.config import AttackConfig
from gan_leak.runs.train import execute, prepare

if __name__ == "__main__":
    run_binary(prepare, execute, AttackConfig, many_processes=True)
