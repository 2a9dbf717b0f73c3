"""The run directory: nothing half written, nothing mixed up, one writer."""

import json
import math
import os
import pathlib
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.config import RunConfig, make_config
from gan_leak.performance import PerformanceOptions
from gan_leak.runs.storage import directory
from gan_leak.runs.storage.integrity import sealed_json
from gan_leak.settings import from_json, replace, to_json

CONFIG = make_config()
REAL = st.floats(allow_nan=False)


@pytest.fixture
def opened():
    """Opens runs and closes those that are still open at the end."""
    runs = []

    def open_run(workdir, config=CONFIG, *, resume=False):
        runs.append(directory.open_run(workdir, config, resume=resume))
        return runs[-1]

    yield open_run
    for run in runs:
        directory.close_run(run)


def begun(workdir, config=CONFIG):
    run = directory.open_run(workdir, config, resume=False)
    directory.close_run(run)
    return run


@hypothesis.given(REAL, REAL, st.integers(), st.text(), st.integers())
@hypothesis.settings(max_examples=50, deadline=None)
def test_config_survives_strict_json_exactly(bound, rate, seed, dataset, chunk):
    config = replace(
        CONFIG,
        upload_bound=bound,
        learning_rate=rate,
        seed=seed,
        dataset=dataset,
        performance=PerformanceOptions(rounds_per_chunk=chunk),
    )
    text = json.dumps(to_json(config), allow_nan=False)
    assert from_json(RunConfig, json.loads(text)) == config


def test_infinity_is_text_in_json():
    assert to_json(replace(CONFIG, upload_bound=math.inf))["upload_bound"] == "inf"
    assert to_json(replace(CONFIG, upload_bound=-math.inf))["upload_bound"] == "-inf"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.update(sneed=1), "unknown sneed"),
        (lambda data: data.pop("seed"), "missing seed"),
        (lambda data: data.update(seed="1"), "seed='1'"),
        (lambda data: data.update(seed=True), "seed=True"),
        (lambda data: data.update(seed=1.0), "seed=1.0"),
        (lambda data: data.update(learning_rate="fast"), "learning_rate='fast'"),
        (lambda data: data.update(performance=3), "performance=3"),
        (lambda data: data["performance"].pop("convolution"), "missing performance.convolution"),
        (lambda data: data["performance"].update(rounds_per_chunk=None), "performance.rounds_per_chunk=None"),
    ],
)
def test_damaged_config_names_the_field(change, named):
    data = to_json(CONFIG)
    change(data)
    with pytest.raises(ValueError, match=named):
        from_json(RunConfig, data)


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match="learning_rate=nan"):
        to_json(replace(CONFIG, learning_rate=math.nan))


def test_config_file_holds_all_that_reproduces_the_run(tmp_path, opened):
    run = opened(tmp_path / "deep" / "run")
    stored = json.loads((run.path / "config.json").read_text())
    assert from_json(RunConfig, stored["config"]) == CONFIG
    assert set(stored["versions"]) == {
        "python",
        "gan_leak",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "numpy",
        "orbax-checkpoint",
    }
    assert {"backend", "device_kind", "device_count", "cpu_count"} < set(stored)
    assert (run.resumed, run.differences) == (False, ())


def test_resume_takes_up_the_same_run(tmp_path, opened):
    begun(tmp_path)
    run = opened(tmp_path, resume=True)
    assert (run.resumed, run.differences) == (True, ())


@pytest.mark.parametrize("exists", [True, False])
def test_resume_without_a_run_starts_anew(tmp_path, opened, exists):
    workdir = tmp_path / "run"
    if exists:
        workdir.mkdir()
    assert not opened(workdir, resume=True).resumed


def test_start_interrupted_before_its_config_is_no_obstacle(tmp_path, opened):
    (tmp_path / "lock").touch()
    leftover = tmp_path / f".config.json.{'0123' * 8}.tmp"
    leftover.write_bytes(b"{")
    assert not opened(tmp_path).resumed
    assert not leftover.exists()


def test_same_run_again_without_resume_is_refused(tmp_path):
    begun(tmp_path)
    with pytest.raises(ValueError, match="--resume to continue it or choose another --workdir"):
        directory.open_run(tmp_path, CONFIG, resume=False)


@pytest.mark.parametrize("resume", [True, False])
def test_another_configuration_is_refused_and_told(tmp_path, resume):
    begun(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    other = replace(CONFIG, seed=7, upload_bound=0.5)
    with pytest.raises(ValueError, match="another configuration") as refusal:
        directory.open_run(tmp_path, other, resume=resume)
    message = str(refusal.value)
    assert "seed was 0, now 7" in message
    assert 'upload_bound was "inf", now 0.5' in message
    assert (tmp_path / "config.json").read_bytes() == before


def test_other_inputs_are_refused_on_resume(tmp_path, opened):
    """The flags name a file; what is in it may have changed."""
    directory.close_run(directory.open_run(tmp_path, CONFIG, resume=False, inputs={"dataset": "12ab", "gradient": "x"}))
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r'holds a run on another dataset .SHA-256 was "12ab", now "34cd"'):
        directory.open_run(tmp_path, CONFIG, resume=True, inputs={"dataset": "34cd", "gradient": "x"})
    assert (tmp_path / "config.json").read_bytes() == before
    same = directory.open_run(tmp_path, CONFIG, resume=True, inputs={"dataset": "12ab", "gradient": "x"})
    directory.close_run(same)
    assert same.resumed
    assert not same.differences


def test_how_fast_a_run_goes_may_change_on_the_way(tmp_path, opened):
    begun(tmp_path)
    run = opened(tmp_path, resume=True, config=replace(CONFIG, performance=PerformanceOptions(convolution="lax")))
    assert run.differences == ('performance.convolution was "auto" when the run began, now "lax"',)


def test_field_of_another_release_is_told(tmp_path):
    begun(tmp_path)
    path = tmp_path / "config.json"
    stored = directory.read_config_file(tmp_path)
    stored["config"]["bygone"] = 1
    path.write_bytes(sealed_json(path.name, stored))
    with pytest.raises(ValueError, match="bygone was 1, now absent"):
        directory.open_run(tmp_path, CONFIG, resume=True)


def test_changed_environment_is_returned_on_resume(tmp_path, opened):
    begun(tmp_path)
    path = tmp_path / "config.json"
    stored = directory.read_config_file(tmp_path)
    stored["versions"]["jax"] = "0.0.1"
    stored["device_count"] = 99
    path.write_bytes(sealed_json(path.name, stored))
    differences = opened(tmp_path, resume=True).differences
    assert len(differences) == 2
    assert differences[0].startswith('versions.jax was "0.0.1" when the run began, now ')
    assert differences[1].startswith("device_count was 99")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"config": {"seed"',
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"config": {}}',
        b'{"config": [], "versions": {}}',
        b'{"config": {}, "versions": 3}',
        b'{"config": {}, "versions": {}, "inputs": ["dataset"]}',
        b'{"config": {}, "versions": {}, "inputs": null}',
        b'{"config": {"seed": 1}, "versions": {}, "surprise": 1}',
        b'{"config": {"seed": NaN}, "versions": {}, "sha256": "12"}',
    ],
)
def test_malformed_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json.*choose another --workdir") as refusal:
        directory.open_run(tmp_path, CONFIG, resume=True, inputs={"dataset": "12ab"})
    assert "\n" not in str(refusal.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"config.json": content}


@pytest.mark.parametrize(
    "content", [b'{"config": {"performance": 3}, "versions": {}}', b'{"config": {"seed": {}}, "versions": {}}']
)
def test_config_with_values_of_other_types_is_another_configuration(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="another configuration"):
        directory.open_run(tmp_path, CONFIG, resume=True)


def test_every_changed_byte_of_a_config_is_refused(tmp_path):
    begun(tmp_path)
    path = tmp_path / "config.json"
    intact = path.read_bytes()
    for place in range(0, len(intact), 7):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        with pytest.raises(ValueError, match=r"config\.json: damaged .*choose another --workdir"):
            directory.open_run(tmp_path, CONFIG, resume=True)


def test_config_without_a_digest_is_taken_up(tmp_path, opened):
    begun(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["sha256"]
    path.write_text(json.dumps(stored))
    run = opened(tmp_path, resume=True)
    assert (run.resumed, run.differences) == (True, ())


def test_directory_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        directory.open_run(tmp_path, CONFIG, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="cannot be written"):
            directory.open_run(workdir, CONFIG, resume=False)


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs a directory that even root cannot write")
def test_unwritable_directory_is_refused():
    with pytest.raises(ValueError, match="cannot be written"):
        directory.open_run(pathlib.Path("/proc/self/run"), CONFIG, resume=False)


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_refused_run_leaves_no_trace(tmp_path, monkeypatch):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    begun(tmp_path / "run")
    (tmp_path / "run" / "lock").unlink()
    leftover = tmp_path / "run" / f".metrics.jsonl.{'0' * 32}.tmp"
    leftover.touch()
    before = contents(tmp_path)
    other = replace(CONFIG, seed=7)

    def refuse(path):
        raise ValueError("damaged")

    for name, config, settings in [
        ("thesis", CONFIG, {"resume": False}),
        ("thesis/thesis.tex/below", CONFIG, {"resume": False}),
        ("run", CONFIG, {"resume": False}),
        ("run", other, {"resume": True}),
        ("run", CONFIG, {"resume": True, "inputs": {"dataset": "12ab"}}),
        ("run", CONFIG, {"resume": True, "check": refuse}),
    ]:
        with pytest.raises(ValueError, match=r"."):
            directory.open_run(tmp_path / name, config, **settings)
        assert contents(tmp_path) == before
    monkeypatch.setattr(directory, "write_atomic", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(ValueError, match="no space"):
        directory.open_run(tmp_path / "new" / "deep", CONFIG, resume=False)
    assert contents(tmp_path) == before


def test_what_a_check_sees_is_as_it_was(tmp_path, opened):
    begun(tmp_path)
    leftover = tmp_path / f".metrics.jsonl.{'0' * 32}.tmp"
    leftover.touch()
    seen = []
    run = directory.open_run(tmp_path, CONFIG, resume=True, check=lambda path: seen.append(contents(path)))
    directory.close_run(run)
    assert seen == [[leftover.name, "config.json", "lock"]]
    assert not leftover.exists()


def test_temporary_files_of_others_stay(tmp_path, opened):
    begun(tmp_path)
    (tmp_path / "evaluations").mkdir()
    ours = tmp_path / "evaluations" / f".round_000002.npz.{'a1' * 16}.tmp"
    theirs = tmp_path / "evaluations" / ".notes.tmp"
    ours.touch()
    theirs.touch()
    opened(tmp_path, resume=True)
    assert not ours.exists()
    assert theirs.exists()


RACE = """
import pathlib, sys
from gan_leak.config import make_config
from gan_leak.runs.storage import directory

workdir, refused = pathlib.Path(sys.argv[1]), sys.argv[2] == "refused"
if refused:
    directory.write_atomic = lambda *_: (_ for _ in ()).throw(ValueError("refused"))
print("ready", flush=True)
sys.stdin.readline()
for turn in range(100):
    try:
        run = directory.open_run(workdir / str(turn), make_config(), resume=True)
    except ValueError as error:
        assert refused or "another process" in str(error), error
        print(turn, "no", flush=True)
    else:
        print(turn, "yes", flush=True)
# What is open is held until all have had their turns.
sys.stdin.readline()
"""


@pytest.mark.slow
def test_a_lock_that_a_refused_process_removes_is_locked_by_one_at_most(tmp_path):
    kinds = ("opens", "opens", "refused", "refused")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, tmp_path, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for kind in kinds
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    opened = [[process.stdout.readline().split()[1] == "yes" for _ in range(100)] for process in processes]
    for process in processes:
        process.communicate("\n")
        assert process.returncode == 0
    for turn, (first, second, *others) in enumerate(zip(*opened, strict=True)):
        assert not (first and second)
        assert not any(others)
        if first or second:
            assert contents(tmp_path / str(turn)) == ["config.json", "lock"]


def test_one_writer_at_a_time(tmp_path, opened):
    run = directory.open_run(tmp_path, CONFIG, resume=False)
    with pytest.raises(ValueError, match="another process"):
        directory.open_run(tmp_path, CONFIG, resume=True)
    directory.close_run(run)
    assert opened(tmp_path, resume=True).resumed


def test_lock_ends_with_its_process(tmp_path, opened):
    code = (
        "import os, pathlib, signal, sys\n"
        "from gan_leak.config import make_config\n"
        "from gan_leak.runs.storage import directory\n"
        "directory.open_run(pathlib.Path(sys.argv[1]), make_config(), resume=False)\n"
        "print('open', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(ValueError, match="another process"):
            directory.open_run(tmp_path, CONFIG, resume=True)
        process.kill()
    assert opened(tmp_path, resume=True).resumed


def test_refusals_leak_no_descriptor(tmp_path):
    begun(tmp_path)
    descriptors = pathlib.Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        with pytest.raises(ValueError, match="--resume"):
            directory.open_run(tmp_path, CONFIG, resume=False)
    assert len(list(descriptors.iterdir())) == before


def test_metrics_come_back_with_no_number_that_json_lacks(tmp_path, opened):
    run = opened(tmp_path)
    assert directory.read_metrics(run) == []
    directory.append_metrics(run, {"round": 1, "loss": math.nan, "nested": {"bounds": (math.inf, -math.inf, 0.1)}})
    directory.append_metrics(run, {"round": np.int64(2), "loss": jnp.float32(0.5), "curve": np.array([1.0, np.nan])})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert directory.read_metrics(run) == [
        {"round": 1, "loss": None, "nested": {"bounds": [None, None, 0.1]}},
        {"round": 2, "loss": 0.5, "curve": [1.0, None]},
    ]


@pytest.mark.parametrize("record", [{}, {"round": 1.5}, {"round": math.nan}])
def test_metrics_without_a_round_are_refused(tmp_path, opened, record):
    with pytest.raises(ValueError, match="round="):
        directory.append_metrics(opened(tmp_path), record)


def test_torn_line_is_ignored(tmp_path, opened):
    run = opened(tmp_path)
    directory.append_metrics(run, {"round": 1})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"round": 2, "lo')
    assert directory.read_metrics(run) == [{"round": 1}]


def test_damaged_line_in_the_middle_is_not_passed_over(tmp_path, opened):
    run = opened(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        directory.read_metrics(run)


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    directory.write_atomic(path, b"old")

    def refuse(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space"):
        directory.write_atomic(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]
