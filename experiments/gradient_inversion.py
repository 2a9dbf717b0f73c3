"""How much of its images does a participant's gradient give away? (DLG, iDLG, Inverting Gradients, GRNN)

python -m experiments.gradient_inversion --attack=grnn --workdir=runs/grnn
python -m experiments.gradient_inversion --attack=dlg --network=dlg_lenet --defenses=none,pruning:0.2,gaussian:0.01
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import functools
import hashlib
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from experiments.common.flags import run_binary
from experiments.common.gradient_config import (
    GradientConfig,
    check,
    iterations_of,
    matchings_of,
    observation_of,
    total_variation_of,
)
from experiments.common.tables import (
    AppliedDefense,
    Drawn,
    check_directory,
    defended_name,
    keep_row,
    parse_defenses,
    parse_numbers,
    part_of_row,
    run_and_report,
    tell_row,
    transform_of,
    write_results,
)
from gan_leak.attacks.gradient.observation import IterativeAttack, check_view, fitted_scale, gradient_of
from gan_leak.data import Dataset, load
from gan_leak.defenses.contract import GRADIENT
from gan_leak.files import open_regular, user_path
from gan_leak.reports.reconstruction import measured_row
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.inversion import gradient as inversion
from gan_leak.runs.inversion.gradient_files import BroughtGradient, load_gradient, told_of_gradient
from gan_leak.runs.inversion.gradient_labels import arranged_labels, infer_gradient_scale, infer_labels
from gan_leak.runs.memory import check_inversion
from gan_leak.runs.storage.directory import RunDirectory, open_run
from gan_leak.runs.storage.resumable import Course
from gan_leak.types import Array, GradientView, Model

TITLE = "Attacks on one gradient"
_IMAGES_AT_A_TIME = 20


class Setting(NamedTuple):
    """One row of the table: who is attacked, behind which defence, and which labels [E, B, K] the attack is given.

    Of a gradient that was brought along, nobody knows the victims; it is ``brought``. matching: one of
    ``inversion.MATCHINGS``.
    """

    victims: inversion.Victims | None
    defense: AppliedDefense
    labels: Array
    brought: BroughtGradient | None = None
    matching: str = "ordered"


class PreparedInversion(NamedTuple):
    """Attacks whose input has been checked."""

    config: GradientConfig
    dataset: Dataset
    model: Model
    settings: list[Setting]
    directory: RunDirectory


def _attack_for(
    config: GradientConfig,
    model: Model,
    num_classes: int,
    batch: int,
    matching: str = "ordered",
    *,
    fit_scale: bool = False,
) -> IterativeAttack:
    """The attack on batches of this size; raises ValueError if it cannot draw such images."""
    return inversion.attack_for(
        config.attack,
        model,
        (batch, config.image_size, config.image_size, config.channels),
        num_classes,
        iterations=iterations_of(config),
        total_variation=total_variation_of(config),
        noise_size=config.noise_size,
        loss=config.loss,
        how=observation_of(config, batch if matching == "known_order" else None),
        matching=matching,
        fit_scale=fit_scale,
    )


def _views(config: GradientConfig, model: Model, setting: Setting) -> GradientView:
    """What the participants send, with a leading axis of participants; the same networks whatever the defence."""
    if setting.brought is not None:
        return jax.tree.map(lambda leaf: leaf[None], setting.brought.view)
    assert setting.victims is not None
    how = observation_of(config, setting.labels.shape[1] if config.local_shuffle else None)
    transform = transform_of(setting.defense, GRADIENT)
    encoded = jax.nn.one_hot(setting.victims.labels, setting.labels.shape[-1])
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0), len(encoded))

    @jax.jit
    def observe_all(keys: Array, images: Array, labels: Array) -> GradientView:
        return jax.lax.map(
            lambda entry: inversion.observe(entry[0], model, entry[1], entry[2], how, transform),
            (keys, images, labels),
        )

    return observe_all(keys, setting.victims.images, encoded)


def _settings(config: GradientConfig, dataset: Dataset, model: Model) -> list[Setting]:
    """All rows, each of whose undefended gradients has been looked at."""
    num_classes = len(dataset.class_names)
    sizes = parse_numbers("batch_sizes", config.batch_sizes)
    if config.gradient:
        return _settings_of_file(config, model, sizes[0], num_classes)
    found = []
    for size in sizes:
        victims = _victims(config, dataset, size)
        known = Setting(victims, AppliedDefense(), jax.nn.one_hot(victims.labels, num_classes))
        check_view(_views(config, model, known))
        for defense in parse_defenses(config.defenses, GRADIENT):
            defended = _with_labels(config, model, known._replace(defense=defense))
            found += [defended._replace(matching=matching) for matching in matchings_of(config)]
    return found


def _settings_of_file(config: GradientConfig, model: Model, size: int, num_classes: int) -> list[Setting]:
    """The rows of a gradient that was brought along, once it and its labels have been looked at."""
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
        scale = infer_gradient_scale(num_classes, brought.view, size)
        gradient = jax.tree.map(lambda leaf: leaf / (scale or 1.0), brought.view.gradient)
        brought = brought._replace(view=brought.view._replace(gradient=gradient), scale=scale)
    labels = brought.labels
    if labels is None and config.attack == "inverting_gradients" and config.labels == "known":
        raise ValueError(
            f"labels=known: expected an array 'labels' in {config.gradient}, or --labels=inferred with --gradient"
        )
    given = np.zeros((size, num_classes)) if labels is None else np.eye(num_classes)[labels]
    unknown = Setting(None, AppliedDefense(), jax.numpy.asarray(given, jax.numpy.float32)[None], brought)
    prepared = _with_labels(config, model, unknown)
    return [prepared._replace(matching=matching) for matching in matchings_of(config)]


def _with_labels(config: GradientConfig, model: Model, setting: Setting) -> Setting:
    """The setting with the labels that the attack is given: those it knows, or those that the gradient tells."""
    if config.attack != "idlg" and not (config.attack == "inverting_gradients" and config.labels == "inferred"):
        return setting
    _, size, num_classes = setting.labels.shape
    views = _views(config, model, setting)
    inferred = [
        infer_labels(
            config.network,
            num_classes,
            jax.tree.map(lambda leaf, at=at: leaf[at], views),
            size,
            steps=config.local_steps,
        )
        for at in range(len(setting.labels))
    ]
    return setting._replace(labels=jax.nn.one_hot(np.stack(inferred), num_classes))


def load_data(config: GradientConfig) -> tuple[Dataset, Model]:
    """The data set and the network that fits it; raises ValueError or OSError where they do not go together."""
    dataset = load(config.dataset, image_size=config.image_size)
    model = inversion.network_for(
        config.network, config.initialisation, len(dataset.class_names), config.image_size, config.channels
    )
    for size in () if config.gradient else parse_numbers("batch_sizes", config.batch_sizes):
        _victims(config, dataset, size)
    return dataset, model


def _victims(config: GradientConfig, dataset: Dataset, size: int) -> inversion.Victims:
    return inversion.victims_from(
        dataset, batch_size=size, images=config.images, channels=config.channels, seed=config.seed
    )


def prepare(config: GradientConfig, workdir: pathlib.Path, resume: bool) -> PreparedInversion:
    """Checks the flags, the data and the gradients and opens the directory; raises ValueError for bad input."""
    check(config)
    parse_defenses(config.defenses, GRADIENT)
    dataset, model = load_data(config)
    for size in parse_numbers("batch_sizes", config.batch_sizes):
        for matching in matchings_of(config):
            attack = _attack_for(config, model, len(dataset.class_names), size, matching)
            participants = 1 if config.gradient else -(-config.images // size)
            check_inversion(
                f"batch_sizes={size}, images={config.images}, restarts={config.restarts}, "
                f"noise_size={config.noise_size}",
                attack,
                model,
                (size, config.image_size, config.image_size, config.channels),
                len(dataset.class_names),
                lanes=participants * config.restarts,
            )
    settings = _settings(config, dataset, model)
    inputs = {"dataset": dataset.fingerprint}
    if config.gradient:
        with open_regular(user_path("gradient", config.gradient)) as file:
            inputs["gradient"] = hashlib.file_digest(file, "sha256").hexdigest()
    directory = open_run(workdir, config, resume=resume, inputs=inputs, check=check_directory)
    for note in dataset.notes:
        tell(note)
    return PreparedInversion(config, dataset, model, settings, directory)


def execute(prepared: PreparedInversion) -> int:
    """Runs the rows that are not there yet, and writes the table anew after each."""
    return run_and_report(prepared.directory, functools.partial(run_settings, prepared))


def run_settings(prepared: PreparedInversion) -> list[Drawn]:
    """Every setting with its row and pictures, from the directory where it is there."""
    config, dataset, _, settings, directory = prepared
    drawn: list[Drawn] = []
    for index, setting in enumerate(settings):
        saved, seconds = keep_row(directory, index, functools.partial(_attack, prepared, setting, index))
        images = saved.pop("images")
        undefended = f"{config.attack}, {config.network}, batch {setting.labels.shape[1]}"
        if config.matching != "ordered":
            undefended += f", {setting.matching.replace('_', ' ')}"
        if setting.brought is not None:
            told = ", ".join(dataset.class_names[label] for label in saved.pop("labels").ravel())
            undefended += f", labels told: {told}"
        scale = saved.pop("scale", None)
        row = measured_row(defended_name(undefended, setting.defense), "attack", saved)
        if setting.brought is not None:
            row |= told_of_gradient(config.attack, setting.brought, float(saved["distance"][0]), scale)
        known = images if setting.victims is None else setting.victims.images
        pictures, originals = (2.0 * values.reshape(-1, *values.shape[2:]) - 1.0 for values in (images, known))
        if setting.victims is None:
            originals = originals[:0]
        drawn.append(Drawn(row, originals, pictures, undefended, setting.defense, seconds))
        tell_row(row)
        for note in row.get("notes", ()):
            tell(f"{row['name']}: {note}")
        write_results(directory, TITLE, drawn)
    return drawn


def _attack(prepared: PreparedInversion, setting: Setting, index: int) -> dict[str, np.ndarray]:
    """All arrays that a row and its pictures are made of."""
    config, dataset, model, _, directory = prepared
    num_classes = len(dataset.class_names)
    batch = setting.labels.shape[1]
    # Where the last layer has not told it.
    fit_scale = config.gradient_scale == 0.0 and (setting.brought is None or setting.brought.scale is None)
    attack = _attack_for(config, model, num_classes, batch, setting.matching, fit_scale=fit_scale)
    views = _views(config, model, setting)
    labels = setting.labels
    if setting.matching == "epoch_mean":
        tell(f"  {config.attack}, batch {batch}: which labels were in which batch is sought")
        key_order = jax.random.fold_in(jax.random.key(config.seed), 4)
        how = observation_of(config)
        size = how.batch_size or batch
        labels = arranged_labels(
            key_order,
            inversion.update_by(model, how._replace(batch_size=size)),
            views,
            labels,
            (config.image_size, config.image_size, config.channels),
            epochs=how.steps * size // batch,
            batch_size=size,
        )
    key_attack, key_utility = (jax.random.fold_in(jax.random.key(config.seed), part) for part in (1, 2))
    found = inversion.run_attack(
        # By batch, so that a row is the same whichever others are asked for, and every defence meets the same starts.
        jax.random.fold_in(key_attack, batch - 1),
        attack,
        views,
        labels,
        iterations=iterations_of(config),
        restarts=config.restarts,
        lanes=config.lanes or max(1, _IMAGES_AT_A_TIME // batch),
        course=Course(part_of_row(directory, index), tell),
    )
    if setting.victims is None:
        assert setting.brought is not None
        told = np.argmax(np.asarray(found.labels), axis=-1)
        kept = {"images": inversion.shown(found), "labels": told, "distance": np.asarray(found.distance)}
        if fit_scale and config.attack != "inverting_gradients":
            drawn = gradient_of(model, setting.brought.view.params, found.images[0], found.labels[0])
            kept["scale"] = np.asarray(fitted_scale(drawn, setting.brought.view.gradient))
        return kept
    result = inversion.measure(found, setting.victims)
    measures = result.measures._asdict()
    controls = {name: getattr(result.other_measures, name) for name in inversion.CONTROLS}
    if config.attack == "inverting_gradients" and config.labels == "known":
        # It was given them.
        del measures["label_right"], controls["label_right"]
    kept = {"images": result.images, **measures}
    kept |= {f"control_{name}": values for name, values in controls.items()} | result.baselines
    if config.utility_steps:
        # Trained from the usual initialisation, whatever the attacked one.
        network = inversion.network_for(config.network, "torch", num_classes, config.image_size, config.channels)
        transform, steps = transform_of(setting.defense, GRADIENT), config.utility_steps
        accuracy = inversion.utility(key_utility, network, transform, dataset, channels=config.channels, steps=steps)
        kept["model_accuracy"] = np.array(accuracy)
    return kept


if __name__ == "__main__":
    run_binary(prepare, execute, GradientConfig)
