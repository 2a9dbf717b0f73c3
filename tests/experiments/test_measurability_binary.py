"""The binary that tests the leakage score: the cells that its flags ask for, and bad data sets."""

import numpy as np
import pytest

from experiments.common.measurability_rows import PRIVATE_IMAGES
from experiments.measurability import MeasurabilityConfig, prepare
from gan_leak.runs.storage.directory import close_run


@pytest.mark.parametrize("flag", ["spoken_digits", "color_images"])
def test_a_further_data_set_adds_its_classes(tmp_path, flag):
    path = tmp_path / "mine.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (200, 32, 32, 3), np.uint8), labels=np.arange(200, dtype=np.int32) % 10)
    prepared = prepare(MeasurabilityConfig(**{flag: f"npz:{path}"}), tmp_path / "run", False)
    close_run(prepared.directory)
    added = [config for name, config in prepared.cells if name == flag.replace("_", " ")]
    assert len(added) == 10 * len(PRIVATE_IMAGES)
    assert {config.data.dataset for config in added} == {f"npz:{path}"}
    assert {config.attack.target_class for config in added} == set(range(10))


@pytest.mark.parametrize("flag", ["spoken_digits", "color_images"])
def test_a_missing_data_set_is_refused_before_there_is_a_directory(tmp_path, flag):
    with pytest.raises((ValueError, OSError), match=r"nowhere\.npz"):
        prepare(MeasurabilityConfig(**{flag: "npz:/nowhere.npz"}), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()
