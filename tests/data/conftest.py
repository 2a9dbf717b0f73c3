"""What every test of the sources asks: that a data set keeps its promises, and that bad input is refused clearly."""

import re

import numpy as np
import pytest

from gan_leak.data import load


@pytest.fixture(scope="session")
def check():
    def check(dataset, channels=1, image_size=32):
        for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
        ):
            assert images.dtype == np.uint8
            assert labels.dtype == np.int32
            assert images.shape == (len(labels), image_size, image_size, channels)
        assert re.fullmatch("[0-9a-f]{64}", dataset.fingerprint)

    return check


@pytest.fixture(scope="session")
def refuses():
    def refuses(name, *parts, **arguments):
        with pytest.raises(ValueError, match="=") as caught:
            load(name, **arguments)
        message = str(caught.value)
        assert "\n" not in message
        for part in parts:
            assert part in message, message

    return refuses
