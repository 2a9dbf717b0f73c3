"""The placement of participants: all on the devices, or a cohort on the devices and the other states in files.

Both have the same interface for the training loop, with one device, several, or those of several processes.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gan_leak import trees
from gan_leak.collaboration import RoundInfo, make_rounds
from gan_leak.collaboration.round import RoundsFunction
from gan_leak.collaboration.round_parts import RoundFunction
from gan_leak.collaboration.schedule import draw_cohort
from gan_leak.collaboration.sharding import replicate, round_places, shard, unshard
from gan_leak.runs.federated import resumption
from gan_leak.runs.federated.measurement import RunKeys
from gan_leak.runs.federated.setup import Experiment, start_federation
from gan_leak.runs.hosts.processes import broadcast_from_lead, run_outside_collective
from gan_leak.runs.storage import participant_files
from gan_leak.types import Array, FederationData, FederationState, ParticipantState


class Placement(NamedTuple):
    """A federation that runs.

    state: as ``advance`` takes it. most: the largest number of rounds in one call. advance: ``(state, count) -> (state,
    info, cohort)``. The info has leading axes of rounds and turns. The cohort is None if all participants took part.
    save: saves the state of the last finished round. All processes must call ``advance`` and ``save``.
    """

    state: FederationState
    most: int
    advance: Callable[[FederationState, int], tuple[FederationState, RoundInfo, np.ndarray | None]]
    save: Callable[[FederationState], None]


def initial_state(
    experiment: Experiment, key: Array, participants: int, *, by_cohorts: bool
) -> tuple[FederationState, ParticipantState | None]:
    """The initial state, as checkpoints hold it, and the initial state of a participant (None without cohorts).

    With cohorts, the table of ``gan_leak.runs.storage.participant_files`` replaces the participants' states.
    """
    state = jax.jit(functools.partial(start_federation, experiment, participants=1 if by_cohorts else participants))(
        key
    )
    if not by_cohorts:
        return state, None
    initial = trees.take(jax.device_get(state.participants), 0)
    return state._replace(participants=participant_files.fresh_table(participants)), initial


def place_all(
    experiment: Experiment,
    keys: RunKeys,
    state: FederationState,
    data: FederationData,
    *,
    mesh: Mesh | None,
    most: int,
    run_directory: pathlib.Path | None,
) -> Placement:
    """Place all participants on the devices, for all rounds."""
    participants = len(data.sizes)
    run, key = _rounds(experiment.round, most, keys, mesh)
    if mesh is not None:
        state, data = shard(state, data, mesh)

    def advance(state: FederationState, count: int) -> tuple[FederationState, RoundInfo, None]:
        state, infos = jax.block_until_ready(run(key, state, data, experiment.hyperparameters, count))
        return state, _of_turns(infos, participants), None

    def save(state: FederationState) -> None:
        kept = state if mesh is None else unshard(state, participants)
        if run_directory is not None:
            run_outside_collective(resumption.save_checkpoint, run_directory, int(kept.round), kept)

    return Placement(state, most, advance, save)


def place_cohorts(
    experiment: Experiment,
    keys: RunKeys,
    state: FederationState,
    data: FederationData,
    initial: ParticipantState,
    *,
    cohort_size: int,
    mesh: Mesh | None,
    run_directory: pathlib.Path | None,
) -> Placement:
    """Place only the cohort of a round on the devices; files hold the states of all other participants.

    In ``state``, the table of the files replaces the states. The files are in the run directory and become durable with
    the checkpoints.
    """
    directory = None if run_directory is None else run_directory / "participants"
    run, key = _rounds(experiment.round, 1, keys, mesh)
    tables = [np.asarray(state.participants)]

    def advance(state: FederationState, count: int) -> tuple[FederationState, RoundInfo, np.ndarray]:
        round, table = int(state.round), np.asarray(state.participants)
        cohort = np.asarray(draw_cohort(jax.random.fold_in(keys.cohorts, round), len(table), cohort_size))
        if directory is None:
            states = participant_files.stack_states([initial] * cohort_size)
        else:
            states = participant_files.read_states(directory, table, cohort, initial)
        drawn = trees.take(data, cohort)._replace(participants=cohort)
        full = state._replace(participants=broadcast_from_lead(states))
        if mesh is not None:
            full, drawn = shard(full, drawn, mesh)
        full, infos = jax.block_until_ready(run(key, full, drawn, experiment.hyperparameters, count))
        states = unshard(full, cohort_size).participants
        if directory is not None:
            participant_files.write_states(directory, table, cohort, states, round + 1)
        table = participant_files.advance_table(table, cohort, round + 1)
        return full._replace(participants=table), _of_turns(infos, cohort_size), cohort

    def save(state: FederationState) -> None:
        kept = state if mesh is None else jax.device_get(state)
        if run_directory is None or directory is None:
            return
        # Keep one table for each kept checkpoint. The first table is that of the checkpoint that the run started from.
        tables.append(np.asarray(kept.participants))
        del tables[:-2]
        participant_files.sync_states(directory, tables[-1], int(tables[0].max()))
        run_outside_collective(resumption.save_checkpoint, run_directory, int(kept.round), kept)
        participant_files.delete_unnamed(directory, tables)

    return Placement(state, 1, advance, save)


@functools.lru_cache(maxsize=4)
def _jitted_rounds(round_fn: RoundFunction, most: int, mesh: Mesh | None) -> RoundsFunction:
    rounds = make_rounds(round_fn, most)
    return jax.jit(rounds) if mesh is None else jax.jit(rounds, out_shardings=round_places(mesh))


def _rounds(round_fn: RoundFunction, most: int, keys: RunKeys, mesh: Mesh | None) -> tuple[RoundsFunction, Array]:
    return _jitted_rounds(round_fn, most, mesh), keys.rounds if mesh is None else replicate(keys.rounds, mesh)


def _of_turns(infos: RoundInfo, turns: int) -> RoundInfo:
    infos = jax.device_get(infos)
    return infos._replace(turns=trees.take(infos.turns, np.s_[:, :turns]))
