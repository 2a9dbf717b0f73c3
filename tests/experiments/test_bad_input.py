"""What would hang, fill the memory or mean something else is refused by every binary in one line, at once."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from absl import flags as absl_flags
from PIL import Image

from experiments import benchmark, gan_attack, gradient_inversion, reproduce, split_inference, sweep
from experiments.common import flags
from experiments.common.flags import config_from_arguments
from gan_leak.runs.hosts import compilation_cache as programs
from gan_leak.runs.storage.directory import close_run
from reference.quick import use_linear_networks, write_stripes

ROOT = pathlib.Path(__file__).parents[2]
BINARIES = {
    "gan_attack": (gan_attack, gan_attack.AttackFlags),
    "sweep": (sweep, sweep.SweepConfig),
    "reproduce": (reproduce, reproduce.ReproduceConfig),
    "gradient_inversion": (gradient_inversion, gradient_inversion.GradientConfig),
    "split_inference": (split_inference, split_inference.SplitConfig),
    "benchmark": (benchmark, benchmark.BenchmarkConfig),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data sets and files to be named by flags."""
    folder = tmp_path_factory.mktemp("files")
    write_stripes(folder / "stripes.npz")
    write_stripes(folder / "ten.npz", classes=10, per_class=40)
    write_stripes(folder / "color.npz", classes=4, channels=3)
    images = np.zeros((12, 8, 8), np.uint8)
    np.savez(folder / "label.npz", images=images, labels=np.array([0, 1] * 5 + [2, 2**62]))
    os.mkfifo(folder / "pipe")
    (folder / "link" / "a").mkdir(parents=True)
    (folder / "link" / "a" / "0.png").symlink_to(folder / "gone")
    return folder


def refusal(binary, arguments, workdir):
    """What the preparation of a binary says of its flags; in a thread, since what opens a pipe waits for good."""
    module, config_class = BINARIES[binary]
    said = []

    def attempt():
        try:
            prepared = module.prepare(config_from_arguments(config_class, arguments), workdir, False)
        except (ValueError, OSError) as error:
            said.append(str(error))
        else:
            close_run(prepared.directory)
            said.append("accepted")

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    assert said, "still at it after 60 seconds"
    return said[0]


DATA = ("gan_attack", "sweep", "gradient_inversion", "split_inference")
SMALL = ("--participant_classes=0,1;2,3", "--target_class=0", "--judge_samples=80", "--batch_size=16")
EVERY = [
    # Which of the binaries, their flags with {} for the folder of files, and what the line has to name.
    *((name, ["--dataset=npz:{}/label.npz"], f"from 0 to {2**62}, expected 0..K-1") for name in DATA),
    *((name, ["--dataset=npz:{}/pipe"], "a pipe, expected a file") for name in DATA),
    *((name, ["--dataset=npz:/dev/zero"], "a device, expected a file") for name in DATA),
    *((name, ["--dataset=npz:~nosuchuser/x.npz"], "expected a user who has a home directory") for name in DATA),
    *((name, ["--dataset=folder:~nosuchuser/x"], "expected a user who has a home directory") for name in DATA),
    *((name, ["--dataset=folder:{}/link"], "0.png is a link to nothing") for name in DATA),
    *((name, ["--dataset=npz:" + "a" * 5000], "File name too long") for name in DATA),
    ("reproduce", ["--figures=3", "--cifar10=npz:~nosuchuser/x.npz"], "expected a user who has a home directory"),
    ("reproduce", ["--figures=he_cifar10", "--scale=paper", "--cifar10=npz:{}/pipe"], "a pipe, expected a file"),
    ("reproduce", ["--figures=3", "--cifar10=npz:{}/ten.npz"], "grey images of 10 classes, expected color images"),
    ("reproduce", ["--figures=3", "--cifar10=mnist"], "cifar10=mnist: grey images of 10 classes"),
    ("reproduce", ["--figures=3,10,3"], "figures=3: there twice"),
    ("reproduce", ["--num_seeds=99999999999"], "num_seeds=99999999999: expected at most"),
    ("reproduce", ["--num_seeds=1001"], "num_seeds=1001: expected 0 to 1000"),
    ("reproduce", ["--workers=100000"], "workers=100000: expected at most"),
    ("sweep", ["--num_seeds=99999999999"], "num_seeds=99999999999: expected at most"),
    ("sweep", ["--num_seeds=2000000000"], "num_seeds=2000000000: expected 1 to 1000"),
    ("sweep", ["--num_seeds=1001"], "num_seeds=1001: expected 1 to 1000"),
    ("sweep", ["--workers=100000"], "workers=100000: expected at most"),
    ("sweep", ["--rounds=" + ",".join(map(str, range(1, 40_000)))], "39,999 cells (39999 of rounds) make 119,997 runs"),
    ("sweep", [f"--seed={2**63 - 2}", "--dataset=npz:{}/stripes.npz", *SMALL], f"seed={2**63}: expected 0 to"),
    ("sweep", ["--target_class=3,index:3"], "target_class=3,3: expected at least one value, and none twice"),
    ("gan_attack", ["--participant_classes=each 0-999999999"], "0-999999999: expected classes in increasing order"),
    ("gan_attack", ["--participant_classes=0-4;5-9" + ";" * 120_000], "120002 participants with room for 1000 images"),
    ("gan_attack", ["--local_epochs=99999999999"], "local_epochs=99999999999: expected at most 2147483647"),
    ("gan_attack", ["--rounds=99999999999"], "rounds=99999999999: expected at most 2147483647"),
    (
        "gan_attack",
        ["--performance.rounds_per_chunk=2000000000"],
        "rounds_per_chunk=2000000000: expected at most 10000",
    ),
    ("gan_attack", ["--generator_width=2000000000"], "generator_width=2000000000: the generator"),
    ("gan_attack", ["--fakes_per_round=2000000000"], "fakes_per_round=2000000000"),
    ("gan_attack", ["--generator_batch_size=2000000000"], "generator_batch_size=2000000000: one batch"),
    ("gan_attack", ["--evaluation_samples=2000000000"], "evaluation_samples=2000000000: the reconstructions"),
    ("gradient_inversion", ["--batch_sizes=2,1,2"], "batch_sizes=2: there twice"),
    ("gradient_inversion", ["--batch_sizes=2,02"], "batch_sizes=2: there twice"),
    ("gradient_inversion", ["--batch_sizes=" + "9" * 5000], "expected whole numbers from 1 to 999999999"),
    ("gradient_inversion", ["--batch_sizes=999999999"], "batch_sizes=999999999: expected at most 4096"),
    ("gradient_inversion", ["--defenses=none,none"], "defenses=none: there twice"),
    ("gradient_inversion", ["--defenses=gaussian:0.1,gaussian:0.10"], "defenses=gaussian 0.1: there twice"),
    ("gradient_inversion", ["--images=999999999"], "images=999999999"),
    ("gradient_inversion", ["--restarts=200000000"], "restarts=200000000"),
    ("gradient_inversion", ["--noise_size=2000000000"], "noise_size=2000000000"),
    ("gradient_inversion", ["--utility_steps=2000000000"], "utility_steps=2000000000: expected at most 1000000"),
    (
        "gradient_inversion",
        ["--attack=inverting_gradients", "--local_steps=100000"],
        "local_steps=100000: expected at most 1000",
    ),
    ("gradient_inversion", ["--gradient={}/pipe"], "a pipe, expected a file"),
    ("gradient_inversion", ["--gradient=~nosuchuser/x.npz"], "expected a user who has a home directory"),
    ("gradient_inversion", ["--gradient={}"], "a folder, expected a file"),
    ("split_inference", ["--splits=conv1, conv1"], "splits=conv1: there twice"),
    ("split_inference", ["--attacks=white_box,white_box"], "none twice"),
    ("split_inference", ["--defenses=gaussian:1,none,gaussian:1.0"], "defenses=gaussian 1: there twice"),
    ("split_inference", ["--epochs=2000000000"], "epochs=2000000000: expected at most 100000"),
    ("split_inference", ["--attack_epochs=2000000000"], "attack_epochs=2000000000: expected at most 100000"),
    ("split_inference", ["--images=99999999999"], "images=99999999999: expected at most"),
    ("benchmark", ["--groups=steps,steps"], "groups=steps: there twice"),
    ("benchmark", ["--convolutions=lax,lax"], "convolutions=lax: there twice"),
    ("benchmark", ["--mappings=vmap,vmap"], "mappings=vmap: there twice"),
    ("benchmark", ["--repeats=99999999999"], "repeats=99999999999: expected at most"),
]


@pytest.mark.parametrize(
    ("binary", "arguments", "named"), EVERY, ids=[f"{name} {given[-1][:40]}" for name, given, _ in EVERY]
)
def test_bad_input_is_refused_before_anything_is_written(files, tmp_path, binary, arguments, named):
    message = refusal(binary, [argument.replace("{}", str(files)) for argument in arguments], tmp_path / "run")
    assert named in message
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["a" * 300, "../../x", "../presets/default", "", "default\0", "/etc/passwd", "default.flags", "figure6a/"]
)
def test_a_preset_is_a_file_in_the_folder_of_presets(name):
    with pytest.raises(ValueError, match="expected one of accuracy, default") as raised:
        flags.expand_presets([f"--preset={name}"])
    assert len(str(raised.value)) < 1500


def test_presets_outside_the_folder_and_special_files_are_unknown(tmp_path, monkeypatch):
    folder = tmp_path / "presets"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "outside.flags").write_text("--rounds=1\n")
    (folder / "below" / "inner.flags").write_text("--rounds=2\n")
    (folder / "folder.flags").mkdir()
    os.mkfifo(folder / "pipe.flags")
    monkeypatch.setattr(flags, "PRESETS", folder)
    assert flags.expand_presets(["--preset=below/inner"]) == ["--rounds=2"]
    for name in ("../outside", "below/../../outside", "folder", "pipe"):
        with pytest.raises(ValueError, match=r"expected one of inner$"):
            flags.expand_presets([f"--preset={name}"])


@pytest.mark.parametrize("where", ["", " ", "~nosuchuser/x", "a\0b", os.fsdecode(b"run\xff")])
def test_a_path_that_is_none_is_refused_and_nothing_is_written_here(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    values = absl_flags.FlagValues()
    flags.define_flags(sweep.SweepConfig, values)
    values(["binary", f"--workdir={where}"])
    for attempt in (lambda: flags._workdir(values), lambda: programs.keep_compiled_programs(where)):
        with pytest.raises(ValueError, match="expected a"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_folder_to_write_to_is_utf8_from_the_root_on(tmp_path, monkeypatch):
    """What writes checkpoints takes no other names, and would say so after the first rounds."""
    here = tmp_path / os.fsdecode(b"caf\xe9")
    here.mkdir()
    monkeypatch.chdir(here)
    values = absl_flags.FlagValues()
    flags.define_flags(sweep.SweepConfig, values)
    for arguments in (["binary"], ["binary", "--workdir=run"]):
        values(arguments)
        with pytest.raises(ValueError, match=r"caf\\xe9/run.*: expected a path in UTF-8"):
            flags._workdir(values)
    assert not list(here.iterdir())


def test_home_directories_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = absl_flags.FlagValues()
    flags.define_flags(sweep.SweepConfig, values)
    values(["binary", "--workdir=~/run"])
    assert flags._workdir(values) == tmp_path / "run"


def test_flagfiles_are_files_of_a_sane_size(files, tmp_path):
    (tmp_path / "outer").write_text(f"# flags\n--flagfile={files / 'pipe'}\n")
    (tmp_path / "large").write_bytes(b"#" * (2**20 + 1))
    (tmp_path / "itself").write_text(f"--flagfile={tmp_path / 'itself'}\n--rounds=3\n")
    flags.check_flagfiles(["--flagfile=/nonexistent", f"--flagfile={tmp_path / 'itself'}", "--rounds=3"])
    for arguments, named in {
        (f"--flagfile={files / 'pipe'}",): "a pipe, expected a file",
        ("--flagfile", str(files / "pipe")): "a pipe, expected a file",
        ("--flagfile=/dev/zero",): "a device, expected a file",
        (f"--flagfile={tmp_path / 'outer'}",): "a pipe, expected a file",
        (f"--flagfile={tmp_path / 'large'}",): "expected at most 1048576 bytes",
    }.items():
        with pytest.raises(ValueError, match=named):
            flags.check_flagfiles(arguments)


def call(name, *arguments, cwd):
    """A binary in a process that may take 6 GB of memory and a minute of processor time."""
    limited = ["sh", "-c", 'ulimit -v 6000000; ulimit -t 60; exec "$0" "$@"', sys.executable]
    return subprocess.run(
        [*limited, "-m", f"experiments.{name}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("gan_attack", ["--dataset=npz:{}/label.npz", "--workdir=run"], f"from 0 to {2**62}"),
        ("gan_attack", ["--compilation_cache="], "compilation_cache='': expected a path"),
        ("gan_attack", ["--workdir="], "workdir='': expected a path"),
        ("gan_attack", ["--flagfile={}/pipe"], "a pipe, expected a file"),
        ("sweep", ["--num_seeds=99999999999", "--workdir=run"], "num_seeds=99999999999: expected"),
        ("split_inference", ["--preset=" + "a" * 300], "expected one of accuracy"),
    ],
)
def test_a_binary_says_so_in_one_line_with_status_2(files, tmp_path, name, arguments, named):
    done = call(name, *(argument.replace("{}", str(files)) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_line_is_never_longer_than_a_screen(capsys):
    with pytest.raises(SystemExit):
        flags._fail(ValueError("begin" + "x\n" * 100_000 + "end"))
    line = capsys.readouterr().err
    assert line.startswith("error: begin")
    assert line.endswith("end\n")
    assert len(line) < 2100


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Class folders 0 to 11, whose grey level is ten times their number, and one with a name that is no UTF-8."""
    folder = tmp_path_factory.mktemp("numbered")
    generator = np.random.default_rng(0)
    for name in [*map(str, range(12)), os.fsdecode(b"caf\xe9")]:
        (folder / name).mkdir()
        level = 10 * int(name) if name.isdigit() else 130
        for index in range(60):
            noise = generator.integers(0, 5, (32, 32), np.uint8)
            Image.fromarray(noise + np.uint8(level)).save(folder / name / f"{index}.png")
    (folder / "0" / "Thumbs.db").write_bytes(b"")
    return folder


FLAGS = ("--participant_classes=0-5;6-11", "--adversary=1", "--judge_samples=390", "--batch_size=16")


def prepared_for(folder, workdir, *arguments, resume=False):
    config = config_from_arguments(gan_attack.AttackFlags, [f"--dataset=folder:{folder}", *FLAGS, *arguments])
    return gan_attack.prepare(config, workdir, resume)


@pytest.mark.parametrize("target", ["2", "index:2", "name:2", " 2 "])
def test_the_target_is_the_folder_of_that_number(numbered, tmp_path, target):
    prepared = prepared_for(numbered, tmp_path / "run", f"--target_class={target}")
    close_run(prepared.directory)
    assert prepared.config.attack.target_class == 2
    # The images of folder 2, with grey levels 20 to 24.
    levels = np.rint((prepared.data.private + 1) * 127.5)
    assert 20 <= levels.min() <= levels.max() <= 24
    # What a directory keeps is the number, whichever way it was given.
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["target_class"] == 2
    again = prepared_for(numbered, tmp_path / "run", "--target_class=2", resume=True)
    close_run(again.directory)
    assert again.directory.resumed


def test_names_that_are_no_utf8_are_targets_too(numbered, tmp_path):
    target = os.fsdecode(b"caf\xe9")
    prepared = prepared_for(
        numbered, tmp_path / "run", f"--target_class={target}", f"--participant_classes=0-5,{target};6-11"
    )
    close_run(prepared.directory)
    assert prepared.config.attack.target_class == 12
    assert prepared.data.class_names[12] == "caf\\xe9"
    assert prepared.data.held_classes == ((*range(6), 12), tuple(range(6, 12)))
    assert prepared.data.notes[0].endswith("Thumbs.db")


@pytest.mark.parametrize(
    ("target", "named"),
    [("13", "target_class=13: expected 0 to 12, or the name"), ("dog", "target_class=dog: expected 0 to 12")],
)
def test_a_target_that_there_is_not_is_refused(numbered, tmp_path, target, named):
    with pytest.raises(ValueError, match=named):
        prepared_for(numbered, tmp_path / "run", f"--target_class={target}")
    assert not (tmp_path / "run").exists()


def test_a_number_that_is_the_name_of_another_class_is_refused(tmp_path):
    for name in ("5", "7"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / name / "0.png")
    with pytest.raises(ValueError, match=r"target_class=5: a number and the name of another class; expected index:0"):
        prepared_for(tmp_path / "data", tmp_path / "run", "--target_class=5")


def test_a_sweep_takes_targets_by_name_and_number(files, tmp_path):
    arguments = [f"--dataset=npz:{files / 'stripes.npz'}", *SMALL[:1], *SMALL[2:], "--num_seeds=1"]
    config = config_from_arguments(sweep.SweepConfig, [*arguments, "--target_class=0,name:1"])
    prepared = sweep.prepare(config, tmp_path / "run", False)
    close_run(prepared.directory)
    assert [cell.swept for cell in prepared.cells] == [{"target_class": 0}, {"target_class": 1}]
    assert [cell.lanes[0].attack.target_class for cell in prepared.cells] == [0, 1]
    assert prepared.description[0].startswith("participant 0: 0, 1 (")


def test_a_run_begins_with_who_owns_what(numbered, tmp_path, monkeypatch, capsys):
    prepared = prepared_for(numbered, tmp_path / "run", "--target_class=2", "--samples_per_participant=32")
    close_run(prepared.directory)
    monkeypatch.setattr(gan_attack, "run_and_report", lambda prepared: print("training", file=sys.stderr))
    gan_attack.execute(prepared)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith(f"dataset=folder:{numbered}: skipped 1 entry")
    assert lines == [
        "participant 0: 0 to 5 (32 images)",
        "participant 1, the adversary: 6 to 11 (32 images)",
        "target of the active attack: class 2 (number 2), owned by participant 0",
        "training",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("binary", "arguments"),
    [
        ("gradient_inversion", ["--dataset=folder:{}", "--images=1"]),
        ("split_inference", ["--network=cifar10", "--dataset=folder:{}", "--images=2"]),
        ("reproduce", ["--figures=3", "--cifar10=folder:{}", "--most_samples=64"]),
    ],
)
def test_every_binary_tells_of_skipped_files(tmp_path, capsys, binary, arguments):
    generator = np.random.default_rng(0)
    for name in range(10):
        (tmp_path / "data" / str(name)).mkdir(parents=True)
        for index in range(60):
            pixels = generator.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / str(name) / f"{index}.png")
    (tmp_path / "data" / "0" / "Thumbs.db").write_bytes(b"")
    module, kind = BINARIES[binary]
    config = config_from_arguments(kind, [argument.format(tmp_path / "data") for argument in arguments])
    prepared = module.prepare(config, tmp_path / "run", False)
    close_run(prepared.directory)
    assert capsys.readouterr().err.count("Thumbs.db") == 1


@pytest.mark.slow
def test_a_run_on_names_that_are_no_utf8_ends_with_its_report(numbered, tmp_path, monkeypatch):
    """The path of the data and the attacked class are bytes that are no UTF-8."""
    use_linear_networks(monkeypatch)
    data = tmp_path / os.fsdecode(b"data\xff")
    data.symlink_to(numbered)
    target = os.fsdecode(b"caf\xe9")
    prepared = prepared_for(
        data,
        tmp_path / "run",
        *(f"--target_class={target}", f"--participant_classes=0-5,{target};6-11"),
        *("--rounds=2", "--evaluation_interval=1", "--evaluation_samples=8", "--samples_per_participant=70"),
        *("--generator_steps=1", "--generator_batch_size=8", "--fakes_per_round=16"),
    )
    assert gan_attack.execute(prepared) == 0
    page = (prepared.directory.path / "report.html").read_text(encoding="utf-8")
    assert "class caf\\xe9" in page
    assert "data\\udcff" in page


def test_binaries_start_without_the_libraries_that_only_a_run_needs():
    """Help and bad input would take twice as long."""
    heavy = {"matplotlib", "orbax", "tensorflow", "scipy.linalg", "scipy.ndimage", "scipy.signal", "scipy.stats"}
    modules = [module.__name__ for module, _ in BINARIES.values()]
    probe = f"import sys; import {', '.join(modules)}; print(*sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT)
    assert done.stdout.split() == []
