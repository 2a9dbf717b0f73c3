"""Data representatives: synthetic images whose gradient on the shared model matches a client's update.

The first stage of mGAN-AI (Wang et al., INFOCOM 2019), and an attack of its own. The full paper was not available. The
distance, L-BFGS, the box, and the weight and exponent of total variation are those that breaching (Geiping et al.)
reports of it. Our choices: the line search, the starts, the mean over images, the best of several iterates, and all of
``signed_adam_representatives``.

>>> import jax
>>> import jax.numpy as jnp
>>> from gan_leak import gradient_of, mlp_classifier
>>> from gan_leak.trees import expand, ravel
>>> model = mlp_classifier(3, image_size=8, hidden=())
>>> params = model.init(jax.random.key(0))
>>> image, label = jnp.linspace(-1.0, 1.0, 64).reshape(1, 8, 8, 1), jnp.array([1])
>>> update, _ = ravel(gradient_of(model, params, image, jax.nn.one_hot(label, 3)))
>>> evidence = UpdateEvidence(expand(params), update[None], label[None])
>>> procedure = signed_adam_representatives(model, (8, 8, 1), iterations=200)
>>> found = jax.jit(matcher(procedure, 200))(jax.random.key(1), evidence)
>>> bool(jnp.max(jnp.abs(found.images[0] - image)) < 0.1)
True

L-BFGS finds it in fewer steps:

>>> procedure = lbfgs_representatives(model, (8, 8, 1), total_variation=0.0)
>>> found = jax.jit(matcher(procedure, 40))(jax.random.key(1), evidence)
>>> bool(jnp.max(jnp.abs(found.images[0] - image)) < 0.1)
True
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak import trees
from gan_leak.attacks.gradient.observation import cosine_distance, gradient_of, squared_distance, update_of
from gan_leak.attacks.optimizers import Position, descend, descend_in_box, signed_adam, start_in_box
from gan_leak.attacks.priors import absolute_total_variation, summed_total_variation
from gan_leak.attacks.procedure import Procedure, run_procedure
from gan_leak.types import Array, Model, PyTree

CLIENT_MAPPINGS = ("auto", "vmap", "map")

# ``simulate(params, images [R, H, W, C], labels [R, classes])``: the update of a client with these images, as a pytree
# like the parameters, in the units of ``UpdateEvidence.updates``.
Simulate = Callable[[PyTree, Array, Array], PyTree]


class UpdateEvidence(NamedTuple):
    """What the server holds of K clients, for R representatives of each.

    - params: the parameters that each client was sent, with a leading K axis on every leaf.
    - updates: float32 [K, D], in the units and with the sign of a gradient, see
      ``observed_updates.as_gradients``.
    - labels: int32 [K, R], of the representatives (``representative_labels.infer_labels``).
    - weights: float32 [K, R], the share of each representative in its client's loss; a client's sum to one. None: 1/R.

    Evidence of T rounds for the same images has params [T, K, ...] and updates [T, K, D].
    """

    params: PyTree
    updates: Array
    labels: Array
    weights: Array | None = None


class Representatives(NamedTuple):
    """Images [K, R, H, W, C] in [-1, 1], and the distances [K] between their updates and the clients', over rounds."""

    images: Array
    distances: Array


class MatchingTask(NamedTuple):
    """The evidence of the procedures here. start: images [K, R, H, W, C], the first start of every client, or None."""

    evidence: UpdateEvidence
    start: Array | None = None


class Matcher(Protocol):
    """What an attack in the round calls: a pure function, also inside a jitted round (``matcher``)."""

    def __call__(self, key: Array, evidence: UpdateEvidence, start: Array | None = None) -> Representatives: ...


class _Search(NamedTuple):
    """A search from S starts of K clients: every leaf is [K, S, ...].

    best: the images of the least objective so far, [K, S, R, H, W, C]. least: this objective, [K, S].
    """

    position: Position
    best: Array
    least: Array


def matcher(procedure: Procedure, iterations: int) -> Matcher:
    """The function that runs ``iterations`` steps of a procedure of this file (``run_procedure``).

    Raises ValueError for a negative number.
    """
    if iterations < 0:
        raise ValueError(f"iterations={iterations}: expected at least 0")

    def match(key: Array, evidence: UpdateEvidence, start: Array | None = None) -> Representatives:
        return cast(Representatives, run_procedure(key, procedure, MatchingTask(evidence, start), iterations))

    return match


def unrolled(model: Model, *, learning_rate: Array | float, steps: int, batch_size: int) -> Simulate:
    """Simulate ``steps`` local steps on the representatives, ``batch_size`` of them at a time, instead of one gradient.

    ``batch_size`` must divide the number of representatives. The result is divided by ``steps``, as ``as_gradients``.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")

    def simulate(params: PyTree, images: Array, labels: Array) -> PyTree:
        update = update_of(
            model, params, images, labels, learning_rate=learning_rate, steps=steps, batch_size=batch_size
        )
        return jax.tree.map(lambda leaf: leaf / steps, update)

    return simulate


def signed_adam_representatives(
    model: Model,
    image_shape: tuple[int, int, int],
    *,
    iterations: int = 800,
    learning_rate: float = 0.1,
    total_variation: Array | float = 1e-3,
    starts: int = 1,
    simulate: Simulate | None = None,
    client_mapping: str = "auto",
) -> Procedure:
    """Match the direction of the updates: 1 - cosine + total_variation * TV, by Adam on the sign of the gradient.

    The objective and optimizer of Inverting Gradients (Geiping et al. 2020), for images in [-1, 1]. TV is the mean
    absolute difference of neighbors. The size of an update has no influence. See ``lbfgs_representatives`` for the
    other arguments. iterations: the number of steps that the decay of the rate is made for.
    """
    if iterations < 0:
        raise ValueError(f"iterations={iterations}: expected at least 0")
    optimizer = signed_adam(learning_rate, iterations)
    return _matching(
        model,
        image_shape,
        cosine_distance,
        lambda images: total_variation * jnp.mean(absolute_total_variation(images)),
        lambda images: Position(images, optimizer.init(images)),
        lambda objective, position: descend(objective, optimizer, position, _into_box),
        lambda updates: jnp.ones(()),
        starts=starts,
        simulate=simulate,
        client_mapping=client_mapping,
    )


def lbfgs_representatives(
    model: Model,
    image_shape: tuple[int, int, int],
    *,
    total_variation: Array | float = 1.5e-4,
    memory: int = 20,
    starts: int = 1,
    simulate: Simulate | None = None,
    client_mapping: str = "auto",
) -> Procedure:
    """Match the updates: squared distance + total_variation * TV, by L-BFGS in a box (Wang et al. 2019).

    TV is the sum over pixels of (dx^2 + dy^2)^1.25; we take its mean over images. It has the form of Keras's example of
    style transfer, which calls scipy's L-BFGS-B. So we take L-BFGS with a line search (``descend_in_box``) and
    ``memory`` pairs. It gets the objective over the squared norm of the client's updates, which has the same
    minima. breaching clips after steps without a line search.

    simulate: the update of a client as a function of its images (``unrolled``). None: the gradient of one step, which
    several local steps are compared with after division (``as_gradients``).
    starts: the number of starts for each client; that of the least distance is the result. Images start from N(0, 1),
    clipped, and from ``MatchingTask.start`` in place of the first start if it is given.
    client_mapping: 'vmap', 'map' or 'auto' (map on a CPU, vmap elsewhere) over clients, without influence on results
    beyond float tolerance.

    The evidence is ``MatchingTask``, the info the mean objective [], the result ``Representatives``. Raises ValueError
    for an unknown mapping, fewer than one start and evidence whose shapes do not fit the model.
    """
    if memory < 1:
        raise ValueError(f"memory={memory}: expected at least 1")
    return _matching(
        model,
        image_shape,
        squared_distance,
        lambda images: total_variation * jnp.mean(summed_total_variation(images)),
        lambda images: start_in_box(images, memory),
        functools.partial(descend_in_box, low=-1.0, high=1.0),
        _squared_norm,
        starts=starts,
        simulate=simulate,
        client_mapping=client_mapping,
    )


def _matching(
    model: Model,
    image_shape: tuple[int, int, int],
    distance_of: Callable[[PyTree, PyTree], Array],
    prior: Callable[[Array], Array],
    begin: Callable[[Array], Position],
    move: Callable[[Callable[[Array], Array], Position], tuple[Position, Array]],
    size_of: Callable[[Array], Array],
    *,
    starts: int,
    simulate: Simulate | None,
    client_mapping: str,
) -> Procedure:
    """The search of all clients.

    ``distance_of`` compares two updates, ``prior`` is a penalty of images -> []. ``begin(images) -> position`` and
    ``move(objective, position) -> (position, objective before it)`` are the optimizer, which gets the objective over
    ``size_of(updates [T, D])`` of the client.
    """
    if starts < 1:
        raise ValueError(f"starts={starts}: expected at least 1")
    over_clients = _over_clients(client_mapping)
    distance = _distance_to_client(model, simulate or functools.partial(gradient_of, model), distance_of)

    def objective(images: Array, client: UpdateEvidence) -> Array:
        return distance(images, client) + prior(images)

    def init(key: Array, task: MatchingTask) -> _Search:
        check_matching(model, image_shape, task)
        clients, count = task.evidence.labels.shape
        images = _into_box(_draw_starts(key, (clients, starts, count, *image_shape)))
        if task.start is not None:
            images = images.at[:, 0].set(_into_box(task.start))
        return _Search(jax.vmap(jax.vmap(begin))(images), images, jnp.full((clients, starts), jnp.inf, jnp.float32))

    def step(key: Array, search: _Search, task: MatchingTask) -> tuple[_Search, Array]:
        def of_client(search: _Search, client: UpdateEvidence) -> tuple[_Search, Array]:
            size = size_of(client.updates)

            def of_start(search: _Search) -> tuple[_Search, Array]:
                position, scaled = move(lambda images: objective(images, client) / size, search.position)
                value = scaled * size
                best, least = _nearer(search.position.values, value, search)
                return _Search(position, best, least), value

            return jax.vmap(of_start)(search)

        search, values = over_clients(of_client, search, _by_client(task.evidence))
        return search, jnp.mean(values)

    def extract(search: _Search, task: MatchingTask) -> Representatives:
        def of_client(search: _Search, client: UpdateEvidence) -> Representatives:
            def of_start(search: _Search) -> Representatives:
                last = search.position.values
                best, _ = _nearer(last, objective(last, client), search)
                return Representatives(best, distance(best, client))

            found = jax.vmap(of_start)(search)
            return trees.take(found, jnp.nanargmin(found.distances))

        return over_clients(of_client, search, _by_client(task.evidence))

    return Procedure(init, step, extract)


def _distance_to_client(
    model: Model, simulate: Simulate, distance_of: Callable[[PyTree, PyTree], Array]
) -> Callable[[Array, UpdateEvidence], Array]:
    """The distance [] of images [R, H, W, C], summed over rounds; the client's leaves are [T, ...] or [R]."""

    def distance(images: Array, client: UpdateEvidence) -> Array:
        classes = jax.eval_shape(model.apply, trees.take(client.params, 0), images).shape[-1]
        labels = jax.nn.one_hot(client.labels, classes)
        if client.weights is not None:
            # The loss is a mean over the representatives and linear in the labels.
            labels = labels * (len(client.weights) * client.weights)[:, None]

        def of_round(params: PyTree, update: Array) -> Array:
            _, unravel = trees.ravel(params)
            return distance_of(simulate(params, images, labels), unravel(update))

        return jnp.sum(jax.vmap(of_round)(client.params, client.updates))

    return distance


def _squared_norm(updates: Array) -> Array:
    """The sum of squares [] of a client's updates [T, D], 1 if it is zero."""
    total = jnp.sum(updates**2)
    return jnp.where(total > 0, total, 1.0)


def _into_box(images: Array) -> Array:
    return jnp.clip(images, -1.0, 1.0)


def _nearer(images: Array, value: Array, search: _Search) -> tuple[Array, Array]:
    """The better of the images and the best so far, and its objective. NaN is never better."""
    better = value < search.least
    return jnp.where(better, images, search.best), jnp.where(better, value, search.least)


def _draw_starts(key: Array, shape: tuple[int, ...]) -> Array:
    """Normal images [K, S, R, H, W, C]. Those of a client's start do not depend on the numbers of both."""

    def draw(client: Array, start: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, client), start), shape[2:])

    return jax.vmap(lambda client: jax.vmap(lambda start: draw(client, start))(jnp.arange(shape[1])))(
        jnp.arange(shape[0])
    )


def _by_client(evidence: UpdateEvidence) -> UpdateEvidence:
    """The evidence with params [K, T, ...] and updates [K, T, D], T = 1 for one round."""
    rounds = (evidence.params, evidence.updates)
    if evidence.updates.ndim == 2:
        rounds = trees.expand(rounds)
    params, updates = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), rounds)
    return evidence._replace(params=params, updates=updates)


def _over_clients(mapping: str) -> Callable[..., PyTree]:
    """The function that applies ``fun(*arguments)`` to each entry of the leading axes of the arguments."""
    if mapping not in CLIENT_MAPPINGS:
        raise ValueError(f"client_mapping={mapping!r}: allowed are {', '.join(map(repr, CLIENT_MAPPINGS))}")

    def over(fun: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
        if mapping == "vmap" or (mapping == "auto" and jax.default_backend() != "cpu"):
            return jax.vmap(fun)(*arguments)
        return jax.lax.map(lambda entry: fun(*entry), arguments)

    return over


def check_matching(model: Model, image_shape: tuple[int, int, int], task: MatchingTask) -> None:
    """Raise ValueError, with the name of the array, if a shape of the task does not fit the model or the others.

    The procedures call it as well. A call before ``jit`` gives the message without JAX's remarks.
    """
    evidence = task.evidence
    if evidence.labels.ndim != 2 or not all(evidence.labels.shape):
        raise ValueError(f"labels: shape {evidence.labels.shape}, expected [K, R] with at least one of each")
    clients, count = evidence.labels.shape
    sent = jax.eval_shape(model.init, jax.random.key(0))
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(sent))
    rounds = evidence.updates.shape[:-2]
    if len(rounds) > 1 or evidence.updates.shape[len(rounds) :] != (clients, size) or not all(rounds):
        raise ValueError(
            f"updates: shape {evidence.updates.shape}, expected {(clients, size)}, one entry for each parameter of "
            "each client, or this with a leading axis of rounds"
        )
    expected = jax.tree.map(lambda leaf: (*rounds, clients, *leaf.shape), sent)
    if jax.tree.map(jnp.shape, evidence.params) != expected:
        raise ValueError(f"params: expected the model's, with leading axes {(*rounds, clients)} as the updates have")
    if evidence.weights is not None and evidence.weights.shape != (clients, count):
        raise ValueError(f"weights: shape {evidence.weights.shape}, expected {(clients, count)} as the labels have")
    shape = (clients, count, *image_shape)
    if task.start is not None and task.start.shape != shape:
        raise ValueError(f"start: shape {task.start.shape}, expected {shape}")
