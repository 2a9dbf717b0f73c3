"""A resumed run: damage is repaired to the same bits, or the run is refused in one line and nothing is changed."""

import json
import pathlib
import random
import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gan_leak.runs.federated import resumption, train
from gan_leak.runs.storage import checkpoints
from gan_leak.runs.storage.integrity import RefusedError, sealed_json
from reference.quick import small_run
from reference.whole_run import run

ROUNDS = 9
# Checkpoints of rounds 6 and 7, evaluations of rounds 2, 4 and 6.
STOPPED = 7


@pytest.fixture(scope="module", autouse=True)
def _linear_networks(linear_networks):
    """What is tested here does not depend on the networks."""


@pytest.fixture(scope="module")
def config(stripes):
    return small_run(stripes, samples_per_participant=40, rounds=ROUNDS, checkpoint_interval=3)


def stop_after(last, config, workdir, resume=False):
    """Runs until the end of a round, as Ctrl-C stops it."""
    show = train.show_record

    def interrupt(display, record):
        show(display, record)
        if record["round"] == last:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "show_record", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, workdir, resume)
    return workdir


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """What a run finds that is never interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert run(config, workdir) == 0
    return results(workdir)


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """The directory of an interrupted run; nobody may change it."""
    workdir = stop_after(STOPPED, config, tmp_path_factory.mktemp("stopped") / "run")
    before = files(workdir)
    yield workdir
    assert files(workdir) == before


@pytest.fixture
def copy(stopped, tmp_path):
    return pathlib.Path(shutil.copytree(stopped, tmp_path / "copy"))


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def results(workdir):
    """What a run found, but for the time it took: metrics, evaluations and reconstructions, bit for bit."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    images = sorted((workdir / "evaluations").iterdir())
    return (
        [{**json.loads(line), "seconds": None} for line in lines],
        {path.name: path.read_bytes() for path in images},
        (workdir / "reconstructions.npz").read_bytes(),
    )


def assert_refused(config, workdir, message):
    """The run is refused before training, in one line, and all is as it was."""
    before = files(workdir)
    with pytest.raises(RefusedError, match=message) as refusal:
        train.prepare(config, workdir, True)
    assert "\n" not in str(refusal.value)
    assert files(workdir) == before


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def flip(path, place=None, bit=0):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1 << bit
    path.write_bytes(data)


METRICS_DAMAGE = {
    "line 4 deleted": lambda lines: b"".join(lines[:3] + lines[4:]),
    "line 4 twice": lambda lines: b"".join(lines[:4] + lines[3:]),
    "last line twice": lambda lines: b"".join(lines + lines[-1:]),
    "two lines swapped": lambda lines: b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]),
    "first line deleted": lambda lines: b"".join(lines[1:]),
    "cut at a line": lambda lines: b"".join(lines[:4]),
    "cut in a line": lambda lines: b"".join(lines)[:-40],
    "a number altered": lambda lines: b"".join(lines).replace(b"1", b"2", 1),
    "a line replaced by nonsense": lambda lines: b"".join([*lines[:2], b"\xff\xfe\x00\n", *lines[3:]]),
    "emptied": lambda lines: b"",
}


@pytest.mark.parametrize("damage", METRICS_DAMAGE)
def test_damaged_metrics_are_restored(config, copy, damage):
    path = copy / "metrics.jsonl"
    intact = path.read_bytes()
    path.write_bytes(METRICS_DAMAGE[damage](lines_of(path)))
    found = resumption.plan(copy, config)
    assert (found.checkpoint.round, found.metrics) == (STOPPED, intact)
    # What follows the records of the checkpoint is dropped anyhow.
    if damage != "last line twice":
        assert f"metrics.jsonl is damaged or missing: its first {STOPPED} lines are restored from " in found.notices[0]


@pytest.mark.slow
def test_line_4_deleted_and_resumed_is_the_uninterrupted_run(config, whole, copy, capsys):
    """As ``sed -i 4d metrics.jsonl`` does, with what killed processes leave behind."""
    left = [copy / folder / f".file.npz.{'0' * 32}.tmp" for folder in ("", "evaluations", "checkpoints")]
    for path in left:
        path.touch()
    orbax = copy / "checkpoints" / "round_000008.orbax-checkpoint-tmp"
    orbax.mkdir()
    path = copy / "metrics.jsonl"
    path.write_bytes(METRICS_DAMAGE["line 4 deleted"](lines_of(path)))
    assert run(config, copy, resume=True) == 0
    assert results(copy) == whole
    assert "metrics.jsonl is damaged or missing: its first 7 lines are restored" in capsys.readouterr().err
    assert not any(path.exists() for path in [*left, orbax])


def test_a_damaged_copy_of_the_metrics_is_written_again(config, copy, capsys):
    other = copy / "checkpoints" / "metrics.jsonl"
    intact = other.read_bytes()
    flip(other)
    stop_after(STOPPED + 1, config, copy, resume=True)
    assert other.read_bytes().startswith(intact)
    assert "checkpoints/metrics.jsonl is damaged or missing: its first 7 lines are restored from metrics.jsonl" in (
        capsys.readouterr().err
    )


def test_forty_bit_flips_in_metrics_are_all_noticed(config, stopped, copy):
    path = copy / "metrics.jsonl"
    intact = path.read_bytes()
    rng = random.Random(0)
    for _ in range(40):
        flip(path, rng.randrange(len(intact)), rng.randrange(8))
        found = resumption.plan(copy, config)
        assert found.metrics == intact
        assert "metrics.jsonl is damaged" in found.notices[0]
        path.write_bytes(intact)


@pytest.mark.slow
@hypothesis.given(st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_whatever_happens_to_both_metrics_files_no_altered_record_is_taken_up(config, stopped, tmp_path_factory, data):
    """One byte, or whole lines: the records are those that were written, up to a checkpoint, or the run is refused."""
    workdir = tmp_path_factory.mktemp("both") / "run"
    shutil.copytree(stopped, workdir)
    intact = (stopped / "metrics.jsonl").read_bytes()
    for path in (workdir / "metrics.jsonl", workdir / "checkpoints" / "metrics.jsonl"):
        path.write_bytes(data.draw(damaged(intact)))
    try:
        found = resumption.plan(workdir, config)
    except RefusedError:
        assert all(path.read_bytes()[: len(intact)] != intact for path in workdir.rglob("metrics.jsonl"))
    else:
        assert found.checkpoint.round in (STOPPED - 1, STOPPED)
        assert found.metrics == b"".join(intact.splitlines(keepends=True)[: found.checkpoint.round])
    shutil.rmtree(workdir)


@st.composite
def damaged(draw, intact):
    lines = intact.splitlines(keepends=True)
    kind = draw(st.sampled_from(["byte", "delete", "duplicate", "move", "cut", "intact"]))
    if kind == "byte":
        place = draw(st.integers(0, len(intact) - 1))
        return intact[:place] + bytes([draw(st.integers(0, 255))]) + intact[place + 1 :]
    if kind == "cut":
        return intact[: draw(st.integers(0, len(intact)))]
    if kind == "intact":
        return intact
    place, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    line = lines[place]
    if kind == "duplicate":
        lines.insert(other, line)
    else:
        del lines[place]
        if kind == "move":
            lines.insert(other, line)
    return b"".join(lines)


@pytest.mark.slow
def test_both_files_damaged_after_the_older_checkpoint_cost_the_rounds_since(config, whole, copy, capsys):
    for path in (copy / "metrics.jsonl", copy / "checkpoints" / "metrics.jsonl"):
        path.write_bytes(b"".join(lines_of(path)[:6]) + b"nonsense\n")
    assert run(config, copy, resume=True) == 0
    assert results(copy) == whole
    assert "checkpoint round_000007 is skipped: metrics.jsonl is damaged before line 8" in capsys.readouterr().err


def test_scores_of_an_earlier_definition_are_refused(config, copy):
    """The smallest view instead of the product, in a directory without digests."""
    path = copy / "metrics.jsonl"
    records = [json.loads(line) for line in lines_of(path)]
    measured = [record["leakage"] for record in records if record.get("leakage")]
    for leakage in measured:
        leakage["leakage_by_representation"] = {"edges": 0.5, "judge": 0.25}
        leakage["leakage_score"] = 0.125

    (copy / "checkpoints" / "metrics.jsonl").unlink(missing_ok=True)
    for manifest in (copy / "checkpoints").glob("*.sha256"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text())["files"]))

    def write():
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    write()
    resumption.plan(copy, config)
    measured[-1]["leakage_score"] = 0.25
    write()
    assert_refused(config, copy, "its leakage scores are those of an earlier version")


def test_both_files_damaged_in_the_beginning_are_refused(config, copy):
    for path in (copy / "metrics.jsonl", copy / "checkpoints" / "metrics.jsonl"):
        path.write_bytes(METRICS_DAMAGE["line 4 deleted"](lines_of(path)))
    assert_refused(config, copy, r"every checkpoint is damaged or incomplete .*round_000006: metrics\.jsonl is damaged")


@pytest.mark.parametrize("damage", ["missing", "one bit", "cut", "of another round", "a folder"])
@pytest.mark.parametrize("round", [2, 6])
def test_a_damaged_evaluation_that_no_checkpoint_precedes_is_refused_before_training(config, copy, damage, round):
    path = copy / "evaluations" / f"round_{round:06d}.npz"
    damage_file(path, damage, path.with_name("round_000004.npz"))
    word = "missing" if damage == "missing" else "damaged"
    assert_refused(config, copy, rf"round_000007: evaluations/{path.name} is {word}; round_000006: .* is {word}")


def damage_file(path, damage, other):
    if damage == "missing":
        path.unlink()
    elif damage == "one bit":
        flip(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "of another round":
        shutil.copy(other, path)
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.slow
def test_a_damaged_evaluation_is_computed_again_from_the_checkpoint_before_it(config, whole, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run(config, workdir) == 0
    (workdir / "evaluations" / "round_000008.npz").unlink()
    assert run(config, workdir, resume=True) == 0
    assert results(workdir) == whole
    shown = capsys.readouterr().err
    assert "checkpoint round_000009 is skipped: evaluations/round_000008.npz is missing" in shown
    assert "continuing after round 6" in shown


CHECKPOINT_DAMAGE = {
    "bit": lambda path: flip(next(file for file in path.rglob("*") if file.is_file() and file.stat().st_size > 100)),
    "manifest bit": lambda path: flip(manifest(path)),
    "manifest without object": lambda path: manifest(path).write_text("[]"),
    "manifest of digits": lambda path: manifest(path).write_text("9" * 5000),
    "manifest nested": lambda path: manifest(path).write_text("[" * 100_000),
    "manifest a folder": lambda path: (manifest(path).unlink(), manifest(path).mkdir()),
    "manifest of the other": lambda path: shutil.copy(manifest(path.with_name("round_000006")), manifest(path)),
    "a file in its place": lambda path: (shutil.rmtree(path), path.touch()),
    "folder missing": shutil.rmtree,
    "link to nowhere in it": lambda path: (path / "link").symlink_to(path / "nowhere"),
    "no state, digests renewed": lambda path: reseal(path, remove="state"),
    "empty metadata, digests renewed": lambda path: reseal(path, write="_CHECKPOINT_METADATA"),
}


def manifest(path):
    return path.with_name(f"{path.name}.sha256")


def reseal(path, remove=None, write=None):
    """Damage that was there before the digests were taken, as of a disk that lost what was written."""
    beside = next(found.metadata for found in checkpoints.find(path.parent) if found.path == path)
    if write:
        (path / write).write_bytes(b"{}")
    elif (path / remove).is_dir():
        shutil.rmtree(path / remove)
    else:
        (path / remove).unlink()
    digests = checkpoints.digests_of(path)
    manifest(path).write_bytes(sealed_json(manifest(path).name, {"files": digests, "beside": beside}))


@pytest.mark.parametrize("damage", [damage for damage in CHECKPOINT_DAMAGE if "renewed" not in damage])
def test_the_checkpoint_before_a_damaged_one_is_found(config, copy, damage):
    CHECKPOINT_DAMAGE[damage](copy / "checkpoints" / "round_000007")
    found = resumption.plan(copy, config)
    assert found.checkpoint.round == 6
    assert found.notices[0].startswith("checkpoint round_000007 is skipped: ")


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize(
    "damage", ["a file in its place", "no state, digests renewed", "empty metadata, digests renewed"]
)
def test_the_checkpoint_before_a_damaged_one_is_continued(config, whole, copy, damage, capsys):
    """Whether the damage is seen at once, or by Orbax alone."""
    CHECKPOINT_DAMAGE[damage](copy / "checkpoints" / "round_000007")
    stop_after(STOPPED, config, copy, resume=True)
    shown = capsys.readouterr().err
    assert "checkpoint round_000007 is skipped: " in shown
    assert "continuing after round 6" in shown
    now = [{**json.loads(line), "seconds": None} for line in lines_of(copy / "metrics.jsonl")]
    assert now == whole[0][:STOPPED]
    assert resumption.plan(copy, config).checkpoint.round == STOPPED


@pytest.mark.parametrize("damage", ["bit", "manifest bit", "a file in its place", "folder missing"])
def test_two_damaged_checkpoints_are_refused_in_one_line(config, copy, damage):
    for path in (copy / "checkpoints" / "round_000007", copy / "checkpoints" / "round_000006"):
        CHECKPOINT_DAMAGE[damage](path)
    assert_refused(config, copy, "every checkpoint is damaged or incomplete .*choose another --workdir to begin anew")


@pytest.mark.filterwarnings("ignore:coroutine")
def test_what_orbax_cannot_read_twice_is_refused_at_the_latest_before_training(config, copy):
    for path in (copy / "checkpoints" / "round_000007", copy / "checkpoints" / "round_000006"):
        reseal(path, write="_CHECKPOINT_METADATA")
    with pytest.raises(RefusedError, match="Orbax cannot read it: KeyError"):
        run(config, copy, resume=True)
    assert lines_of(copy / "metrics.jsonl")


def test_missing_checkpoints_are_no_silent_new_start(config, copy):
    shutil.rmtree(copy / "checkpoints")
    assert_refused(config, copy, "the checkpoints are missing, of a run that was beyond round 3")
    (copy / "metrics.jsonl").unlink()
    assert_refused(config, copy, "the checkpoints are missing, of a run that was beyond round 3")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(config, whole, copy):
    shutil.rmtree(copy / "checkpoints")
    path = copy / "metrics.jsonl"
    path.write_bytes(b"".join(lines_of(path)[:3])[:-5])
    for round in (4, 6):
        (copy / "evaluations" / f"round_{round:06d}.npz").unlink()
    assert run(config, copy, resume=True) == 0
    assert results(copy) == whole


@pytest.mark.parametrize("name", ["checkpoints", "evaluations", "figures", "metrics.jsonl", "report.html"])
def test_what_stands_where_something_else_belongs_is_refused(config, copy, name):
    path = copy / name
    if path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink(missing_ok=True)
        if name == "figures":
            path.touch()
        else:
            path.mkdir()
    assert_refused(config, copy, f"{name}: expected a")


def test_directories_of_versions_without_digests_are_continued_with_a_notice(config, whole, copy, capsys):
    without_digests(copy)
    assert run(config, copy, resume=True) == 0
    records, images, reconstructions = results(copy)
    before, after = records[:STOPPED], records[STOPPED:]
    expected = [{name: record[name] for name in record if name != "images_sha256"} for record in whole[0][:STOPPED]]
    assert (before, after, images, reconstructions) == (expected, whole[0][STOPPED:], *whole[1:])
    assert "checkpoint round_000007 is of a version without digests" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["metrics", "evaluation"])
def test_directories_of_versions_without_digests_are_checked_for_completeness(config, copy, damage):
    without_digests(copy)
    if damage == "metrics":
        path = copy / "metrics.jsonl"
        path.write_bytes(METRICS_DAMAGE["line 4 deleted"](lines_of(path)))
    else:
        path = copy / "evaluations" / "round_000004.npz"
        flip(path, path.read_bytes().index(np.load(path)["images"][3].tobytes()))
    assert_refused(config, copy, "every checkpoint is damaged or incomplete")


def without_digests(workdir):
    """Turns a directory into what earlier versions wrote."""
    (workdir / "checkpoints" / "metrics.jsonl").unlink()
    path = workdir / "metrics.jsonl"
    records = [json.loads(line) for line in lines_of(path)]
    for record in records:
        record.pop("images_sha256", None)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    for one in checkpoints.find(workdir / "checkpoints"):
        digests = checkpoints.digests_of(one.path)
        manifest(one.path).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    path = workdir / "config.json"
    stored = json.loads(path.read_text())
    del stored["sha256"]
    path.write_text(json.dumps(stored, indent=2) + "\n")


@pytest.mark.slow
def test_an_interruption_between_a_round_and_its_records_loses_no_record(config, whole, tmp_path, monkeypatch):
    """Ctrl-C in an evaluation: the state is of round 4, the records are of round 3."""
    evaluate = train.evaluate_round

    def interrupt(prepared, directory, keys, state, comparison):
        if int(state.round) == 4:
            raise KeyboardInterrupt
        return evaluate(prepared, directory, keys, state, comparison)

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate_round", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    assert run(config, tmp_path / "run", resume=True) == 0
    assert results(tmp_path / "run") == whole
