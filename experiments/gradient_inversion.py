"""How much of its images does a participant's gradient give away? (DLG, iDLG, Inverting Gradients, GRNN)

python -m experiments.gradient_inversion --attack=grnn --workdir=runs/grnn
python -m experiments.gradient_inversion --attack=dlg --network=dlg_lenet --defense=pruning --strengths=0.1,0.5
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.flags import run_binary
from gan_leak.attacks.gradients import check_view
from gan_leak.data import load, to_float
from gan_leak.evaluation.criteria import summarise
from gan_leak.evaluation.gradient_report import render_gradient_inversion
from gan_leak.runs import gradient_inversion as inversion
from gan_leak.runs.directory import RunDirectory, close_run, npz_bytes, open_run, write_atomic
from gan_leak.runs.workers import tell
from gan_leak.types import GradientView

# By attack: iterations, and the weight of total variation.
_DEFAULTS = {"dlg": (6000, 0.0), "idlg": (6000, 0.0), "inverting_gradients": (4800, 1e-4), "grnn": (1000, 1e-3)}


def _field(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """Participants who each send one gradient, or the update of several steps, of a fresh network."""

    attack: str = _field("grnn", f"One of {', '.join(inversion.ATTACKS)}.")
    network: str = _field("grnn_lenet", f"Whose gradient it is: one of {', '.join(inversion.NETWORKS)}.")
    dataset: str = _field("mnist", "Data set, as in the main job.")
    image_size: int = _field(32, "Side of the images in pixels.")
    channels: int = _field(3, "1, or 3: grey images repeated, as in the released code of GRNN.")
    experiments: int = _field(20, "Participants, each with the next images of the training set and a fresh network.")
    batch_size: int = _field(1, "Images of one participant.")
    local_steps: int = _field(1, "SGD steps that a participant takes before it sends; 1 is a plain gradient.")
    local_batch_size: int = _field(0, "Images of one step; 0 = all of them.")
    local_learning_rate: float = _field(0.1, "Learning rate of several steps (Geiping et al. 2020: 1e-4).")
    labels: str = _field(
        "known", "What inverting_gradients is told: 'known' labels, or 'inferred' from the gradient; idlg infers them."
    )
    iterations: int = _field(0, "Iterations of the attack; 0 = its own (6000, 6000, 4800, 1000).")
    total_variation: float = _field(-1.0, "Weight of total variation; -1 = the attack's own.")
    restarts: int = _field(1, "Starts of the attack, of which that counts whose gradient comes nearest.")
    lanes: int = _field(0, "Experiments that share a program at a time; 0 = all of a batch of one image, else one.")
    defense: str = _field("none", f"What a participant does to its gradient: none, {', '.join(inversion.DEFENSES)}.")
    strengths: str = _field("0.01", "Of the defence, each a row of its own: deviation, scale, norm, share or bits.")
    seed: int = _field(0, "Seed of everything random.")


class PreparedInversion(NamedTuple):
    """Attacks whose input has been checked."""

    config: GradientConfig
    victims: inversion.Victims
    strengths: list[float]
    directory: RunDirectory


def _strengths(config: GradientConfig) -> list[float]:
    if config.defense == "none":
        return [0.0]
    if config.defense not in inversion.DEFENSES:
        raise ValueError(f"defense={config.defense}: expected one of none, {', '.join(inversion.DEFENSES)}")
    try:
        strengths = [float(part) for part in config.strengths.split(",")]
    except ValueError:
        strengths = []
    allowed = {
        "pruning": lambda share: 0.0 <= share < 1.0,
        "quantisation": lambda bits: bits in range(1, 17),
        "clipping": lambda norm: norm > 0.0,
    }.get(config.defense, lambda strength: 0.0 <= strength < float("inf"))
    if not strengths or not all(map(allowed, strengths)):
        raise ValueError(f"strengths={config.strengths}: expected numbers that {config.defense} can have, with commas")
    return strengths


def _check(config: GradientConfig) -> None:
    for name, choices in {
        "attack": inversion.ATTACKS,
        "network": inversion.NETWORKS,
        "labels": ("known", "inferred"),
        "channels": (1, 3),
    }.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}={getattr(config, name)}: expected one of {', '.join(map(str, choices))}")
    for name in ("experiments", "batch_size", "local_steps", "restarts"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: expected at least 1")
    for name in ("iterations", "lanes", "seed", "local_batch_size"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name}={getattr(config, name)}: expected at least 0")
    if not 0.0 < config.local_learning_rate < float("inf"):
        raise ValueError(f"local_learning_rate={config.local_learning_rate}: expected a finite number above 0")
    if config.attack == "idlg" and config.batch_size > 1:
        raise ValueError(f"batch_size={config.batch_size}: expected 1 with idlg, which infers one label")
    if config.local_steps > 1 and config.attack != "inverting_gradients":
        raise ValueError(
            f"local_steps={config.local_steps}: expected 1 with {config.attack}, which imitates a gradient"
        )
    if config.batch_size % (config.local_batch_size or config.batch_size):
        raise ValueError(f"local_batch_size={config.local_batch_size}: expected a divisor of {config.batch_size}")


def prepare(config: GradientConfig, workdir: pathlib.Path, resume: bool) -> PreparedInversion:
    """Checks the flags and the data and opens the directory; raises ValueError for bad input."""
    _check(config)
    strengths = _strengths(config)
    dataset = load(config.dataset, image_size=config.image_size)
    wanted = config.experiments * config.batch_size
    if wanted > len(dataset.train_labels):
        raise ValueError(
            f"experiments={config.experiments}: expected at most {len(dataset.train_labels)} images in all"
        )
    images = (to_float(dataset.train_images[:wanted]) + 1.0) / 2.0
    if images.shape[-1] == 1:
        images = np.repeat(images, config.channels, axis=-1)
    if images.shape[-1] != config.channels:
        raise ValueError(f"channels={config.channels}: expected {images.shape[-1]}, as {config.dataset} has")
    shape = (config.experiments, config.batch_size)
    victims = inversion.Victims(
        images.reshape(*shape, *images.shape[1:]),
        dataset.train_labels[:wanted].reshape(shape),
        config.network,
        len(dataset.class_names),
    )
    inversion.network_for(config.network, victims.num_classes, config.image_size, config.channels)
    return PreparedInversion(config, victims, strengths, open_run(workdir, config, resume=resume))


def execute(prepared: PreparedInversion) -> int:
    """Runs the rows that are not there yet, and writes the table anew after each."""
    config, victims, strengths, directory = prepared
    try:
        rows: list[dict[str, Any]] = []
        pictures: dict[str, np.ndarray] = {}
        for index, strength in enumerate(strengths):
            path = directory.path / "rows" / f"{index:03d}.npz"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, npz_bytes(**_attack(config, victims, strength, index)._asdict()))
            saved = inversion.Result(**np.load(path, allow_pickle=False))
            rows.append(_row(config, strength, saved))
            pictures[rows[-1]["name"]] = saved.images.reshape(-1, *saved.images.shape[2:])
            ssim, success = rows[-1]["ssim"]["mean"], rows[-1]["success"]["mean"]
            tell(f"{rows[-1]['name']}: SSIM {ssim:.3f}, recovered {success:.0%}")
            write_atomic(directory.path / "results.json", json.dumps(rows, indent=1, allow_nan=False).encode())
        originals = victims.images.reshape(-1, *victims.images.shape[2:])
        environment = json.loads((directory.path / "config.json").read_text())
        page = render_gradient_inversion(rows, pictures, originals, environment)
        write_atomic(directory.path / "report.html", page.encode())
        tell(f"written: {directory.path / 'report.html'}, {directory.path / 'results.json'}")
    finally:
        close_run(directory)
    return 0


def _attack(config: GradientConfig, victims: inversion.Victims, strength: float, index: int) -> inversion.Result:
    model = inversion.network_for(config.network, victims.num_classes, config.image_size, config.channels)
    # The same networks whatever the defence, so that rows can be compared.
    key_victims, key_attack = jax.random.split(jax.random.key(config.seed))
    local_batch_size = config.local_batch_size or config.batch_size
    strong = int(strength) if config.defense == "quantisation" else strength
    transform = None if config.defense == "none" else inversion.DEFENSES[config.defense](strong)
    encoded = jax.nn.one_hot(jnp.asarray(victims.labels), victims.num_classes)

    @jax.jit
    def observe(key: jax.Array, images: jax.Array, labels: jax.Array) -> GradientView:
        return inversion.observe(
            key,
            model,
            images,
            labels,
            steps=config.local_steps,
            learning_rate=config.local_learning_rate,
            local_batch_size=local_batch_size,
            transform=transform,
        )

    keys = jax.random.split(key_victims, len(victims.images))
    views = [observe(*entry) for entry in zip(keys, jnp.asarray(victims.images), encoded, strict=True)]
    for view in views:
        check_view(view)
    if config.attack == "idlg" or (config.attack == "inverting_gradients" and config.labels == "inferred"):
        inferred = np.stack([inversion.infer_labels(config.network, view, config.batch_size) for view in views])
        encoded = jax.nn.one_hot(jnp.asarray(inferred), victims.num_classes)
    iterations, total_variation = _DEFAULTS[config.attack]
    found = inversion.run_attack(
        jax.random.fold_in(key_attack, index),
        config.attack,
        model,
        victims,
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *views),
        encoded,
        iterations=config.iterations or iterations,
        total_variation=total_variation if config.total_variation < 0 else config.total_variation,
        restarts=config.restarts,
        lanes=config.lanes or (len(views) if config.batch_size == 1 else 1),
        update=inversion.gradient_update(config.local_learning_rate, config.local_steps, local_batch_size, model),
    )
    return inversion.measure(found, victims)


def _row(config: GradientConfig, strength: float, saved: inversion.Result) -> dict[str, Any]:
    """Means over participants with 95% intervals; of a batch, the mean over its images comes first."""
    defended = "" if config.defense == "none" else f", {config.defense} {strength:g}"
    measures = {
        # An image that is recovered to the bit has no finite PSNR; 100 dB stands for it.
        "psnr": np.minimum(saved.psnr, 100.0),
        "group_psnr": np.minimum(saved.group_psnr, 100.0),
        "rmse": saved.rmse,
        "ssim": saved.ssim,
        "success": saved.ssim >= inversion.SUCCESS,
        "label_accuracy": saved.label_right,
    }
    means = {name: values.astype(float).mean(axis=1) for name, values in measures.items()}
    return {
        "name": f"{config.attack}, {config.network}, batch {config.batch_size}{defended}",
        "defense": config.defense,
        "strength": strength,
        **{name: summarise(values.tolist())._asdict() for name, values in means.items()},
    }


if __name__ == "__main__":
    run_binary(prepare, execute, GradientConfig)
