"""mGAN-AI on networks of one layer, with a matcher that reads representatives exactly."""

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.server.mgan_ai import known_labels, mgan_ai
from gan_leak.attacks.server.mgan_ai_training import MganAiHyperParameters
from gan_leak.attacks.server.representatives import Representatives
from gan_leak.models.hitaj_generators import LATENT_SIZE
from gan_leak.models.mgan_ai_networks import EMBEDDING_SIZE, conditional_generator
from gan_leak.models.trunks import Trunk
from gan_leak.runs.server import attack, baselines, federation, linking
from gan_leak.types import Model
from reference.small import CLASSES, IMAGE_SHAPE, linear_classifier

PIXELS = 16


def linear_trunk():
    """The features of the linear classifier are its pixels."""
    model = linear_classifier()
    return Trunk(lambda params, images: (images.reshape(len(images), -1), model.apply(params, images)), PIXELS, CLASSES)


def small_generator(identities, categories=CLASSES, latent_size=4):
    """Images = tanh(joined latents @ weights + bias)."""

    def init(key):
        weights = 0.05 * jax.random.normal(key, (latent_size + 2 * EMBEDDING_SIZE, PIXELS))
        return {"bias": jnp.zeros(PIXELS), "weights": weights}

    def apply(params, joined):
        return jnp.tanh(joined @ params["weights"] + params["bias"][None]).reshape(-1, *IMAGE_SHAPE)

    return conditional_generator(
        Model(init, apply), categories=categories, identities=identities, latent_size=latent_size
    )


def read_representatives(key, evidence, start):
    """For each label the column of the kernel's gradient over the entry of the bias's, in [-1, 1].

    Of a linear model it is a weighted mean of the client's images. What all images share is in it exactly.
    """

    def read(updates, labels):
        bias, kernel = updates[:CLASSES], updates[CLASSES:].reshape(PIXELS, CLASSES)
        ratio = kernel / jnp.where(bias == 0, 1.0, bias)[None]
        return jnp.clip(ratio.T[labels], -1.0, 1.0).reshape(-1, *IMAGE_SHAPE)

    images = jax.vmap(read)(evidence.updates, evidence.labels)
    return Representatives(images, jnp.arange(1.0, len(images) + 1))


def one_of_each(clients):
    """The label rule of a server that takes every client to hold every class."""
    return known_labels(jnp.broadcast_to(jnp.arange(CLASSES)[None], (clients, CLASSES)))


def small_mgan_ai(clients, *, identity="all", match=read_representatives, batch_size=4, **choices):
    return mgan_ai(
        linear_trunk(),
        small_generator(clients if identity == "all" else 2),
        match,
        one_of_each(clients),
        clients=clients,
        identity=identity,
        batch_size=batch_size,
        **choices,
    )


def quick_numbers(victim=0, **values):
    """Two updates of each network in a round."""
    settings = {"client_learning_rate": 0.5, "discriminator_steps": 2, "generator_steps": 2, "learning_rate": 0.01}
    return MganAiHyperParameters(victim, **(settings | values))


def linear_shared_model(name, shape, classes):
    """A linear classifier of images [H, W, C] in the place of every network, and its pixels as features."""
    pixels = int(np.prod(shape))

    def init(key):
        return {"bias": jnp.zeros(classes), "kernel": 0.01 * jax.random.normal(key, (pixels, classes))}

    def apply(params, images):
        return images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None]

    trunk = Trunk(lambda params, images: (images.reshape(len(images), -1), apply(params, images)), pixels, classes)
    return Model(init, apply), trunk


def linear_generator_for(name, federation, identities):
    """A generator of one layer in the place of every network."""
    pixels = int(np.prod(federation.image_shape))

    def init(key):
        return {"weights": 0.05 * jax.random.normal(key, (LATENT_SIZE + 2 * EMBEDDING_SIZE, pixels))}

    def apply(params, joined):
        return jnp.tanh(joined @ params["weights"]).reshape(-1, *federation.image_shape)

    categories = federation.num_classes
    return conditional_generator(Model(init, apply), categories=categories, identities=identities)


def use_linear_people(monkeypatch):
    """Replaces the networks of federations of people by some that compile in no time."""
    for module in (federation, linking):
        monkeypatch.setattr(module, "shared_model", linear_shared_model)
    for module in (attack, baselines):
        monkeypatch.setattr(module, "conditional_generator_for", linear_generator_for)
