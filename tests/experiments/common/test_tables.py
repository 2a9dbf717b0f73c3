"""What the binaries for single gradients and split inference share: rows that are kept, charts, and flags."""

import time
import types

import numpy as np
import pytest

from experiments.common.tables import (
    AppliedDefense,
    Drawn,
    defended_name,
    keep_row,
    part_of_row,
    picture_files,
    tell_row,
    weight_or_own,
)
from gan_leak.reports.reconstruction import measured_row

IMAGES = np.zeros((2, 8, 8, 1), np.float32)


def drawn(undefended, defense, **measures):
    measures = {"ssim": [0.1, 0.2], "re_identified": [1.0, 0.0], **measures}
    row = measured_row(defended_name(undefended, defense), "attack", measures)
    return Drawn(row, IMAGES, IMAGES, undefended, defense, 0.0)


def test_what_was_reached_stays_until_the_row_is_there(tmp_path):
    directory = types.SimpleNamespace(path=tmp_path)
    part = part_of_row(directory, 3)

    def die():
        part.write_bytes(b"hours of work")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_row(directory, 3, die)
    assert part.exists()
    kept, seconds = keep_row(directory, 3, lambda: time.sleep(0.01) or {"images": IMAGES})
    assert not part.exists()
    assert seconds >= 0.01
    again, still = keep_row(directory, 3, lambda: pytest.fail("computed twice"))
    assert still == seconds
    for arrays in (kept, again):
        assert list(arrays) == ["images"]
        np.testing.assert_array_equal(arrays["images"], IMAGES)


@pytest.mark.parametrize("damage", ["one bit", "cut short", "empty", "another row", "a folder", "no images"])
def test_a_damaged_row_is_renamed_and_computed_again(tmp_path, capfd, damage):
    directory = types.SimpleNamespace(path=tmp_path)
    for index in (0, 1):
        keep_row(directory, index, lambda index=index: {"images": IMAGES + index})
    path = tmp_path / "rows" / "001.npz"
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[len(data) // 2] ^= 1
    elif damage == "another row":
        data = (tmp_path / "rows" / "000.npz").read_bytes()
    else:
        data = data[: len(data) // 2] if damage == "cut short" else b""
    path.write_bytes(data)
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    elif damage == "no images":
        np.savez(path, seconds=np.array(1.0))
    kept, _ = keep_row(directory, 1, lambda: {"images": IMAGES + 1})
    np.testing.assert_array_equal(kept["images"], IMAGES + 1)
    assert "001.npz: damaged" in (shown := "".join(capfd.readouterr())) or "001.npz: not an ordinary" in shown
    assert "renamed to 001.npz.damaged and computed again" in shown
    assert (tmp_path / "rows" / "001.npz.damaged").exists()
    again, _ = keep_row(directory, 1, lambda: pytest.fail("computed twice"))
    np.testing.assert_array_equal(again["images"], IMAGES + 1)


def test_a_row_of_a_version_without_digests_is_used_and_said_to_be(tmp_path, capfd):
    directory = types.SimpleNamespace(path=tmp_path)
    (tmp_path / "rows").mkdir()
    np.savez(tmp_path / "rows" / "000.npz", images=IMAGES, seconds=np.array(2.0))
    kept, seconds = keep_row(directory, 0, lambda: pytest.fail("computed again"))
    assert (list(kept), seconds) == (["images"], 2.0)
    assert "000.npz: of a version without digests" in "".join(capfd.readouterr())


def test_a_row_saved_under_the_former_name_of_a_measure_is_read(tmp_path):
    directory = types.SimpleNamespace(path=tmp_path)
    saved = {"images": IMAGES, "singled_out": np.ones(2), "control_singled_out": np.zeros(2)}
    keep_row(directory, 0, lambda: saved)
    kept, _ = keep_row(directory, 0, lambda: pytest.fail("computed again"))
    assert list(kept) == ["images", "re_identified", "control_re_identified"]
    np.testing.assert_array_equal(kept["re_identified"], saved["singled_out"])


def test_every_setting_with_several_defences_has_a_chart_of_its_own():
    defenses = (AppliedDefense(), AppliedDefense("dropout", 0.5), AppliedDefense("dropout", 0.9))
    shallow = [drawn("conv1", defense, model_accuracy=0.9) for defense in defenses]
    deep = [drawn("ReLU2", defense, model_accuracy=0.9) for defense in defenses[:2]]
    alone = [drawn("pool1", AppliedDefense(), model_accuracy=0.9), drawn("fc1", defenses[1])]
    captions = [caption for caption in picture_files([*shallow, *deep, *alone]) if "over utility" in caption]
    assert captions == [
        f"{measure} over utility for each defense, {split}; the numbers are strengths."
        for split in ("conv1", "ReLU2")
        for measure in ("SSIM of reconstructions", "Share of images re-identified")
    ]


def test_a_measure_that_nothing_could_be_told_of_is_said_to_be_missing(capfd):
    tell_row(measured_row("broken", "attack", {"distance": [np.nan], "psnr": [3.0]}))
    assert "broken: PSNR in dB 3.00, distance n/a" in "".join(capfd.readouterr())


def test_exact_pictures_count_with_100_decibels_in_every_measure():
    for name in ("psnr", "control_psnr", "psnr_of_others", "class_psnr"):
        assert measured_row("row", "attack", {name: [np.inf, 50.0]})["metrics"][name]["mean"] == 75.0


def test_a_weight_is_given_or_the_attack_s_own():
    assert weight_or_own("total_variation", -1.0, 0.3) == 0.3
    assert weight_or_own("total_variation", 0.0, 0.3) == 0.0
    for bad in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"total_variation={bad}: expected -1 or a finite number from 0"):
            weight_or_own("total_variation", bad, 0.3)
