"""For how few private images can leakage be measured? Copies, held-out images and controls, class by class.

python -m experiments.measurability --workdir=runs/measurability
python -m experiments.measurability --spoken_digits=npz:fsdd_logmel32.npz --workdir=runs/measurability
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.flags import run_binary
from experiments.common.measurability_rows import PRIVATE_IMAGES, summary_rows
from gan_leak.config import RunConfig, make_config
from gan_leak.evaluation.leakage import leakage_score, scores_by_view
from gan_leak.evaluation.measurability import plain_controls, score_text
from gan_leak.models import dcgan_generator, sample_images
from gan_leak.runs.federated.measurement import Instruments, build_comparison, make_instrument_source
from gan_leak.runs.federated.setup import AttackData, prepare_data
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.storage.directory import RunDirectory, close_run, open_run, write_atomic
from gan_leak.settings import SEEDS, check_values, option
from gan_leak.types import Array

_CLASSES_OF_A_PARTICIPANT = 5
_UNTRAINED_IMAGES = 300


@dataclasses.dataclass(frozen=True)
class MeasurabilityConfig:
    """Which data sets to try beside MNIST and the AT&T faces."""

    spoken_digits: str = option("", "A further data set of ten classes, as --dataset takes it, such as npz:<path>.")
    seed: int = option(0, "Seed of who owns which images.", bounds=SEEDS, effect="chance")


class Prepared(NamedTuple):
    """What to try, and where to write it."""

    cells: list[tuple[str, RunConfig]]
    directory: RunDirectory


def _digits(dataset: str, seed: int) -> Iterator[RunConfig]:
    for count in PRIVATE_IMAGES:
        for target in range(2 * _CLASSES_OF_A_PARTICIPANT):
            yield make_config(
                dataset=dataset,
                seed=seed,
                samples_per_participant=_CLASSES_OF_A_PARTICIPANT * count,
                batch_size=count,
                target_class=target,
                # The other one owns the target class.
                adversary=int(target < _CLASSES_OF_A_PARTICIPANT),
            )


def _faces(seed: int) -> Iterator[tuple[str, RunConfig]]:
    shared: dict[str, Any] = {"dataset": "orl_faces", "image_size": 64, "seed": seed, "samples_per_participant": 0}
    for person in range(40):
        two = make_config(
            **shared, participant_classes="0-19;20-39", target_class=person, adversary=int(person < 20), batch_size=4
        )
        yield "AT&T faces, 2 participants", two
    for person in range(40):
        many = make_config(**shared, participant_classes="each 0-39;", target_class=person, adversary=40, batch_size=1)
        yield "AT&T faces, 41 participants", many


def prepare(config: MeasurabilityConfig, workdir: pathlib.Path, resume: bool) -> Prepared:
    """Checks the data and opens the directory; raises ValueError for bad input."""
    check_values(config)
    cells = [("MNIST", cell) for cell in _digits("mnist", config.seed)]
    cells += _faces(config.seed)
    if config.spoken_digits:
        prepare_data(next(_digits(config.spoken_digits, config.seed)))
        cells += [("spoken digits", cell) for cell in _digits(config.spoken_digits, config.seed)]
    return Prepared(cells, open_run(workdir, config, resume=resume))


def execute(prepared: Prepared) -> int:
    """Tries every cell and writes results.json and measurability.md."""
    instruments = make_instrument_source(tell)
    rows = []
    try:
        for name, config in prepared.cells:
            data = prepare_data(config)
            rows.append({"data": name, **_row(config, data, instruments(data))})
            tell(f"{len(rows)} of {len(prepared.cells)}: {json.dumps(rows[-1])}")
        path = prepared.directory.path
        write_atomic(path / "results.json", (json.dumps({"rows": rows}, indent=1, allow_nan=False) + "\n").encode())
        write_atomic(path / "measurability.md", as_table(rows).encode())
    finally:
        close_run(prepared.directory)
    return 0


@functools.cache
def _untrained(image_size: int, channels: int, seed: int) -> np.ndarray:
    generator = dcgan_generator(image_size, channels)

    @jax.jit
    def draw(key: Array) -> Array:
        key_init, key_samples = jax.random.split(key)
        return sample_images(generator, generator.init(key_init), key_samples, _UNTRAINED_IMAGES, 100)

    return np.asarray(draw(jax.random.key(seed)))


def _row(config: RunConfig, data: AttackData, instruments: Instruments) -> dict[str, Any]:
    """What copies, held-out images and controls score; where there are enough, controls are images not tried before."""
    size = config.data.image_size, data.private.shape[-1]
    references, _ = build_comparison(config, data, instruments, _untrained(*size, 2 * config.seed))
    controls = {
        **plain_controls(data.judge_test.images[::-1], data.judge_test.labels[::-1], config.attack.target_class),
        "untrained generator": _untrained(*size, 2 * config.seed + 1),
    }

    def score(images: np.ndarray) -> float | None:
        return leakage_score(references, scores_by_view(references, images))

    scores = {name: score(images) for name, images in controls.items()}
    held_out = [score(images) for images in (data.fresh[1::2], *data.unowned.values())]
    measurable = references.measurability.reason is None
    return {
        "class": data.class_names[config.attack.target_class],
        "private_images": len(data.private),
        "deciding": list(references.measurability.deciding),
        "raised_by": list(references.measurability.raised_by),
        "not_measurable": references.measurability.reason,
        "copies": score(data.private),
        "held_out": min(value for value in held_out if value is not None) if measurable else None,
        "highest_control": max(value for value in scores.values() if value is not None) if measurable else None,
    }


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a line for each data set and number of private images."""
    lines = [
        "Generated by `python -m experiments.measurability`. Lowest score of copies and of held-out real images, and",
        "highest score of a control, over the classes that are measurable.",
        "",
        "| data | classes measurable | copies | held out | controls | not measurable |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary_rows(rows):
        scores = [score_text(row[key]) for key in ("copies", "held_out", "highest_control")]
        lines.append("| " + " | ".join([row["name"], row["measurable"], *scores, row["not_measurable"]]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_binary(prepare, execute, MeasurabilityConfig)
