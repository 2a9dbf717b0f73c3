"""The contracts that all packages of gan_leak share.

Axis legend, used in every shape comment of the package:

    P participants    N samples of one participant (padded)    B batch    S local steps
    R rounds          D flat parameters                        Z latent   K classes
    H, W, C           image height, width and channels

Inputs are float32 [..., H, W, C] or [..., F]; images are inputs [..., H, W, C] in [-1, 1]. Keys are typed
(``jax.random.key``), come first and are consumed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any


class Model(NamedTuple):
    """A network as two pure functions; the library behind them stays inside ``gan_leak.models``.

    A classifier has ``init(key) -> params`` and ``apply(params, inputs[B, ...]) -> logits[B, K]``; a generator has
    ``init(key) -> params`` and ``apply(params, latents[B, Z]) -> inputs[B, ...]``.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array], Array]


class FederationData(NamedTuple):
    """The samples of each participant, padded to one length.

    inputs: float32 [P, N, ...]; labels: int32 [P, N]; sizes: int32 [P]. Sample ``n`` of participant ``p`` is real if
    ``n < sizes[p]``; the rest is padding, and no result may depend on it. participants: int32 [P], their numbers in a
    larger federation; -1 marks padding; None means participants 0 to P - 1.
    """

    inputs: Array
    labels: Array
    sizes: Array
    participants: Array | None = None


class LocalData(NamedTuple):
    """The training data of one participant in one turn: inputs [N, ...], labels [N], mask bool [N] (True = real)."""

    inputs: Array
    labels: Array
    mask: Array


class RoundHyperParameters(NamedTuple):
    """The traced hyperparameters of a round: a sweep over them shares one compilation and may be vmapped.

    upload_threshold, upload_bound: in units of parameters. adversary_download_fraction: 0 = as the others. defense: the
    hyperparameters of the defenses by name. attack, server_attack: those of the insider's attack and of the server's,
    or ().
    """

    learning_rate: Array | float
    learning_rate_decay: Array | float = 0.0
    upload_fraction: Array | float = 1.0
    download_fraction: Array | float = 1.0
    upload_threshold: Array | float = 0.0
    upload_bound: Array | float = float("inf")
    update_count_decay: Array | float = 1.0
    adversary_download_fraction: Array | float = 0.0
    defense: PyTree = ()
    attack: PyTree = ()
    server_attack: PyTree = ()


class LocalTraining(Protocol):
    """The training of a participant on its own data in one turn -> (params, optimizer_steps, mean loss).

    data: inputs [N, ...], labels [N], mask [N]. No result may depend on samples that the mask hides.
    optimizer_steps: counts over the whole run.
    """

    def __call__(
        self,
        key: Array,
        model: Model,
        params: PyTree,
        optimizer_steps: Array,
        data: LocalData,
        hyperparameters: RoundHyperParameters,
        *,
        epochs: int,
        batch_size: int,
    ) -> tuple[PyTree, Array, Array]: ...


class ServerState(NamedTuple):
    """The parameter server between rounds: shared parameters, and the upload count of each (float32 [D])."""

    params: PyTree
    update_counts: Array


class FlatServer(NamedTuple):
    """The parameter server inside a round: params float32 [D] and update_counts float32 [D]."""

    params: Array
    update_counts: Array


class ParticipantState(NamedTuple):
    """The state that one participant keeps between turns.

    params: its local parameters. optimizer_steps: int32 [], SGD steps so far, for the decay of the learning rate.
    upload_state: the state of its upload transform.
    """

    params: PyTree
    optimizer_steps: Array
    upload_state: PyTree


class FederationState(NamedTuple):
    """The state between rounds. Every leaf of ``participants`` has a leading P axis.

    attack, server_attack: the states of the insider's attack and of the server's. aggregation: the state of the
    aggregator. past: a ``FlatServer`` with a leading axis, the last states of the server in an asynchronous schedule;
    before turn t, that state is written to place t modulo their number. Each is () if there is none.
    """

    server: ServerState
    participants: ParticipantState
    attack: PyTree
    round: Array
    aggregation: PyTree = ()
    server_attack: PyTree = ()
    past: PyTree = ()


class Upload(NamedTuple):
    """A participant's message to the server: values float32 [D], mask bool [D], True where a value is sent.

    ``values`` is exactly zero where ``mask`` is False.
    """

    values: Array
    mask: Array


class TransformInfo(NamedTuple):
    """Diagnostics of an upload transform: the number of coordinates sent (int32 [])."""

    uploaded: Array


class UploadTransformApply(Protocol):
    def __call__(
        self,
        key: Array,
        upload: Upload,
        state: PyTree,
        *,
        params: PyTree,
        hyperparameters: RoundHyperParameters,
        **extra: Any,
    ) -> tuple[Upload, PyTree, TransformInfo]: ...


class UploadTransform(NamedTuple):
    """A change of an update between local training and the server: selection, truncation, noise.

    ``init(params) -> state``; ``apply(key, upload, state, *, params, hyperparameters, **extra) -> (upload, state,
    info)``. params: the participant's parameters before local training.
    """

    init: Callable[[PyTree], PyTree]
    apply: UploadTransformApply


class Received(NamedTuple):
    """The uploads as the server sees them without encryption.

    uploads: values and mask [P, D]. weights: int32 [P], the sample counts; None if the participants do not send them.
    """

    uploads: Upload
    weights: Array | None


class MaskedSum(NamedTuple):
    """The uploads as the server sees them through a secure sum (Bonawitz et al. 2017).

    words: uint32 [P, D], the masked uploads. weight_words: uint32 [P], the masked sample counts. present: bool [P], the
    participants that sent words; the words of the others are zeros. average: float32 [D], the decoded average of the
    uploads that joined the sum. total_weight: uint32 [], the sum of their sample counts. revealed: bool [], whether
    enough participants joined; if not, average and total_weight are zeros.
    """

    words: Array
    weight_words: Array
    present: Array
    average: Array
    total_weight: Array
    revealed: Array


class AggregatorApply(Protocol):
    def __call__(
        self,
        key: Array,
        server: FlatServer,
        uploads: Upload,
        weights: Array,
        state: PyTree,
        *,
        hyperparameters: RoundHyperParameters,
        merged: Array | None = None,
        **extra: Any,
    ) -> tuple[FlatServer, PyTree, PyTree, PyTree]: ...


class Aggregator(NamedTuple):
    """The server's way to merge the uploads of a round into the shared parameters, and what it sees of them.

    ``init(params) -> state``; ``apply(key, server, uploads, weights, state, *, hyperparameters, merged=None, **extra)
    -> (server, state, visible, info)``. uploads: values and mask [P, D]. weights: int32 [P], the sample counts.
    merged: bool [P], the uploads that join the shared parameters; None means all. visible: all that the server sees of
    the uploads, merged or not. Without encryption it is ``Received``; for a secure sum it is ``MaskedSum``. extra: a
    synchronous round gives ``sent``, the parameters [P, D] that an adversary at the server sent to each participant,
    or None without one.

    sequential: whether the aggregator also works in sequential schedules. There it merges one upload at a time (P = 1),
    and every leaf of its ``visible`` must have the leading P axis.
    """

    init: Callable[[PyTree], PyTree]
    apply: AggregatorApply
    sequential: bool = False


class InsiderView(NamedTuple):
    """Everything that an inside adversary sees at its turn: its local parameters just after download, and its data.

    downloaded: bool [D], the coordinates that the server sent; the others are its own values. None means all.
    own: its samples without those that it adds; None if the attack is not a participant.
    """

    params: PyTree
    downloaded: Array | None = None
    own: LocalData | None = None


class ServerView(NamedTuple):
    """Everything that an adversary at the server sees of one round.

    - round: int32 [], the number of rounds before this one.
    - participants: int32 [P], the numbers of those who took part. Padding uploads nothing; its number is -1 or, if a
      mesh added it, one that no participant has.
    - sent: the parameters that each participant was sent, with a leading P axis on every leaf. ``trees.ravel`` of one
      entry gives the order of the flat coordinates D.
    - downloaded: bool [P, D], the coordinates that the participant took. It kept its own values of the others; the
      server does not see those.
    - visible: the part of the uploads that the aggregator shows, see ``Aggregator``.
    - params: the shared parameters after the round.
    """

    round: Array
    participants: Array
    sent: PyTree
    downloaded: Array
    visible: PyTree
    params: PyTree


class Sent(NamedTuple):
    """The message of an adversary at the server to one participant.

    merged: bool [], whether the participant's upload joins the shared parameters; None means yes.
    """

    params: PyTree
    merged: Array | None = None


class ModelView(NamedTuple):
    """Everything that an adversary with access to the trained model sees."""

    params: PyTree


class GradientView(NamedTuple):
    """The server's view of one participant's step: the parameters that it sent, and the gradient that it received.

    For several local steps, the gradient is (params before - params after) / learning rate.
    """

    params: PyTree
    gradient: PyTree


class SplitView(NamedTuple):
    """The cloud's view of one input in split inference, and its knowledge of the client's part of the network.

    features: [...], sent by the client. params: the client's in the white box, those of a shadow model otherwise.
    """

    features: Array
    params: PyTree


class Contribution(NamedTuple):
    """The samples that an adversary adds to its local data in one round: inputs [F, ...], labels [F], mask bool [F]."""

    inputs: Array
    labels: Array
    mask: Array


class RoundAttack(NamedTuple):
    """An attack that runs inside the federation, one step at each of the adversary's turns.

    ``init(key) -> state``;
    ``step(key, state, view, hyperparameters) -> (state, contribution, info)``;
    ``reconstruct(key, state, count) -> inputs[count, ...]``; ``count`` is static.
    The fields of ``hyperparameters`` are traced, so that one compilation serves a sweep.
    """

    init: Callable[[Array], PyTree]
    step: Callable[[Array, PyTree, InsiderView, PyTree], tuple[PyTree, Contribution, PyTree]]
    reconstruct: Callable[[Array, PyTree, int], Array]


class ServerAttack(NamedTuple):
    """An attack by the server. It sees the uploads of a round and decides what each participant is sent.

    - ``init(key, params) -> state``, from the initial shared parameters.
    - ``broadcast(key, state, params, participant, hyperparameters) -> Sent``: the message to one participant, from the
      current shared parameters and its number (int32 []). A passive attack returns ``Sent(params)``. An attack that
      isolates a participant sends it other parameters, with ``merged`` False for it and True for the others.
    - ``step(key, state, view, hyperparameters) -> (state, info)``, once after each round, in every schedule.
    - ``reconstruct(key, state, count) -> inputs[count, ...]``; ``count`` is static.

    The fields of ``hyperparameters`` are traced, so that one compilation serves a sweep.
    """

    init: Callable[[Array, PyTree], PyTree]
    broadcast: Callable[[Array, PyTree, PyTree, Array, PyTree], Sent]
    step: Callable[[Array, PyTree, ServerView, PyTree], tuple[PyTree, PyTree]]
    reconstruct: Callable[[Array, PyTree, int], Array]
