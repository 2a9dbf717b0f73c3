"""Descriptions: what is described at once is described as one by one."""

import jax
import numpy as np

from gan_leak.evaluation.descriptions import describe_gallery, describe_sets
from gan_leak.evaluation.judge import Judge, network


def test_sets_that_are_described_at_once_are_as_one_by_one():
    random = np.random.default_rng(0)
    sets = {name: random.uniform(-1, 1, (count, 16, 16, 1)) for name, count in {"a": 3, "b": 1, "c": 6}.items()}
    gallery = random.uniform(-1, 1, (8, 16, 16, 1)).astype(np.float32)
    judge = Judge(network(2, gallery.shape[1:]).init(jax.random.key(0)), num_classes=2, test_accuracy=0.5)
    describe, own = describe_gallery(judge, gallery)
    at_once = describe_sets(describe, {**sets, "gallery": gallery})
    assert list(at_once) == ["a", "b", "c", "gallery"]
    for name, images in sets.items():
        for key, values in describe(images.astype(np.float32)).items():
            np.testing.assert_allclose(at_once[name][key], values, atol=1e-4)
    for key, values in own.items():
        np.testing.assert_allclose(at_once["gallery"][key], values, atol=1e-4)
    assert own["features"].shape == (8, 128)
    assert own["logits"].shape == (8, 3)
    assert describe_sets(describe, {}) == {}
