"""A federation whose clients are people: its data, the shared model, and its variants."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.server.mgan_ai import AuxiliaryImages
from gan_leak.data import OwnerSplit, gather, to_float
from gan_leak.data.dataset import Dataset
from gan_leak.defenses.contract import Defense
from gan_leak.models import classifier_for, mgan_ai_classifier
from gan_leak.models.layered import whole
from gan_leak.models.trunks import Trunk, trunk_of_flax, trunk_of_layered
from gan_leak.types import FederationData, Model

MODES = ("passive", "active", "shuffled")


class OwnedFederation(NamedTuple):
    """The federation: data of the clients, held-out images, auxiliary images and the shared model.

    data: NumPy arrays. held_out: images float32 [K, G, H, W, C] in [-1, 1] and labels int32 [K, G]. auxiliary: None
    without people outside. auxiliary_owners: int64 [A], the owner of each. model, trunk: the shared model.
    """

    split: OwnerSplit
    data: FederationData
    held_out: np.ndarray
    held_out_labels: np.ndarray
    auxiliary: AuxiliaryImages | None
    auxiliary_owners: np.ndarray
    model: Model
    trunk: Trunk
    num_classes: int

    @property
    def clients(self) -> int:
        return len(self.data.sizes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.data.inputs.shape[2:]
        return height, width, channels


class Variant(NamedTuple):
    """One federation to attack: its local training, its defenses with their numbers, and the mode of the server.

    mode: one of ``MODES``. "shuffled" is the control of ``shuffled_senders``.
    """

    local_epochs: int
    batch_size: int
    defenses: tuple[Defense, ...]
    strengths: dict[str, float]
    mode: str = "passive"


def build_federation(dataset: Dataset, split: OwnerSplit, classifier: str) -> OwnedFederation:
    """Collect the images of all sides, and build the shared model."""
    images, labels = dataset.train_images, dataset.train_labels
    held_out = np.stack([to_float(images[indices]) for indices in split.held_out])
    held_out_labels = np.stack([labels[indices] for indices in split.held_out])
    auxiliary = None
    if len(split.auxiliary):
        outside = split.auxiliary
        auxiliary = AuxiliaryImages(jnp.asarray(to_float(images[outside])), jnp.asarray(labels[outside]))
    shape = held_out.shape[2:]
    model, trunk = shared_model(classifier, shape, len(dataset.class_names))
    data = gather(images, labels, split.sent)
    assert dataset.train_owners is not None
    owners = dataset.train_owners[split.auxiliary]
    return OwnedFederation(
        split, data, held_out, held_out_labels, auxiliary, owners, model, trunk, len(dataset.class_names)
    )


def shared_model(name: str, shape: tuple[int, int, int], classes: int) -> tuple[Model, Trunk]:
    """The classifier of this name for images [H, W, C], and its trunk."""
    side, _, channels = shape
    if name == "mgan_ai":
        network = mgan_ai_classifier(classes, image_size=side, channels=channels)
        return whole(network), trunk_of_layered(network)
    model = classifier_for(side, classes, channels=channels)
    return model, trunk_of_flax(model, shape)


def steps_of(variant: Variant, federation: OwnedFederation) -> int:
    """The number of local steps of a client in one round."""
    most = int(np.max(federation.data.sizes))
    return variant.local_epochs * -(-most // (variant.batch_size or most))
