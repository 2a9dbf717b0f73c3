"""The binary: every preset runs, help reads well, bad input is one line and status 2."""

import functools
import json
import pathlib
import subprocess
import sys

import pytest

from experiments.common.flags import config_from_arguments
from gan_leak.config import RunConfig, make_config
from gan_leak.data import parse_participant_classes
from gan_leak.runs.federated import setup
from gan_leak.runs.federated.batch import run_batch
from gan_leak.runs.federated.measurement import make_instrument_source
from gan_leak.settings import replace, to_json, with_defaults
from reference.quick import use_linear_networks, write_stripes

PRESETS = sorted(
    path.stem
    for path in pathlib.Path("experiments/presets").rglob("*.flags")
    if "experiments.gan_attack" in path.read_text().splitlines()[0]
)
SHORT = (
    *("--rounds=1", "--evaluation_interval=1", "--evaluation_samples=16", "--samples_per_participant=128"),
    *("--batch_size=2", "--generator_steps=1", "--generator_batch_size=8", "--generator_width=8"),
    *("--fakes_per_round=8", "--judge_samples=300"),
)
# What a preset that is no whole setting is put behind, as experiments.reproduce does.
BEHIND = {
    **{f"nearest_{data}": [base] for data, base in {"mnist": "figure6b", "cifar10": "figure3"}.items()},
    **{f"nearest_{data}": [base] for data, base in {"faces": "figure8b", "faces_41": "figure7"}.items()},
    **{f"quick_{data}": ["figure6b", "nearest_mnist"] for data in ("mnist", "mnist_short", "mnist_long")},
    **{f"quick_{data}": ["figure8b", "nearest_faces"] for data in ("faces", "faces_short")},
    "quick_cifar10": ["figure3", "nearest_cifar10"],
}


def run_binary(*arguments):
    command = [sys.executable, "-m", "experiments.gan_attack", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def lanes(tmp_path_factory):
    """Runs each preset, shortened, as one lane of as few batches as their shapes allow, with linear networks.

    Presets that differ in nothing but what is shortened share a lane.
    """
    folder = tmp_path_factory.mktemp("presets")
    colour = write_stripes(folder / "colour.npz", classes=10, per_class=40, channels=3)
    configs, batches = {}, {}
    for preset in PRESETS:
        arguments = [f"--preset={name}" for name in (*BEHIND.get(preset, ()), preset)]
        config = config_from_arguments(RunConfig, [*arguments, *SHORT])
        if config.data.dataset == "tfds:cifar10":
            config = replace(config, dataset=f"npz:{colour}")
        configs[preset] = config
        shape = with_defaults(config, lambda setting: setting.varies_in_batch)
        batches.setdefault(shape, {})[config] = None
    instruments = make_instrument_source(lambda text: None)
    done = {}

    def lane(preset):
        """The configuration of a preset, its last record, and the number of parameters."""
        config = configs[preset]
        (batch,) = (batch for batch in batches.values() if config in batch)
        if config not in done:
            result = run_batch(list(batch), folder / preset, instruments)
            for other, records in zip(batch, result.records, strict=True):
                done[other] = other, records[-1], result.coordinates
        return done[config]

    with pytest.MonkeyPatch.context() as patch:
        use_linear_networks(patch)
        patch.setattr(setup, "_load_bundled", functools.cache(functools.partial(a_part, setup._load_bundled)))
        yield lane


def a_part(load, name, *, image_size):
    """A data set, of MNIST a twentieth."""
    dataset = load(name, image_size=image_size)
    parts = {field: getattr(dataset, field) for field in ("train_images", "train_labels", "test_images", "test_labels")}
    step = 20 if len(dataset.train_labels) > 10_000 else 1
    return dataset._replace(**{field: values[::step] for field, values in parts.items()})


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_in_a_shortened_form(preset, lanes):
    config, record, coordinates = lanes(preset)
    assert not record["diverged"]
    score = record["leakage"]["leakage_score"]
    assert score is None or 0.0 <= score <= 1.0
    owners = parse_participant_classes(config.data.participant_classes, 40)
    assert len(record["uploaded"]) == len(owners)
    most = round(config.federation.upload_fraction * coordinates)
    for participant, uploaded in enumerate(record["uploaded"]):
        if config.defense.kind == "sparse_vector":
            assert 0 < uploaded <= most
        elif owners[participant] or participant == config.attack.adversary:
            assert uploaded == most


@pytest.mark.slow
def test_a_preset_runs_as_a_command(tmp_path):
    """With the real networks, the judge of a whole run and a defence."""
    done = run_binary("--preset=figure14b", *SHORT, "--judge_samples=30000", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "report.html").exists()
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    most = round(config["upload_fraction"] * 105_707)
    assert all(0.99 * most < uploaded <= most for uploaded in record["uploaded"])
    assert record["leakage"]["leakage_score"] <= 0.1


def test_the_presets_of_the_paper_are_there():
    assert {"default", "figure6a", "figure6b", "figure6c"} <= set(PRESETS)


def test_the_default_preset_spells_out_the_defaults():
    defaults = to_json(make_config())
    lines = pathlib.Path("experiments/presets/hitaj/default.flags").read_text().splitlines()
    flags = dict(line[2:].split("=", 1) for line in lines if line.startswith("--"))
    assert flags
    for name, value in flags.items():
        assert type(defaults[name])(value) == defaults[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--target_class=7"], "target"),
        (["--rounds=none"], "rounds"),
        (["--no_such_flag"], "no_such_flag"),
        (["--preset=figure99"], "figure99"),
        (["--preset=figure12", "--epsilon_per_release=0"], "epsilon_per_release=0"),
        (["--workdir=/proc/run"], "/proc/run"),
        (["extra"], "extra"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, named, tmp_path):
    done = run_binary(f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_names_every_flag_with_its_source():
    done = run_binary("--help")
    assert done.returncode == 0
    for text in ("--target_class", "--performance.convolution", "--workdir", "Hitaj et al. 2017, section 8.4"):
        assert text in done.stdout
