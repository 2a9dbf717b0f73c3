"""What the tests of this folder run on."""

import pytest

from reference.quick import draw_nothing, use_linear_networks, write_stripes


@pytest.fixture(scope="session")
def stripes(tmp_path_factory):
    """An npz data set of four classes with 60 pictures each."""
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


@pytest.fixture(scope="module")
def linear_networks():
    """Networks that compile in a moment and reports without pictures, for tests of what happens around them."""
    with pytest.MonkeyPatch.context() as patch:
        use_linear_networks(patch)
        draw_nothing(patch)
        yield
