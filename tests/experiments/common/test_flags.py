"""Flags: one per field of the configuration; bad input is one line and status 2, a defect is a traceback."""

import dataclasses
import math
import pathlib
import signal
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from experiments.common import flags
from gan_leak.config import RunConfig, make_config
from gan_leak.settings import settings_of

ROOT = pathlib.Path(flags.__file__).parents[2]

BINARY = '''"""What the binary is for.

Usage: python -m experiments.binary
"""
import dataclasses, errno, sys, time
from experiments.common import flags
from gan_leak.runs.storage.integrity import DamagedError
from gan_leak.runs.hosts.interruption import on_interruption
from gan_leak.settings import check_values, option

@dataclasses.dataclass(frozen=True)
class Inner:
    mode: str = option("a", "The inner mode.", choices=("a", "b"))

@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = option(3, "How many rounds.")
    rate: float = 0.5
    inner: Inner = dataclasses.field(default_factory=Inner)

def prepare(config, workdir, resume):
    check_values(config)
    if config.rounds < 1:
        raise ValueError(f"rounds={config.rounds}:\\nexpected at least 1")
    if config.rounds == 99:
        open("/nonexistent/file")
    print(config, workdir, resume, flush=True)
    return config

def execute(config):
    if config.rounds == 13:
        raise ValueError("a defect")
    if config.rounds == 14:
        return 3
    if config.rounds == 16:
        raise DamagedError("every checkpoint\\nis damaged")
    if config.rounds == 15:
        with on_interruption(lambda: print("cleaned up", flush=True)):
            print("working", flush=True)
            time.sleep(60)
    if config.rounds == 18:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    if config.rounds == 17:
        open("/nonexistent/file")

if __name__ == "__main__":
    flags.run_binary(prepare, execute, Config)
'''


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    path = tmp_path_factory.mktemp("binary") / "binary.py"
    path.write_text(BINARY)
    return path


def command(binary, *arguments):
    return [sys.executable, "-W", "error", str(binary), *arguments]


def call(binary, *arguments):
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(binary, *arguments), capture_output=True, text=True, check=False, env=environment, cwd=binary.parent
    )


def parse(*arguments):
    values = absl_flags.FlagValues()
    flags.define_flags(RunConfig, values)
    values(["binary", *arguments])
    return values, flags.config_from_flags(RunConfig, values)


def test_defaults_are_those_of_the_dataclass():
    values, config = parse()
    assert config == make_config()
    assert (values.workdir, values.resume) == (None, False)


def test_every_field_is_a_flag_with_its_help():
    values, _ = parse()
    for name, setting in settings_of(RunConfig).items():
        assert setting.help
        assert values[name].help.endswith(setting.help)
    for name in ("seed", "dataset", "workdir", "resume", "preset", "performance.convolution"):
        assert values[name].help


def test_flags_set_fields_of_every_type():
    _, config = parse("--seed=7", "--upload_bound", "inf", "--learning_rate=1e-3", "--performance.convolution=lax")
    assert (config.seed, config.federation.upload_bound, config.federation.learning_rate) == (7, math.inf, 1e-3)
    assert config.performance.convolution == "lax"
    assert config == make_config(
        **{"seed": 7, "upload_bound": math.inf, "learning_rate": 1e-3, "performance.convolution": "lax"}
    )


def test_types_without_a_flag_are_refused():
    config_class = dataclasses.make_dataclass("Config", [("sizes", tuple, (1, 2))], frozen=True)
    with pytest.raises(TypeError, match="sizes"):
        flags.define_flags(config_class, absl_flags.FlagValues())


def test_switches_can_be_turned_off():
    config_class = dataclasses.make_dataclass("Config", [("figures", bool, True)], frozen=True)
    values = absl_flags.FlagValues()
    flags.define_flags(config_class, values)
    values(["binary", "--nofigures"])
    assert flags.config_from_flags(config_class, values).figures is False


def test_workdir_defaults_to_binary_and_time(binary):
    done = call(binary, "--rate=inf")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "Config(rounds=3, rate=inf, inner=Inner(mode='a')) runs/binary-2" in done.stdout


def test_flagfile_is_overridden_by_what_follows(binary, tmp_path):
    flagfile = tmp_path / "some.flags"
    flagfile.write_text("# python -m experiments.binary\n--rounds=5\n--inner.mode=b\n--workdir=x\n")
    done = call(binary, f"--flagfile={flagfile}", "--rounds=6", "--resume")
    assert done.stdout == "Config(rounds=6, rate=0.5, inner=Inner(mode='b')) x True\n"


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """Writes presets by name into a folder of their own."""
    monkeypatch.setattr(flags, "PRESETS", tmp_path)

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.flags").write_text(text)

    return write


@pytest.mark.parametrize("preset", [["--preset=quick"], ["--preset", "quick"], ["-preset=quick"]])
def test_preset_is_short_for_its_flags(presets, preset):
    """In its place, without comments, empty lines and indentation."""
    presets(quick="# --seed=1\n\n  --rounds=2  \n// --seed=2\n--upload_fraction=0.1\n")
    arguments = ["binary", "--seed=8", *preset, "--seed=9"]
    assert flags.expand_presets(arguments) == ["binary", "--seed=8", "--rounds=2", "--upload_fraction=0.1", "--seed=9"]


def test_a_line_of_a_preset_that_ends_with_a_backslash_goes_on_in_the_next(presets):
    presets(long="--participant_classes=0-4;\\\n  5-9\n--rounds=2\n")
    assert flags.expand_presets(["--preset=long"]) == ["--participant_classes=0-4;5-9", "--rounds=2"]


def test_presets_hold_presets_in_their_places(presets):
    """What follows overrides, inside a preset as on the command line."""
    presets(
        base="--rounds=1\n--seed=1\n--batch_size=1\n",
        middle="--seed=2\n--preset=base\n--batch_size=2\n",
        top="--preset=middle\n--rounds=3\n",
    )
    assert flags.expand_presets(["--preset=top"]) == [
        *("--seed=2", "--rounds=1", "--seed=1", "--batch_size=1", "--batch_size=2", "--rounds=3")
    ]
    config = flags.config_from_arguments(RunConfig, ["--preset=top", "--dataset=npz:x"])
    federation = config.federation
    assert (federation.rounds, config.seed, federation.batch_size, config.data.dataset) == (3, 1, 2, "npz:x")


def test_several_presets_override_each_other_in_their_order(presets):
    presets(one="--rounds=1\n--seed=1\n", two="--rounds=2\n")
    for arguments, rounds in {("--preset=one", "--preset=two"): 2, ("--preset=two", "--preset=one"): 1}.items():
        config = flags.config_from_arguments(RunConfig, list(arguments))
        assert (config.federation.rounds, config.seed) == (rounds, 1)


def test_a_preset_may_be_used_twice_but_not_within_itself(presets):
    presets(base="--rounds=1\n", twice="--preset=base\n--preset=base\n")
    assert flags.expand_presets(["--preset=twice"]) == ["--rounds=1", "--rounds=1"]
    presets(self="--preset=self\n", a="--preset=b\n", b="--preset=c\n", c="--preset=a\n")
    for preset, through in {"self": "self", "a": "a and b and c"}.items():
        with pytest.raises(ValueError, match=f"preset={preset}: includes itself, through {through}$"):
            flags.expand_presets([f"--preset={preset}"])


@pytest.mark.parametrize("arguments", [["--preset=slow"], ["--preset=outer"], ["--preset=../quick"]])
def test_unknown_preset_names_those_there_are(presets, arguments):
    presets(quick="", outer="--preset=slow\n")
    with pytest.raises(ValueError, match=r"preset=.*: expected one of outer, quick$"):
        flags.expand_presets(arguments)


def test_the_folder_of_a_preset_may_be_left_out_where_that_tells(presets):
    presets(inner="--rounds=1")
    for folder, name in (("a", "one"), ("a", "two"), ("b", "two")):
        path = flags.PRESETS / folder / f"{name}.flags"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"--workdir={folder}")
    assert flags.expand_presets(["--preset=one", "--preset=a/one"]) == ["--workdir=a"] * 2
    assert flags.expand_presets(["--preset=a/two", "--preset=b/two"]) == ["--workdir=a", "--workdir=b"]
    with pytest.raises(ValueError, match=r"preset=two: expected one of a/two, b/two, inner, one$"):
        flags.expand_presets(["--preset=two"])


def test_a_preset_without_a_name_is_unknown(presets):
    presets(quick="")
    with pytest.raises(ValueError, match=r"preset=: expected one of quick$"):
        flags.expand_presets(["--preset"])


def test_config_from_arguments_is_what_a_command_line_gives():
    arguments = ["--preset=figure6b", "--seed=7", "--performance.seed_mapping=vmap"]
    config = flags.config_from_arguments(RunConfig, arguments)
    assert (config.federation.upload_fraction, config.seed, config.performance.seed_mapping) == (0.1, 7, "vmap")
    assert flags.config_from_arguments(RunConfig, []) == make_config()
    # Flags of one call do not reach the next, nor those of the process.
    assert flags.config_from_arguments(RunConfig, ["--rounds=5"]).seed == make_config().seed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--round=3"], "Unknown command line flag 'round'"),
        (["--rounds=many"], "--rounds=many"),
        (["--preset=absent"], "preset=absent"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_config_from_arguments_refuses_what_a_command_line_would(arguments, named):
    with pytest.raises(ValueError, match=named) as raised:
        flags.config_from_arguments(RunConfig, arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--round=3"], "error: Unknown command line flag 'round'"),
        (["--rounds=many"], "error: flag --rounds=many: "),
        (["--inner.mode=c"], "error: inner.mode='c': expected one of a, b"),
        (["--flagfile=absent.flags"], "absent.flags"),
        (["--preset=absent"], "error: preset=absent"),
        (["5"], "error: unexpected argument '5'"),
        (["--resume"], "error: resume=True: expected --workdir"),
        (["--rounds=0"], "error: rounds=0: expected at least 1"),
        (["--rounds=99"], "error: [Errno 2] No such file or directory: '/nonexistent/file'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(binary, arguments, message):
    done = call(binary, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_defect_keeps_its_traceback(binary):
    done = call(binary, "--rounds=13")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: a defect" in done.stderr


def test_what_execute_refuses_is_one_line_and_status_2(binary):
    done = call(binary, "--rounds=16")
    assert done.returncode == 2
    assert done.stderr == "error: every checkpoint is damaged\n"


def test_status_of_execute_is_the_status_of_the_binary(binary):
    assert call(binary, "--rounds=14").returncode == 3


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_cleans_up_and_tells(binary, number, status):
    # Whoever runs the tests in the background may have them ignore Ctrl-C.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", heed, *command(binary, "--rounds=15")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    ) as process:
        while process.stdout.readline() != "working\n":
            pass
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert output == "cleaned up\n"
    assert errors.startswith("interrupted; --workdir=runs/binary-")
    assert errors.endswith(" --resume continues\n")
    assert errors.count("\n") == 1


def test_a_full_disk_is_one_line_and_any_other_failure_a_defect(binary):
    done = call(binary, "--rounds=18", "--workdir=run")
    assert done.returncode == 74
    assert done.stderr == (
        "error: workdir=run: No space left on device: metrics.jsonl; --resume continues afterwards\n"
    )
    done = call(binary, "--rounds=17")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("backend", ["cuda", "tpu", "nonsense"])
def test_a_backend_that_is_not_there_is_refused(binary, backend):
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": backend, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command(binary), capture_output=True, text=True, check=False, env=environment)
    if backend in done.stdout:
        pytest.skip("the backend is there")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={backend}: expected a backend")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "module", ["gan_attack", "sweep", "reproduce", "gradient_inversion", "split_inference", "benchmark"]
)
def test_ctrl_c_during_the_imports_is_one_line(module):
    script = f"""
import runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
class Slow:
    def find_spec(self, name, *_):
        if name == "jax":
            print("importing", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
runpy.run_module("experiments.{module}", run_name="__main__", alter_sys=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "interrupted\n")


@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_help_begins_with_the_binary_and_its_flags(binary, flag):
    done = call(binary, flag)
    assert done.returncode == 0
    assert done.stdout.startswith("What the binary is for.")
    for text in ("--rounds: How many rounds.", "--inner.mode: <a|b>: The inner mode.", "--workdir: Directory"):
        assert text in done.stdout
    assert "absl" not in done.stdout[: done.stdout.index("--workdir")]
