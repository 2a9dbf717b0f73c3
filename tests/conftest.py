"""Every test runs with the checks that JAX leaves off, and hypothesis draws the same examples in every run."""

import contextlib
import mmap
import os
import pathlib
import sys

import hypothesis
import jax
import jaxlib
import pytest
from jax._src import compiler

from gan_leak.evaluation import judge

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Nearly all time goes into compiling programs that run for milliseconds.
jax.config.update("jax_disable_most_optimizations", True)


def _knows(flag):
    """Whether the compiler has the flag; it ends the process if it is told of one that it does not know."""
    library = pathlib.Path(jaxlib.__file__).with_name("libjax_common.so")
    if not library.exists():
        return False
    with library.open() as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(flag.encode()) >= 0


# The emitters of fused loops take more than half of the time in the compiler, and programs in parts for many threads a
# twentieth more, of which every core already has a process of tests. The compiler reads the variable at its first
# program, and so does every process that a test starts.
EMITTERS = "xla_cpu_use_fusion_emitters"
for flag, value in {EMITTERS: "false", "xla_cpu_parallel_codegen_split_count": "1"}.items():
    if flag not in (given := os.environ.get("XLA_FLAGS", "")) and _knows(flag):
        os.environ["XLA_FLAGS"] = f"{given} --{flag}={value}"

hypothesis.settings.register_profile("repeatable", deadline=None, max_examples=40, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


# Processes that share the tests take whole files, in this order: a long one at the end would keep the others waiting.
LONGEST = (
    # Trains the judge that the others take from the cache.
    "evaluation/test_judge",
    "campaign/test_bit_flips",
    "runs/federated/test_train",
    "experiments/test_many_processes",
    "experiments/test_gradients_of_users",
    "experiments/test_reproduce",
    "runs/federated/test_batch",
    "experiments/reproduction/test_other_papers",
    "test_readme",
    "experiments/test_gan_attack",
    "evaluation/test_leakage",
    "runs/federated/test_cohorts",
    "attacks/gradient/test_gradient_inversion",
    "attacks/server/test_representatives",
    "attacks/server/test_mgan_ai",
    "experiments/test_split_binary",
    "experiments/test_benchmark",
    "experiments/test_gradient_binary",
    "campaign/test_kills",
    "evaluation/test_measurability",
    "collaboration/test_sharding",
    "experiments/test_many_devices",
)


# Fixtures that take half a minute or more. Tests that need one are slow.
COSTLY_FIXTURES = {
    "mnist_judge",
    "face_instruments",
    "finished_reproduction",
    "finished_sweep",
    "results_on_eight_devices",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if COSTLY_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)

    def place(item):
        name = str(item.path.relative_to(pathlib.Path(__file__).parent).with_suffix(""))
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory):
    """Judges and compiled programs live as long as the session; GAN_LEAK_TEST_CACHE names a directory to keep them."""
    session = tmp_path_factory.getbasetemp()
    # Processes that share the tests have a folder each, side by side.
    together = session.parent if "PYTEST_XDIST_WORKER" in os.environ else session
    directory = os.environ.get("GAN_LEAK_TEST_CACHE") or str(together / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", directory)
        # Runs that differ in nothing but their directory share their programs, in this process and in those it starts.
        # Small programs, too: there are thousands, each of a tenth of a second.
        for name, value in {
            "JAX_COMPILATION_CACHE_DIR": f"{directory}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }.items():
            patch.setenv(name, value)
        jax.config.update("jax_compilation_cache_dir", f"{directory}/jax")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_module_sees_what_another_cached():
    """A module may replace networks or data for its tests, and what was built of them must not outlive it."""
    yield
    for name, module in list(sys.modules.items()):
        if name.startswith("gan_leak.runs.federated."):
            for member in list(vars(module).values()):
                if hasattr(member, "cache_clear"):
                    member.cache_clear()


@contextlib.contextmanager
def optimised():
    """Within, programs are compiled as they are for users."""
    options_of = compiler.get_compile_options

    def with_emitters(*arguments, env_options_overrides=None, **options):
        known = {EMITTERS: True} if EMITTERS in os.environ.get("XLA_FLAGS", "") else {}
        overrides = (env_options_overrides or {}) | known
        return options_of(*arguments, env_options_overrides=overrides, **options)

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "get_compile_options", with_emitters)
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def compiled_as_for_users():
    """For tests of the bits or the limits that users have: they depend on rounding."""
    # What other tests of the process compiled would be used as it is.
    jax.clear_caches()
    with optimised():
        yield
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _whole_judges_are_trained_as_for_users(request):
    """They run for a minute, and how far they resist optimised pictures hangs on rounding. Others mostly compile."""
    train = judge.train_judge
    slow = {item.nodeid for item in request.session.items if item.get_closest_marker("slow")}

    def train_optimised(images, labels, num_classes, training):
        whole = max(training.least_steps, training.epochs * len(images) // training.batch_size) >= 1000
        running = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        assert not whole or running in slow, "only slow tests may train a whole judge; see reference.quick"
        with optimised() if whole else contextlib.nullcontext():
            return train(images, labels, num_classes, training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "train_judge", train_optimised)
        yield
