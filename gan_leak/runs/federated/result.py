"""The result of a run: the contract between the runs and the reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gan_leak.config import RunConfig

DIVERGED_STATUS = 1
NOT_MEASURABLE_STATUS = 3


class RunResult(NamedTuple):
    """The content of a run's report.

    A process that does not write the run directory has no environment, records, images, comparison and limits.

    config: the settings as they ran, with the noise that was solved for a target epsilon.
    class_names: the names of the classes, by number.
    fingerprint: SHA-256 of the data set.
    private: images [N, H, W, C] in [-1, 1] of the target class, which reconstructions are compared with.
    target_is_owned: whether a participant owns the target class. If not, no score is leakage.
    environment: versions, machine and inputs, as in config.json.
    records: the records of metrics.jsonl, one a round.
    images_by_round: reconstructions [M, H, W, C] in [-1, 1] of each evaluation.
    comparison: the measures of leakage by set of images: the last reconstructions first, then the baselines.
    judge_test_accuracy: accuracy of the judge on its test images, NaN without an attack.
    limits: limits of the leakage score, a line each.
    privacy: the promise of the defense over the run, as in config.json; empty without a defense.
    divergence: a line that names the round in which training diverged, None if it did not.
    sounds: reconstructions and private images as WAV bytes by caption, if they are spectrograms.
    is_trained: False if ``fail_if_not_measurable`` ended the run before its first round.
    """

    config: RunConfig
    class_names: Sequence[str]
    fingerprint: str
    private: np.ndarray
    target_is_owned: bool
    environment: Mapping[str, Any] = {}
    records: Sequence[Mapping[str, Any]] = ()
    images_by_round: Mapping[int, np.ndarray] = {}
    comparison: Mapping[str, Mapping[str, Any]] = {}
    judge_test_accuracy: float = math.nan
    limits: Sequence[str] = ()
    privacy: Mapping[str, Any] = {}
    divergence: str | None = None
    sounds: Mapping[str, bytes] = {}
    is_trained: bool = True


def exit_status(result: RunResult) -> int:
    """The exit status of a run: 3 if it ended because its leakage cannot be measured, 1 if it diverged, else 0."""
    if not result.is_trained:
        return NOT_MEASURABLE_STATUS
    return 0 if result.divergence is None else DIVERGED_STATUS
