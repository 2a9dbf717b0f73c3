"""Rows of a table of attacks on gradients: their settings from flags, their arrays and their pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.gradient_config import (
    GradientConfig,
    iterations_of,
    labels_are_inferred,
    matchings_of,
    observation_of,
    total_variation_of,
)
from experiments.common.tables import AppliedDefense, Drawn, defended_name, parse_defenses, parse_numbers, transform_of
from gan_leak.attacks.gradient.contract import GradientEvidence, GradientInversion
from gan_leak.attacks.gradient.observation import check_view
from gan_leak.attacks.gradient.registry import GRADIENT_ATTACKS
from gan_leak.attacks.procedure import Procedure
from gan_leak.data import Dataset
from gan_leak.defenses.contract import GRADIENT
from gan_leak.files import user_path
from gan_leak.reports.reconstruction import measured_row
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.inversion import gradient as inversion
from gan_leak.runs.inversion.gradient_files import LoadedGradient, load_gradient, summarize_gradient
from gan_leak.runs.inversion.gradient_labels import (
    arranged_labels,
    divided_by_inferred_scale,
    infer_labels_of_all,
)
from gan_leak.runs.inversion.gradient_measures import measured_arrays, unmeasured_arrays
from gan_leak.runs.storage.resumable import SavedProgress
from gan_leak.types import Array, GradientView, Model

_IMAGES_AT_A_TIME = 20


class Setting(NamedTuple):
    """One row of the table: the victims, their defense, and the labels [E, B, K] given to the attack.

    With a user's gradient, ``brought``, the victims are unknown. matching: one of ``inversion.MATCHINGS``.
    """

    victims: inversion.Victims | None
    defense: AppliedDefense
    labels: Array
    brought: LoadedGradient | None = None
    matching: str = "ordered"


def load_victims(config: GradientConfig, dataset: Dataset, size: int) -> inversion.Victims:
    """Participants with batches of this size; raises ValueError if there are not enough images."""
    return inversion.victims_from(
        dataset,
        batch_size=size,
        images=config.images,
        channels=config.channels,
        seed=config.seed,
        dirichlet_concentration=config.dirichlet_concentration,
    )


def trained_model(config: GradientConfig, dataset: Dataset, model: Model) -> Model:
    """The model whose initial parameters are those after ``training_steps``, the same for all participants."""
    tell(f"training the network for {config.training_steps} steps")
    key = jax.random.fold_in(jax.random.key(config.seed), 5)
    params = inversion.trained_params(key, model, dataset, channels=config.channels, steps=config.training_steps)
    return Model(lambda key: params, model.apply)


def procedure_of(
    config: GradientConfig,
    model: Model,
    num_classes: int,
    batch: int,
    matching: str = "ordered",
    *,
    fit_scale: bool = False,
) -> Procedure:
    """The attack on batches of this size; raises ValueError for images of a wrong shape."""
    return inversion.procedure_for(
        config.attack,
        model,
        (batch, config.image_size, config.image_size, config.channels),
        num_classes,
        iterations=iterations_of(config),
        total_variation=total_variation_of(config),
        noise_size=config.noise_size,
        loss=config.loss,
        observation=observation_of(config, batch if matching == "known_order" else None),
        matching=matching,
        fit_scale=fit_scale,
    )


def row_settings(config: GradientConfig, dataset: Dataset, model: Model) -> list[Setting]:
    """All rows with checked undefended gradients; raises ValueError for a refused one."""
    num_classes = len(dataset.class_names)
    sizes = parse_numbers("batch_sizes", config.batch_sizes)
    found = []
    if config.gradient:
        found.append(_with_labels(config, model, _setting_of_file(config, model, sizes[0], num_classes)))
    for size in () if config.gradient else sizes:
        victims = load_victims(config, dataset, size)
        known = Setting(victims, AppliedDefense(), jax.nn.one_hot(victims.labels, num_classes))
        check_view(_views(config, model, known))
        for defense in parse_defenses(config.defenses, GRADIENT):
            found.append(_with_labels(config, model, known._replace(defense=defense)))
    return [setting._replace(matching=matching) for setting in found for matching in matchings_of(config)]


def _setting_of_file(config: GradientConfig, model: Model, size: int, num_classes: int) -> Setting:
    """The setting of a user's gradient, after checks of the gradient and its labels."""
    brought = load_gradient(
        user_path("gradient", config.gradient),
        model,
        config.network,
        batch_size=size,
        num_classes=num_classes,
        scale=config.gradient_scale,
        flatten_order=config.flatten_order,
    )
    check_view(brought.view)
    if config.gradient_scale == 0.0:
        brought = divided_by_inferred_scale(brought, num_classes, size)
    labels = brought.labels
    if labels is None and GRADIENT_ATTACKS[config.attack].labels == "given" and not labels_are_inferred(config):
        raise ValueError(
            f"labels={config.labels}: expected an array 'labels' in {config.gradient}, or --labels=inferred with "
            "--gradient"
        )
    given = np.zeros((size, num_classes)) if labels is None else np.eye(num_classes)[labels]
    return Setting(None, AppliedDefense(), jnp.asarray(given, jnp.float32)[None], brought)


def _with_labels(config: GradientConfig, model: Model, setting: Setting) -> Setting:
    """The setting with the labels given to the attack: known, or inferred from the gradient."""
    if not labels_are_inferred(config):
        return setting
    _, size, num_classes = setting.labels.shape
    inferred = infer_labels_of_all(
        config.network, num_classes, _views(config, model, setting), size, steps=config.local_steps
    )
    return setting._replace(labels=jax.nn.one_hot(inferred, num_classes))


def _views(config: GradientConfig, model: Model, setting: Setting) -> GradientView:
    """The uploads, with a leading axis of participants; the networks are the same for every defense."""
    if setting.brought is not None:
        return jax.tree.map(lambda leaf: leaf[None], setting.brought.view)
    assert setting.victims is not None
    return inversion.observe_all(
        jax.random.fold_in(jax.random.key(config.seed), 0),
        model,
        jnp.asarray(setting.victims.images),
        jax.nn.one_hot(setting.victims.labels, setting.labels.shape[-1]),
        observation_of(config, setting.labels.shape[1] if config.local_shuffle else None),
        transform_of(setting.defense, GRADIENT),
    )


def _labels_in_order(config: GradientConfig, model: Model, setting: Setting, views: GradientView) -> Array:
    """The labels in the order of the attack; if the order is unknown, inferred for each epoch from the updates."""
    if setting.matching != "epoch_mean":
        return setting.labels
    batch = setting.labels.shape[1]
    tell(f"  {config.attack}, batch {batch}: searching for the labels of each batch")
    observation = observation_of(config)
    size = observation.batch_size or batch
    return arranged_labels(
        jax.random.fold_in(jax.random.key(config.seed), 4),
        inversion.update_by(model, observation._replace(batch_size=size)),
        views,
        setting.labels,
        (config.image_size, config.image_size, config.channels),
        epochs=observation.steps * size // batch,
        batch_size=size,
    )


def attack_setting(
    config: GradientConfig, dataset: Dataset, model: Model, setting: Setting, progress: SavedProgress
) -> dict[str, np.ndarray]:
    """All arrays of a row and its pictures."""
    num_classes, batch = len(dataset.class_names), setting.labels.shape[1]
    attack, brought = GRADIENT_ATTACKS[config.attack], setting.brought
    # Fit the scale only if the last layer does not determine it.
    fit_scale = config.gradient_scale == 0.0 and (brought is None or brought.scale is None)
    views = _views(config, model, setting)
    found: GradientInversion = inversion.run_attack(
        # Keys depend on the batch size: a row is independent of the others, and every defense faces the same starts.
        jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), batch - 1),
        procedure_of(config, model, num_classes, batch, setting.matching, fit_scale=fit_scale),
        GradientEvidence(views, _labels_in_order(config, model, setting, views)),
        iterations=iterations_of(config),
        restarts=config.restarts,
        lanes=config.lanes or max(1, _IMAGES_AT_A_TIME // batch),
        progress=progress,
    )
    if brought is not None:
        return unmeasured_arrays(found, model, brought.view, fitted=fit_scale and attack.distance != "cosine")
    assert setting.victims is not None
    given = attack.labels == "given" and not labels_are_inferred(config)
    arrays = measured_arrays(found, setting.victims, labels_given=given)
    if config.training_steps:
        params = model.init(jax.random.key(0))
        arrays["attacked_accuracy"] = np.array(inversion.accuracy_of(model, params, dataset, channels=config.channels))
    if config.utility_steps:
        arrays["model_accuracy"] = np.array(_accuracy(config, dataset, setting.defense))
    return arrays


def _accuracy(config: GradientConfig, dataset: Dataset, defense: AppliedDefense) -> float:
    """The accuracy of a network trained with a defense, always from the default initialization of PyTorch."""
    num_classes = len(dataset.class_names)
    network = inversion.network_for(config.network, "torch", num_classes, config.image_size, config.channels)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    transform, steps = transform_of(defense, GRADIENT), config.utility_steps
    return inversion.utility(key, network, transform, dataset, channels=config.channels, steps=steps)


def draw_setting(
    config: GradientConfig, dataset: Dataset, setting: Setting, saved: dict[str, Any], seconds: float
) -> Drawn:
    """A row with its pictures from the arrays of ``attack_setting``."""
    images = saved.pop("images")
    undefended = f"{config.attack}, {config.network}, batch {setting.labels.shape[1]}"
    if config.matching != "ordered":
        undefended += f", {setting.matching.replace('_', ' ')}"
    if setting.brought is not None:
        predicted = ", ".join(dataset.class_names[label] for label in saved.pop("labels").ravel())
        undefended += f", predicted labels: {predicted}"
    scale = saved.pop("scale", None)
    row = measured_row(defended_name(undefended, setting.defense), "attack", saved)
    if setting.brought is not None:
        distance = float(saved["distance"][0])
        row |= summarize_gradient(GRADIENT_ATTACKS[config.attack], setting.brought, distance, scale)
    known = images if setting.victims is None else setting.victims.images
    pictures, originals = (2.0 * values.reshape(-1, *values.shape[2:]) - 1.0 for values in (images, known))
    if setting.victims is None:
        originals = originals[:0]
    return Drawn(row, originals, pictures, undefended, setting.defense, seconds)
