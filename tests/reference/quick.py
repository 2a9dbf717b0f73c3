"""Whole runs in a second or two: striped pictures, and linear networks in place of those that take long to compile."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gan_leak.config import make_config
from gan_leak.evaluation import judge
from gan_leak.evaluation import leakage as representatives
from gan_leak.models import LATENT_SIZE
from gan_leak.reports import run as report
from gan_leak.runs.federated import measurement, setup
from gan_leak.runs.inversion import model as inversion
from gan_leak.types import Model


def write_stripes(path, *, classes=4, per_class=60, channels=0):
    """An npz data set: class k has a bright stripe, at random brightness, in noise. channels: 0 leaves the axis out."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), per_class)
    images = rng.integers(0, 60, (len(labels), 32, 32, *[channels][:channels]), dtype=np.uint8)
    height = 32 // classes
    for image, label in zip(images, labels, strict=True):
        image[height * label : height * label + max(1, height - 2)] = rng.integers(150, 250)
    np.savez(path, images=images, labels=labels)
    return path


def small_run(stripes, **changes):
    """A run of a few rounds on ``write_stripes``: two participants and the attack, unless changed."""
    settings = {
        "participant_classes": "0,1;2,3",
        "target_class": 0,
        "judge_samples": 80,
        "batch_size": 16,
        "rounds": 4,
        "generator_steps": 1,
        "generator_batch_size": 8,
        "fakes_per_round": 16,
        "evaluation_interval": 2,
        "evaluation_samples": 12,
    }
    return make_config(dataset=f"npz:{stripes}", **settings | changes)


def use_linear_networks(patch):
    """Has runs use a linear classifier, generator and judge, the latter untrained; ``patch`` undoes it.

    Similarity of structure gives way to that of pixels, for the same reason: it compiles anew for every count.
    """
    # Without the cache that keeps what was built before, or would keep what is built now.
    patch.setattr(setup, "_functions", functools.cache(setup._functions.__wrapped__))
    patch.setattr(setup, "classifier_for", _classifier)
    patch.setattr(setup, "dcgan_generator", _generator)
    patch.setattr(inversion, "classifier_for", _classifier)
    patch.setattr(judge, "network", _judge_network)
    patch.setattr(measurement, "load_or_train_judge", untrained_judge)
    patch.setattr(representatives, "structural_similarity", _similarity)


def draw_nothing(patch):
    """Has reports of runs hold a blank in the place of each picture: to draw them takes as long as a short run."""
    png = io.BytesIO()
    Image.new("L", (1, 1)).save(png, format="png")
    for name in ("reconstructions_figure", "evolution_figure", "curves_figure"):
        patch.setattr(report, name, lambda *arguments, **keywords: png.getvalue())


def _similarity(images, others):
    return 1.0 - np.abs(images - others).mean(axis=(1, 2, 3))


# One object for each shape, so that functions which are compiled for a network are compiled once.
@functools.cache
def _classifier(image_size, num_outputs, channels, *, implementation="matmul", batchnorm=False):
    pixels = image_size * image_size * channels

    def init(key):
        return {"bias": jnp.zeros(num_outputs), "kernel": 0.02 * jax.random.normal(key, (pixels, num_outputs))}

    return Model(init, _logits)


def _logits(params, images):
    return images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None]


@functools.cache
def _generator(image_size, channels, *, width, implementation="matmul"):
    shape = (image_size, image_size, channels)

    def init(key):
        pixels = image_size * image_size * channels
        return {"bias": jnp.zeros(pixels), "weights": 0.05 * jax.random.normal(key, (LATENT_SIZE, pixels))}

    def apply(params, latents):
        return jnp.tanh(latents @ params["weights"] + params["bias"][None]).reshape(-1, *shape)

    return Model(init, apply)


def _judge_network(num_classes, image_shape):
    pixels = int(np.prod(image_shape))

    def init(key):
        key_features, key_logits = jax.random.split(key)
        return {
            "features": 0.02 * jax.random.normal(key_features, (pixels, 128)),
            "logits": 0.1 * jax.random.normal(key_logits, (128, num_classes + 1)),
        }

    def apply(params, images):
        features = jax.nn.relu(images.reshape(len(images), -1) @ params["features"])
        return features @ params["logits"], features

    return init, apply


def untrained_judge(images, labels, test_images, test_labels, num_classes):
    """Stands in for ``load_or_train_judge`` where a judge only has to exist."""
    init, _ = judge.network(num_classes, images.shape[1:])
    return judge.Judge(init(jax.random.key(0)), num_classes, 0.5)


def write_people(path, *, owners=8, per_class=6, classes=2):
    """Images of people who are told apart by their brightness; a class is a half of the image that is lit."""
    rng = np.random.default_rng(0)
    owner, label = (
        grid.ravel() for grid in np.meshgrid(np.repeat(np.arange(owners), per_class), np.arange(classes), indexing="ij")
    )
    images = np.zeros((len(owner), 28, 28), np.uint8)
    for place, (person, half) in enumerate(zip(owner, label, strict=True)):
        lit = 40 + 25 * person + rng.integers(0, 6, (14, 28))
        images[place, 14 * half : 14 * half + 14] = lit
    np.savez(path, images=images, labels=label, owners=owner)
    return path


def people_settings(path):
    """Settings of user-level leakage on ``write_people`` that take seconds: five clients of one person each."""
    return {
        "dataset": f"npz:{path}",
        "categories": "none",
        "image_size": 28,
        "classifier": "mgan_ai",
        "clients": 5,
        "owners_per_client": 1,
        "sent_per_class": 2,
        "held_out_per_class": 2,
        "rounds": 2,
        "representatives": 2,
        "matching_iterations": 2,
        "discriminator_steps": 1,
        "generator_steps": 1,
        "memory_rounds": 1,
        "drawn_per_class": 1,
    }
