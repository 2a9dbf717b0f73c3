"""The judge: a classifier outside of the federation that textures do not easily fool.

A plain classifier accepts collapsed, unreadable textures as digits, so its accuracy on reconstructions means little.
The judge has another architecture than the shared model and is trained on images that no participant owns. It has an
additional output, "none of them". It learns this output on noise, blank and scrambled pictures, and on such pictures
after optimization against it.

Its input has at most 32 x 32 pixels; larger images are averaged down. Classes are visible at this size, the cost of
training does not depend on the image size, and an optimized picture gains nothing from finer patterns.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar, cast

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from gan_leak.evaluation.batches import in_batches
from gan_leak.files import cache_root
from gan_leak.models.initialization import init_params
from gan_leak.models.layers import convolve, max_pool
from gan_leak.types import Array, PyTree

# Increased with every change of training, so that the cache returns no judge of another recipe.
RECIPE_VERSION = 1

_RESOLUTION = 32
_BATCH = 250
_Images = TypeVar("_Images", np.ndarray, Array)
_SECONDS_BETWEEN_LOOKS = 0.5


class Judge(NamedTuple):
    """A trained judge: its parameters, how many classes it knows, and its accuracy on test images it never saw."""

    params: PyTree
    num_classes: int
    test_accuracy: float


class JudgeTraining(NamedTuple):
    """The recipe for a judge; the defaults reach 99% on MNIST with 30,000 images.

    least_steps: small data sets get more epochs. adversarial_step_size, noise: in image units of [-1, 1].
    shift: pixels at 32 x 32. stretch: largest entry of the random affine map beside the identity. lighting: how much
    brightness, contrast and the slope of the light vary, in image units; 0 leaves them alone. mirror: half of the
    images are mirrored, which shows the same person, but not the same digit.
    """

    epochs: int = 7
    least_steps: int = 300
    batch_size: int = 128
    learning_rate: float = 3e-3
    garbage_per_batch: int = 16
    garbage_renewal: float = 0.1
    adversarial_step_size: float = 0.1
    noise: float = 1.0
    shift: float = 1.5
    stretch: float = 0.15
    lighting: float = 0.0
    mirror: bool = False


# Not in the cache key at their defaults, so that older judges are still found.
_OPTIONS = ("lighting", "mirror")

# For few images of each class: augmentation must vary them more than they differ. Weaker noise allows more garbage;
# without it, a few steps from noise fool a judge of so few images.
FEW_IMAGES_TRAINING = JudgeTraining(
    least_steps=1600, batch_size=80, garbage_per_batch=40, noise=0.8, shift=2.5, stretch=0.2, lighting=0.4
)
COLOR_TRAINING = JudgeTraining(
    epochs=20,
    least_steps=2400,
    batch_size=64,
    garbage_per_batch=8,
    noise=0.3,
    shift=3.0,
    stretch=0.1,
    lighting=0.25,
    mirror=True,
)
FEW_PHOTOGRAPHS_TRAINING = FEW_IMAGES_TRAINING._replace(mirror=True)
_FEW_IMAGES = 1000


def training_for(shape: tuple[int, ...]) -> JudgeTraining:
    """The recipe for training images of this shape [N, H, W, C].

    Color images, and small data sets of more than 32 x 32 pixels, are treated as photographs.
    """
    if shape[-1] == 3:
        return COLOR_TRAINING
    if shape[0] >= _FEW_IMAGES:
        return JudgeTraining()
    return FEW_PHOTOGRAPHS_TRAINING if shape[1] > _RESOLUTION else FEW_IMAGES_TRAINING


class _JudgeNetwork(nn.Module):
    """3x3 convolutions with ReLU on small pixel blocks, unlike the shared model with 5x5 kernels, tanh and strides."""

    num_outputs: int

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Images [B, H, W, C] -> (logits [B, K + 1], features [B, 128])."""
        images = shrink(images)
        hidden = _blocks(images, images.shape[1] // 16)
        for width in (32, 96):
            hidden = jnp.pad(hidden, ((0, 0), (1, 1), (1, 1), (0, 0)))
            hidden = nn.Conv(width, (3, 3), padding="VALID", use_bias=False, conv_general_dilated=_convolve)(hidden)
            # The bias commutes with the maximum; after the maximum it costs a quarter.
            bias = self.param(f"bias_{width}", nn.initializers.zeros, (width,))
            hidden = nn.relu(max_pool(hidden, 2) + bias[None, None, None])
        features = nn.relu(nn.Dense(128)(hidden.reshape(hidden.shape[0], -1)))
        return nn.Dense(self.num_outputs)(features), features


class _ResidualNetwork(nn.Module):
    """Residual blocks with group normalization (He et al. 2016; Wu and He 2018) on 2 x 2 pixel blocks."""

    num_outputs: int

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Images [B, H, W, 3] -> (logits [B, K + 1], features [B, 128])."""
        images = shrink(images)
        hidden = _conv(32)(_blocks(images, images.shape[1] // 16))
        for width in (32, 64, 128):
            normalized = nn.relu(nn.GroupNorm(8)(hidden))
            if width > 32:
                normalized = nn.avg_pool(normalized, (2, 2), (2, 2))
                hidden = nn.Dense(width, use_bias=False)(normalized)
            change = nn.relu(nn.GroupNorm(8)(_conv(width)(normalized)))
            hidden = hidden + _conv(width)(change)
        features = nn.relu(nn.GroupNorm(8)(hidden)).mean(axis=(1, 2))
        return nn.Dense(self.num_outputs)(features), features


def _conv(width: int) -> nn.Conv:
    return nn.Conv(width, (3, 3), padding="SAME", use_bias=False, conv_general_dilated=_convolve_padded)


def _convolve_padded(images: Array, kernel: Array, strides: tuple, padding: str, **_: object) -> Array:
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    return convolve(jnp.pad(images, around), kernel, implementation="matmul")


def _convolve(images: Array, kernel: Array, strides: tuple, padding: str, **_: object) -> Array:
    return convolve(images, kernel, implementation="matmul")


def shrink(images: _Images) -> _Images:
    """Images [B, H, W, C], averaged over squares of pixels down to the judge's resolution if they are larger."""
    factor = images.shape[1] // _RESOLUTION
    if factor < 2:
        return images
    batch, height, width, channels = images.shape
    squares = images.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return squares.mean(axis=(2, 4))


def _shrink_bytes(images: np.ndarray) -> np.ndarray:
    return images if images.shape[1] < 2 * _RESOLUTION else np.rint(shrink(images)).astype(np.uint8)


def _blocks(images: Array, size: int) -> Array:
    """[B, H, W, C] -> [B, H / size, W / size, size * size * C]: 16 x 16 blocks for any image size."""
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // size, size, width // size, size, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, -1)


class JudgeNetwork(NamedTuple):
    """``init(key) -> params`` and ``apply(params, images[B, H, W, C]) -> (logits[B, K + 1], features[B, 128])``."""

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array], tuple[Array, Array]]


def network(num_classes: int, image_shape: tuple[int, ...]) -> JudgeNetwork:
    """The judge's network for images of one shape [H, W, C]; the last of its K + 1 outputs is "none of them".

    Color images are taken for photographs, whose classes need a deeper network than digits or aligned faces.
    """
    module = (_ResidualNetwork if image_shape[-1] == 3 else _JudgeNetwork)(num_classes + 1)

    def init(key: Array) -> PyTree:
        return init_params(module, key, (1, *image_shape))

    def apply(params: PyTree, images: Array) -> tuple[Array, Array]:
        return cast(tuple[Array, Array], module.apply({"params": params}, images))

    return JudgeNetwork(init, apply)


def judge_logits(judge: Judge, images: np.ndarray | Array) -> np.ndarray | Array:
    """Logits [M, K + 1] of images [M, H, W, C]; the last output is "none of them"."""
    return judge_outputs(judge, images)[0]


def judge_features(judge: Judge, images: np.ndarray | Array) -> np.ndarray | Array:
    """The judge's last hidden layer [M, 128] for images [M, H, W, C]."""
    return judge_outputs(judge, images)[1]


def judge_outputs(judge: Judge, images: np.ndarray | Array) -> tuple[np.ndarray | Array, np.ndarray | Array]:
    """``judge_logits`` and ``judge_features`` of images [M, H, W, C], in one pass."""
    if isinstance(images, np.ndarray):
        return in_batches(lambda batch: _apply(judge.params, batch, judge.num_classes), images, most=_BATCH)
    return _apply(judge.params, images, judge.num_classes)


@functools.partial(jax.jit, static_argnums=2)
def _apply(params: PyTree, images: Array, num_classes: int) -> tuple[Array, Array]:
    _, apply = network(num_classes, images.shape[1:])
    # In batches, because patches need many times the memory of the images.
    return jax.lax.map(
        lambda image: jax.tree.map(lambda x: x[0], apply(params, image[None])), images, batch_size=_BATCH
    )


def judge_accuracy(judge: Judge, images: np.ndarray | Array, labels: np.ndarray | Array | int) -> float:
    """Share of images [M, H, W, C] that the judge gives the label [M] (or one label for all); "none" is never right."""
    return float(np.mean(np.argmax(judge_logits(judge, images), axis=-1) == np.asarray(labels)))


def garbage(key: Array, images: Array) -> Array:
    """Pictures [B, H, W, C] that show no class; some are made from real images [B, H, W, C].

    Each is of a random kind: noise of random resolution, contrast and level; constant gray; a real image with shuffled
    blocks.
    """
    key_noise, key_which, key_contrast, key_level, key_blocks, key_kind = jax.random.split(key, 6)
    per_image = (images.shape[0], 1, 1, 1)
    noises = [
        _noise(part, images.shape, block) for part, block in zip(jax.random.split(key_noise, 3), (1, 2, 4), strict=True)
    ]
    which = jax.random.randint(key_which, per_image, 0, len(noises))
    contrast = jax.random.uniform(key_contrast, per_image, minval=0.2, maxval=2.0)
    level = jax.random.uniform(key_level, per_image, minval=-1.0, maxval=1.0)
    noise = level + contrast * jnp.select([which == 0, which == 1], noises[:2], noises[2])
    kind = jax.random.randint(key_kind, per_image, 0, 5)
    chosen = jnp.select([kind < 2, kind == 2], [noise, level + 0 * noise], shuffle_blocks(key_blocks, images))
    return jnp.clip(chosen, -1.0, 1.0)


def _noise(key: Array, shape: tuple[int, ...], block: int) -> Array:
    coarse = jax.random.normal(key, (shape[0], shape[1] // block, shape[2] // block, shape[3]))
    return jax.image.resize(coarse, shape, "linear")


def shuffle_blocks(key: Array, images: Array) -> Array:
    """Images of 4 x 4 blocks, with the blocks of each image in random order."""
    batch, height, width, channels = images.shape
    blocks = _blocks(images, height // 4).reshape(batch, 16, -1)
    order = jnp.argsort(jax.random.uniform(key, (batch, 16)), axis=1)
    blocks = jnp.take_along_axis(blocks, order[:, :, None], axis=1).reshape(
        batch, 4, 4, height // 4, width // 4, channels
    )
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)


def _distort(key: Array, images: Array, training: JudgeTraining) -> Array:
    """Each image under its own small random affine map (turned, scaled, sheared, moved), its border repeated."""
    size = images.shape[1]

    def distort(key: Array, image: Array) -> Array:
        key_map, key_move = jax.random.split(key)
        matrix = jnp.eye(2) + training.stretch * jax.random.uniform(key_map, (2, 2), minval=-1.0, maxval=1.0)
        move = training.shift * size / 32 * jax.random.uniform(key_move, (2,), minval=-1.0, maxval=1.0)
        grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")) - (size - 1) / 2
        at = jnp.einsum("ij,jhw->ihw", matrix, grid) + move[:, None, None] + (size - 1) / 2
        channel = functools.partial(jax.scipy.ndimage.map_coordinates, order=1, mode="nearest")
        return jax.vmap(lambda plane: channel(plane, list(at)), in_axes=-1, out_axes=-1)(image)

    return jax.vmap(distort)(jax.random.split(key, images.shape[0]), images)


def relight(key: Array, images: Array, training: JudgeTraining) -> Array:
    """Images or their mirror images, under their own brightness, contrast and slope of light."""
    key_gain, key_level, key_slope, key_mirror = jax.random.split(key, 4)
    uniform = functools.partial(jax.random.uniform, minval=-training.lighting, maxval=training.lighting)
    per_image = (images.shape[0], 1, 1, 1)
    gain, level = jnp.exp(uniform(key_gain, per_image)), uniform(key_level, per_image)
    down, right = uniform(key_slope, (2, *per_image))
    across = jnp.linspace(-1.0, 1.0, images.shape[1])
    light = level + down * across[None, :, None, None] + right * across[None, None, :, None]
    if training.mirror:
        images = jnp.where(jax.random.bernoulli(key_mirror, 0.5, per_image), images[:, :, ::-1], images)
    return jnp.clip(gain * images + light, -1.0, 1.0)


def _speckle(key: Array, images: Array, training: JudgeTraining) -> Array:
    """Real images under patches of noise of random strength and grain, as in the output of a generator."""
    key_level, key_grain, key_fine, key_coarse, key_patches = jax.random.split(key, 5)
    per_image = (images.shape[0], 1, 1, 1)
    level = jax.nn.relu(jax.random.uniform(key_level, per_image, minval=-training.noise, maxval=training.noise))
    fine, coarse = _noise(key_fine, images.shape, 1), _noise(key_coarse, images.shape, 2)
    grain = jnp.where(jax.random.bernoulli(key_grain, 0.5, per_image), fine, coarse)
    patches = jnp.abs(_noise(key_patches, images.shape, images.shape[1] // 8))
    return jnp.clip(images + level * patches * grain, -1.0, 1.0)


def _to_float(images: Array) -> Array:
    """As ``gan_leak.data.to_float``, on the device, so that the training set stays in bytes."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def train_judge(images: np.ndarray, labels: np.ndarray, num_classes: int, training: JudgeTraining) -> PyTree:
    """Train a judge on images uint8 [N, H, W, C] and labels [N]; returns its parameters.

    Every batch holds distorted, noisy real images, and garbage labeled "none of them". The garbage persists between
    steps: it ascends the judge's loss by the input gradient of each training step (Shafahi et al. 2019). A part of it
    is replaced in each step, so its age varies from new to strongly optimized.

    Raises ValueError if the images are not uint8.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images.dtype={images.dtype}: expected uint8")
    images = _shrink_bytes(images)
    init, apply = network(num_classes, images.shape[1:])
    batch_size = min(training.batch_size, len(images))
    steps_per_epoch = len(images) // batch_size
    epochs = max(training.epochs, -(-training.least_steps // steps_per_epoch))
    optimizer = optax.adam(optax.cosine_onecycle_schedule(epochs * steps_per_epoch, training.learning_rate))

    def loss(params: PyTree, none: Array, real: Array, targets: Array) -> Array:
        targets = jnp.concatenate([targets, jnp.full(len(none), num_classes)])
        logits, _ = apply(params, jnp.concatenate([real, none]))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))

    def step(index: Array, carry: tuple, order: Array, key: Array, data: tuple) -> tuple:
        params, state, none = carry
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        picked = jax.lax.dynamic_slice(order, (index * batch_size,), (batch_size,))
        batch, targets = _to_float(data[0][picked]), data[1][picked]
        fresh = jax.random.bernoulli(keys[0], training.garbage_renewal, (len(none), 1, 1, 1))
        none = jnp.where(fresh, garbage(keys[1], batch[: len(none)]), none)
        key_distort = keys[2]
        if training.lighting or training.mirror:
            key_distort, key_light = jax.random.split(key_distort)
            batch = relight(key_light, batch, training)
        real = _speckle(keys[3], _distort(key_distort, batch, training), training)
        gradients, climb = jax.grad(loss, argnums=(0, 1))(params, none, real, targets)
        none = jnp.clip(none + training.adversarial_step_size * jnp.sign(climb), -1.0, 1.0)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, none

    @jax.jit
    def epoch(key: Array, carry: tuple, data: tuple) -> tuple:
        key_order, key_steps = jax.random.split(key)
        order = jax.random.permutation(key_order, len(images))
        body = functools.partial(step, order=order, key=key_steps, data=data)
        return jax.lax.fori_loop(0, steps_per_epoch, body, carry)

    key_init, key_garbage, key_epochs = jax.random.split(jax.random.key(RECIPE_VERSION), 3)
    data = (jnp.asarray(images), jnp.asarray(labels))
    params = init(key_init)
    carry = (params, optimizer.init(params), garbage(key_garbage, _to_float(data[0][: training.garbage_per_batch])))
    for index in range(epochs):
        carry = epoch(jax.random.fold_in(key_epochs, index), carry, data)
    return carry[0]


def load_or_train_judge(
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
    *,
    cache_directory: pathlib.Path | None = None,
    training: JudgeTraining | None = None,
    show: Callable[[str], None] = lambda text: tqdm.tqdm.write(text, file=sys.stderr),
) -> Judge:
    """The judge of these images uint8 [N, H, W, C] and labels [N], trained once and kept on disk.

    test_images: float32 [M, H, W, C], test_labels [M]: for its accuracy. training: ``training_for`` if left out. show:
    called with a line if the user has to wait; by default it writes to standard error, above a progress bar.

    The cache (default: ``gan_leak`` below ``$XDG_CACHE_HOME`` or ``~/.cache``) is keyed by the data and the recipe. A
    damaged cache file is rewritten. If a cache file cannot be written, or the user has no home directory, the next run
    trains again. If several processes need the same judge, one trains it and the others wait.
    """
    training = training or training_for(images.shape)

    def train() -> PyTree:
        return jax.device_get(train_judge(images, labels, num_classes, training))

    name = f"judge-{cache_key(images, labels, num_classes, training)}.msgpack"
    params = load_or_train(name, train, cache_directory=cache_directory, show=show)
    judge = Judge(params, num_classes, 0.0)
    return judge._replace(test_accuracy=judge_accuracy(judge, test_images, test_labels))


def load_or_train(
    name: str, train: Callable[[], PyTree], *, cache_directory: pathlib.Path | None, show: Callable[[str], None]
) -> PyTree:
    """The parameters in the cache file of this name, or those that ``train`` returns, see ``load_or_train_judge``."""
    if cache_directory is None and (root := cache_root()) is not None:
        cache_directory = root / "gan_leak"
    if cache_directory is None:
        return train()
    path = cache_directory / name
    params = _read_cache(path)
    if params is None:
        with _alone(path.with_suffix(".lock"), show):
            # Another process may have trained it meanwhile.
            params = _read_cache(path)
            if params is None:
                params = train()
                _write_cache(path, params)
    return params


def cache_key(images: np.ndarray, labels: np.ndarray, num_classes: int, training: JudgeTraining) -> str:
    """The name of a judge in the cache: 32 hexadecimal digits of a hash of its data and its recipe."""
    images = _shrink_bytes(images)
    options = [f"{name}={value!r}" for name, value in training._asdict().items() if value or name not in _OPTIONS]
    recipe = f"({RECIPE_VERSION}, JudgeTraining({', '.join(options)}), {num_classes}, {images.shape})"
    key = hashlib.sha256(recipe.encode())
    for array in (images, labels):
        key.update(np.ascontiguousarray(array).tobytes())
    return key.hexdigest()[:32]


def _read_cache(path: pathlib.Path) -> PyTree | None:
    try:
        digest, _, payload = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        return None
    return flax.serialization.msgpack_restore(payload)


@contextlib.contextmanager
def _alone(path: pathlib.Path, show: Callable[[str], None]) -> Iterator[None]:
    """Hold this lock within the context; if files cannot be locked, no process waits."""
    descriptor = None
    waiting = False
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        while (descriptor := _lock(path)) is None:
            if not waiting:
                show("judge: another process is training it; waiting for that ...")
            waiting = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _lock(path: pathlib.Path) -> int | None:
    """A descriptor that holds the lock, None if another process does; raises OSError where files cannot be locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The last holder may have removed the file after we opened it: then the lock protects nothing.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _write_cache(path: pathlib.Path, params: PyTree) -> None:
    payload = flax.serialization.msgpack_serialize(params)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
