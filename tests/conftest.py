"""Every test runs with the checks that JAX leaves off, and hypothesis draws the same examples in every run."""

import hypothesis
import jax

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("repeatable", deadline=None, max_examples=40, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")
