"""Layouts of the figures of Hitaj et al.: rows, pictures and notes from their batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reproduction.hitaj import Figure
from experiments.reproduction.study import Key, Study, departures
from gan_leak.config import RunConfig
from gan_leak.evaluation.measurability import Measurability
from gan_leak.reports.figures import reconstructions_figure
from gan_leak.reports.galleries import GOOD_FROM_ACCURACY, leakage_against_accuracy_figure, picture_table
from gan_leak.reports.reproduction_results import NEAREST_VARIANT, PAPER_VARIANT
from gan_leak.runs.federated.batch_files import BatchResult
from gan_leak.runs.federated.rows import (
    accuracy_rows,
    attack_row,
    interval,
    inversion_metrics,
    leakage_at_accuracy,
    not_measurable,
    reference_row,
)
from gan_leak.runs.inversion.model import Inversions

# The names of batches in rows and captions.
_CONTROLS = {"passive": "passive adversary", "unowned": "class without an owner", "undefended": "without the defense"}
_VARIANTS = {PAPER_VARIANT: "the paper's", NEAREST_VARIANT: "nearest that works"}
_ROLES = {"passive": "control", "unowned": "control", "undefended": "reference"}
_INVERSIONS = {"mlp": "model inversion, multilayer perceptron", "cnn": "model inversion, convolutional network"}
_ROWS_OF_PICTURES = 5
_PICTURES_IN_A_ROW = 10

Row = dict[str, Any]


class Layout(NamedTuple):
    """The results of a layout.

    judged: for each batch, the judged row, and by name the other rows for its criterion.
    pictures: PNG bytes by caption.
    """

    rows: list[Row]
    judged: dict[Key, tuple[Row, dict[str, Row]]]
    pictures: dict[str, bytes]
    notes: list[str]


def name_of(setting: str, variant: str) -> str:
    """Name a batch in rows and captions."""
    return f"{setting}, {_VARIANTS.get(variant) or _CONTROLS[variant]}"


def lay_out_settings(
    study: Study,
    figure: Figure,
    lanes: Mapping[Key, Sequence[RunConfig]],
    batches: Mapping[Key, BatchResult],
) -> Layout:
    """Lay out an ordinary figure: a row and the last pictures of each setting and control."""
    rows: list[Row] = []
    controls: dict[str, dict[str, Row]] = {}
    attacks: dict[Key, Row] = {}
    for (setting, variant), batch in batches.items():
        is_control = variant in _CONTROLS
        # A control differs in one thing from the nearest setting that works.
        used = lanes[setting, NEAREST_VARIANT if is_control else variant][0]
        changes = departures(study, figure.settings[setting], used)
        row = attack_row(name_of(setting, variant), _ROLES.get(variant, "attack"), batch, changes)
        rows.append(row)
        if is_control:
            controls.setdefault(setting, {})[variant] = row
        else:
            attacks[setting, variant] = row
    first = next(iter(batches.values()))
    references = {
        "untrained": reference_row("untrained generator", first, "untrained generator"),
        "fresh": reference_row("fresh real images", first, "fresh real images"),
    }
    rows += references.values()
    notes = [*_measurability(batches), *_diverged(batches)]
    owner = next(iter(controls))
    if any(setting not in controls for setting, _ in attacks):
        notes.append(
            f"The controls are runs of {owner}, nearest setting that works. All verdicts of this figure use them."
        )
    pictures = _film_strips(batches) if figure.layout == "film strip" else _pictures_by_seed(batches)
    for (setting, variant), batch in batches.items():
        if variant not in _CONTROLS:
            caption = f"{name_of(setting, variant)}: reconstructions below the nearest private image in L1, seed 0."
            shown = slice(_PICTURES_IN_A_ROW)
            drawn, private = batch.pictures[0, -1, shown], batch.private[0, shown]
            pictures[caption] = reconstructions_figure(drawn, private, title=setting)
    judged = {key: (row, {**controls.get(key[0], controls[owner]), **references}) for key, row in attacks.items()}
    return Layout(rows, judged, pictures, notes)


def lay_out_methods(
    study: Study,
    figure: Figure,
    lanes: Mapping[Key, Sequence[RunConfig]],
    batches: Mapping[Key, BatchResult],
) -> Layout:
    """Lay out the comparison of methods: the GAN and model inversion, over the ten digits instead of seeds."""
    rows, beside, inversions = _inversions(study, next(iter(lanes.values())))
    judged: dict[Key, tuple[Row, dict[str, Row]]] = {}
    pictures: dict[str, bytes] = {}
    for (setting, variant), batch in batches.items():
        name = name_of(setting, variant)
        changes = departures(study, figure.settings[setting], lanes[setting, variant][0])
        row = attack_row(name, "attack", batch, changes)
        judged[setting, variant] = row, beside
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
        columns = ["private image", "model inversion, MLP", "model inversion, CNN", "GAN"]
        caption = f"{name}: a private image, and the reconstructions of both inversions and of the GAN."
        pictures[caption] = picture_table(table, columns, title="")
    first = next(iter(batches.values()))
    rows.append(reference_row("untrained generator", first, "untrained generator"))
    rows.append(reference_row("fresh real images", first, "fresh real images"))
    least = ", ".join(f"{kind.upper()} {found.confidences.min():.3f}" for kind, found in inversions.items())
    notes = [
        "Intervals of leakage are over the ten digits, in the place of seeds. Intervals of accuracy are over the "
        f"inverted networks. Least confidence of a network in its reconstruction: {least}.",
        *_diverged(batches),
    ]
    return Layout(rows, judged, pictures, notes)


def lay_out_curve(
    study: Study,
    figure: Figure,
    lanes: Mapping[Key, Sequence[RunConfig]],
    batches: Mapping[Key, BatchResult],
) -> Layout:
    """Lay out leakage against accuracy: all evaluations count, not only the last."""
    rows: list[Row] = []
    judged: dict[Key, tuple[Row, dict[str, Row]]] = {}
    for (setting, variant), batch in batches.items():
        if variant in _CONTROLS:
            continue
        split = accuracy_rows(batch, GOOD_FROM_ACCURACY)
        lost = {"not_measurable": sum(fields["reason"] is not None for fields in batch.measurability)}
        name = name_of(setting, variant)
        above = {"name": f"{name}, accuracy from 80%", "role": "attack", "metrics": split["at or above"]}
        below = {"name": f"{name}, accuracy below 80%", "role": "control", **lost, "metrics": split["below"]}
        judged[setting, variant] = above, {"below": below}
        rows += [above, below]
        reached = [lane[-1]["model_accuracy"] for lane in batch.records]
        passive = leakage_at_accuracy(batches[setting, "passive"], reached)
        equal = {"leakage_score": interval(passive)}
        rows.append({"name": f"passive, at the final accuracy of {name}", "role": "control", "metrics": equal})
    series = {
        name_of(*key): [
            [(record["model_accuracy"], (record["leakage"] or {}).get("leakage_score")) for record in lane]
            for lane in batch.records
        ]
        for key, batch in batches.items()
    }
    caption = "Leakage score against the accuracy of the shared model at each evaluation; a line for each seed."
    return Layout(rows, judged, {caption: leakage_against_accuracy_figure(series)}, _diverged(batches))


LAYOUTS = {
    "settings": lay_out_settings,
    "film strip": lay_out_settings,
    "methods": lay_out_methods,
    "curve": lay_out_curve,
}


def _inversions(study: Study, configs: Sequence[RunConfig]) -> tuple[list[Row], dict[str, Row], dict[str, Inversions]]:
    """Model inversion of both kinds of network: the rows, the rows by their name in criteria, and the pictures."""
    quick = study.scale == "quick"
    # A single picture of a class has no diversity to measure.
    models = 2 if quick else max(2, study.num_seeds)
    beside: dict[str, Row] = {}
    inversions: dict[str, Inversions] = {}
    for kind, title in _INVERSIONS.items():
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
        counts = {"seeds": 10, "not_measurable": not_measurable(metrics)}
        beside[f"inversion_{kind}"] = {"name": title, "role": "attack", **counts, "metrics": metrics}
    return list(beside.values()), beside, inversions


def _measurability(batches: Mapping[Key, BatchResult]) -> list[str]:
    """Limits of the leakage scores of each setting: unused views, and seeds without a score."""
    found: dict[str, list[str]] = {}
    for key, batch in batches.items():
        for seed, fields in enumerate(batch.measurability):
            for note in Measurability(**fields).notes():
                found.setdefault(note, []).append(f"{name_of(*key)}, seed {seed}")
    return [f"{'; '.join(where)}: {note}" for note, where in found.items()]


def _diverged(batches: Mapping[Key, BatchResult]) -> list[str]:
    counts = {key: sum(lane[-1]["diverged"] for lane in batch.records) for key, batch in batches.items()}
    return [
        f"{name_of(*key)}: {count} of {len(batches[key].records)} seeds diverged."
        for key, count in counts.items()
        if count
    ]


def _pictures_by_seed(batches: Mapping[Key, BatchResult]) -> dict[str, bytes]:
    """The paper's layout: a private image and a picture of each setting; a row for each seed.

    Of the controls there are those of the first setting.
    """
    first_setting, first = next((setting, batch) for (setting, _), batch in batches.items())
    shown = {key: batch for key, batch in batches.items() if key[0] == first_setting or key[1] not in _CONTROLS}
    seeds = min(len(first.records), _ROWS_OF_PICTURES)
    rows = {
        f"seed {seed}": [first.private[seed, 0], *(batch.pictures[seed, -1, 0] for batch in shown.values())]
        for seed in range(seeds)
    }
    columns = ["private image", *(name_of(*key) for key in shown)]
    caption = "A private image, and one reconstruction of each setting and of the controls of the first."
    return {caption: picture_table(rows, columns, title="")}


def _film_strips(batches: Mapping[Key, BatchResult]) -> dict[str, bytes]:
    """The same latent over the rounds, passive above active, seed by seed."""
    # The paper's own variant has another number of rounds; its last pictures are drawn below.
    shown = {key: batch for key, batch in batches.items() if key[1] in ("passive", NEAREST_VARIANT)}
    first = next(iter(shown.values()))
    rows = {}
    for seed in range(min(len(first.records), _ROWS_OF_PICTURES)):
        for key, batch in reversed(shown.items()):
            rows[f"{'passive' if key[1] == 'passive' else 'active'}, seed {seed}"] = list(batch.pictures[seed, :, 0])
    columns = [f"round {round}" for round in first.rounds]
    caption = "The reconstruction of the same latent over the rounds, by a passive and an active adversary."
    return {caption: picture_table(rows, columns, title="")}
