"""The real MNIST, the judge that all tests of this folder share, and pictures that show nothing or pretend to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import data, models
from gan_leak.evaluation.judge import load_or_train_judge


@pytest.fixture(scope="session")
def mnist():
    """The whole of MNIST, as uint8."""
    return data.load("mnist")


@pytest.fixture(scope="session")
def mnist_test(mnist):
    """Test images float32 [10000, 32, 32, 1] and labels [10000]."""
    return data.to_float(mnist.test_images), np.asarray(mnist.test_labels)


@pytest.fixture(scope="session")
def mnist_judge(mnist, mnist_test):
    """The judge of a default run; about a minute to train unless the cache below $XDG_CACHE_HOME has it."""
    _, pool = data.split_off_judge_pool(mnist.train_labels, 20_000)
    return load_or_train_judge(
        data.to_float(mnist.train_images[pool]), mnist.train_labels[pool], *mnist_test, num_classes=10
    )


@pytest.fixture(scope="session")
def draw_untrained():
    """Images [count, 32, 32, 1] of a DCGAN generator that was never trained."""

    def draw(seed, count):
        generator = models.dcgan_generator()
        key_init, key_samples = jax.random.split(jax.random.key(seed))
        return np.asarray(models.sample_images(generator, generator.init(key_init), key_samples, count, 100))

    return draw


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
