"""How much of its images does a participant's gradient give away? (DLG, iDLG, Inverting Gradients, GRNN)

python -m experiments.gradient_inversion --attack=grnn --workdir=runs/grnn
python -m experiments.gradient_inversion --attack=dlg --network=dlg_lenet --defenses=none,pruning:0.2,gaussian:0.01
"""

from __future__ import annotations

from gan_leak.runs.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import dataclasses
import functools
import hashlib
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from experiments.flags import run_binary
from experiments.reconstructions import (
    Defense,
    Drawn,
    check_directory,
    defended_name,
    keep_row,
    option,
    parse_defenses,
    parse_numbers,
    part_of_row,
    run_and_report,
    tell_row,
    weight_or_own,
    write_results,
)
from gan_leak.attacks.gradients import IterativeAttack, check_view
from gan_leak.attacks.grnn import LOSSES
from gan_leak.config import check_counts, check_seed
from gan_leak.data import Dataset, load
from gan_leak.evaluation.reconstruction_report import measured_row
from gan_leak.files import open_regular, user_path
from gan_leak.runs import gradient_inversion as inversion
from gan_leak.runs.directory import RunDirectory, open_run
from gan_leak.runs.memory import check_inversion
from gan_leak.runs.parts import Course
from gan_leak.runs.workers import tell
from gan_leak.types import Array, GradientView, Model, UploadTransform

TITLE = "Attacks on one gradient"
# By attack: iterations, and the weight of total variation.
_DEFAULTS = {"dlg": (6000, 0.0), "idlg": (6000, 0.0), "inverting_gradients": (4800, 1e-4), "grnn": (1000, 1e-3)}
# GRNN has its own for the ResNet-18 (released code).
_RESIDUAL_TOTAL_VARIATION = 1e-6
# L-BFGS remembers 200 batches: beyond this a participant takes more than 200 MB.
_LARGEST_DLG_BATCH = 64
# Beyond, the activations of the network, which are differentiated twice, take tens of gigabytes.
_LARGEST_BATCH = 4096
_IMAGES_AT_A_TIME = 20
# Local steps are traced one after the other; training steps have a key each, which all are drawn at once.
_MOST = {"local_steps": 1000, "utility_steps": 1_000_000}


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """Participants who each send one gradient, or the update of several steps, of a network of their own."""

    attack: str = option("grnn", f"One of {', '.join(inversion.ATTACKS)}.")
    network: str = option("dlg_lenet", f"Whose gradient it is: one of {', '.join(inversion.NETWORKS)}.")
    initialisation: str = option(
        "wide", "Of the network: 'wide', U(-0.5, 0.5) as the authors of DLG and GRNN, or 'torch', the usual one."
    )
    dataset: str = option("mnist", "Data set, as in the main job.")
    image_size: int = option(32, "Side of the images in pixels.")
    channels: int = option(3, "1, or 3: grey images repeated, as in the released code of GRNN.")
    batch_sizes: str = option("1", "Images of one participant; several with commas between, each a row.")
    images: int = option(20, "Images that are attacked: as many participants as it takes.")
    local_steps: int = option(1, "SGD steps that a participant takes before it sends; 1 is a plain gradient.")
    local_batch_size: int = option(0, "Images of one step; 0 = all of them.")
    local_learning_rate: float = option(0.1, "Learning rate of several steps (Geiping et al. 2020: 1e-4).")
    labels: str = option(
        "known", "What inverting_gradients is told: 'known' labels, or 'inferred' from the gradient; idlg infers them."
    )
    iterations: int = option(0, "Iterations of the attack; 0 = its own (6000, 6000, 4800, 1000).")
    total_variation: float = option(-1.0, "Weight of total variation; -1 = the attack's own.")
    noise_size: int = option(128, "Of GRNN's generator.")
    loss: str = option("released", f"Of GRNN: one of {', '.join(LOSSES)}.")
    restarts: int = option(1, "Starts of the attack, of which that counts whose gradient comes nearest.")
    lanes: int = option(0, "Participants that share a program at a time; 0 = so many that they have 20 images.")
    defenses: str = option(
        "none", f"What a participant does to its gradient: none, or of {', '.join(inversion.DEFENSES)} with :strength."
    )
    utility_steps: int = option(0, "Training steps on defended gradients that tell each defence's accuracy; 0 = none.")
    gradient: str = option(
        "",
        "npz file with what a participant of yours sent, attacked instead: arrays params/<layer>/<name> and "
        "gradient/<layer>/<name> of the network; the data set only tells the classes.",
    )
    seed: int = option(0, "Seed of everything random.")


class Setting(NamedTuple):
    """One row of the table: who is attacked, behind which defence, and which labels [E, B, K] the attack is given.

    Of a gradient that was brought along, nobody knows the victims; it is ``brought``.
    """

    victims: inversion.Victims | None
    defense: Defense
    labels: Array
    brought: GradientView | None = None


class PreparedInversion(NamedTuple):
    """Attacks whose input has been checked."""

    config: GradientConfig
    dataset: Dataset
    model: Model
    settings: list[Setting]
    directory: RunDirectory


def _check(config: GradientConfig) -> None:
    for name, choices in {
        "attack": inversion.ATTACKS,
        "labels": ("known", "inferred"),
        "loss": LOSSES,
        "channels": (1, 3),
    }.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}={getattr(config, name)}: expected one of {', '.join(map(str, choices))}")
    for name in ("images", "local_steps", "restarts", "noise_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: expected at least 1")
    for name in ("iterations", "lanes", "local_batch_size", "utility_steps"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name}={getattr(config, name)}: expected at least 0")
    check_counts(config)
    for name, most_of in _MOST.items():
        if getattr(config, name) > most_of:
            raise ValueError(f"{name}={getattr(config, name)}: expected at most {most_of}")
    check_seed(config.seed)
    if not 0.0 < config.local_learning_rate < float("inf"):
        raise ValueError(f"local_learning_rate={config.local_learning_rate}: expected a finite number above 0")
    if config.local_steps > 1 and config.attack != "inverting_gradients":
        raise ValueError(
            f"local_steps={config.local_steps}: expected 1 with {config.attack}, which imitates a gradient"
        )
    most = {"idlg": (1, ", which infers one label"), "dlg": (_LARGEST_DLG_BATCH, ", which remembers 200 batches")}
    _total_variation(config)
    for size in parse_numbers("batch_sizes", config.batch_sizes):
        largest, reason = most.get(config.attack, (_LARGEST_BATCH, ""))
        if size > largest:
            raise ValueError(f"batch_sizes={size}: expected at most {largest} with {config.attack}{reason}")
        if size % (config.local_batch_size or size):
            raise ValueError(f"local_batch_size={config.local_batch_size}: expected a divisor of {size}")
        if config.local_steps * (config.local_batch_size or size) < size:
            raise ValueError(
                f"local_batch_size={config.local_batch_size}: expected so many that {config.local_steps} local steps "
                f"use all {size} images"
            )
    if config.gradient:
        if "," in config.batch_sizes:
            raise ValueError(f"batch_sizes={config.batch_sizes}: expected one with --gradient")
        if config.defenses != "none" or config.utility_steps:
            raise ValueError(f"defenses={config.defenses}: expected none, and no --utility_steps, with --gradient")
        if config.attack == "inverting_gradients" and config.labels == "known":
            raise ValueError("labels=known: expected inferred with --gradient, whose labels nobody tells")


def _total_variation(config: GradientConfig) -> float:
    if config.attack in ("dlg", "idlg") and config.total_variation != -1.0:
        raise ValueError(f"total_variation={config.total_variation}: expected -1 with {config.attack}, which has none")
    residual = (config.attack, config.network) == ("grnn", "grnn_resnet18")
    own = _RESIDUAL_TOTAL_VARIATION if residual else _DEFAULTS[config.attack][1]
    return weight_or_own("total_variation", config.total_variation, own)


def _iterations(config: GradientConfig) -> int:
    return config.iterations or _DEFAULTS[config.attack][0]


def _attack_for(config: GradientConfig, model: Model, num_classes: int, batch: int) -> IterativeAttack:
    """The attack on batches of this size; raises ValueError if it cannot draw such images."""
    return inversion.attack_for(
        config.attack,
        model,
        (batch, config.image_size, config.image_size, config.channels),
        num_classes,
        iterations=_iterations(config),
        total_variation=_total_variation(config),
        noise_size=config.noise_size,
        loss=config.loss,
        how=_how(config),
    )


def _transform(defense: Defense) -> UploadTransform | None:
    return None if defense.name == "none" else inversion.DEFENSES[defense.name](defense.strength)


def _how(config: GradientConfig) -> inversion.Observation:
    return inversion.Observation(config.local_steps, config.local_learning_rate, config.local_batch_size)


def _views(config: GradientConfig, model: Model, setting: Setting) -> GradientView:
    """What the participants send, with a leading axis of participants; the same networks whatever the defence."""
    if setting.victims is None:
        return jax.tree.map(lambda leaf: leaf[None], setting.brought)
    transform = _transform(setting.defense)
    encoded = jax.nn.one_hot(setting.victims.labels, setting.labels.shape[-1])
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0), len(encoded))

    @jax.jit
    def observe_all(keys: Array, images: Array, labels: Array) -> GradientView:
        return jax.lax.map(
            lambda entry: inversion.observe(entry[0], model, entry[1], entry[2], _how(config), transform),
            (keys, images, labels),
        )

    return observe_all(keys, setting.victims.images, encoded)


def _settings(config: GradientConfig, dataset: Dataset, model: Model) -> list[Setting]:
    """All rows, each of whose undefended gradients has been looked at."""
    num_classes = len(dataset.class_names)
    sizes = parse_numbers("batch_sizes", config.batch_sizes)
    if config.gradient:
        brought = inversion.load_view(user_path("gradient", config.gradient), model)
        check_view(brought)
        unknown = Setting(None, Defense(), jax.numpy.zeros((1, *sizes, num_classes)), brought)
        return [_with_labels(config, model, unknown)]
    found = []
    for size in sizes:
        victims = _victims(config, dataset, size)
        known = Setting(victims, Defense(), jax.nn.one_hot(victims.labels, num_classes))
        check_view(_views(config, model, known))
        for defense in parse_defenses(config.defenses, inversion.DEFENSES):
            found.append(_with_labels(config, model, known._replace(defense=defense)))
    return found


def _with_labels(config: GradientConfig, model: Model, setting: Setting) -> Setting:
    """The setting with the labels that the attack is given: those it knows, or those that the gradient tells."""
    if config.attack != "idlg" and not (config.attack == "inverting_gradients" and config.labels == "inferred"):
        return setting
    _, size, num_classes = setting.labels.shape
    views = _views(config, model, setting)
    inferred = [
        inversion.infer_labels(config.network, num_classes, jax.tree.map(lambda leaf, at=at: leaf[at], views), size)
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
    _check(config)
    parse_defenses(config.defenses, inversion.DEFENSES)
    dataset, model = load_data(config)
    for size in parse_numbers("batch_sizes", config.batch_sizes):
        attack = _attack_for(config, model, len(dataset.class_names), size)
        participants = 1 if config.gradient else -(-config.images // size)
        check_inversion(
            f"batch_sizes={size}, images={config.images}, restarts={config.restarts}, noise_size={config.noise_size}",
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
        if setting.victims is None:
            told = ", ".join(dataset.class_names[label] for label in saved.pop("labels").ravel())
            undefended += f", labels told: {told}"
        row = measured_row(defended_name(undefended, setting.defense), "attack", saved)
        known = images if setting.victims is None else setting.victims.images
        pictures, originals = (2.0 * values.reshape(-1, *values.shape[2:]) - 1.0 for values in (images, known))
        if setting.victims is None:
            originals = originals[:0]
        drawn.append(Drawn(row, originals, pictures, undefended, setting.defense, seconds))
        tell_row(row)
        write_results(directory, TITLE, drawn)
    return drawn


def _attack(prepared: PreparedInversion, setting: Setting, index: int) -> dict[str, np.ndarray]:
    """All arrays that a row and its pictures are made of."""
    config, dataset, model, _, directory = prepared
    num_classes = len(dataset.class_names)
    batch = setting.labels.shape[1]
    attack = _attack_for(config, model, num_classes, batch)
    key_attack, key_utility = (jax.random.fold_in(jax.random.key(config.seed), part) for part in (1, 2))
    found = inversion.run_attack(
        # By batch, so that a row is the same whichever others are asked for, and every defence meets the same starts.
        jax.random.fold_in(key_attack, batch - 1),
        attack,
        _views(config, model, setting),
        setting.labels,
        iterations=_iterations(config),
        restarts=config.restarts,
        lanes=config.lanes or max(1, _IMAGES_AT_A_TIME // batch),
        course=Course(part_of_row(directory, index), tell),
    )
    if setting.victims is None:
        told = np.argmax(np.asarray(found.labels), axis=-1)
        return {"images": inversion.shown(found), "labels": told, "distance": np.asarray(found.distance)}
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
        transform, steps = _transform(setting.defense), config.utility_steps
        accuracy = inversion.utility(key_utility, network, transform, dataset, channels=config.channels, steps=steps)
        kept["model_accuracy"] = np.array(accuracy)
    return kept


if __name__ == "__main__":
    run_binary(prepare, execute, GradientConfig)
