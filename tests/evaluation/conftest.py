"""The real MNIST, the judge that all tests of this folder share, and pictures that show nothing or pretend to."""

import fcntl
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import data, models
from gan_leak.config import make_config
from gan_leak.evaluation.judge import load_or_train_judge

# Judges that look at thousands of pictures: programs for them run for longer than it takes to compile them well.
REAL_JUDGES = {"mnist_judge", "face_instruments"}


@pytest.fixture(scope="module", autouse=True)
def _programs_are_optimised_for_fixtures_of_real_judges(request):
    before = jax.config.read("jax_disable_most_optimizations")
    here = (item for item in request.session.items if item.path == request.path)
    real = any(REAL_JUDGES & {*getattr(item, "fixturenames", ())} for item in here)
    jax.config.update("jax_disable_most_optimizations", not real)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def _programs_are_optimised_for_real_judges(request):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not REAL_JUDGES & {*request.fixturenames})
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def mnist():
    """The whole of MNIST, as uint8."""
    return data.load("mnist")


@pytest.fixture(scope="session")
def mnist_test(mnist):
    """Test images float32 [10000, 32, 32, 1] and labels [10000]."""
    return data.to_float(mnist.test_images), np.asarray(mnist.test_labels)


@pytest.fixture(scope="session")
def judge_pool(mnist):
    """Indices of the training images that a default run keeps from the participants."""
    return data.split_off_judge_pool(mnist.train_labels, make_config().data.judge_samples)[1]


@pytest.fixture(scope="session")
def mnist_judge(mnist, mnist_test, judge_pool):
    """The judge of a default run; about a minute to train unless the cache below $XDG_CACHE_HOME has it."""
    cache = pathlib.Path(os.environ["XDG_CACHE_HOME"])
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "judge.lock").open("w") as lock:
        # Of several processes that test, one trains it and the others wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return load_or_train_judge(
            mnist.train_images[judge_pool], mnist.train_labels[judge_pool], *mnist_test, num_classes=10
        )


@pytest.fixture(scope="session")
def untrained():
    """Two sets [500, 32, 32, 1] of images, each of another DCGAN generator that was never trained."""
    generator = models.dcgan_generator()

    @jax.jit
    def draw(key):
        key_init, key_samples = jax.random.split(key)
        return models.sample_images(generator, generator.init(key_init), key_samples, 500, 100)

    return [np.asarray(draw(jax.random.key(seed))) for seed in (0, 9)]


@pytest.fixture(scope="session")
def climb():
    """Signed gradient steps of images towards the target that a classifier's logits are asked to give."""

    def climb(logits_fn, images, target, *, steps, step_size):
        def loss(images):
            return -jnp.sum(jax.nn.log_softmax(logits_fn(images))[:, target])

        def step(_, images):
            return jnp.clip(images - step_size * jnp.sign(jax.grad(loss)(images)), -1.0, 1.0)

        return np.asarray(jax.jit(lambda images: jax.lax.fori_loop(0, steps, step, images))(jnp.asarray(images)))

    return climb
