"""Runs of which a few participants are drawn for each round: all drawn is all, and every stop resumes to the same."""

import shutil

import numpy as np
import pytest

from gan_leak.runs.federated import train
from gan_leak.settings import replace
from reference import whole_run
from reference.quick import draw_nothing, small_run, use_linear_networks

pytestmark = pytest.mark.slow

PARTICIPANTS = 6


@pytest.fixture(autouse=True)
def _linear_networks(monkeypatch):
    use_linear_networks(monkeypatch)
    draw_nothing(monkeypatch)


@pytest.fixture
def config(stripes):
    return small_run(
        stripes,
        participant_classes="0;1;2;3;1,2;2,3",
        adversary=5,
        batch_size=8,
        # Each keeps most of its own parameters, so that what was kept between its turns makes a difference.
        download_fraction=0.3,
        upload_fraction=0.5,
        participants_per_round=2,
        rounds=12,
        evaluation_interval=4,
        checkpoint_interval=3,
    )


def run(config, workdir, resume=False):
    assert whole_run.run(config, workdir, resume) == 0
    return whole_run.measured(workdir)


def saved(workdir):
    return {path.name for path in (workdir / "participants").iterdir()}


@pytest.mark.parametrize("schedule", ["round_robin", "synchronous"])
def test_to_draw_everybody_is_to_have_everybody(config, tmp_path, schedule):
    config = replace(config, schedule=schedule, participants_per_round=PARTICIPANTS, rounds=5)
    drawn = run(config, tmp_path / "drawn")
    all_of_them = run(replace(config, participants_per_round=0), tmp_path / "all")
    assert [record.pop("participants") for record in drawn] == [list(range(PARTICIPANTS))] * 5
    for ours, theirs in zip(drawn, all_of_them, strict=True):
        np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=1e-4)
        assert ours["attack"] == pytest.approx(theirs["attack"], rel=1e-3)
    assert drawn[0]["losses"] != drawn[-1]["losses"]


def test_the_attack_rests_where_the_adversary_is_not_drawn(config, tmp_path):
    records = run(config, tmp_path / "run")
    assert {len(record["participants"]) for record in records} == {2}
    assert {len(record["losses"]) for record in records} == {2}
    took_part = [config.attack.adversary in record["participants"] for record in records]
    assert 0 < sum(took_part) < len(records)
    assert [record["attack"] is not None for record in records] == took_part
    seen = {participant for record in records for participant in record["participants"]}
    assert seen == set(range(PARTICIPANTS))
    # One file each, and those that the checkpoint before the last one needs.
    assert PARTICIPANTS <= len(saved(tmp_path / "run")) <= 2 * PARTICIPANTS


def test_another_seed_draws_others(config, tmp_path):
    config = replace(config, attack="none")
    first, second = (
        [record["participants"] for record in run(replace(config, seed=seed), tmp_path / str(seed))] for seed in (0, 1)
    )
    assert first != second


@pytest.mark.parametrize("stop_after", [2, 3, 8])
def test_an_interrupted_run_resumes_to_the_same_bits(config, tmp_path, monkeypatch, stop_after):
    whole = run(config, tmp_path / "whole")
    show = train.show_record

    def interrupt(display, record):
        show(display, record)
        if record["round"] == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "show_record", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "parts")
    assert run(config, tmp_path / "parts", resume=True) == whole
    assert saved(tmp_path / "parts") >= {name for name in saved(tmp_path / "whole") if name.endswith("_000012.npz")}


def test_the_checkpoint_before_a_damaged_one_still_finds_its_participants(config, tmp_path):
    whole = run(config, tmp_path / "whole")
    short = tmp_path / "short"
    run(config, short)
    newest = sorted((short / "checkpoints").glob("round_*.sha256"))[-1]
    newest.write_text("{}")
    assert run(config, short, resume=True) == whole


def test_a_copy_without_a_participant_s_file_is_refused(config, tmp_path):
    run(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "round_000012")
    (tmp_path / "run" / "checkpoints" / "round_000012.sha256").unlink()
    for path in (tmp_path / "run" / "participants").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"participant_\d{6}_round_\d{6}.npz: missing"):
        run(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize("damage", ["one bit", "of a version without digests"])
def test_a_damaged_participant_of_the_newest_checkpoint_costs_the_rounds_since(config, tmp_path, capsys, damage):
    """Noticed before training, although the participant may not be drawn again."""
    whole = run(config, tmp_path / "run")
    participants = tmp_path / "run" / "participants"
    path = max(participants.iterdir(), key=lambda path: path.name.split("_round_")[1])
    assert path.name.endswith("_round_000012.npz")
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        with np.load(path) as archive:
            np.savez(path, **archive)
    capsys.readouterr()
    assert run(config, tmp_path / "run", resume=True) == whole
    shown = capsys.readouterr().err
    if damage == "of a version without digests":
        assert "skipped" not in shown
    else:
        assert "checkpoint round_000012 is skipped: " in shown
        assert path.name in shown


def test_more_than_there_are_cannot_be_drawn(config, tmp_path):
    with pytest.raises(ValueError, match="participants_per_round=7: expected at most 6, the number of participants"):
        train.prepare(replace(config, participants_per_round=7), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()
