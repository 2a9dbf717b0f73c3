"""Every test runs with the checks that JAX leaves off, and hypothesis draws the same examples in every run."""

import os

import hypothesis
import jax
import pytest

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("repeatable", deadline=None, max_examples=40, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory):
    """Judges are cached for this session only; GAN_LEAK_TEST_CACHE names a directory that outlives it."""
    with pytest.MonkeyPatch.context() as patch:
        kept = os.environ.get("GAN_LEAK_TEST_CACHE")
        patch.setenv("XDG_CACHE_HOME", kept or str(tmp_path_factory.mktemp("cache")))
        yield
