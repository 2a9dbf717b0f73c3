"""Rows of user-level leakage: what each computes, and how it is measured and drawn."""

from __future__ import annotations

import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.tables import AppliedDefense, Drawn, RowTask
from experiments.common.user_config import UserLeakageConfig, parse_baselines, parse_victims, variants_of
from gan_leak.attacks.server.linkability import link
from gan_leak.attacks.server.source_inference import source_accuracy
from gan_leak.defenses import local_gaussian_epsilon
from gan_leak.defenses.accounting import PrivacyLoss
from gan_leak.evaluation.criteria import Interval
from gan_leak.evaluation.intervals import bootstrap_interval, permutation_p_value
from gan_leak.reports.reconstruction import interval_row
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.server import baselines, linking
from gan_leak.runs.server.attack import Outcome, run_attack
from gan_leak.runs.server.federation import OwnedFederation, Variant
from gan_leak.runs.server.measurement import UserInstruments, ceiling, measure, single
from gan_leak.runs.server.rounds import RoundPair, record_rounds
from gan_leak.runs.storage.directory import RunDirectory, npz_bytes, write_atomic
from gan_leak.runs.storage.integrity import DamagedError, read_npz, sealed_npz, set_aside
from gan_leak.runs.storage.resumable import SavedProgress

# What computes a row, and what measures and draws it.
Baseline = tuple[Callable[..., Mapping[str, np.ndarray]], Callable[..., Drawn]]
LOCAL_DELTA = 1e-5
REPRESENTATIVES = "representatives"
GENERATOR = "mGAN-AI"


class UserRun(NamedTuple):
    """A checked run: its configuration, federation and instruments, its directory, and what a passive server records.

    recorded: ``recorded() -> RoundPair`` of the federation without defenses, for all baselines that need no more.
    """

    config: UserLeakageConfig
    federation: OwnedFederation
    instruments: UserInstruments
    directory: RunDirectory
    recorded: Callable[[], RoundPair]


def recorder(config: UserLeakageConfig, federation: OwnedFederation, path: pathlib.Path) -> Callable[[], RoundPair]:
    """The function ``UserRun.recorded``: trains the federation once. path: the file of its progress."""

    @functools.cache
    def recorded() -> RoundPair:
        path.parent.mkdir(exist_ok=True)
        pair = record_rounds(
            jax.random.key(config.federation.seed),
            federation,
            _undefended(config),
            config.attack.first_round,
            config.federation,
            SavedProgress(path, tell),
        )
        path.unlink(missing_ok=True)
        return pair

    return recorded


def victims_of(run: UserRun) -> np.ndarray:
    """The clients that are attacked, int [V]."""
    return np.array(parse_victims(run.config.victims, run.federation.clients))


def stages_of(config: UserLeakageConfig) -> list[str]:
    """The stages of the attack: without updates of the generator there is only the first."""
    return [REPRESENTATIVES, GENERATOR] if config.attack.generator_steps else [REPRESENTATIVES]


def outcome_of(run: UserRun, number: int, variant: Variant, progress: SavedProgress) -> Outcome:
    """What the attack found in a federation, from its file or computed and saved."""
    path = run.directory.path / "federations" / f"{number:03d}.npz"
    saved = _read_outcome(path)
    if saved is not None:
        return saved
    path.parent.mkdir(exist_ok=True)
    config = run.config
    # The same key for every federation, so that defenses and modes meet the same clients and drafts.
    key = jax.random.key(config.federation.seed)
    own = progress._replace(path=path.with_suffix(".part.npz"))
    victims = victims_of(run).tolist()
    outcome = run_attack(key, run.federation, variant, victims, config.attack, config.federation, own)
    write_atomic(path, sealed_npz(path.name, npz_bytes(**outcome._asdict())))
    for part in path.parent.glob(f"{path.stem}.part.*"):
        part.unlink()
    return outcome


def _read_outcome(path: pathlib.Path) -> Outcome | None:
    if not os.path.lexists(path):
        return None
    try:
        arrays, _ = read_npz(path)
        if set(arrays) != set(Outcome._fields):
            raise DamagedError(f"{path}: damaged (lacks arrays of a federation)")
    except DamagedError as error:
        tell(f"{error}: renamed to {set_aside(path).name} and computed again")
        return None
    return Outcome(**arrays)


def row_tasks(run: UserRun) -> list[RowTask]:
    """The rows in their order: the ceiling, the baselines, and the stages of the attack on every federation."""
    tasks = [RowTask(lambda progress: {"images": run.federation.held_out}, functools.partial(_draw_ceiling, run))]
    for name in parse_baselines(run.config.baselines):
        for compute, draw in _BASELINES[name](run):
            tasks.append(RowTask(functools.partial(compute, run), functools.partial(draw, run)))
    for number, (name, variant) in enumerate(variants_of(run.config).items()):
        for stage in stages_of(run.config):
            tasks.append(
                RowTask(
                    functools.partial(_compute_stage, run, number, variant, stage),
                    functools.partial(_draw_stage, run, stage, name, variant),
                )
            )
    return tasks


def _compute_stage(
    run: UserRun, number: int, variant: Variant, stage: str, progress: SavedProgress
) -> Mapping[str, np.ndarray]:
    found = outcome_of(run, number, variant, progress)
    shared = {"accuracy": found.accuracy, "losses": found.losses, "distances": found.distances}
    if stage == REPRESENTATIVES:
        return {"images": found.representatives, "labels": found.representative_labels, **shared}
    return {"images": found.generated, "labels": found.generated_labels, **shared}


def _draw_stage(
    run: UserRun, stage: str, name: str, variant: Variant, saved: dict[str, np.ndarray], seconds: float
) -> Drawn:
    measured = measure(run.instruments, saved["images"], saved["labels"], victims_of(run))
    measured["model_accuracy"] = single(float(saved["accuracy"][-1]))
    if stage == REPRESENTATIVES:
        measured["distance"] = bootstrap_interval(saved["distances"], seed=run.config.federation.seed)
    loss = local_privacy(variant, run.config.federation.rounds)
    notes = []
    if loss is not None:
        finite = math.isfinite(loss.epsilon)
        promise = f"local epsilon {loss.epsilon:.4g}" if finite else "no finite local epsilon"
        notes.append(f"{promise} at delta {loss.delta:g} over {run.config.federation.rounds} uploads")
        if finite:
            measured["local_epsilon"] = single(loss.epsilon)
    row = interval_row(f"{stage}, {name}", "attack", measured) | {"notes": notes}
    return _drawn(run, row, saved, seconds)


def local_privacy(variant: Variant, rounds: int) -> PrivacyLoss | None:
    """What ``clipping+gaussian`` promises a client against the server over all rounds; None for other defenses."""
    if [defense.name for defense in variant.defenses] != ["clipping", "gaussian"]:
        return None
    norm, deviation = (variant.strengths[name] for name in ("update_clipping_norm", "gaussian_deviation"))
    return local_gaussian_epsilon(norm, deviation, LOCAL_DELTA, rounds)


def _draw_ceiling(run: UserRun, saved: dict[str, np.ndarray], seconds: float) -> Drawn:
    row = interval_row("held-out images of each client (ceiling)", "reference", ceiling(run.instruments))
    row["notes"] = list(run.instruments.notes)
    return _drawn(run, row, _held_out(run), seconds)


def _drawn(run: UserRun, row: dict[str, Any], saved: Mapping[str, np.ndarray], seconds: float) -> Drawn:
    """The row with a picture of each victim: sent images, and those of the row of the same class."""
    sent = [run.instruments.sent[victim] for victim in victims_of(run)]
    own = np.stack([images.images[0] for images in sent])
    first = np.array([int(labels.labels[0]) for labels in sent])
    shown = [
        pictures[int(np.argmax(labels == label))]
        for pictures, labels, label in zip(saved["images"], saved["labels"], first, strict=True)
    ]
    return Drawn(row, own, np.stack(shown), row["name"], AppliedDefense(), seconds)


def _held_out(run: UserRun) -> dict[str, np.ndarray]:
    """The held-out images of the victims: what a row without pictures shows."""
    own = victims_of(run)
    return {"images": run.federation.held_out[own], "labels": run.federation.held_out_labels[own]}


def _of_victims(run: UserRun, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The pictures of the victims among those of all clients."""
    return {"images": images[victims_of(run)], "labels": labels[victims_of(run)]}


def _auxiliary_images(run: UserRun, progress: SavedProgress) -> Mapping[str, np.ndarray]:
    images, labels = baselines.auxiliary_images(run.federation, run.config.attack.drawn_per_class)
    return _of_victims(run, images, labels)


def _class_means(run: UserRun, progress: SavedProgress) -> Mapping[str, np.ndarray]:
    return _of_victims(run, *baselines.mean_images(run.federation))


def _class_gan(run: UserRun, progress: SavedProgress) -> Mapping[str, np.ndarray]:
    config = run.config
    key = jax.random.key(config.federation.seed)
    found = baselines.class_level_images(
        key, run.federation, _undefended(config), config.attack, config.federation, progress
    )
    return _of_victims(run, *found)


def _model_inversion(run: UserRun, progress: SavedProgress) -> Mapping[str, np.ndarray]:
    key = jax.random.key(run.config.federation.seed)
    return _of_victims(run, *baselines.inverted_images(key, run.federation, run.recorded().last, progress))


def _source_inference(run: UserRun, progress: SavedProgress) -> Mapping[str, np.ndarray]:
    losses, sources = baselines.source_losses(run.federation, run.recorded().last)
    return {"images": run.federation.held_out[:, :1], "losses": losses, "sources": sources}


def _undefended(config: UserLeakageConfig) -> Variant:
    return Variant(config.federation.local_epochs, config.federation.batch_size, (), {})


def _measured(name: str, role: str) -> Callable[..., Drawn]:
    def draw(run: UserRun, saved: dict[str, np.ndarray], seconds: float) -> Drawn:
        measured = measure(run.instruments, saved["images"], saved["labels"], victims_of(run))
        return _drawn(run, interval_row(name, role, measured), saved, seconds)

    return draw


def _draw_sources(run: UserRun, saved: dict[str, np.ndarray], seconds: float) -> Drawn:
    sources = saved["sources"]
    shares = [
        source_accuracy(saved["losses"][sources == client], sources[sources == client]) for client in victims_of(run)
    ]
    measured: dict[str, Interval] = {
        "source_accuracy": bootstrap_interval(np.array(shares), seed=run.config.federation.seed),
        "chance": single(1.0 / run.federation.clients),
    }
    row = interval_row("source inference (needs the records)", "reference", measured)
    return _drawn(run, row, _held_out(run), seconds)


def _link_by_updates(run: UserRun, progress: SavedProgress) -> Mapping[str, np.ndarray]:
    return {"images": run.federation.held_out[:, :1], "table": linking.update_distances(run.recorded())}


def _link_by_counts(run: UserRun, progress: SavedProgress) -> Mapping[str, np.ndarray]:
    config = run.config
    table = linking.count_distances(run.federation, _undefended(config), run.recorded(), config.federation)
    return {"images": run.federation.held_out[:, :1], "table": table}


def _link_by_representatives(run: UserRun, progress: SavedProgress) -> Mapping[str, np.ndarray]:
    config, federation = run.config, run.federation
    table = linking.representative_distances(
        jax.random.key(config.federation.seed),
        federation,
        _undefended(config),
        run.recorded(),
        _simulated(run),
        config.attack,
        config.federation,
        progress,
    )
    return {"images": federation.held_out[:, :1], "table": table}


def _simulated(run: UserRun) -> np.ndarray:
    rng = np.random.default_rng(run.config.federation.seed)
    return linking.simulated_clients(rng, run.federation, run.config.data.owners_per_client)


def _linked(name: str) -> Callable[..., Drawn]:
    def draw(run: UserRun, saved: dict[str, np.ndarray], seconds: float) -> Drawn:
        seed, table = run.config.federation.seed, saved["table"]
        found = link(np.random.default_rng(seed), table)
        measured = {
            "linked": bootstrap_interval((found == np.arange(len(found))).astype(float), seed=seed),
            "p_value": single(permutation_p_value(table, seed=seed)),
            "chance": single(1.0 / run.federation.clients),
        }
        row = interval_row(f"linkability by {name}", "reference", measured)
        return _drawn(run, row, _held_out(run), seconds)

    return draw


def _linkability(run: UserRun) -> list[Baseline]:
    rows = [
        (_link_by_updates, _linked("the cosine of raw updates")),
        (_link_by_counts, _linked("label counts")),
    ]
    if len(_simulated(run)) >= linking.LEAST_SIMULATED:
        rows.append((_link_by_representatives, _linked("representatives (Siamese network)")))
    else:
        tell("linkability by representatives: not measured, expected auxiliary people for at least 2 clients")
    return rows


def _auxiliary(run: UserRun) -> list[Baseline]:
    if run.federation.auxiliary is None:
        tell("auxiliary images alone: not measured, expected auxiliary people")
        return []
    return [(_auxiliary_images, _measured("auxiliary images alone", "reference"))]


_BASELINES: Mapping[str, Callable[[UserRun], list[Baseline]]] = {
    "auxiliary": _auxiliary,
    "class_means": lambda run: [(_class_means, _measured("means of the private classes", "reference"))],
    "class_gan": lambda run: [(_class_gan, _measured("class-level GAN at the server", "reference"))],
    "model_inversion": lambda run: [(_model_inversion, _measured("model inversion of local models", "reference"))],
    "source_inference": lambda run: [(_source_inference, _draw_sources)],
    "linkability": _linkability,
}
