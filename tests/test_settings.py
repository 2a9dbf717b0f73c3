"""Settings: what their metadata promises, and that a new one is named in its dataclass and where it is used only."""

import dataclasses
import json
import math
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from experiments.benchmark import BenchmarkConfig
from experiments.common.gradient_config import GradientConfig
from experiments.measurability import MeasurabilityConfig
from experiments.reproduce import ReproduceConfig
from experiments.split_inference import SplitConfig
from experiments.sweep import SweepConfig
from experiments.user_leakage import UserLeakageConfig
from gan_leak.attacks import GanAttackHyperParameters
from gan_leak.collaboration import RoundHyperParameters
from gan_leak.config import RunConfig, make_config
from gan_leak.defenses import DEFENSES, claim_of
from gan_leak.defenses.settings import defense_hyperparameters
from gan_leak.runs.federated.batch import batch_directory
from gan_leak.runs.federated.batch_files import check_lanes
from gan_leak.runs.storage import directory
from gan_leak.settings import (
    FLAT,
    LARGEST_COUNT,
    Bounds,
    above,
    at_least,
    between,
    check_value,
    check_values,
    flat_class,
    from_json,
    hyperparameters_for,
    option,
    program_of,
    replace,
    settings_of,
    to_json,
    value_of,
    values_of,
    with_defaults,
)

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = (
    *(RunConfig, SweepConfig, ReproduceConfig, GradientConfig, SplitConfig),
    *(UserLeakageConfig, BenchmarkConfig, MeasurabilityConfig),
)
OF_RUNS = list(settings_of(RunConfig).values())


def another(setting):
    """A value of a setting that is allowed and not its default."""
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if setting.type is bool:
        return not setting.default
    if setting.type is str:
        return setting.default + "x"
    if setting.default == math.inf:
        return 0.5
    closer = (setting.default + min(setting.bounds.highest, 2 * setting.default + 1)) / 2
    found = closer if closer in setting.bounds and closer != setting.default else setting.default / 2
    return setting.type(found + 1 if setting.type is int else found)


# What every setting promises.


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_setting_has_help_and_a_default_that_it_allows(config_class):
    for setting in settings_of(config_class).values():
        assert setting.help
        assert type(setting.default) is setting.type
        check_value(setting, setting.default)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_choices_are_accepted_and_everything_else_is_refused_by_name_and_value(config_class):
    for name, setting in settings_of(config_class).items():
        for choice in setting.choices:
            check_values(replace(config_class(), **{name: choice}))
        if setting.choices:
            other = "hope" if setting.type is str else 33
            with pytest.raises(ValueError, match=f"^{name}={other!r}: expected one of .*{setting.default}"):
                check_values(replace(config_class(), **{name: other}))


def outside(setting):
    """Numbers just outside of the bounds of a setting, none if any is allowed."""
    refused = []
    if setting.type is float and setting.bounds is not None:
        low, high = setting.bounds.lowest, setting.bounds.highest
        refused = [math.nan, -math.inf, math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
        refused += [] if setting.bounds.lowest_included else [low]
        refused += [] if setting.bounds.highest_included else [high]
        refused = [value for value in refused if value != math.inf or not setting.bounds.highest_included]
    elif setting.type is int and not setting.choices:
        refused = [] if setting.bounds is None else [setting.bounds.lowest - 1]
        refused += [2**63 if setting.bounds is not None and setting.bounds.wording else LARGEST_COUNT + 1]
    return refused


@pytest.mark.parametrize("config_class", CONFIGS)
def test_numbers_outside_of_their_bounds_are_refused_by_name_and_value(config_class):
    for name, setting in settings_of(config_class).items():
        for value in outside(setting):
            with pytest.raises(ValueError, match="expected") as raised:
                check_value(setting, value)
            assert str(raised.value).startswith(f"{name}={value!r}: expected ")
            assert "\n" not in str(raised.value)


@hypothesis.given(st.floats(), st.floats(allow_nan=False), st.floats(allow_nan=False), st.booleans(), st.booleans())
def test_bounds_hold_what_lies_between_their_ends(value, lowest, highest, low, high):
    inside = lowest < value < highest or (low and value == lowest < highest) or (high and value == highest > lowest)
    if lowest == highest:
        inside = low and high and value == lowest
    assert (value in Bounds(lowest, highest, low, high)) == inside


def test_bounds_say_what_they_hold():
    assert str(at_least(0)) == "a finite number of at least 0"
    assert str(above(0)) == "a finite number above 0"
    assert str(Bounds(0, lowest_included=False, highest_included=True)) == "a number above 0, or inf"
    assert str(between(0, 0.5)) == "a number in [0, 0.5]"
    assert str(Bounds(0, 1, lowest_included=False)) == "a number in (0, 1)"


# What is derived.


def test_every_traced_number_reaches_the_program_by_its_name():
    config = make_config(**{setting.name: another(setting) for setting in OF_RUNS if setting.kind == "traced"})
    attack = hyperparameters_for(GanAttackHyperParameters, config, fake_class=10)
    found = (
        hyperparameters_for(RoundHyperParameters, config, defense={}, attack=attack, server_attack=())._asdict()
        | attack._asdict()
    )
    for defense in DEFENSES:
        found |= defense_hyperparameters(replace(config, defense=defense.name).defense)
    for setting in OF_RUNS:
        if setting.kind == "traced":
            assert found[setting.name] == value_of(config, setting) != setting.default
    with pytest.raises(TypeError, match="fake_class: expected a traced setting of RunConfig"):
        hyperparameters_for(GanAttackHyperParameters, config)


def test_a_program_is_decided_by_static_values_and_nothing_else_can_be_read_from_it():
    program = program_of(RunConfig())
    for setting in OF_RUNS:
        changed = program_of(replace(RunConfig(), **{setting.name: another(setting)}))
        assert (changed == program) == (setting.kind != "static")
        assert (value_of(program, setting) is None) == (setting.kind != "static")


def test_a_name_may_be_given_only_once_and_must_be_there():
    for make in (make_config, lambda **values: replace(RunConfig(), **values)):
        with pytest.raises(TypeError, match="RunConfig has no setting round"):
            make(round=3)
    part = dataclasses.make_dataclass("Part", [("seed", int, option(1, "A seed."))], frozen=True)
    twice = [
        ("seed", int, option(0, "Another.")),
        ("part", part, dataclasses.field(default_factory=part, metadata=FLAT)),
    ]
    with pytest.raises(TypeError, match="two settings are named seed"):
        settings_of(dataclasses.make_dataclass("Twice", twice, frozen=True))


def test_values_are_read_and_replaced_by_the_names_of_flags():
    changed = replace(RunConfig(), attack="passive", rounds=5, **{"performance.convolution": "lax"})
    assert (changed.attack.kind, changed.federation.rounds, changed.performance.convolution) == ("passive", 5, "lax")
    assert {name for name, value in values_of(changed).items() if value != values_of(RunConfig())[name]} == {
        "attack",
        "rounds",
        "performance.convolution",
    }
    assert make_config(**values_of(changed)) == changed
    assert with_defaults(changed, lambda setting: setting.name != "rounds") == make_config(rounds=5)


@pytest.mark.parametrize("kind", ["none", *(defense.name for defense in DEFENSES)])
def test_a_defense_has_at_most_one_setting_that_a_target_is_solved_for(kind):
    solved = [setting.name for setting in OF_RUNS if setting.solved_for and kind in setting.defenses]
    assert solved == ([] if claim_of(kind) is None else [claim_of(kind).solved_for])


# What earlier versions have written.

EARLIER = {
    **{"dataset": "mnist", "image_size": 32, "seed": 0, "partition": "by_class", "participant_classes": "0-4;5-9"},
    **{"dirichlet_concentration": 0.5, "samples_per_participant": 1000, "judge_samples": 30000, "adversary": 1},
    **{"target_class": 3, "attack": "active", "participants_per_round": 0, "rounds": 100, "schedule": "round_robin"},
    **{"aggregation": "add", "local_epochs": 1, "batch_size": 64, "learning_rate": 0.05, "learning_rate_decay": 1e-7},
    **{"upload_fraction": 1.0, "download_fraction": 1.0, "upload_criterion": "largest", "upload_threshold": 0.0},
    **{"upload_bound": "inf", "update_count_decay": 1.0, "defense": "none", "epsilon_per_release": 100.0},
    **{"sensitivity": 0.002, "clipping_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "generator_steps": 5},
    **{"generator_batch_size": 64, "generator_width": 64, "generator_optimizer": "sgd"},
    **{"generator_learning_rate": 0.02, "generator_averaging": 0.0, "fakes_per_round": 500, "fake_memory_rounds": 1},
    **{"evaluation_interval": 20, "evaluation_samples": 500, "checkpoint_interval": 10},
}
PERFORMANCE = {
    **{"convolution": "auto", "participant_mapping": "auto", "seed_mapping": "auto", "cpu_devices": 0},
    "rounds_per_chunk": 1,
}
LATER = {name: setting.default for name, setting in settings_of(RunConfig).items() if setting.later}


def test_settings_are_written_flat_as_earlier_versions_read_them():
    """Those that came later are flat too, and earlier directories are read with their defaults."""
    assert {"target_epsilon", "fail_if_not_measurable", "pruning_fraction"} <= LATER.keys()
    assert to_json(RunConfig()) == {**EARLIER, **LATER, "performance": PERFORMANCE}
    assert from_json(RunConfig, {**EARLIER, **LATER, "performance": PERFORMANCE}) == RunConfig()


def test_batches_of_earlier_versions_are_found_and_taken_up(tmp_path):
    lanes = [make_config(), make_config(seed=1)]
    assert batch_directory(tmp_path, lanes).name == "eb021e35e3f5d4cc"
    (tmp_path / "lanes.json").write_text(json.dumps([EARLIER, {**EARLIER, "seed": 1}], indent=1) + "\n")
    ordered = [dict(sorted({**EARLIER, "seed": seed}.items())) for seed in (0, 1)]
    check_lanes(tmp_path, ordered, pytest.fail, named=True)


def test_what_is_about_one_call_is_not_compared(tmp_path):
    run = directory.open_run(tmp_path, make_config(fail_if_not_measurable=True), resume=False)
    directory.close_run(run)
    assert directory.read_config_file(tmp_path)["config"]["fail_if_not_measurable"] is False
    run = directory.open_run(tmp_path, make_config(), resume=True)
    directory.close_run(run)
    assert run.differences == ()


def test_a_run_without_a_setting_that_is_not_marked_as_later_is_refused_in_one_line(tmp_path):
    directory.close_run(directory.open_run(tmp_path, make_config(), resume=False))
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["sha256"], stored["config"]["local_epochs"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"another configuration \(local_epochs was absent, now 1\)$"):
        directory.open_run(tmp_path, make_config(), resume=True)


def test_an_unknown_option_of_speed_is_told_and_an_unknown_setting_refused(tmp_path):
    config_class = flat_class("More", RunConfig, lambda setting: setting)
    directory.close_run(directory.open_run(tmp_path, config_class(), resume=False))
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["sha256"]
    stored["config"]["performance"]["fusion"] = "loop"
    path.write_text(json.dumps(stored))
    run = directory.open_run(tmp_path, config_class(), resume=True)
    directory.close_run(run)
    assert run.differences == ('performance.fusion was "loop" when the run began, now absent',)
    stored["config"]["momentum"] = 0.9
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"another configuration \(momentum was 0\.9, now absent\)$"):
        directory.open_run(tmp_path, config_class(), resume=True)


# A new setting.

FIELD = """    rate_factor: float = option(
        1.0, "Factor of the learning rate (a toy).", bounds=above(0), kind="traced", later=True
    )
    update_count_decay: float"""
EDITS = {
    "gan_leak/collaboration/settings.py": ("    update_count_decay: float", FIELD),
    "gan_leak/types.py": (
        "    attack: PyTree = ()\n",
        "    rate_factor: Array | float = 1.0\n    attack: PyTree = ()\n",
    ),
    "gan_leak/collaboration/participant.py": (
        "rate = torch_learning_rate(hyperparameters, optimizer_steps)\n",
        "rate = hyperparameters.rate_factor * torch_learning_rate(hyperparameters, optimizer_steps)\n",
    ),
}
SCRIPT = """
import json, pathlib, sys
from absl import flags as absl_flags
from experiments import gan_attack, sweep
from experiments.common import flags
from gan_leak.collaboration import RoundHyperParameters
from gan_leak.config import RunConfig, make_config, validate
from gan_leak.runs.federated.batch import batch_directory, check_batch
from gan_leak.runs.federated.rows import differences_between
from gan_leak.runs.federated.sweep import make_cells, shape_of
from gan_leak.runs.federated.sweep_plan import swept_values
from gan_leak.runs.storage import directory
from gan_leak.settings import hyperparameters_for, replace, to_json, values_of

def refusal(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "accepted"

def resume(workdir, **changes):
    run = directory.open_run(pathlib.Path(workdir), make_config(**changes), resume=True)
    directory.close_run(run)

values = absl_flags.FlagValues()
flags.define_flags(gan_attack.AttackFlags, values)
config = flags.config_from_arguments(RunConfig, ["--rate_factor=0.5"])
shared, grid = swept_values(values_of(flags.config_from_arguments(sweep.SweepConfig, ["--rate_factor=1,2"])))
cells = make_cells(shared, grid, 2)
check_batch([lane for cell in cells for lane in cell.lanes])
print(json.dumps({
    "help": values["rate_factor"].help,
    "value": config.federation.rate_factor,
    "refused": refusal(lambda: validate(make_config(rate_factor=-1.0))),
    "swept": [cell.swept for cell in cells],
    "shapes": len({shape_of(cell.lanes[0]) for cell in cells}),
    "number": hyperparameters_for(RoundHyperParameters, config, defense={}, attack=(), server_attack=()).rate_factor,
    "kept": to_json(config)["rate_factor"],
    "differences": differences_between(make_config(), config),
    "batch": batch_directory(pathlib.Path(), [make_config(), make_config(seed=1)]).name,
    "own_batch": batch_directory(pathlib.Path(), [config, replace(config, seed=1)]).name,
    "resumed": refusal(lambda: resume(sys.argv[1])),
    "changed": refusal(lambda: resume(sys.argv[1], rate_factor=0.5)),
}))
"""


def test_a_new_setting_is_named_in_its_dataclass_and_where_it_is_used(tmp_path):
    """It then is a flag, is validated, swept, traced and kept; an older run is resumed with its default."""
    for package in ("gan_leak", "experiments"):
        ignored = shutil.ignore_patterns("__pycache__", "pictures", "results")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    for name, (old, new) in EDITS.items():
        text = (tmp_path / name).read_text()
        assert text.count(old) == 1
        (tmp_path / name).write_text(text.replace(old, new))
    older = tmp_path / "older"
    directory.close_run(directory.open_run(older, make_config(), resume=False))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(older)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["help"] == "Factor of the learning rate (a toy)."
    assert told["value"] == told["number"] == told["kept"] == 0.5
    assert told["refused"] == "rate_factor=-1.0: expected a finite number above 0"
    assert told["swept"] == [{"rate_factor": 1.0}, {"rate_factor": 2.0}]
    assert told["shapes"] == 1
    assert told["differences"] == {"rate_factor": [1.0, 0.5]}
    assert told["batch"] == "eb021e35e3f5d4cc" != told["own_batch"]
    assert told["resumed"] == "accepted"
    assert told["changed"] == f"workdir={older}: holds a run of another configuration (rate_factor was 1.0, now 0.5)"


def test_a_configuration_is_sent_to_workers_as_it_is():
    config = make_config(rounds=3, defense="dp_sgd", noise_multiplier=0.7)
    assert pickle.loads(pickle.dumps(config)) == config
