"""The settings of a run that say what protects the records of participants."""

from __future__ import annotations

import dataclasses
import math

from gan_leak.settings import Bounds, Setting, above, at_least, option, settings_of, value_of


@dataclasses.dataclass(frozen=True)
class DefenseConfig:
    """The defense and how strong it is."""

    kind: str = option(
        "none",
        "What protects the records: 'none', 'sparse_vector' (differentially private uploads of Shokri and Shmatikov "
        "2015; takes the place of the upload criterion) or 'dp_sgd' (differentially private local training of Abadi et "
        "al. 2016).",
        choices=("none", "sparse_vector", "dp_sgd"),
        name="defense",
    )
    epsilon_per_release: float = option(
        100.0,
        "Sparse vector: privacy budget epsilon / c of one released coordinate (Hitaj et al. 2017, section 9.4); tau is "
        "upload_threshold, gamma upload_bound, c upload_fraction of all coordinates.",
        bounds=Bounds(0, lowest_included=False, highest_included=True),
        kind="traced",
        defenses=("sparse_vector",),
        solved_for=True,
    )
    sensitivity: float = option(
        0.002,
        "Sparse vector: by how much one coordinate of an update may change between neighbouring data sets; 2 * gamma "
        "holds for any two (Shokri and Shmatikov 2015).",
        bounds=above(0),
        kind="traced",
        defenses=("sparse_vector",),
    )
    clipping_norm: float = option(
        1.0,
        "DP-SGD: L2 norm that the gradient of one record is clipped to (Abadi et al.).",
        bounds=above(0),
        kind="traced",
        defenses=("dp_sgd",),
    )
    noise_multiplier: float = option(
        1.0,
        "DP-SGD: standard deviation of the noise on the sum of gradients, in units of clipping_norm (Abadi et al.).",
        bounds=at_least(0),
        kind="traced",
        defenses=("dp_sgd",),
        solved_for=True,
    )
    delta: float = option(
        1e-5,
        "DP-SGD: the delta at which epsilon is reported, in the summary, report.html, config.json and metrics.jsonl "
        "(Abadi et al. 2016).",
        bounds=Bounds(0, 1, lowest_included=False),
        kind="host",
        defenses=("dp_sgd",),
    )
    target_epsilon: float = option(
        0.0,
        "The epsilon that the whole run may cost a participant; solves for noise_multiplier at delta (dp_sgd) or for "
        "epsilon_per_release (sparse_vector), which must be left at their defaults. 0 = the noise is as given.",
        bounds=at_least(0),
        kind="host",
        defenses=("sparse_vector", "dp_sgd"),
        later=True,
    )


def noise_setting(kind: str) -> Setting | None:
    """The setting of a defense that ``target_epsilon`` is solved for, None where there is none."""
    settings = settings_of(DefenseConfig).values()
    return next((setting for setting in settings if setting.solved_for and kind in setting.defenses), None)


def check_defense(config: DefenseConfig, upload_bound: float) -> None:
    """Raises ValueError for settings that exclude each other."""
    noise = noise_setting(config.kind)
    if config.target_epsilon and noise is None:
        raise ValueError(
            f"target_epsilon={config.target_epsilon}: expected with defense 'dp_sgd' or 'sparse_vector', "
            f"not {config.kind!r}"
        )
    if config.target_epsilon and noise is not None and (given := value_of(config, noise)) != noise.default:
        raise ValueError(
            f"target_epsilon={config.target_epsilon}: expected {noise.name} left at {noise.default}, not {given}, "
            "since the target decides it"
        )
    if config.kind == "sparse_vector" and upload_bound == math.inf:
        raise ValueError(
            "upload_bound=inf: expected a finite number above 0 with defense 'sparse_vector', such as 0.001"
        )
