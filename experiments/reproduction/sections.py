"""The sections of the figures of Hitaj et al.: batches, laid out, and judged by the claims of their presets."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence

from experiments.reproduction.claims import left_out, read_claim, settings_at
from experiments.reproduction.hitaj import Figure, not_named
from experiments.reproduction.layouts import LAYOUTS, name_of
from experiments.reproduction.section_files import Section
from experiments.reproduction.study import Key, Study, basis_of, batches_of, directory_of
from experiments.reproduction.verdicts import judge
from gan_leak.config import RunConfig
from gan_leak.reports.galleries import interval_figure
from gan_leak.reports.reproduction_results import NEAREST_VARIANT, PAPER_VARIANT
from gan_leak.runs.federated.batch_files import BatchResult, read_result
from gan_leak.runs.federated.rows import privacy_entries


def make_section(study: Study, figure: Figure, wait: Callable[[pathlib.Path], None]) -> Section:
    """Wait for the batches of a figure and judge it; raises ValueError if its data cannot be read."""
    lanes = batches_of(study, figure)
    batches = {}
    for key, configs in lanes.items():
        wait(directory_of(study, configs))
        batches[key] = read_result(directory_of(study, configs))
    rows, judged, pictures, notes = LAYOUTS[figure.layout](study, figure, lanes, batches)
    claims = {setting: read_claim(preset) for setting, preset in settings_at(figure.settings, study.scale).items()}
    pictures["Leakage score of every row, with 95% intervals over seeds."] = interval_figure(rows)
    entry = {
        "figure": figure.number,
        "title": figure.title,
        "claim": " ".join(dict.fromkeys(claim.claim for claim in claims.values())),
        "setup": _setup(study, lanes, batches),
        "seconds": sum(batch.seconds for batch in batches.values()),
        "verdicts": [judge(*key, claims[key[0]], *judgement) for key, judgement in judged.items()],
        "rows": rows,
        "privacy": [
            promise
            for key, configs in lanes.items()
            if key[1] in (PAPER_VARIANT, NEAREST_VARIANT)
            for promise in privacy_entries(name_of(*key), configs[0], batches[key])
        ],
        "notes": [
            *notes,
            *(f"{name}: not run. {why}" for name, why in left_out(figure.settings, study.scale).items()),
            *(f"{name}: not run. It was not asked for." for name in not_named(figure)),
        ],
        "error": None,
    }
    judges = {next(iter(lanes.values()))[0].data.dataset: next(iter(batches.values())).judge}
    return Section(entry, judges, pictures, basis_of(study, figure))


def _setup(study: Study, lanes: Mapping[Key, Sequence[RunConfig]], batches: Mapping[Key, BatchResult]) -> str:
    key = next(key for key in lanes if key[1] == NEAREST_VARIANT)
    config, samples = lanes[key][0], batches[key].samples
    owners = f"{len(samples)} participants" if len(samples) > 1 else "one participant"
    return (
        f"{config.data.dataset}: {owners} ({config.data.participant_classes}) with {sum(samples):,} images in all. The "
        f"judge is trained on other images. Target class {config.attack.target_class}, {config.federation.rounds} "
        f"rounds ({', '.join(key)}; scale {study.scale})."
    )
