"""Rounds over meshes of several devices against the same rounds on one; run as a program with devices of its own.

Prints a JSON list of [what, largest difference, largest difference to where it began].
"""

import json

import jax
import jax.numpy as jnp

from gan_leak import trees
from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.collaboration import (
    AGGREGATORS,
    RoundHyperParameters,
    average,
    init_federation,
    make_round,
    make_rounds,
    selective_upload,
)
from gan_leak.collaboration.sharding import device_mesh, shard
from gan_leak.defenses import secure_average
from gan_leak.runs.federated.batch import make_lanes
from reference.server_attacks import Victim, isolating_attack, reading_attack
from reference.small import FAKE_CLASS, IMAGE_SHAPE, federation_data, largest_difference, linear_classifier
from reference.small import linear_generator as generator

SIZES = (7, 0, 4, 5, 6)
ROUNDS = 2
SERVER_ATTACKS = (("reading", 8), ("isolating", 2))


def compare(mapping, attacked, aggregation, devices):
    """Two rounds on a mesh of some devices and on none."""
    model, transform = linear_classifier(), selective_upload("largest")
    attack, numbers, adversary = None, (), None
    if attacked:
        attack = gan_attack(
            model, generator(), IMAGE_SHAPE, generator_steps=2, generator_batch_size=4, fakes_per_round=5
        )
        numbers, adversary = GanAttackHyperParameters(1, FAKE_CLASS, 0.5), 2
    hyperparameters = RoundHyperParameters(0.3, upload_fraction=0.5, download_fraction=0.5, attack=numbers)
    data = federation_data(SIZES)
    start = init_federation(jax.random.key(0), model, transform, len(SIZES), attack)

    def rounds(mesh):
        state, shares = start, data
        if mesh is not None:
            state, shares = shard(start, data, mesh)
        round_fn = jax.jit(
            make_round(
                model,
                transform,
                schedule="synchronous",
                aggregator=secure_average() if aggregation == "secure" else AGGREGATORS[aggregation](),
                batch_size=3,
                attack=attack,
                adversary=adversary,
                participant_mapping=mapping,
                mesh=mesh,
            )
        )
        for number in range(ROUNDS):
            state, info = round_fn(jax.random.fold_in(jax.random.key(1), number), state, shares, hyperparameters)
        if mesh is not None:
            used = {shard.device for shard in jax.tree.leaves(state.participants)[0].addressable_shards}
            assert len(used) == mesh.size, used
        own = slice(len(SIZES))
        state = state._replace(participants=trees.take(state.participants, own))
        return jax.device_get((state, info._replace(turns=trees.take(info.turns, own))))

    alone = rounds(None)
    sharded = rounds(device_mesh(jax.devices()[:devices]))
    return largest_difference(sharded, alone), largest_difference(alone[0].server, start.server)


def compare_lanes(mapping, devices):
    """Three rounds of six runs of different rates and seeds, dealt out over some devices and over none."""
    model, transform = linear_classifier(), selective_upload("largest")
    round_fn = make_round(model, transform, schedule="round_robin", batch_size=3)
    keys = jax.random.split(jax.random.key(2), 6)
    start = jax.vmap(lambda key: init_federation(key, model, transform, len(SIZES)))(keys)
    data = jax.tree.map(lambda leaf: jnp.stack([leaf] * 6), federation_data(SIZES))
    numbers = RoundHyperParameters(jnp.linspace(0.1, 0.6, 6))
    numbers = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (6,)), numbers)

    def lanes(mesh):
        run = jax.jit(make_lanes(round_fn, mapping, mesh))
        return jax.device_get(run(jax.random.clone(keys), start, data, numbers, 3)[0])

    alone = lanes(None)
    sharded = lanes(device_mesh(jax.devices()[:devices]))
    return largest_difference(sharded, alone), largest_difference(alone.server, start.server)


def compare_server_attack(kind, devices):
    """Two rounds with an adversary at the server, on a mesh of some devices and on none."""
    sizes, model, transform = (1, 0, 1, 1, 1), linear_classifier(), selective_upload("largest")
    attack, numbers = {
        "reading": (reading_attack(len(sizes)), ()),
        "isolating": (isolating_attack(len(sizes)), Victim(2)),
    }[kind]
    data = federation_data(sizes, length=2)
    start = init_federation(jax.random.key(0), model, transform, len(sizes), server_attack=attack)

    def rounds(mesh):
        state, shares = (start, data) if mesh is None else shard(start, data, mesh)
        round_fn = make_round(
            model,
            transform,
            schedule="synchronous",
            aggregator=average(),
            batch_size=2,
            server_attack=attack,
            participant_mapping="map",
            mesh=mesh,
        )
        run = jax.jit(make_rounds(round_fn, ROUNDS))
        hyperparameters = RoundHyperParameters(0.5, server_attack=numbers)
        state, info = run(jax.random.key(1), state, shares, hyperparameters, ROUNDS)
        return jax.device_get((state.server, state.server_attack, info.server_attack))

    alone = rounds(None)
    found = alone[1] if kind == "reading" else alone[1].found
    inputs = data.inputs[:, 0].reshape(len(sizes), -1) * data.sizes[:, None]
    assert largest_difference(found.inputs, inputs) < 2e-5
    sharded = rounds(device_mesh(jax.devices()[:devices]))
    return largest_difference(sharded, alone), largest_difference(alone[0], start.server)


def main():
    """Each mapping, aggregation and attack at least once, on few devices and on more than there are participants."""
    choices = [("map", True, "add", 2), ("map", False, "average", 8), ("vmap", True, "average", 4)]
    choices += [("map", False, "secure", 4)]
    results = [[str(choice), *compare(*choice)] for choice in choices]
    results += [[f"lanes, {choice}", *compare_lanes(*choice)] for choice in (("map", 2), ("vmap", 3))]
    results += [[f"server attack, {kind}", *compare_server_attack(kind, n)] for kind, n in SERVER_ATTACKS]
    try:
        mesh = device_mesh(jax.devices()[:2])
        round_fn = make_round(linear_classifier(), selective_upload("largest"), schedule="synchronous", mesh=mesh)
        state = init_federation(jax.random.key(0), linear_classifier(), selective_upload("largest"), len(SIZES))
        round_fn(jax.random.key(1), state, jax.tree.map(jnp.asarray, federation_data(SIZES)), RoundHyperParameters(0.1))
        results.append(["uneven", 0.0, 0.0])
    except ValueError as error:
        results.append([str(error), 0.0, 1.0])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
