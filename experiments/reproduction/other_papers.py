"""The papers beside Hitaj et al. as data: which tables there are, which presets make them, and what becomes of each."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from experiments import gradient_inversion, split_inference
from experiments.common.flags import config_from_arguments
from experiments.common.tables import Drawn, picture_files, recorded
from experiments.reproduction.hitaj import Claim, read_claim
from gan_leak.evaluation.criteria import decide, explain, measurements
from gan_leak.reports.galleries import interval_figure
from gan_leak.reports.reproduction import NEAREST_VARIANT
from gan_leak.runs.storage.directory import CONFIG_NAME, check_ours, close_run, read_config_file
from gan_leak.runs.storage.integrity import RefusedError


class Table(NamedTuple):
    """One section of the reproduction: settings by label, each a preset of one binary, and the measure shown first."""

    number: str
    title: str
    binary: ModuleType
    settings: dict[str, str]
    measure: str = "recovered"


TABLES = (
    Table(
        "he_mnist",
        "Split inference, MNIST (He, Zhang and Lee 2019, Tables 3, 4, 6)",
        split_inference,
        {"He et al., MNIST": "he_mnist"},
        "psnr",
    ),
    Table(
        "he_cifar10",
        "Split inference, CIFAR-10 (He, Zhang and Lee 2019, Tables 3, 4, 6)",
        split_inference,
        {"He et al., CIFAR-10": "he_cifar10"},
        "psnr",
    ),
    Table(
        "he_defenses",
        "Noise and dropout on features (He, Zhang and Lee 2019 and 2020)",
        split_inference,
        {"He et al., noise": "he_noise", "He et al., dropout": "he_dropout"},
        "ssim",
    ),
    Table(
        "dlg",
        "Deep leakage from gradients (Zhu, Liu and Han 2019; Zhao, Mopuri and Bilen 2020)",
        gradient_inversion,
        {"DLG": "dlg", "DLG, larger batches": "dlg_large", "iDLG": "idlg"},
    ),
    Table(
        "inverting_gradients",
        "Inverting Gradients (Geiping et al. 2020)",
        gradient_inversion,
        {"Inverting Gradients": "inverting_gradients", "several steps": "inverting_updates"},
    ),
    Table(
        "grnn",
        "GRNN (Ren, Deng and Xie 2022)",
        gradient_inversion,
        {"GRNN": "grnn", "GRNN, batches": "grnn_batches", "GRNN, faces": "grnn_faces"},
    ),
    Table(
        "gradient_defenses",
        "Defences on one gradient",
        gradient_inversion,
        {
            "DLG, defences": "dlg_defenses",
            "Inverting Gradients, defences": "inverting_gradients_defenses",
            "GRNN, defences": "grnn_defenses",
        },
    ),
)


class TableRun(NamedTuple):
    """What a reproduction asks of a table: the scale, the directory of its runs, and where CIFAR-10 is."""

    scale: str
    directory: pathlib.Path
    cifar10: str


def configurations_of(run: TableRun, table: Table) -> dict[str, Any]:
    """The configuration of each setting by label: the preset, behind it its shortened one where the scale is quick."""
    found = {}
    class_name = {split_inference: split_inference.SplitConfig, gradient_inversion: gradient_inversion.GradientConfig}
    for label, preset in table.settings.items():
        config = config_from_arguments(class_name[table.binary], _arguments(run, preset))
        if config.dataset == "tfds:cifar10":
            config = dataclasses.replace(config, dataset=run.cifar10)
        found[label] = config
    return found


def _arguments(run: TableRun, preset: str) -> list[str]:
    shortened = [f"--preset={read_claim(preset, nearest=False).quick}"] if run.scale == "quick" else []
    return [f"--preset={preset}", *shortened]


def check_table(run: TableRun, table: Table) -> None:
    """Raises ValueError or OSError for a data set of a table that cannot be had, or a damaged directory of a run."""
    for label, config in configurations_of(run, table).items():
        workdir = _workdir(run, table, label, config)
        if workdir.is_dir():
            check_ours(workdir)
        if (workdir / CONFIG_NAME).exists():
            read_config_file(workdir)


@functools.cache
def _fingerprint(binary: ModuleType, config: Any) -> str:
    """The digest of a data set, which has been found to fit."""
    return str(binary.load_data(config)[0].fingerprint)


def table_basis(run: TableRun, table: Table) -> str:
    """All that decides a section, as text: the settings, their data, and which claims they are held against."""
    configurations = configurations_of(run, table)
    configs = {label: dataclasses.asdict(recorded(config)) for label, config in configurations.items()}
    data = {label: _fingerprint(table.binary, config) for label, config in configurations.items()}
    claims = [_claim_texts(read_claim(preset, nearest=False)) for preset in table.settings.values()]
    return json.dumps({"configs": configs, "data": data, "claims": claims})


def _claim_texts(claim: Claim) -> list[str]:
    return [claim.claim, claim.reproduced_if.text, claim.partly_if.text]


def table_entry(run: TableRun, table: Table) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Runs a table, or what is left of it -> (its entry in results.json, pictures by caption)."""
    seconds = 0.0
    rows: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    pictures: dict[str, bytes] = {}
    for label, config in configurations_of(run, table).items():
        drawn = _run(table.binary, config, _workdir(run, table, label, config))
        seconds += sum(entry.seconds for entry in drawn)
        named = [entry.row | {"name": f"{label}: {entry.row['name']}"} for entry in drawn]
        rows += named
        pictures |= {f"{label}. {caption}": image for caption, image in picture_files(drawn).items()}
        verdicts += _verdicts(read_claim(table.settings[label], nearest=False), table.measure, named)
    measured = [row for row in rows if table.measure in row["metrics"]]
    pictures["Means of every row, with 95% intervals over images."] = interval_figure(measured, metric=table.measure)
    commands = "; ".join(
        f"python -m {table.binary.__name__} {' '.join(_arguments(run, preset))}" for preset in table.settings.values()
    )
    entry = {
        "figure": table.number,
        "title": table.title,
        "claim": " ".join(dict.fromkeys(read_claim(preset, nearest=False).claim for preset in table.settings.values())),
        "setup": f"Each row is a setting of {commands}.",
        "seconds": seconds,
        "verdicts": verdicts,
        "rows": rows,
        "privacy": [],
        "notes": [],
        "error": None,
    }
    return entry, pictures


def _workdir(run: TableRun, table: Table, label: str, config: Any) -> pathlib.Path:
    """Named by all that decides the result as well, so that what is changed and resumed begins anew."""
    text = json.dumps([dataclasses.asdict(recorded(config)), _fingerprint(table.binary, config)], sort_keys=True)
    return run.directory / f"{table.settings[label]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _run(binary: ModuleType, config: Any, workdir: pathlib.Path) -> list[Drawn]:
    try:
        prepared = binary.prepare(config, workdir, (workdir / CONFIG_NAME).exists())
    except ValueError as error:
        # Flags and data are those of a preset, and have been checked: this is about the directory.
        raise RefusedError(str(error)) from error
    try:
        return binary.run_settings(prepared)
    finally:
        close_run(prepared.directory)


def _verdicts(claim: Claim, measure: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A verdict on every row; where the claim compares with the first row of the run, on those after it."""
    names = {*claim.reproduced_if.names, *claim.partly_if.names}
    compares = any(name.startswith("first.") for name in names)
    found = []
    for row in rows[1:] if compares else rows:
        lookup = measurements(row["metrics"], {"first": rows[0]["metrics"]})
        verdict = decide(claim.reproduced_if, claim.partly_if, lookup)
        reasons = [
            line for part in (claim.reproduced_if, claim.partly_if) for line in explain(part, lookup).splitlines()
        ]
        found.append(
            {
                "name": row["name"],
                "claim": claim.claim,
                "variant": NEAREST_VARIANT,
                "verdict": str(verdict),
                "reproduced_if": claim.reproduced_if.text,
                "partly_if": claim.partly_if.text,
                "because": list(dict.fromkeys(reasons)),
                "row": row["name"],
                "measure": measure,
                "control_measure": f"control_{measure}",
            }
        )
    return found
