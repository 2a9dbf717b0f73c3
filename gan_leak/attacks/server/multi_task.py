"""The multi-task discriminator of mGAN-AI: category, real or fake, and identity, on the trunk of the shared model."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_leak.models.layers import TorchDense
from gan_leak.models.trunks import Trunk
from gan_leak.types import Array, PyTree


class Heads(NamedTuple):
    """The parameters of the output layers that only the server has: real or fake, and identity."""

    real: PyTree
    identity: PyTree


class Discriminator(NamedTuple):
    """The parameters: ``shared`` are those of the shared model, with its trunk and its category head."""

    shared: PyTree
    heads: Heads


class Judgment(NamedTuple):
    """The logits of a batch: categories [B, C], real [B], identities [B, 1] (one victim) or [B, K] (all clients)."""

    categories: Array
    real: Array
    identities: Array


class Losses(NamedTuple):
    """The three terms of a loss, each [], without their weights."""

    real: Array
    category: Array
    identity: Array


class RealBatch(NamedTuple):
    """Images that count as real, [B, H, W, C], with their categories and identities, int32 [B].

    weights, identity_weights: float32 [B], the weights in the mean for reality and category, and in that for identity.
    An auxiliary image has no identity, so the second weight is 0.
    """

    images: Array
    categories: Array
    identities: Array
    weights: Array
    identity_weights: Array


class FakeBatch(NamedTuple):
    """Generated images [B, H, W, C] and their conditions, int32 [B] each."""

    images: Array
    categories: Array
    identities: Array


def init_heads(key: Array, trunk: Trunk, identity_outputs: int) -> Heads:
    """New heads: linear layers on the features of the trunk, with Torch's initialization (ours)."""
    key_real, key_identity = jax.random.split(key)
    features = jnp.zeros((1, trunk.feature_size))
    return Heads(
        TorchDense(1).init(key_real, features)["params"],
        TorchDense(identity_outputs).init(key_identity, features)["params"],
    )


def judge_images(trunk: Trunk, discriminator: Discriminator, images: Array) -> Judgment:
    """The discriminator's logits for images [B, H, W, C]."""
    features, categories = trunk.apply(discriminator.shared, images)

    def head(params: PyTree) -> Array:
        layer = params["Dense_0"]
        return features @ layer["kernel"] + layer["bias"][None]

    return Judgment(categories, head(discriminator.heads.real)[:, 0], head(discriminator.heads.identity))


def identity_losses(logits: Array, identities: Array) -> Array:
    """The loss [B] of identity logits: BCE for one output (identity 1 is the victim), cross-entropy for several."""
    if logits.shape[1] == 1:
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], identities.astype(logits.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(logits, identities)


def weighted_mean(values: Array, weights: Array) -> Array:
    """The mean of values [B] by weights [B]; 0 if all weights are 0."""
    total = jnp.sum(weights)
    return jnp.sum(values * weights) / jnp.where(total > 0, total, 1.0)


def real_losses(judgment: Judgment, batch: RealBatch) -> Losses:
    """The losses of the discriminator on images that count as real."""
    reality = optax.sigmoid_binary_cross_entropy(judgment.real, jnp.ones_like(judgment.real))
    category = optax.softmax_cross_entropy_with_integer_labels(judgment.categories, batch.categories)
    return Losses(
        weighted_mean(reality, batch.weights),
        weighted_mean(category, batch.weights),
        weighted_mean(identity_losses(judgment.identities, batch.identities), batch.identity_weights),
    )


def discriminator_losses(trunk: Trunk, discriminator: Discriminator, batch: RealBatch, fakes: Array) -> Losses:
    """The losses on a real batch [B, ...] and on fakes [F, H, W, C], which only count in ``real``, with equal weight.

    Whether category and identity are also learned from fakes is open; here they are not.
    """
    judgment = judge_images(trunk, discriminator, jnp.concatenate([batch.images, fakes]))
    count = len(batch.images)
    on_fakes = judgment.real[count:]
    fake_loss = jnp.mean(optax.sigmoid_binary_cross_entropy(on_fakes, jnp.zeros_like(on_fakes)))
    losses = real_losses(jax.tree.map(lambda logits: logits[:count], judgment), batch)
    return losses._replace(real=0.5 * (losses.real + fake_loss))


def generator_losses(trunk: Trunk, discriminator: Discriminator, fakes: FakeBatch) -> Losses:
    """The losses of the generator: its images should count as real, with the category and identity of the condition."""
    weights = jnp.ones(len(fakes.images))
    batch = RealBatch(fakes.images, fakes.categories, fakes.identities, weights, weights)
    return real_losses(judge_images(trunk, discriminator, fakes.images), batch)


def weighted_sum(losses: Losses, category_weight: Array | float, identity_weight: Array | float) -> Array:
    """The loss that is minimized, []."""
    return losses.real + category_weight * losses.category + identity_weight * losses.identity
