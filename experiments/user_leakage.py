"""A malicious server that reconstructs one client's data: mGAN-AI, measured on real people (Wang et al., INFOCOM 2019).

python -m experiments.user_leakage
python -m experiments.user_leakage --preset=mgan_ai/mnist_writers --owners=qmnist:qmnist-train-labels-idx2-int.gz
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import json
import pathlib

import numpy as np

from experiments.common.flags import run_binary
from experiments.common.tables import Drawn, check_directory, run_and_report, run_rows
from experiments.common.user_config import UserLeakageConfig, check, check_batches, variants_of
from experiments.common.user_rows import (
    GENERATOR,
    UserRun,
    outcome_of,
    recorder,
    row_tasks,
    stages_of,
    victims_of,
)
from gan_leak.data.dataset import Dataset
from gan_leak.data.owner_settings import load_owned, split_owned
from gan_leak.reports.clients import LabeledImages, clients_figure
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.server.federation import OwnedFederation, build_federation
from gan_leak.runs.server.measurement import build_instruments
from gan_leak.runs.storage.directory import npz_bytes, open_run, write_atomic
from gan_leak.runs.storage.integrity import expect_kinds
from gan_leak.runs.storage.resumable import UNSAVED

TITLE = "User-level leakage to the server"


def load_data(config: UserLeakageConfig) -> tuple[Dataset, OwnedFederation]:
    """The data set and the federation; raises ValueError for data without owners, or with too few."""
    dataset = load_owned(config.data)
    split = split_owned(config.data, dataset, np.random.default_rng(config.federation.seed))
    return dataset, build_federation(dataset, split, config.federation.classifier)


def prepare(config: UserLeakageConfig, workdir: pathlib.Path, resume: bool) -> UserRun:
    """Check the flags and the data and open the directory; raises ValueError for bad input."""
    check(config)
    dataset, federation = load_data(config)
    check_batches(config, federation)
    inputs = {"dataset": dataset.fingerprint}
    directory = open_run(workdir, config, resume=resume, inputs=inputs, check=_check_directory)
    for note in dataset.notes:
        tell(note)
    instruments = build_instruments(federation, dataset, config.federation.seed)
    progress = directory.path / "federations" / "recorded.part.npz"
    return UserRun(config, federation, instruments, directory, recorder(config, federation, progress))


def _check_directory(path: pathlib.Path) -> None:
    check_directory(path)
    expect_kinds(path, ("federations",), ("federation.npz", "reconstructions.npz", "metrics.jsonl"))


def execute(prepared: UserRun) -> int:
    """Compute the missing rows, rewrite the table after each, and write what anyone needs to check the result."""

    def run() -> list[Drawn]:
        write_federation(prepared)
        drawn = run_settings(prepared)
        write_reconstructions(prepared)
        return drawn

    return run_and_report(prepared.directory, run)


def run_settings(prepared: UserRun) -> list[Drawn]:
    """Every row with its pictures; finished rows are read from the directory."""
    return run_rows(prepared.directory, TITLE, row_tasks(prepared))


def write_federation(prepared: UserRun) -> None:
    """Write federation.npz: owners, and the indices of each client's sent and held-out images, padded with -1."""
    split = prepared.federation.split
    arrays = {"owners": split.owners, "sent": _padded(split.sent), "held_out": _padded(split.held_out)}
    arrays |= {"auxiliary": split.auxiliary, "third_parties": split.third_parties}
    write_atomic(prepared.directory.path / "federation.npz", npz_bytes(**arrays))


def _padded(indices: tuple[np.ndarray, ...]) -> np.ndarray:
    most = max(map(len, indices))
    return np.stack([np.pad(own, (0, most - len(own)), constant_values=-1) for own in indices])


def write_reconstructions(prepared: UserRun) -> None:
    """Write reconstructions.npz, metrics.jsonl and a figure of all victims, of the first federation."""
    folder, config = prepared.directory.path, prepared.config
    outcome = outcome_of(prepared, 0, next(iter(variants_of(config).values())), UNSAVED)
    stages = {
        "representative": (outcome.representatives, outcome.representative_labels),
        "generator": (outcome.generated, outcome.generated_labels),
    }
    if GENERATOR not in stages_of(config):
        del stages["generator"]
    attacked = victims_of(prepared)
    victims = [np.repeat(attacked, labels.shape[1]) for _, labels in stages.values()]
    rows = {
        "images": np.concatenate([images.reshape(-1, *images.shape[2:]) for images, _ in stages.values()]),
        "labels": np.concatenate([labels.reshape(-1) for _, labels in stages.values()]),
        "victims": np.concatenate(victims),
        "stage": np.concatenate([np.full(len(of), stage) for stage, of in zip(stages, victims, strict=True)]),
    }
    rows["rounds"] = np.full(len(rows["labels"]), config.federation.rounds)
    write_atomic(folder / "reconstructions.npz", npz_bytes(**rows))
    lines = [
        json.dumps({"round": number + 1, "model_accuracy": float(accuracy), "loss": float(loss)})
        for number, (accuracy, loss) in enumerate(zip(outcome.accuracy, outcome.losses, strict=True))
    ]
    write_atomic(folder / "metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())
    kinds = {"private images": [LabeledImages(*prepared.instruments.sent[victim]) for victim in attacked]}
    for name, drawn in zip(stages_of(config), stages.values(), strict=True):
        kinds[name] = [LabeledImages(*own) for own in zip(*drawn, strict=True)]
    write_atomic(folder / "figures" / "clients.png", clients_figure(attacked.tolist(), kinds))


if __name__ == "__main__":
    run_binary(prepare, execute, UserLeakageConfig)
