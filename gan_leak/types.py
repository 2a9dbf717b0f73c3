"""The contracts that every room of gan_leak shares.

Axis legend, used in every shape comment of the package:

    P participants    N samples of one participant (padded)    B batch    S local steps
    R rounds          D flat parameters                        Z latent   K classes
    H, W, C           image height, width and channels

Images are float32 in [-1, 1], NHWC. Keys are typed (``jax.random.key``), come first and are consumed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any


class Model(NamedTuple):
    """A network as two pure functions; the library behind them stays inside ``gan_leak.models``.

    A classifier has ``init(key) -> params`` and ``apply(params, images[B, H, W, C]) -> logits[B, K]``; a generator has
    ``init(key) -> params`` and ``apply(params, latents[B, Z]) -> images[B, H, W, C]``.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array], Array]


class FederationData(NamedTuple):
    """Who owns which samples, padded to one length so that participants share an axis.

    images: float32 [P, N, H, W, C]; labels: int32 [P, N]; sizes: int32 [P]. Sample ``n`` of participant ``p`` is real
    exactly where ``n < sizes[p]``; the rest is padding that no result may depend on. participants: int32 [P], who they
    are, where these are some of a larger federation; -1 is nobody. None: all of it, 0 to P - 1.
    """

    images: Array
    labels: Array
    sizes: Array
    participants: Array | None = None


class LocalData(NamedTuple):
    """What one participant trains on in one turn: images [N, H, W, C], labels [N], mask bool [N] (True = real)."""

    images: Array
    labels: Array
    mask: Array


class LocalTraining(Protocol):
    """How a participant learns from its own data in one turn -> (params, optimizer_steps, mean loss).

    data: images [N, H, W, C], labels [N], mask [N], of which no result may depend on what the mask hides.
    ``hyperparameters`` holds the traced numbers; ``optimizer_steps`` counts over the whole run.
    """

    def __call__(
        self,
        key: Array,
        model: Model,
        params: PyTree,
        optimizer_steps: Array,
        data: LocalData,
        hyperparameters: Any,
        *,
        epochs: int,
        batch_size: int,
    ) -> tuple[PyTree, Array, Array]: ...


class ServerState(NamedTuple):
    """The parameter server: the shared parameters and how often each has been uploaded (float32 [D])."""

    params: PyTree
    update_counts: Array


class ParticipantState(NamedTuple):
    """What one participant keeps between turns.

    params: its persistent local parameters. optimizer_steps: int32 [], SGD calls so far (drives the learning-rate
    decay). upload_state: the state of its upload transform.
    """

    params: PyTree
    optimizer_steps: Array
    upload_state: PyTree


class FederationState(NamedTuple):
    """Everything that the next round needs. ``participants`` carries a leading P axis on every leaf."""

    server: ServerState
    participants: ParticipantState
    attack: PyTree
    round: Array


class Upload(NamedTuple):
    """A participant's message to the server: values float32 [D], and mask bool [D], True where a value is sent.

    ``values`` is exactly zero wherever ``mask`` is False.
    """

    values: Array
    mask: Array


class TransformInfo(NamedTuple):
    """Diagnostics of an upload transform: how many coordinates are still sent (int32 [])."""

    uploaded: Array


class UploadTransformApply(Protocol):
    def __call__(
        self, key: Array, upload: Upload, state: PyTree, *, params: PyTree, hyperparameters: Any, **extra: Any
    ) -> tuple[Upload, PyTree, TransformInfo]: ...


class UploadTransform(NamedTuple):
    """What happens to an update between local training and the server: selection, truncation, noise.

    ``init(params) -> state``; ``apply(key, upload, state, *, params, hyperparameters, **extra) -> (upload, state,
    info)``. ``params`` are the participant's parameters before local training; ``hyperparameters`` holds the traced
    numbers.
    """

    init: Callable[[PyTree], PyTree]
    apply: UploadTransformApply


class InsiderView(NamedTuple):
    """All that an inside adversary sees at its turn: its local parameters just after download."""

    params: PyTree


class ModelView(NamedTuple):
    """All that an adversary sees who is given the trained model."""

    params: PyTree


class GradientView(NamedTuple):
    """What the server sees of one participant's step: the parameters that it sent out, and the gradient that came back.

    Of several local steps, the gradient is (params before - params after) / learning rate.
    """

    params: PyTree
    gradient: PyTree


class SplitView(NamedTuple):
    """What the cloud sees of one input in split inference, and what it knows of the client's part of the network.

    features: [...], what the client sent. params: the parameters it knows: the client's in the white box, those of its
    own shadow otherwise.
    """

    features: Array
    params: PyTree


class Contribution(NamedTuple):
    """What an adversary adds to its own local data in one round: images [F, H, W, C], labels [F], mask bool [F]."""

    images: Array
    labels: Array
    mask: Array


class RoundAttack(NamedTuple):
    """An attack that runs inside the federation, one step at each of the adversary's turns.

    ``init(key) -> state``;
    ``step(key, state, view, hyperparameters) -> (state, contribution, info)``;
    ``reconstruct(key, state, count) -> images[count, H, W, C]``; ``count`` is static.
    The fields of ``hyperparameters`` are traced, so that one compilation serves a sweep.
    """

    init: Callable[[Array], PyTree]
    step: Callable[[Array, PyTree, InsiderView, Any], tuple[PyTree, Contribution, PyTree]]
    reconstruct: Callable[[Array, PyTree, int], Array]
