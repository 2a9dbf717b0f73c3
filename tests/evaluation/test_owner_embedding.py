"""The owner embedding: tells owners apart that it has never seen, states its accuracy, and is trained once."""

import numpy as np
import pytest

from gan_leak import data
from gan_leak.evaluation import owner_embedding as module
from gan_leak.evaluation.client_distances import Galleries, pixel_space
from gan_leak.evaluation.identification import build_identification_references
from gan_leak.evaluation.owner_embedding import (
    LEAST_OWNERS,
    EmbeddingTraining,
    embed,
    embedding_space,
    load_or_train_owner_embedding,
    obstacle_to_embedding,
)

TINY = EmbeddingTraining(epochs=1, least_steps=120, batch_size=32, noise=0.1)


def _strokes(seed, owners, count, *, same=False):
    """Images uint8 [owners, count, 16, 16, 1] of waves: the owner decides direction and length, chance the phase.

    The phase moves the dark and bright places, so pixels do not tell the owner. same: all owners are alike.
    """
    rng = np.random.default_rng(seed)
    angle, length = rng.uniform(0, np.pi, owners), rng.uniform(3, 7, owners)
    if same:
        angle[:], length[:] = 0.3, 4.0
    phase = rng.uniform(0, 2 * np.pi, (owners, count, 1, 1))
    down, across = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    along = np.cos(angle)[:, None, None] * down + np.sin(angle)[:, None, None] * across
    waves = np.sin(2 * np.pi * along[:, None] / length[:, None, None, None] + phase)
    return np.clip(127 + 90 * waves + rng.normal(0, 5, waves.shape), 0, 255).astype(np.uint8)[..., None]


def _flat(images):
    owners, count = images.shape[:2]
    return images.reshape(-1, *images.shape[2:]), np.repeat(np.arange(owners), count)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An embedding of 40 owners, 20 images each, and where it is kept."""
    cache = tmp_path_factory.mktemp("cache")
    return load_or_train_owner_embedding(*_flat(_strokes(0, 40, 20)), cache_directory=cache, training=TINY), cache


@pytest.mark.slow
def test_it_identifies_owners_that_it_has_never_seen_where_pixels_do_not(trained):
    """Eight other owners, whose waves have random phases; an untrained network identifies fewer."""
    images = data.to_float(_strokes(1, 8, 12).reshape(-1, 16, 16, 1)).reshape(8, 12, 16, 16, 1)
    galleries = Galleries(images, np.zeros((8, 12), int))
    in_pixels = build_identification_references(galleries, pixel_space())
    in_embedding = build_identification_references(galleries, embedding_space(trained[0]))
    params = module._EmbeddingNetwork(40).init(module.jax.random.key(0), np.zeros((1, 16, 16, 1)))["params"]
    untrained = build_identification_references(galleries, embedding_space(trained[0]._replace(params=params)))
    assert in_embedding.ceiling.identified.mean > 0.9
    assert max(found.ceiling.identified.mean for found in (in_pixels, untrained)) < 0.9
    assert in_embedding.reason is None
    assert in_embedding.space.name == "owner embedding"


@pytest.mark.slow
def test_the_accuracy_is_that_on_images_which_were_not_trained_on(trained):
    """Four of twenty images of each owner; for owners without a difference it is near chance, 1 / 40."""
    assert trained[0].owners == 40
    assert trained[0].accuracy > 0.3
    alike = load_or_train_owner_embedding(
        *_flat(_strokes(2, 40, 20, same=True)), cache_directory=trained[1], training=TINY
    )
    assert alike.accuracy < 0.12


def test_every_fifth_image_of_each_owner_is_kept_from_training(monkeypatch, tmp_path):
    seen = []

    def train(images, owners, training):
        seen.append((images, owners))
        return module._EmbeddingNetwork(20).init(module.jax.random.key(0), np.zeros((1, 16, 16, 1)))["params"]

    monkeypatch.setattr(module, "train_owner_embedding", train)
    images = np.tile(np.arange(10, dtype=np.uint8), 20).reshape(-1, 1, 1, 1) * np.ones((1, 16, 16, 1), np.uint8)
    load_or_train_owner_embedding(images, np.repeat(np.arange(7, 27), 10), cache_directory=tmp_path)
    ((trained_on, owners),) = seen
    assert trained_on[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8] * 20
    assert owners.tolist() == np.repeat(np.arange(20), 8).tolist()


def test_embeddings_have_length_one_whatever_the_image_and_the_number(trained):
    """Also of a constant picture; and an image has the same embedding alone and among others."""
    images = np.concatenate([data.to_float(_flat(_strokes(3, 5, 20))[0]), np.full((1, 16, 16, 1), -1, np.float32)])
    found = embed(trained[0], images)
    assert found.shape == (101, 128)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(embed(trained[0], images[70:71]), found[70:71], atol=1e-5)


def test_it_is_trained_once_for_the_same_data_and_recipe(trained, monkeypatch):
    """Other images, owners or numbers of the recipe are another embedding."""
    embedding, cache = trained
    calls = []

    def train(images, owners, training):
        calls.append(training)
        return embedding.params

    monkeypatch.setattr(module, "train_owner_embedding", train)
    images, owners = _flat(_strokes(0, 40, 20))
    again = load_or_train_owner_embedding(images, owners, cache_directory=cache, training=TINY)
    assert calls == []
    assert again.accuracy == embedding.accuracy
    np.testing.assert_array_equal(embed(again, data.to_float(images[:3])), embed(embedding, data.to_float(images[:3])))
    # Other names of the same owners change nothing.
    load_or_train_owner_embedding(images, 10 * owners + 3, cache_directory=cache, training=TINY)
    assert calls == []
    load_or_train_owner_embedding(255 - images, owners, cache_directory=cache, training=TINY)
    load_or_train_owner_embedding(images, np.roll(owners, 1), cache_directory=cache, training=TINY)
    load_or_train_owner_embedding(images, owners, cache_directory=cache, training=TINY._replace(scale=8.0))
    assert len(calls) == 3


def test_too_few_third_parties_are_an_obstacle():
    """Owners with fewer than five images do not count."""
    enough = np.repeat(np.arange(LEAST_OWNERS), 5)
    assert obstacle_to_embedding(enough) is None
    expected = "19 third parties with at least 5 images each, expected at least 20"
    assert obstacle_to_embedding(enough[1:]) == expected
    with pytest.raises(ValueError, match=f"^owners: {expected}$"):
        load_or_train_owner_embedding(np.zeros((99, 16, 16, 1), np.uint8), enough[1:])
    assert obstacle_to_embedding(np.array([], int)).startswith("0 third parties")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((100, 16, 16, 1), np.float32), r"^images of type float32, shape"),
        (np.zeros((100, 28, 28, 1), np.uint8), r"^images of type uint8, shape \(100, 28, 28, 1\): expected .* of 8$"),
    ],
)
def test_images_that_do_not_fit(images, message):
    with pytest.raises(ValueError, match=message):
        load_or_train_owner_embedding(images, np.repeat(np.arange(20), 5))


@pytest.mark.slow
def test_larger_images_are_averaged_down(trained):
    """An image of 64 pixels and its averages over 2 x 2 pixels have the same embedding."""
    small = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 1)).astype(np.float32)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    params = module._EmbeddingNetwork(4).init(module.jax.random.key(0), np.zeros((1, 32, 32, 1)))["params"]
    embedding = module.OwnerEmbedding(params, 4, 0.0)
    np.testing.assert_allclose(embed(embedding, large), embed(embedding, small), atol=1e-5)
