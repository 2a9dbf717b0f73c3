"""The contract of an attack on a gradient: its evidence, its result, and its entry in the registry."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from gan_leak.attacks.procedure import Procedure
from gan_leak.types import Array, GradientView, Model, PyTree


class GradientEvidence(NamedTuple):
    """The input of an attack on a gradient: the view, and the labels [B, K] that the adversary knows or infers.

    Attacks that recover labels do not read the labels.
    """

    view: GradientView
    labels: Array


class GradientInversion(NamedTuple):
    """A recovered batch: images [B, H, W, C], labels [B, K] that sum to one, and the distance [] of its gradient."""

    images: Array
    labels: Array
    distance: Array


class GradientTask(NamedTuple):
    """The task that an attack is built for. ``build`` reads the fields that concern its attack.

    shape: of the images [B, H, W, C]. update: the update of several steps as a function of parameters, images and
    labels; None for a gradient. epochs: above 1 if the order of the images within each epoch is unknown. fit_scale:
    whether the gradient is an unknown multiple of the mean's. noise_size, loss: of GRNN.
    """

    model: Model
    shape: tuple[int, int, int, int]
    num_classes: int
    iterations: int
    total_variation: float = 0.0
    update: Callable[[PyTree, Array, Array], PyTree] | None = None
    epochs: int = 1
    fit_scale: bool = False
    noise_size: int = 128
    loss: str = "released"


class GradientAttack(NamedTuple):
    """One published attack on a gradient: an entry of ``gan_leak.attacks.gradient.registry``.

    build: makes the Procedure; its evidence is ``GradientEvidence``, its result ``GradientInversion``.
    iterations: the default number of steps. labels: 'recovered' by the attack, 'inferred' before it, or 'given' to it
    (known or inferred). distance: the kind of ``GradientInversion.distance``; a cosine needs no scale.
    total_variation: the default weight, None if the attack has no such term. network_total_variation: other defaults by
    network. several_steps: whether it can simulate the update of several local steps (``GradientTask.update``).
    largest_batch: the largest number of images of a participant; largest_batch_reason: the reason for this limit.
    """

    name: str
    citation: str
    build: Callable[[GradientTask], Procedure]
    iterations: int
    labels: Literal["recovered", "inferred", "given"]
    distance: Literal["squared", "cosine"] = "squared"
    total_variation: float | None = None
    network_total_variation: Mapping[str, float] = types.MappingProxyType({})
    several_steps: bool = False
    # Beyond this, the activations take tens of gigabytes, since the network is differentiated twice.
    largest_batch: int = 4096
    largest_batch_reason: str = ""

    def default_total_variation(self, network: str) -> float:
        """The weight of total variation on a network, 0 if the attack has no such term."""
        return self.network_total_variation.get(network, self.total_variation or 0.0)
