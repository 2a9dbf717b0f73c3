"""Lower bounds of the memory that a run needs, from shapes alone. A run that cannot fit is refused at its start."""

from __future__ import annotations

import functools
import math

import jax

from gan_leak.attacks.gradient.contract import GradientEvidence
from gan_leak.attacks.procedure import Procedure
from gan_leak.config import RunConfig
from gan_leak.machine import check_fits
from gan_leak.runs.federated.setup import AttackData, Experiment, start_federation
from gan_leak.types import GradientView, Model, PyTree

_FLOAT = 4


def bytes_of(tree: PyTree) -> int:
    """Bytes of all arrays or ``ShapeDtypeStruct`` leaves."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_run(config: RunConfig, data: AttackData, experiment: Experiment, *, lanes: int = 1) -> None:
    """Raise ValueError if ``lanes`` concurrent runs cannot fit into half of the memory.

    The lower bound counts the states of the participants of one round, the images of the federation, and the widest
    layer of the generator for one batch. The error names the setting that needs most.
    """
    participants = len(data.federation.sizes)
    active = config.federation.participants_per_round or participants
    state = jax.eval_shape(functools.partial(start_federation, experiment, participants=active), jax.random.key(0))
    needed = {
        f"participant_classes: the states of {active} participants": bytes_of((state.server, state.participants)),
        f"delay={config.federation.delay}: the past states of the server": bytes_of(state.past),
        f"samples_per_participant: the images of {participants} participants": bytes_of(data.federation),
    }
    if experiment.attack is not None:
        attack, drawn = config.attack, config.evaluation.samples
        pixels = math.prod(data.private.shape[1:])
        widest = attack.generator_width * (config.data.image_size // 2) ** 2
        memory = f"fakes_per_round={attack.fakes_per_round}, fake_memory_rounds={attack.fake_memory_rounds}: the fakes"
        needed |= {
            memory: bytes_of((state.attack.fakes, state.attack.fakes_mask)),
            f"generator_width={attack.generator_width}: the generator and its optimizer": bytes_of(
                state.attack._replace(fakes=(), fakes_mask=())
            ),
            f"generator_batch_size={attack.generator_batch_size}: one batch of the generator": _FLOAT
            * attack.generator_batch_size
            * (widest + pixels),
            f"evaluation_samples={drawn}: the reconstructions": _FLOAT * drawn * pixels,
        }
    most = max(needed, key=lambda name: needed[name])
    side_by_side = f" of {lanes} runs side by side" if lanes > 1 else ""
    # Each of several processes holds a part of the participants.
    check_fits(f"{most}{side_by_side} and the rest need", lanes * sum(needed.values()) / jax.process_count())


def check_inversion(
    name: str, attack: Procedure, model: Model, batch: tuple[int, int, int, int], num_classes: int, *, lanes: int
) -> None:
    """Raise ValueError, beginning with ``name``, if attacks on ``lanes`` gradients cannot fit into half of the memory.

    batch: the shape [B, H, W, C] of the images behind one gradient. The lower bound counts the networks, their
    gradients, and the initial state of the attack.
    """
    key = jax.random.key(0)
    params = jax.eval_shape(model.init, key)
    view, labels = GradientView(params, params), jax.ShapeDtypeStruct((batch[0], num_classes), "float32")
    state = jax.eval_shape(lambda key, *evidence: attack.init(key, GradientEvidence(*evidence)), key, view, labels)
    images = _FLOAT * math.prod(batch)
    check_fits(f"{name}: {lanes} attacks need", lanes * (2 * bytes_of(params) + bytes_of(state) + images))
