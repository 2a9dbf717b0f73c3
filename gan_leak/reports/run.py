"""The report of a run: its figures, one self-contained HTML page, and its summary as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gan_leak.evaluation.fidelity import nearest_by_l1
from gan_leak.evaluation.leakage import DEFINITIONS
from gan_leak.evaluation.measurability import score_text
from gan_leak.reports.figures import curves_figure, evolution_figure, reconstructions_figure
from gan_leak.reports.html import (
    audio,
    cell,
    definitions_list,
    figure,
    flattened,
    label,
    notes_panel,
    page,
    rank,
    section,
    settings_table,
    summary_cards,
    table,
)
from gan_leak.reports.privacy import privacy_summary
from gan_leak.runs.federated.result import RunResult
from gan_leak.settings import to_json

_MOST_DRAWN = 30
_CAPTIONS = {
    "reconstructions": "Reconstructions of the target class, each below its nearest private image in L1.",
    "evolution": "Reconstructions from the same latents at several rounds.",
    "curves": "Accuracy of the shared model, leakage and local training losses over the rounds.",
}


def report_files(result: RunResult) -> dict[str, bytes]:
    """Draw a run: the files of its report by path within the run directory, report.html last."""
    figures = _figures(result)
    page = render_report(
        title=f"GAN attack on {result.config.data.dataset}, class {_target_name(result)}",
        summary=_summary(result),
        config=to_json(result.config),
        privacy=result.privacy,
        environment={**result.environment, "data set SHA-256": result.fingerprint},
        records=result.records,
        comparison=result.comparison,
        figures={_CAPTIONS[name]: picture for name, picture in figures.items()},
        sounds=result.sounds,
        definitions=DEFINITIONS,
        notes=_notes(result),
    )
    return {**{f"figures/{name}.png": picture for name, picture in figures.items()}, "report.html": page.encode()}


def summary_lines(result: RunResult) -> list[str]:
    """Write the summary of a run for a terminal: the divergence if any, the headline, and the score of each image set.

    An empty line follows the text on the divergence.
    """
    return [
        *([] if result.divergence is None else [result.divergence]),
        "",
        *(f"{name:32}{value}" for name, value in _summary(result).items()),
        *(
            f"{'leakage score, ' + name:40}{score_text(row['leakage_score'])}"
            for name, row in result.comparison.items()
        ),
    ]


def _target_name(result: RunResult) -> str:
    return result.class_names[result.config.attack.target_class]


def _figures(result: RunResult) -> dict[str, bytes]:
    figures: dict[str, bytes] = {}
    if result.images_by_round:
        last_round = list(result.images_by_round)[-1]
        last = result.images_by_round[last_round][:_MOST_DRAWN]
        nearest, _ = nearest_by_l1(last, result.private)
        title = f"Class {_target_name(result)}, round {last_round}"
        figures["reconstructions"] = reconstructions_figure(last, result.private[nearest], title=title)
        figures["evolution"] = evolution_figure(result.images_by_round, title="The same latents over the rounds")
    if result.records:
        figures["curves"] = curves_figure(result.records)
    return figures


def _notes(result: RunResult) -> list[str]:
    notes = [*([] if result.divergence is None else [result.divergence]), *result.limits]
    if not result.target_is_owned:
        notes.append("No participant owns the target class: a score here is not leakage.")
    return notes


def _summary(result: RunResult) -> dict[str, str]:
    summary: dict[str, str] = {}
    if "reconstructions" in result.comparison:
        final = result.comparison["reconstructions"]
        summary["leakage score"] = score_text(final["leakage_score"])
        summary["judge accuracy"] = f"{final['judge_accuracy']:.3f}"
        summary["nearest-neighbor share"] = f"{final['nearest_neighbour_share']:.3f}"
        summary["diversity"] = f"{final['diversity']:.2f}"
        summary["test accuracy of the judge"] = f"{result.judge_test_accuracy:.4f}"
    accuracies = [record["model_accuracy"] for record in result.records if record["model_accuracy"] is not None]
    if accuracies:
        summary["model accuracy"] = f"{accuracies[-1]:.3f}"
    summary["rounds"] = str(result.records[-1]["round"] if result.records else 0)
    return summary | privacy_summary(result.privacy, result.records)


def render_report(
    *,
    title: str,
    summary: Mapping[str, str],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Mapping[str, Any]],
    figures: Mapping[str, bytes],
    definitions: Mapping[str, str],
    notes: Sequence[str],
    privacy: Mapping[str, Any] | None = None,
    sounds: Mapping[str, bytes] | None = None,
) -> str:
    """Write a run as one self-contained HTML page, without scripts and external files.

    summary: the few figures of the headline. config, environment: shown unrounded; they may be nested. records: one a
    round, as in metrics.jsonl; those with "leakage" fill the table of evaluations. comparison: a row of metrics for
    each set of images, the first one stands out. figures: PNG bytes by caption. definitions: the meaning of each metric
    by name. notes: shown under the headline. privacy: the guarantee over the whole run, shown unrounded. sounds: WAV
    bytes by caption. Measured numbers have three significant digits; missing and non-finite ones are "n/a". Every text
    is escaped.

    Raises ValueError if a figure is not PNG.
    """
    sections = (
        summary_cards(summary),
        notes_panel(notes),
        section("How much leaked", _metrics_table("images", comparison, "numbers comparison")),
        section("Pictures", "".join(figure(caption, png) for caption, png in figures.items())),
        section("Sound", "".join(audio(caption, wav) for caption, wav in (sounds or {}).items())),
        section("Evaluations over the rounds", _metrics_table("round", _evaluations(records), "numbers")),
        section("What the defense promises", settings_table(privacy or {})),
        section("What the numbers mean", definitions_list(definitions)),
        section("Configuration", settings_table(config)),
        section("Environment", settings_table(environment)),
    )
    return page(title, sections)


def _evaluations(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        str(record["round"]): {
            "model_accuracy": record.get("model_accuracy"),
            "mean_training_loss": _mean(record.get("losses") or ()),
            **({"epsilon_spent": record["privacy"]["epsilon"]} if record.get("privacy") else {}),
            **record["leakage"],
        }
        for record in records
        if record.get("leakage")
    }


def _metrics_table(corner: str, rows: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    """Write a row for each name and a column for each metric in any of the rows."""
    flat = {name: dict(flattened(row, ": ")) for name, row in rows.items()}
    found = list(dict.fromkeys(column for row in flat.values() for column in row))
    # A row that lacks a whole group of metrics (None) must not add a column for the group.
    groups = {column.partition(": ")[0] for column in found if ": " in column}
    columns = sorted((column for column in found if column not in groups), key=rank)
    if not columns:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(cell(row.get(column)) for column in columns)}</tr>\n'
        for name, row in flat.items()
    )
    return table([label(column) for column in (corner, *columns)], body, kind)


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
