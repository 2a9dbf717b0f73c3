"""Tables of a results page from each kind of result file."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.common.measurability_rows import summary_rows
from gan_leak.evaluation.criteria import summarise
from gan_leak.reports.reproduction_results import NEAREST_VARIANT, check_results
from gan_leak.runs.federated.rows import over_evaluations
from gan_leak.runs.storage.directory import METRICS_NAME, metrics_records, read_config_file
from gan_leak.runs.storage.integrity import read_file

Row = dict[str, Any]
Table = dict[str, Any]

_OVER_SEEDS = "95% intervals over seeds"
_OVER_IMAGES = "95% intervals over images"
_OVER_CLIENTS = "95% intervals over clients"
_RANGE_OVER_SEEDS = "the smallest and the largest of the seeds"
# The statistics of an interval; its values are kept where they are a few seeds, not where they are many images.
_STATISTICS = ("mean", "low", "high")


class Group(NamedTuple):
    """The directories of one label, such as the runs of several seeds."""

    label: str
    directories: tuple[pathlib.Path, ...]


def read_results(path: pathlib.Path) -> Any:
    """Read a JSON file of results; raise ValueError in one line if it is damaged."""
    data = read_file(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged (not readable as JSON: {error})") from None


def _column(title: str, measure: str, digits: int | str = 2, baseline: str = "") -> dict[str, Any]:
    return {"title": title, "measure": measure, "digits": digits, **({"baseline": baseline} if baseline else {})}


def _table(title: str, columns: Sequence[Mapping[str, Any]], rows: Sequence[Row], spread: str = "") -> Table:
    # A measure that no row has gives no column; a measure that some rows lack is null there.
    shown = [column for column in columns if any(column["measure"] in row for row in rows)]
    measures = [column[key] for column in shown for key in ("measure", "baseline") if key in column]
    return {
        "title": title,
        "caption": "",
        "spread": spread,
        "columns": [dict(column) for column in shown],
        "rows": [{**row, **{measure: None for measure in measures if measure not in row}} for row in rows],
        "notes": [],
    }


_LEAKAGE = (
    _column("leakage score", "leakage_score"),
    _column("last third", "late_leakage_score"),
    _column("readable", "readable_share"),
    _column("judge accuracy", "judge_accuracy"),
    _column("nearest-neighbor share", "nearest_neighbour_share"),
    _column("diversity", "diversity"),
    _column("coverage", "coverage"),
    _column("L1", "l1_to_nearest"),
    _column("SSIM", "ssim_to_nearest"),
    _column("model accuracy", "model_accuracy"),
)


def read_runs(groups: Sequence[Group]) -> list[Table]:
    """Two tables: the mean over the runs of each group, and each run."""
    means, each = [], []
    for group in groups:
        rows = [_run_row(directory) for directory in group.directories]
        _check_only_seeds_differ(group)
        label = group.label or group.directories[0].name
        numbers = {
            measure: [row[measure] for row in rows if row[measure] is not None]
            for measure in (column["measure"] for column in _LEAKAGE)
        }
        means.append({"name": label, **{measure: _range(values) for measure, values in numbers.items()}})
        each += [{**row, "name": f"{label}, seed {row['seed']}"} for row in rows]
    views = _column("pixels / edges / judge / contrast", "views")
    return [
        _table("Means over seeds", _LEAKAGE, means, _RANGE_OVER_SEEDS),
        _table("Each run", [_column("rounds", "rounds", 0), _LEAKAGE[0], views, *_LEAKAGE[1:]], each),
    ]


def _over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    interval = summarise(values)
    return {name: None if math.isnan(end := getattr(interval, name)) else end for name in _STATISTICS}


def _range(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values), "values": list(values)}


def _check_only_seeds_differ(group: Group) -> None:
    configs = {directory: read_config_file(directory)["config"] for directory in group.directories}
    settings = {_without_seeds(config): directory for directory, config in configs.items()}
    if len(settings) > 1:
        raise ValueError(f"sources={list(settings.values())[1]}: expected runs of {group.label!r} to differ in seeds")
    seen: dict[int, pathlib.Path] = {}
    for directory, config in configs.items():
        for seed in seeds_of(config):
            if seed in seen:
                raise ValueError(f"sources={directory}: seed {seed} is in {seen[seed]} too, expected other seeds")
            seen[seed] = directory


def _without_seeds(config: Mapping[str, Any]) -> str:
    return json.dumps({**config, "seed": None, "num_seeds": None, "performance": None}, sort_keys=True)


def seeds_of(config: Mapping[str, Any]) -> range:
    """The seeds of a run, by its recorded configuration."""
    first = config.get("seed", 0)
    return range(first, first + config.get("num_seeds", 1))


def _rows_by_name(group: Group, read: Callable[[pathlib.Path], Sequence[Row]]) -> dict[str, list[Row]]:
    """The rows of several seeds by name, one of each directory; raises ValueError if a directory lacks one."""
    _check_only_seeds_differ(group)
    found: dict[str, list[Row]] = {}
    for directory in group.directories:
        for row in read(directory):
            found.setdefault(row["name"], []).append(row)
    for name, rows in found.items():
        if len(rows) < len(group.directories):
            raise ValueError(f"sources: {name} in {len(rows)} runs of {group.label!r}, expected in all")
    return found


def _run_row(directory: pathlib.Path) -> Row:
    path = directory / METRICS_NAME
    measured = [record for record in metrics_records(path, read_file(path)) if record.get("leakage")]
    if not measured:
        raise ValueError(f"{path}: expected a round with an evaluation of leakage")
    leakage = dict(measured[-1]["leakage"])
    views = leakage.pop("leakage_by_representation")
    return {
        "rounds": measured[-1]["round"],
        "seed": read_config_file(directory)["config"]["seed"],
        "model_accuracy": measured[-1]["model_accuracy"],
        **over_evaluations(measured),
        **leakage,
        "views": list(views.values()),
    }


def read_sweep(groups: Sequence[Group]) -> list[Table]:
    """One table of cells. The directories of a group are sweeps that differ in seeds, and a row is over all of them."""
    rows = []
    for group in groups:
        for name, (first, *others) in _rows_by_name(group, _cells).items():
            metrics = {
                measure: _joined_seeds([interval, *(row["metrics"][measure] for row in others)]) if others else interval
                for measure, interval in first["metrics"].items()
            }
            label = group.label if group.label and not first["cell"] else _joined_name(group.label, name)
            rows.append({"name": label, "rounds": first["rounds"], **metrics})
    return [_table("Cells", [_column("rounds", "rounds", 0), *_LEAKAGE], rows, _OVER_SEEDS)]


def _cells(directory: pathlib.Path) -> list[Row]:
    return [json.loads(line) for line in read_file(directory / "results.jsonl").decode().splitlines()]


def _joined_seeds(intervals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [value for interval in intervals for value in interval["values"]]
    return {**_over_seeds(values), "values": values}


_RECONSTRUCTION = (
    _column("PSNR in dB", "psnr"),
    _column("published PSNR", "published_psnr"),
    _column("PSNR of another image", "control_psnr"),
    _column("SSIM / class mean", "ssim", baseline="class_ssim"),
    _column("published SSIM", "published_ssim"),
    _column("recovered / class mean", "recovered", baseline="class_recovered"),
    _column("re-identified / another image", "re_identified", baseline="control_re_identified"),
    _column("identified / another image", "identified", baseline="control_identified"),
    _column("labels right", "label_right"),
    _column("PSNR of further images", "psnr_of_others"),
    _column("re-identified, further images", "re_identified_of_others"),
    _column("model accuracy", "model_accuracy", 4),
    _column("accuracy of the attacked network", "attacked_accuracy", 4),
)


def read_inversions(groups: Sequence[Group]) -> list[Table]:
    return [_table("Settings", _RECONSTRUCTION, _measured_rows(groups), _OVER_IMAGES)]


_USERS = (
    _column("client identified", "client_identified"),
    _column("pooled", "client_identified_pooled"),
    _column("score", "identification_score"),
    _column("rank", "client_rank", 1),
    _column("AUC", "client_auc"),
    _column("user gap", "user_gap"),
    _column("record gap", "record_gap"),
    _column("by embedding", "embedding_client_identified"),
    _column("p-value", "p_value", 5),
    _column("as another client", "as_another_client"),
    _column("as an outsider", "as_outsider"),
    _column("category", "category_accuracy"),
    _column("model accuracy", "model_accuracy"),
    _column("local epsilon", "local_epsilon", 1),
)


_SENDERS = (
    _column("source", "source_accuracy"),
    _column("linked", "linked"),
    _column("p-value", "p_value", 5),
)


def read_users(groups: Sequence[Group]) -> list[Table]:
    """Tables of pictures, and of senders that are told without pictures if there are any.

    Rows of several seeds are joined by name. Equal rows of two commands stand once.
    """
    seeds = [len(group.directories) for group in groups]
    rows: list[Row] = []
    for row in (row for group in groups for row in _user_rows(group)):
        if row not in rows:
            rows.append(row)
    spread = _OVER_SEEDS if max(seeds) > 1 else _OVER_CLIENTS
    pictures = [row for row in rows if "client_identified" in row]
    senders = [row for row in rows if "client_identified" not in row]
    tables = [_table("Settings", _USERS, pictures, spread)]
    return [*tables, _table("Senders", _SENDERS, senders, spread)] if senders else tables


def _user_rows(group: Group) -> list[Row]:
    """The rows of one federation, or means over the seeds of several; a p-value is then the largest of them."""
    if len(group.directories) == 1:
        return _measured_rows([group])
    rows = []
    for name, found in _rows_by_name(group, lambda directory: read_results(directory / "results.json")).items():
        seeds = [row["metrics"] for row in found]
        numbers = {
            measure: [metrics[measure]["mean"] for metrics in seeds] for measure in seeds[0] if measure in seeds[-1]
        }
        measured = {
            measure: max(values) if measure.endswith("p_value") else _over_seeds(values)
            for measure, values in numbers.items()
        }
        rows.append({"name": _joined_name(group.label, name), **measured})
    return rows


def _measured_rows(groups: Sequence[Group]) -> list[Row]:
    rows = []
    for group, directory in _one_each(groups):
        found = read_results(directory / "results.json")
        for row in found:
            metrics = {_current_name(name): _brief(value) for name, value in row["metrics"].items()}
            name = group.label if group.label and len(found) == 1 else _joined_name(group.label, row["name"])
            rows.append({"name": name, **metrics})
    return rows


def _current_name(measure: str) -> str:
    # Result files of versions up to 0.2 have this name.
    return measure.replace("singled_out", "re_identified")


def _brief(interval: Mapping[str, Any]) -> dict[str, Any]:
    return {name: interval[name] for name in _STATISTICS}


_BENCHMARK = (
    _column("median", "median_seconds", "seconds"),
    _column("GFLOP/s", "gflops", 0),
    _column("times the floor", "times_the_floor", 1),
    _column("compiled in", "compile_seconds", "seconds"),
    _column("memory", "memory_bytes", "bytes"),
    _column("PyTorch", "pytorch_seconds", "seconds"),
    _column("ratio to PyTorch", "ratio_to_pytorch"),
)


def read_benchmark(groups: Sequence[Group]) -> list[Table]:
    rows = []
    for group, directory in _one_each(groups):
        timed = read_results(directory / "benchmark.json")["rows"]
        cases = [row["case"] for row in timed]
        for row in timed:
            # Several convolutions or mappings of one case are distinguished by their options.
            name = row["case"] if cases.count(row["case"]) == 1 else f"{row['case']}, {row['options']}"
            rows.append({**row, "name": _joined_name(group.label, name)})
    return [_table("Times", _BENCHMARK, rows)]


def read_measurability(groups: Sequence[Group]) -> list[Table]:
    rows = [row for _, directory in _one_each(groups) for row in read_results(directory / "results.json")["rows"]]
    classes = [
        {**row, "name": f"{row['data']}, class {row['class']}, {row['private_images']} images"}
        | {"deciding": ", ".join(row["deciding"])}
        for row in rows
    ]
    summary = (
        _column("classes measurable", "measurable"),
        _column("copies", "copies"),
        _column("held out", "held_out"),
        _column("controls", "highest_control"),
        _column("not measurable", "not_measurable"),
    )
    by_class = (
        _column("views that decide", "deciding"),
        _column("copies", "copies"),
        _column("held out", "held_out"),
        _column("highest control", "highest_control"),
    )
    return [
        _table("By number of private images", summary, summary_rows(rows)),
        _table("Class by class", by_class, classes),
    ]


def read_score_attacks(groups: Sequence[Group]) -> list[Table]:
    """Three tables: each impostor, degraded private images by strength, and images whose score is known."""
    found = [read_results(directory / "results.json") for _, directory in _one_each(groups)]
    impostors, degradations, references = (
        [{**row, "name": f"class {row['class']}, {row['kind']}"} for results in found for row in results[part]]
        for part in ("impostors", "degradations", "references")
    )
    by_impostor = (
        _column("score", "score"),
        _column("smallest view", "smallest_view"),
        _column("nearest-neighbor share", "looks_like_the_class"),
        _column("best variant", "variant"),
        _column("may show the class", "may_show_the_class"),
    )
    by_strength = (_column("strengths", "strengths", 1), _column("scores", "scores"))
    for row in impostors:
        row["may_show_the_class"] = "yes" if row["shows_class"] else "no"
    return [
        _table("Impostors", by_impostor, impostors),
        _table("Degraded private images", by_strength, degradations),
        _table("Copies and held-out images", by_impostor[:2], references),
    ]


def read_reproduction(groups: Sequence[Group]) -> list[Table]:
    """Two tables: the verdicts, and all rows that they compare."""
    verdicts: list[Row] = []
    rows: list[Row] = []
    claims: dict[str, list[str]] = {}
    for group, directory in _one_each(groups):
        results = read_results(directory / "results.json")
        check_results(results)
        for figure in results["figures"]:
            metrics = {row["name"]: row["metrics"] for row in figure.get("rows", ())}
            for verdict in figure.get("verdicts", ()):
                name = _joined_name(group.label, _verdict_name(verdict))
                verdicts.append({"name": name, **_verdict_row(verdict, metrics)})
                if verdict.get("claim"):
                    claims.setdefault(verdict["claim"], []).append(name)
            for row in figure.get("rows", ()):
                shown = {_current_name(measure): _brief_or_seeds(value) for measure, value in row["metrics"].items()}
                name = _joined_name(group.label, row["name"])
                # References have the same name in several figures, unless they begin with a setting of theirs.
                again = row["role"] == "reference" and not row["name"].startswith(figure["figure"])
                if again or any(other["name"] == name for other in rows):
                    name = _joined_name(group.label, f"{figure['figure']}, {row['name']}")
                rows.append({"name": name, "rounds": row.get("rounds"), **shown})
    columns = (
        _column("verdict", "verdict"),
        _column("measured", "measured"),
        _column("controls", "controls"),
        _column("model accuracy", "model_accuracy"),
    )
    table = _table("Verdicts", columns, verdicts, _OVER_SEEDS)
    table["notes"] = [f"Claim of {'; '.join(names)}: {claim}" for claim, names in claims.items()]
    measures = (*_LEAKAGE, *(column for column in _RECONSTRUCTION if column["measure"] != "model_accuracy"))
    return [table, _table("Rows", [_column("rounds", "rounds", 0), *measures], rows, _OVER_SEEDS)]


def _verdict_name(verdict: Mapping[str, Any]) -> str:
    return (
        verdict["name"] if verdict["variant"] in ("", NEAREST_VARIANT) else f"{verdict['name']}, {verdict['variant']}"
    )


def _verdict_row(verdict: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> Row:
    own = metrics.get(verdict.get("row") or "", {})
    measure = verdict.get("measure") or "leakage_score"
    beside = verdict.get("control_measure") or measure
    controls = [metrics[name].get(beside, {}).get("mean") for name in verdict.get("controls", ())]
    return {
        "verdict": verdict["verdict"],
        "claim": verdict.get("claim", ""),
        "measure": measure,
        "measured": own.get(measure),
        "controls": controls or None,
        "model_accuracy": own.get("model_accuracy"),
    }


def _brief_or_seeds(interval: Mapping[str, Any]) -> dict[str, Any]:
    return dict(interval) if len(interval.get("values", ())) <= 10 else _brief(interval)


def _one_each(groups: Sequence[Group]) -> list[tuple[Group, pathlib.Path]]:
    return [(group, directory) for group in groups for directory in group.directories]


def _joined_name(label: str, name: str) -> str:
    return f"{label}, {name}" if label else name
