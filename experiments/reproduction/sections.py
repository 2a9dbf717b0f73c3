"""The sections of the reproduction: which batches a figure needs, what they say about its claim, and its pictures."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.common.flags import config_from_arguments
from experiments.reproduction.hitaj import (
    CIFAR10_FIGURES,
    Claim,
    Figure,
    arguments_for,
    controls_of,
    not_stated,
    read_claim,
    rows_named_by,
    variants_of,
)
from gan_leak.config import RunConfig
from gan_leak.evaluation.criteria import Verdict, decide, explain, measurements
from gan_leak.evaluation.measurability import Measurability
from gan_leak.reports.figures import reconstructions_figure
from gan_leak.reports.galleries import (
    GOOD_FROM_ACCURACY,
    interval_figure,
    leakage_against_accuracy_figure,
    picture_table,
)
from gan_leak.reports.reproduction import NEAREST_VARIANT, PAPER_VARIANT
from gan_leak.runs.federated.batch import batch_directory
from gan_leak.runs.federated.batch_files import BatchResult, read_result
from gan_leak.runs.federated.measurement import InstrumentSource
from gan_leak.runs.federated.rows import (
    accuracy_rows,
    attack_row,
    differences_between,
    interval,
    inversion_metrics,
    leakage_at_accuracy,
    not_measurable,
    privacy_entries,
    reference_row,
)
from gan_leak.runs.federated.setup import AttackData
from gan_leak.runs.hosts.workers import Job
from gan_leak.runs.inversion.model import Inversions
from gan_leak.settings import replace, values_of

_BESIDE = {"passive": "passive adversary", "unowned": "class nobody owns", "undefended": "without the defence"}
_SHORT_NAMES = {PAPER_VARIANT: "the paper's", NEAREST_VARIANT: "nearest that works"}
_ROWS_OF_PICTURES = 5
_PICTURES_IN_A_ROW = 10


class Study(NamedTuple):
    """How a reproduction runs: scale, seeds, cuts for want of time, where CIFAR-10 is and batches are kept, and so on.

    cuts: the most that a field may be, 0 for no limit, among fields of which 0 means all there is.
    """

    scale: str
    paper_hyperparameters: bool
    num_seeds: int
    cuts: Mapping[str, int]
    cifar10: str
    directory: pathlib.Path
    instrument_source: InstrumentSource
    show: Callable[[str], None]


class Layout(NamedTuple):
    """What a layout makes of its batches.

    judged: by (setting, variant), the row that the verdict is on and the rows that its criterion may name.
    """

    rows: list[dict[str, Any]]
    judged: dict[tuple[str, str], tuple[dict[str, Any], dict[str, dict[str, Any]]]]
    pictures: dict[str, bytes]
    notes: list[str]


class Section(NamedTuple):
    """One figure of the report: its entry in results.json, its pictures by caption, and the judges it relied on.

    basis: all that decides it, see ``basis_of``.
    """

    entry: dict[str, Any]
    pictures: dict[str, bytes]
    judges: dict[str, Any]
    basis: str


def configurations(study: Study, arguments: Sequence[str]) -> list[RunConfig]:
    """The configurations of a setting, one a seed: as its command line gives them, but for the cuts."""
    config = config_from_arguments(RunConfig, list(arguments))
    for name, most in study.cuts.items():
        if most:
            config = replace(config, **{name: min(values_of(config)[name] or most, most)})
    if config.data.dataset == "tfds:cifar10":
        config = replace(config, dataset=study.cifar10)
    return [replace(config, seed=seed) for seed in range(study.num_seeds)]


def _departures(study: Study, preset: str, used: RunConfig) -> dict[str, list[Any]]:
    """Where a configuration departs from what the paper states, uncut."""
    paper = configurations(study._replace(cuts={}), arguments_for(preset, PAPER_VARIANT, study.scale))[0]
    return differences_between(paper, used, not_stated(paper))


def batches_of(study: Study, figure: Figure) -> dict[tuple[str, str], list[RunConfig]]:
    """All lanes that a figure needs, by (setting, variant or control)."""
    found: dict[tuple[str, str], list[RunConfig]] = {}
    for label, preset in figure.settings.items():
        for variant in variants_of(study.scale, study.paper_hyperparameters):
            arguments = arguments_for(preset, variant, study.scale)
            found[label, variant] = configurations(study, arguments)
    if figure.layout == "methods":
        return {key: _all_classes(configs[0]) for key, configs in found.items()}
    first, preset = next(iter(figure.settings.items()))
    nearest = arguments_for(preset, NEAREST_VARIANT, study.scale)
    undefended = "undefended" in rows_named_by(read_claim(preset))
    for name, arguments in controls_of(nearest, undefended=undefended).items():
        found[first, name] = configurations(study, arguments)
    return found


def _all_classes(config: RunConfig) -> list[RunConfig]:
    return [replace(config, target_class=target) for target in range(10)]


def check_pictures(figure: Figure, cifar10: str, data: AttackData) -> None:
    """Raises ValueError for pictures of another kind than the figure is about; only CIFAR-10 is brought along."""
    channels, classes = data.private.shape[-1], len(data.class_names)
    if figure.number in CIFAR10_FIGURES and (channels, classes) != (3, 10):
        kind = "color" if channels == 3 else "grey"
        raise ValueError(
            f"cifar10={cifar10}: {kind} images of {classes} classes, expected color images of 10 classes for figure "
            f"{figure.number}, which is about CIFAR-10"
        )


def _directory(study: Study, configs: Sequence[RunConfig]) -> pathlib.Path:
    return batch_directory(study.directory / "batches", configs)


def jobs_of(study: Study, figure: Figure) -> list[Job]:
    """The batches of a figure as jobs."""
    lanes = batches_of(study, figure)
    return [Job(configs, _directory(study, configs), ", ".join(key)) for key, configs in lanes.items()]


def basis_of(study: Study, figure: Figure) -> str:
    """All that decides a section, as text: which batches, and which claims they are held against."""
    batches = {", ".join(key): _directory(study, configs).name for key, configs in batches_of(study, figure).items()}
    claims = {
        label: [claim.claim, claim.reproduced_if.text, claim.partly_if.text]
        for label, claim in ((label, read_claim(preset)) for label, preset in figure.settings.items())
    }
    return json.dumps({"batches": batches, "claims": claims})


def make_section(study: Study, figure: Figure, wait: Callable[[pathlib.Path], None]) -> Section:
    """Waits for the batches of a figure and judges it. Raises ValueError where its data cannot be had."""
    lanes = batches_of(study, figure)
    batches = {}
    for key, configs in lanes.items():
        wait(_directory(study, configs))
        batches[key] = read_result(_directory(study, configs))
    make = {"methods": _methods, "curve": _curve, "film strip": _settings, "settings": _settings}[figure.layout]
    rows, judged, pictures, notes = make(study, figure, lanes, batches)
    claims = {label: read_claim(preset) for label, preset in figure.settings.items()}
    verdicts = [_verdict(*key, claims[key[0]], *judgement) for key, judgement in judged.items()]
    pictures["Leakage score of every row, with 95% intervals over seeds."] = interval_figure(rows)
    privacy = [
        entry
        for key, configs in lanes.items()
        if key[1] in (PAPER_VARIANT, NEAREST_VARIANT)
        for entry in privacy_entries(_name(*key), configs[0], batches[key])
    ]
    entry = {
        "figure": figure.number,
        "title": figure.title,
        "claim": " ".join(dict.fromkeys(claim.claim for claim in claims.values())),
        "setup": _setup(study, lanes, batches),
        "seconds": sum(batch.seconds for batch in batches.values()),
        "verdicts": verdicts,
        "rows": rows,
        "privacy": privacy,
        "notes": notes,
        "error": None,
    }
    judges = {next(iter(lanes.values()))[0].data.dataset: next(iter(batches.values())).judge}
    return Section(entry, pictures, judges, basis_of(study, figure))


def _name(label: str, variant: str) -> str:
    return f"{label}, {_SHORT_NAMES.get(variant) or _BESIDE[variant]}"


def _verdict(
    label: str, variant: str, claim: Claim, row: Mapping[str, Any], named: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    lookup = measurements(row["metrics"], {name: other["metrics"] for name, other in named.items()})
    verdict = decide(claim.reproduced_if, claim.partly_if, lookup)
    unmeasured = _unmeasured(claim, row, named)
    diverged = row.get("diverged", 0)
    if diverged:
        # What is left would be a choice of seeds.
        verdict = Verdict.NOT_REPRODUCED
    decisive = [claim.reproduced_if] if verdict == Verdict.REPRODUCED else [claim.reproduced_if, claim.partly_if]
    reasons = [line for criterion in decisive for line in explain(criterion, lookup).splitlines()]
    if diverged:
        reasons.append(f"no seed diverged, of {row['seeds']} did {diverged}: no")
    if unmeasured:
        verdict = Verdict.NOT_MEASURABLE
        reasons.append(f"leakage can be measured for {', '.join(unmeasured)}: no")
    return {
        "name": label,
        "claim": claim.claim,
        "variant": variant,
        "verdict": str(verdict),
        "reproduced_if": claim.reproduced_if.text,
        "partly_if": claim.partly_if.text,
        "because": list(dict.fromkeys(reasons)),
        "row": row["name"],
        "controls": [other["name"] for other in named.values() if other["role"] == "control"],
    }


def _unmeasured(claim: Claim, row: Mapping[str, Any], named: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The rows that the claim compares by their leakage score and that have no interval of it for that reason."""
    asked = [name.split(".") for part in (claim.reproduced_if, claim.partly_if) for name in part.names]
    rows = {"": row, **named}
    compared = dict.fromkeys("" if len(name) == 2 else name[0] for name in asked if "leakage_score" in name)
    return [
        rows[name]["name"]
        for name in compared
        if rows[name].get("not_measurable", 0) and rows[name]["metrics"]["leakage_score"]["low"] is None
    ]


def _setup(
    study: Study,
    lanes: Mapping[tuple[str, str], Sequence[RunConfig]],
    batches: Mapping[tuple[str, str], BatchResult],
) -> str:
    key = next(key for key in lanes if key[1] == NEAREST_VARIANT)
    config, samples = lanes[key][0], batches[key].samples
    owners = f"{len(samples)} participants" if len(samples) > 1 else "one participant"
    return (
        f"{config.data.dataset}: {owners} ({config.data.participant_classes}) with {sum(samples):,} images in all, of "
        f"which the judge has seen none; target class {config.attack.target_class}, {config.federation.rounds} rounds "
        f"({', '.join(key)}; scale {study.scale})."
    )


def _settings(
    study: Study,
    figure: Figure,
    lanes: Mapping[tuple[str, str], Sequence[RunConfig]],
    batches: Mapping[tuple[str, str], BatchResult],
) -> Layout:
    """Rows, verdicts, pictures and notes of an ordinary figure."""
    rows: list[dict[str, Any]] = []
    named: dict[str, dict[str, Any]] = {}
    attacks: dict[tuple[str, str], dict[str, Any]] = {}
    for (label, variant), batch in batches.items():
        beside = variant in _BESIDE
        # What stands beside a setting is the nearest that works but for one thing.
        used = lanes[label, NEAREST_VARIANT if beside else variant][0]
        role = {"passive": "control", "unowned": "control", "undefended": "reference"}.get(variant, "attack")
        row = attack_row(_name(label, variant), role, batch, _departures(study, figure.settings[label], used))
        rows.append(row)
        if beside:
            named[variant] = row
        else:
            attacks[label, variant] = row
    first = next(iter(batches.values()))
    named["untrained"] = reference_row("untrained generator", first, "untrained generator")
    named["fresh"] = reference_row("fresh real images", first, "fresh real images")
    rows += [named["untrained"], named["fresh"]]
    notes = [*_measurability(batches), *_notes(batches)]
    if len(attacks) > 1:
        owner = next(label for label, variant in batches if variant in _BESIDE)
        notes.append(f"The controls are those of {owner}, nearest that works; the other verdicts lean on them too.")
    pictures = _film_strips(batches) if figure.layout == "film strip" else _pictures_by_seed(batches)
    for (label, variant), batch in batches.items():
        if variant not in _BESIDE:
            caption = f"{_name(label, variant)}: drawn below the nearest private image in L1, seed 0."
            shown = slice(_PICTURES_IN_A_ROW)
            drawn, private = batch.pictures[0, -1, shown], batch.private[0, shown]
            pictures[caption] = reconstructions_figure(drawn, private, title=label)
    return Layout(rows, {key: (row, named) for key, row in attacks.items()}, pictures, notes)


def _measurability(batches: Mapping[tuple[str, str], BatchResult]) -> list[str]:
    """What limits the leakage scores of each setting: views that are left out, and seeds without a score."""
    found: dict[str, list[str]] = {}
    for key, batch in batches.items():
        for seed, fields in enumerate(batch.measurability):
            for note in Measurability(**fields).notes():
                found.setdefault(note, []).append(f"{_name(*key)}, seed {seed}")
    return [f"{'; '.join(where)}: {note}" for note, where in found.items()]


def _notes(batches: Mapping[tuple[str, str], BatchResult]) -> list[str]:
    return [
        f"{_name(*key)}: {sum(lane[-1]['diverged'] for lane in batch.records)} of {len(batch.records)} seeds diverged."
        for key, batch in batches.items()
        if any(lane[-1]["diverged"] for lane in batch.records)
    ]


def _pictures_by_seed(batches: Mapping[tuple[str, str], BatchResult]) -> dict[str, bytes]:
    """The paper's layout: an original, and beside it what each setting drew; a row for each seed."""
    first = next(iter(batches.values()))
    seeds = min(len(first.records), _ROWS_OF_PICTURES)
    rows = {
        f"seed {seed}": [first.private[seed, 0], *(batch.pictures[seed, -1, 0] for batch in batches.values())]
        for seed in range(seeds)
    }
    columns = ["original", *(_name(*key) for key in batches)]
    return {"A private image, and one picture of each setting and control.": picture_table(rows, columns, title="")}


def _film_strips(batches: Mapping[tuple[str, str], BatchResult]) -> dict[str, bytes]:
    """The same latents over the rounds, passive above active, seed by seed."""
    # The paper's own variant has other rounds; its last pictures stand below.
    shown = {key: batch for key, batch in batches.items() if key[1] in ("passive", NEAREST_VARIANT)}
    first = next(iter(shown.values()))
    rows = {}
    for seed in range(min(len(first.records), _ROWS_OF_PICTURES)):
        for key, batch in reversed(shown.items()):
            rows[f"{'passive' if key[1] == 'passive' else 'active'}, seed {seed}"] = list(batch.pictures[seed, :, 0])
    columns = [f"round {round}" for round in first.rounds]
    return {"The same latent over the rounds, passive and active adversary.": picture_table(rows, columns, title="")}


def _methods(
    study: Study,
    figure: Figure,
    lanes: Mapping[tuple[str, str], Sequence[RunConfig]],
    batches: Mapping[tuple[str, str], BatchResult],
) -> Layout:
    """As ``_settings``, for the comparison of methods: the replicates are the ten digits."""
    rows, named, judged, pictures = [], {}, {}, {}
    inversions: dict[str, Inversions] = {}
    quick = study.scale == "quick"
    configs = next(iter(lanes.values()))
    # A single picture of a class has no diversity to measure.
    models = 2 if quick else max(2, study.num_seeds)
    for kind in ("mlp", "cnn"):
        study.show(f"  model inversion of {models} networks of kind {kind}")
        inversions[kind], metrics = inversion_metrics(
            kind,
            models,
            configs,
            study.instrument_source,
            samples=5000 if quick else 0,
            epochs=6 if quick else 8,
            steps=2000 if quick else 5000,
        )
        title = {"mlp": "model inversion, multilayer perceptron", "cnn": "model inversion, convolutional network"}
        counts = {"seeds": 10, "not_measurable": not_measurable(metrics)}
        row = {"name": title[kind], "role": "attack", **counts, "metrics": metrics}
        named[f"inversion_{kind}"] = row
        rows.append(row)
    for (label, variant), batch in batches.items():
        changes = _departures(study, figure.settings[label], lanes[label, variant][0])
        row = attack_row(_name(label, variant), "attack", batch, changes)
        judged[label, variant] = row, named
        rows.append(row)
        table = {
            f"digit {digit}": [
                batch.private[digit, 0],
                inversions["mlp"].pictures[0, digit],
                inversions["cnn"].pictures[0, digit],
                batch.pictures[digit, -1, 0],
            ]
            for digit in range(10)
        }
        columns = ["actual image", "model inversion, MLP", "model inversion, CNN", "GAN"]
        pictures[f"{_name(label, variant)}: an image, both inversions and the GAN."] = picture_table(
            table, columns, title=""
        )
    first = next(iter(batches.values()))
    rows.append(reference_row("untrained generator", first, "untrained generator"))
    rows.append(reference_row("fresh real images", first, "fresh real images"))
    notes = [
        "What is called seeds here are the ten digits; intervals of accuracy are over the inverted networks. Each "
        "picture of an inversion was given by its network at least this confidence: "
        + ", ".join(f"{kind.upper()} {found.confidences.min():.3f}" for kind, found in inversions.items())
        + ".",
        *_notes(batches),
    ]
    return Layout(rows, judged, pictures, notes)


def _curve(
    study: Study,
    figure: Figure,
    lanes: Mapping[tuple[str, str], Sequence[RunConfig]],
    batches: Mapping[tuple[str, str], BatchResult],
) -> Layout:
    """As ``_settings``, for leakage against accuracy: each evaluation counts, not only the last."""
    rows: list[dict[str, Any]] = []
    judged: dict[tuple[str, str], tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {}
    for (label, variant), batch in batches.items():
        if variant in _BESIDE:
            continue
        split = accuracy_rows(batch, GOOD_FROM_ACCURACY)
        lost = {"not_measurable": sum(fields["reason"] is not None for fields in batch.measurability)}
        name = _name(label, variant)
        above = {"name": f"{name}, accuracy from 80%", "role": "attack", "metrics": split["at or above"]}
        below = {"name": f"{name}, accuracy below 80%", "role": "control", **lost, "metrics": split["below"]}
        judged[label, variant] = above, {"below": below}
        rows += [above, below]
        reached = [lane[-1]["model_accuracy"] for lane in batch.records]
        passive = leakage_at_accuracy(batches[label, "passive"], reached)
        equal = {"leakage_score": interval(passive)}
        rows.append({"name": f"passive, where as accurate as {name} in the end", "role": "control", "metrics": equal})
    series = {
        _name(*key): [
            [(record["model_accuracy"], (record["leakage"] or {}).get("leakage_score")) for record in lane]
            for lane in batch.records
        ]
        for key, batch in batches.items()
    }
    caption = "Leakage score over the accuracy that the shared model had at that moment, a line for each seed."
    return Layout(rows, judged, {caption: leakage_against_accuracy_figure(series)}, _notes(batches))
