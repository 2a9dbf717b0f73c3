"""A run of the GAN attack from its configuration to its report, as the binary makes it."""

import json

from experiments.gan_attack import run_and_report
from gan_leak.runs.federated import train


def run(config, workdir, resume=False):
    """Trains, measures and reports; returns the exit status."""
    return run_and_report(train.prepare(config, workdir, resume))


def measured(workdir):
    """The metrics of a run, without the time it took."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]
