"""The judge: right on real digits, "none of them" on all else, hard to fool, trained once."""

import concurrent.futures
import errno
import hashlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gan_leak import data, models
from gan_leak.evaluation import judge as judge_module
from gan_leak.evaluation.judge import (
    COLOR_TRAINING,
    FEW_IMAGES_TRAINING,
    FEW_PHOTOGRAPHS_TRAINING,
    Judge,
    JudgeTraining,
    garbage,
    judge_accuracy,
    judge_features,
    judge_logits,
    load_or_train_judge,
    network,
    train_judge,
    training_for,
)

NONE = 10
TARGET = 3
TINY = JudgeTraining(epochs=100, batch_size=8, garbage_per_batch=4)


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _uniform(seed, count):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 32, 32, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def tiny():
    """Bright above and bright below, 16 x 16 pixels: images, labels, test images, test labels, number of classes."""
    labels = np.arange(32) % 2
    above = np.where(np.arange(16)[None, :, None, None] < 8, 200, 50)
    images = np.where(labels[:, None, None, None], 250 - above, above) + 5 * _normal(0, 32, 16, 16, 1)
    images = images.astype(np.uint8)
    return images[:24], labels[:24], data.to_float(images[24:]), labels[24:], 2


@pytest.fixture
def trainings(monkeypatch):
    """Replaces training by a cheap one and lists the parameters that each training gave."""
    made = []

    def train(images, labels, num_classes, training):
        init, _ = network(num_classes, images.shape[1:])
        made.append(init(jax.random.key(len(made))))
        return made[-1]

    monkeypatch.setattr(judge_module, "train_judge", train)
    return made


def _assert_equal_parameters(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


# What it says


def test_at_least_99_percent_right_on_the_mnist_test_set(mnist_judge, mnist_test):
    """The accuracy that the judge states is the one that it has, and it is at least 0.99."""
    right = np.argmax(judge_logits(mnist_judge, mnist_test[0]), axis=1) == mnist_test[1]
    assert mnist_judge.test_accuracy == pytest.approx(float(right.mean()), abs=1e-6)
    assert mnist_judge.test_accuracy >= 0.99


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: _uniform(0, 500), id="uniform noise"),
        *(
            pytest.param(
                lambda c=c: np.clip(c * _normal(1, 500, 32, 32, 1), -1, 1), id=f"Gaussian noise of deviation {c}"
            )
            for c in (0.05, 0.2, 0.5, 1.0)
        ),
        pytest.param(
            lambda: np.clip(-1 + 0.5 * np.abs(_normal(2, 500, 32, 32, 1)), -1, 1), id="dark noise of deviation 0.5"
        ),
        pytest.param(
            lambda: np.broadcast_to(np.linspace(-1, 1, 256, dtype=np.float32)[:, None, None, None], (256, 32, 32, 1)),
            id="every grey",
        ),
    ],
)
def test_noise_and_flat_pictures_are_none_of_the_classes(mnist_judge, make):
    """At least 95% of each kind get the last output."""
    assert judge_accuracy(mnist_judge, make(), NONE) >= 0.95


def test_scrambled_digits_are_none_of_the_classes(mnist_judge, mnist_test):
    """At least 95% of real test digits whose 4 x 4 blocks were shuffled."""
    images = jnp.asarray(mnist_test[0][:500])
    scrambled = judge_module.shuffle_blocks(jax.random.key(0), images)
    assert judge_accuracy(mnist_judge, scrambled, NONE) >= 0.95


@pytest.mark.slow
def test_garbage_is_none_of_the_classes(mnist_judge, mnist_test):
    """At least 95% of fresh draws of what it was trained on, made of test digits."""
    pictures = jax.jit(garbage)(jax.random.key(1), jnp.asarray(mnist_test[0][:1000]))
    assert judge_accuracy(mnist_judge, pictures, NONE) >= 0.95


def test_an_untrained_generator_shows_none_of_the_classes(mnist_judge, untrained):
    """At least 95% of its samples."""
    assert judge_accuracy(mnist_judge, untrained[1], NONE) >= 0.95


@pytest.mark.slow
def test_a_judge_of_color_images_tells_textures_of_unseen_pictures():
    """Stripes across and down in random colors, mirrored at will, of which pixels alone tell nothing."""
    rng = np.random.default_rng(0)

    def draw(count):
        labels = rng.integers(0, 2, count)
        wave = np.sin(np.arange(32) * rng.uniform(0.6, 1.2, (count, 1)) + rng.uniform(0, 6, (count, 1)))
        across = np.broadcast_to(wave[:, None, :, None], (count, 32, 32, 1))
        waves = np.where(labels[:, None, None, None] == 0, across, across.transpose(0, 2, 1, 3))
        return np.uint8(127 + 100 * waves * rng.uniform(-1, 1, (count, 1, 1, 3))), labels

    images, labels = draw(128)
    params = jax.device_get(train_judge(images, labels, 2, COLOR_TRAINING._replace(epochs=1, least_steps=60)))
    judge, (unseen, expected) = Judge(params, 2, 0.0), draw(100)
    assert judge_accuracy(judge, data.to_float(unseen), expected) >= 0.9


def test_digits_under_pixel_noise_are_still_recognised(mnist_judge, mnist_test):
    """Noise of deviation 0.3 leaves at least 95% right: noise alone is not what "none of them" means."""
    images, labels = mnist_test[0][:1000], mnist_test[1][:1000]
    noisy = np.clip(images + 0.3 * _normal(3, *images.shape), -1, 1)
    assert judge_accuracy(mnist_judge, noisy, labels) >= 0.95


def test_none_of_them_is_never_right(mnist_judge):
    """Noise counts for no class."""
    assert [judge_accuracy(mnist_judge, _uniform(4, 100), label) for label in range(10)] == [0.0] * 10


# What fools others


@pytest.fixture(scope="module")
def plain_classifier(mnist):
    """The federation's own classifier, trained for a moment on real digits."""
    model = models.mnist_classifier(10)
    images, labels = mnist.train_images[:6400], mnist.train_labels[:6400]
    optimizer = optax.adam(2e-3)

    def step(carry, batch):
        params, state = carry
        pixels, targets = batch[0].astype(jnp.float32) / 127.5 - 1, batch[1]

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, pixels), targets).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = model.init(jax.random.key(0))
    batches = (jnp.asarray(images).reshape(100, 64, 32, 32, 1), jnp.asarray(labels).reshape(100, 64))
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))((params, optimizer.init(params)))
    return lambda images: model.apply(params, images)


@pytest.mark.slow
def test_texture_that_fools_a_plain_classifier_does_not_fool_the_judge(
    mnist_judge, mnist_test, plain_classifier, climb
):
    """Ten signed steps of 0.05 from noise reach the target class in most pictures there, in under 20% here."""
    plain_labels = np.argmax(plain_classifier(mnist_test[0][:1000]), axis=1)
    assert np.mean(plain_labels == mnist_test[1][:1000]) > 0.85

    def reached(logits_fn):
        texture = climb(logits_fn, _uniform(5, 200), TARGET, steps=10, step_size=0.05)
        return np.mean(np.argmax(logits_fn(texture), axis=1) == TARGET)

    assert reached(plain_classifier) > 0.5
    assert reached(lambda images: judge_logits(mnist_judge, images)) < 0.2


# How it is kept


@pytest.mark.slow
def test_trained_once_and_then_taken_from_the_cache(tiny, tmp_path, monkeypatch):
    """The second load returns equal parameters and does not train."""
    first = load_or_train_judge(*tiny, cache_directory=tmp_path / "new", training=TINY)

    def fail(*_):
        raise AssertionError("trained a second time")

    monkeypatch.setattr(judge_module, "train_judge", fail)
    second = load_or_train_judge(*tiny, cache_directory=tmp_path / "new", training=TINY)
    _assert_equal_parameters(first.params, second.params)
    assert first[1:] == second[1:]
    assert first.num_classes == 2
    assert first.test_accuracy == 1.0
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".msgpack"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
def test_training_again_gives_the_same_judge(tiny, tmp_path):
    """Whose cache was lost measures the same as before."""
    first = load_or_train_judge(*tiny, cache_directory=tmp_path, training=TINY)
    _assert_equal_parameters(first.params, train_judge(*tiny[:2], tiny[4], TINY))


def _flip(payload):
    middle = len(payload) // 2
    return payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_flip, id="one bit flipped"),
        pytest.param(lambda payload: bytes([payload[0] ^ 1]) + payload[1:], id="checksum damaged"),
        pytest.param(lambda payload: payload[:-1], id="last byte lost"),
        pytest.param(lambda payload: payload[:20], id="almost all lost"),
        pytest.param(lambda payload: b"", id="empty"),
    ],
)
def test_a_damaged_cache_file_is_trained_anew(tiny, tmp_path, trainings, damage):
    """What comes back is the new training, and the file is whole again."""
    load_or_train_judge(*tiny, cache_directory=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    judge = load_or_train_judge(*tiny, cache_directory=tmp_path)
    assert len(trainings) == 2
    _assert_equal_parameters(judge.params, jax.device_get(trainings[1]))
    _assert_equal_parameters(load_or_train_judge(*tiny, cache_directory=tmp_path).params, judge.params)
    assert len(trainings) == 2


@pytest.mark.slow
def test_other_data_or_another_recipe_is_another_judge(tiny, tmp_path, trainings, monkeypatch):
    """Images, labels, the number of classes, the training and the version of the recipe each tell cache files apart."""
    images, labels, *rest = tiny
    other_images = images.copy()
    other_images[0, 0, 0, 0] ^= 1
    variants = [
        ((images, labels, *rest), None),
        ((other_images, labels, *rest), None),
        ((images, labels[::-1].copy(), *rest), None),
        ((images, labels, *rest[:-1], 3), None),
        ((images, labels, *rest), JudgeTraining(epochs=13)),
    ]
    for arguments, training in variants:
        load_or_train_judge(*arguments, cache_directory=tmp_path, training=training)
    monkeypatch.setattr(judge_module, "RECIPE_VERSION", judge_module.RECIPE_VERSION + 1)
    load_or_train_judge(*tiny, cache_directory=tmp_path)
    assert len(trainings) == len(list(tmp_path.iterdir())) == 6


def test_options_that_are_off_leave_the_cache_key_alone(tiny):
    """The recipe as it was spelt before there were options; with any of them it is another one."""
    images, labels, *_ = tiny
    off = judge_module.cache_key(images, labels, 2, JudgeTraining())
    spelt = (
        "(1, JudgeTraining(epochs=7, least_steps=300, batch_size=128, learning_rate=0.003, garbage_per_batch=16, "
        "garbage_renewal=0.1, adversarial_step_size=0.1, noise=1.0, shift=1.5, stretch=0.15), 2, (24, 16, 16, 1))"
    )
    assert off == hashlib.sha256(spelt.encode() + images.tobytes() + labels.tobytes()).hexdigest()[:32]
    for options in ({"lighting": 0.1}, {"mirror": True}):
        assert judge_module.cache_key(images, labels, 2, JudgeTraining(**options)) != off


def test_the_recipe_fits_the_images():
    """Many are not varied by light, a few are, and a few larger ones are mirrored as well."""
    assert training_for((1000, 64, 64, 1)) == training_for((30000, 32, 32, 1)) == JudgeTraining()
    assert training_for((160, 64, 64, 3)) == training_for((30000, 32, 32, 3)) == COLOR_TRAINING
    assert training_for((999, 32, 32, 1)) == FEW_IMAGES_TRAINING
    assert training_for((160, 64, 64, 1)) == FEW_PHOTOGRAPHS_TRAINING


@pytest.mark.slow
def test_larger_images_are_judged_by_their_average_over_pixels():
    """64 x 64 pixels, and the same averaged to 32 x 32, have one judge and its one answer."""
    labels = np.arange(8) % 2
    large = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 1), np.uint8)
    small = np.rint(large.reshape(8, 32, 2, 32, 2, 1).mean(axis=(2, 4))).astype(np.uint8)
    keys = [judge_module.cache_key(images, labels, 2, TINY) for images in (large, small)]
    assert keys[0] == keys[1]
    init, apply = network(2, (64, 64, 1))
    params = jax.jit(init)(jax.random.key(0))
    pictures = data.to_float(large)
    averages = pictures.reshape(8, 32, 2, 32, 2, 1).mean(axis=(2, 4))
    for ours, theirs in zip(apply(params, pictures), apply(params, averages), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_relit_images_keep_to_the_range_and_are_mirrored_or_not():
    """Without light only mirrored, half of them; with light of another brightness each."""
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (200, 32, 32, 1)), jnp.float32)
    relight = jax.jit(judge_module.relight, static_argnums=2)
    mirrored, plain = (np.asarray(relight(jax.random.key(0), images, JudgeTraining(mirror=on))) for on in (True, False))
    np.testing.assert_allclose(plain, images, atol=1e-6)
    turned = np.array([np.allclose(*pair, atol=1e-6) for pair in zip(mirrored, plain[:, :, ::-1], strict=True)])
    kept = np.array([np.allclose(*pair, atol=1e-6) for pair in zip(mirrored, plain, strict=True)])
    assert np.all(turned ^ kept)
    assert 0.35 < turned.mean() < 0.65
    relit = np.asarray(relight(jax.random.key(1), images, JudgeTraining(lighting=0.4)))
    assert np.abs(relit).max() <= 1
    assert np.std((relit - plain).mean(axis=(1, 2, 3))) > 0.1


@pytest.mark.slow
def test_test_images_do_not_matter_to_the_cache(tiny, tmp_path, trainings):
    """They are measured on, never trained on: other ones take the same judge and give another accuracy."""
    images, labels, test_images, test_labels, num_classes = tiny
    first = load_or_train_judge(images, labels, test_images, test_labels, num_classes, cache_directory=tmp_path)
    second = load_or_train_judge(images, labels, test_images, test_labels + 7, num_classes, cache_directory=tmp_path)
    assert len(trainings) == 1
    _assert_equal_parameters(first.params, second.params)
    assert second.test_accuracy == 0.0


def test_a_cache_that_cannot_be_written_still_gives_a_judge(tiny, tmp_path, trainings):
    """A file stands where the directory should be: the judge is trained, each time, and nothing is raised."""
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for count in (1, 2):
        judge = load_or_train_judge(*tiny, cache_directory=blocked / "cache")
        assert len(trainings) == count
        _assert_equal_parameters(judge.params, jax.device_get(trainings[-1]))
    assert blocked.read_text() == "in the way"


def _train_side_by_side(tiny, directory, lines):
    """Two calls at once, as two processes would make them: a lock holds between open files, not between processes."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        calls = [
            pool.submit(load_or_train_judge, *tiny, cache_directory=directory, show=lines.append) for _ in range(2)
        ]
        return [call.result().params for call in calls]


def test_of_two_that_want_a_judge_one_trains_it_and_the_other_waits_and_says_so(tiny, tmp_path, trainings, monkeypatch):
    monkeypatch.setattr(judge_module, "_SECONDS_BETWEEN_LOOKS", 0.01)
    train, lines = judge_module.train_judge, []

    def slowly(*arguments):
        until = time.monotonic() + 60
        while not lines and time.monotonic() < until:
            time.sleep(0.01)
        return train(*arguments)

    monkeypatch.setattr(judge_module, "train_judge", slowly)
    first, second = _train_side_by_side(tiny, tmp_path, lines)
    assert len(trainings) == 1
    assert lines == ["judge: another process is training it; waiting for that ..."]
    _assert_equal_parameters(first, second)
    # Nothing but the judge is left.
    assert [path.suffix for path in tmp_path.iterdir()] == [".msgpack"]


def test_whoever_waits_takes_over_when_the_other_dies(tiny, tmp_path, trainings, monkeypatch):
    monkeypatch.setattr(judge_module, "_SECONDS_BETWEEN_LOOKS", 0.01)
    lock = tmp_path / f"judge-{judge_module.cache_key(*tiny[:2], tiny[4], training_for(tiny[0].shape))}.lock"
    script = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print(flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, lock], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        load_or_train_judge(*tiny, cache_directory=tmp_path, show=lambda line: other.kill())
    assert other.returncode == -signal.SIGKILL
    assert len(trainings) == 1


def test_where_files_cannot_be_locked_nobody_waits(tiny, tmp_path, trainings, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(judge_module.fcntl, "flock", refuse)
    load_or_train_judge(*tiny, cache_directory=tmp_path, show=pytest.fail)
    load_or_train_judge(*tiny, cache_directory=tmp_path, show=pytest.fail)
    assert len(trainings) == 1


def test_the_default_cache_lies_where_the_environment_says(tiny, tmp_path, trainings, monkeypatch):
    """$XDG_CACHE_HOME, and without it ~/.cache."""
    for variable, root in (("XDG_CACHE_HOME", tmp_path / "xdg"), ("HOME", tmp_path / "home")):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv(variable, str(root))
        load_or_train_judge(*tiny)
    assert len(list((tmp_path / "xdg" / "gan_leak").iterdir())) == 1
    assert len(list((tmp_path / "home" / ".cache" / "gan_leak").iterdir())) == 1


def test_a_user_without_a_home_has_a_judge_and_no_cache(tiny, trainings, monkeypatch):
    monkeypatch.setattr(judge_module, "cache_root", lambda: None)
    load_or_train_judge(*tiny)
    load_or_train_judge(*tiny)
    assert len(trainings) == 2


# Its outputs


def _fixed(logits):
    """A judge function that gives these logits, whatever the images."""
    return lambda judge, images: jnp.asarray(logits)


def test_accuracy_counts_none_of_them_as_wrong(monkeypatch):
    """Of four pictures of class 1 one is called 1, one 0 and two "none of them": a quarter is right."""
    logits = np.array([[0.0, 2, 1], [2, 1, 0], [0, 1, 2], [1, 1, 2]], np.float32)
    monkeypatch.setattr(judge_module, "judge_logits", _fixed(logits))
    judge, images = Judge({}, 2, 0.0), np.zeros((4, 16, 16, 1), np.float32)
    assert judge_accuracy(judge, images, 1) == 0.25
    assert judge_accuracy(judge, images, np.array([1, 0, 1, 0])) == 0.5


def test_batches_do_not_matter(mnist_judge, mnist_test):
    """Logits and features of 600 images are those of its pieces, put together."""
    images = mnist_test[0][:600]
    pieces = [images[:1], images[1:250], images[250:600]]
    for function, width in ((judge_logits, 11), (judge_features, 128)):
        whole = function(mnist_judge, images)
        assert whole.shape == (600, width)
        np.testing.assert_allclose(
            whole, np.concatenate([function(mnist_judge, piece) for piece in pieces]), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("shape", [(32, 32, 1), (64, 64, 1), (32, 32, 3)])
def test_any_image_size_and_number_of_channels_has_a_judge(shape):
    """One more logit than classes, 128 features."""
    init, apply = network(7, shape)
    params = jax.eval_shape(init, jax.random.key(0))
    logits, features = jax.eval_shape(apply, params, jnp.zeros((2, *shape)))
    assert logits.shape == (2, 8)
    assert features.shape == (2, 128)


def test_garbage_keeps_to_the_range_of_images_and_depends_on_its_key(mnist_test):
    """Values within [-1, 1], of the shape of the images, none of them one of the images, other ones for another key."""
    images = jnp.asarray(mnist_test[0][:200])
    make = jax.jit(garbage)
    pictures, others = (np.asarray(make(jax.random.key(seed), images)) for seed in (0, 1))
    assert pictures.shape == images.shape
    assert np.abs(pictures).max() <= 1
    assert np.abs(pictures - images).max(axis=(1, 2, 3)).min() > 0.01
    assert np.mean(np.any(pictures != others, axis=(1, 2, 3))) > 0.95


def test_shuffled_blocks_are_the_blocks_of_the_image(mnist_test):
    """The pixels of each image stay its own, only their places change."""
    images = mnist_test[0][:50]
    shuffled = np.asarray(judge_module.shuffle_blocks(jax.random.key(2), jnp.asarray(images)))
    np.testing.assert_array_equal(*(np.sort(x.reshape(50, -1), axis=1) for x in (images, shuffled)))

    def blocks(image):
        return sorted(image[i : i + 8, j : j + 8].tobytes() for i in range(0, 32, 8) for j in range(0, 32, 8))

    assert all(blocks(image) == blocks(shuffle) for image, shuffle in zip(images, shuffled, strict=True))
    assert np.mean(np.any(images != shuffled, axis=(1, 2, 3))) > 0.95


def test_float_images_are_refused_rather_than_scaled_twice(tiny):
    images, labels, *_ = tiny
    with pytest.raises(ValueError, match="uint8"):
        train_judge(data.to_float(images), labels, 2, TINY)
