"""The frozen configuration of a run: the single source of flags, help texts and config.json.

Every field carries its help text, which cites the paper and section that its default comes from; "open" marks a choice
that the papers leave open. Nothing here is traced: ``collaboration.RoundHyperParameters`` takes the numbers that are.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

SCHEDULES = ("round_robin", "random_order", "synchronous")
UPLOAD_CRITERIA = ("largest", "random")
AGGREGATIONS = ("add", "average")
ATTACKS = ("active", "passive", "none")
DEFENSES = ("none", "sparse_vector", "dp_sgd")
PARTITIONS = ("by_class", "iid", "dirichlet", "centralised")
GENERATOR_OPTIMIZERS = ("sgd", "adam")
IMAGE_SIZES = (32, 64)
CONVOLUTIONS = ("auto", "blocked", "matmul", "lax")
PARTICIPANT_MAPPINGS = ("auto", "vmap", "map", "loop")
SEED_MAPPINGS = ("auto", "vmap", "map")
# More than one CPU has cores; each costs threads and memory.
MOST_CPU_DEVICES = 1024
# Beyond, jax.random.key overflows.
LARGEST_SEED = 2**63 - 1
# What JAX counts with.
LARGEST_COUNT = 2**31 - 1
# The host keeps what every round of a chunk tells.
_MOST_ROUNDS_PER_CHUNK = 10_000


def _field(default: Any, help: str, *, later: bool = False) -> Any:
    """A field with its help text. later: run directories of earlier versions lack it, and had the default."""
    return dataclasses.field(default=default, metadata={"help": help, "later": later})


@dataclasses.dataclass(frozen=True)
class PerformanceOptions:
    """How fast, never what: no option changes a result beyond float tolerance."""

    convolution: str = _field(
        "auto",
        "How convolutions run: 'matmul' (patches and one matrix product), 'blocked' (the same, a few images at a "
        "time), 'lax' (the stock convolution) or 'auto' (blocked on a CPU with a core for each device, else matmul).",
    )
    participant_mapping: str = _field(
        "auto",
        "How a synchronous round runs its participants: 'vmap', 'map', 'loop' (unrolled) or 'auto' (map on a CPU, vmap "
        "elsewhere).",
    )
    seed_mapping: str = _field(
        "auto", "How the seeds of one setting share a program: 'vmap', 'map' or 'auto' (map on a CPU, vmap elsewhere)."
    )
    cpu_devices: int = _field(
        0,
        "Devices that a CPU counts as, which share the participants of a synchronous round; 0 = one for each core in a "
        "synchronous schedule without an attack, else one.",
    )
    rounds_per_chunk: int = _field(
        1, "Most rounds that run in one compiled call before the host looks at the results, 1 to 10,000."
    )


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """One insider attack run, from data to report."""

    dataset: str = _field(
        "mnist", "Data set: 'mnist', 'orl_faces', 'tfds:<name>[/<config>]', 'npz:<path>' or 'folder:<path>'."
    )
    image_size: int = _field(32, "Side of the square images in pixels, 32 or 64 (Hitaj et al. 2017, section 8.1).")
    seed: int = _field(0, "Seed of everything random in the run.")
    partition: str = _field(
        "by_class",
        "Who owns what: 'by_class' (Hitaj et al. 2017, section 9.2), 'iid' or 'dirichlet', which all keep the target "
        "class from the adversary; or 'centralised', one participant who is the adversary and owns everything (section "
        "9.1).",
    )
    participant_classes: str = _field(
        "0-4;5-9",
        "Classes of each participant, participants separated by ';', classes by ','. A class is its number from 0 or "
        "its name, 'a-b' a range of numbers; 'index:3' and 'name:3' where a number is also a name; a name with ',' or "
        "';' is given by its number. An empty entry is a participant without data (Hitaj et al. 2017, section 9.2.1); "
        "'each a-b' is a participant for every class. "
        "With partition 'iid' or 'dirichlet' only the number of participants matters.",
    )
    dirichlet_concentration: float = _field(0.5, "Concentration of the Dirichlet partition; smaller is less balanced.")
    samples_per_participant: int = _field(
        1000, "Most training images of one participant; 0 = all there are (open; the paper uses all of MNIST)."
    )
    judge_samples: int = _field(
        30000,
        "Training images set aside for the judge, which no participant ever owns; at most half of the training set "
        "is taken (ours).",
    )
    adversary: int = _field(
        1, "Index of the adversary; victims come first in a turn order (Hitaj et al. 2017, section 7)."
    )
    target_class: int = _field(
        3,
        "Class that the adversary wants to see and owns no image of (Hitaj et al. 2017, section 9.3); its number from "
        "0. On the command line also its name; 'index:3' and 'name:3' where a number is also a name.",
    )
    attack: str = _field(
        "active",
        "'active' trains on the fakes as the fake class, 'passive' only watches, 'none' leaves the attack out (Hitaj "
        "et al. 2017, section 9.3).",
    )
    participants_per_round: int = _field(
        0,
        "Participants drawn at random for each round; the others sit it out, and what they keep waits on the disk. 0 = "
        "all take part in every round (McMahan et al. 2017, Algorithm 1; Hitaj et al. 2017 have all).",
    )
    rounds: int = _field(100, "Rounds of the collaboration; in each, every participant takes one turn (open).")
    schedule: str = _field(
        "round_robin",
        "'round_robin' or 'random_order' (turns one after the other) or 'synchronous' (all from the same parameters) "
        "(Shokri and Shmatikov 2015).",
    )
    aggregation: str = _field(
        "add",
        "How the server merges uploads: 'add' (Shokri and Shmatikov 2015) or 'average', weighted by samples (McMahan "
        "et al. 2017; synchronous only).",
    )
    local_epochs: int = _field(1, "Passes over the local data in one turn (Hitaj et al. 2017, Algorithm 1).")
    batch_size: int = _field(64, "Minibatch size (Hitaj et al. 2017, section 8.4).")
    learning_rate: float = _field(
        0.05, "Learning rate of local SGD (open; Hitaj et al. 2017, section 8.4, have 0.001)."
    )
    learning_rate_decay: float = _field(
        1e-7, "Torch decay d of the local learning rate, lr / (1 + steps * d) (Hitaj et al. 2017, section 8.4)."
    )
    upload_fraction: float = _field(1.0, "Fraction theta_u of the update that is uploaded (Shokri and Shmatikov 2015).")
    download_fraction: float = _field(
        1.0, "Fraction theta_d of the parameters that is downloaded (Shokri and Shmatikov 2015)."
    )
    upload_criterion: str = _field(
        "largest",
        "'largest' magnitudes or 'random' among those above the threshold (Shokri and Shmatikov 2015; which one "
        "Hitaj et al. used without noise is open).",
    )
    upload_threshold: float = _field(
        0.0, "Magnitude tau that a coordinate must exceed to be uploaded under the criterion 'random'."
    )
    upload_bound: float = _field(
        math.inf, "Bound gamma: uploaded values are truncated to [-gamma, gamma] (Shokri and Shmatikov 2015)."
    )
    update_count_decay: float = _field(
        1.0, "Factor applied to the server's update counters at every upload (Shokri and Shmatikov 2015; 1 = no decay)."
    )
    defense: str = _field(
        "none",
        "What protects the records: 'none', 'sparse_vector' (differentially private uploads of Shokri and Shmatikov "
        "2015; takes the place of the upload criterion) or 'dp_sgd' (differentially private local training of Abadi et "
        "al. 2016).",
    )
    epsilon_per_release: float = _field(
        100.0,
        "Sparse vector: privacy budget epsilon / c of one released coordinate (Hitaj et al. 2017, section 9.4); tau is "
        "upload_threshold, gamma upload_bound, c upload_fraction of all coordinates.",
    )
    sensitivity: float = _field(
        0.002,
        "Sparse vector: by how much one coordinate of an update may change between neighbouring data sets; 2 * gamma "
        "holds for any two (Shokri and Shmatikov 2015).",
    )
    clipping_norm: float = _field(1.0, "DP-SGD: L2 norm that the gradient of one record is clipped to (Abadi et al.).")
    noise_multiplier: float = _field(
        1.0,
        "DP-SGD: standard deviation of the noise on the sum of gradients, in units of clipping_norm (Abadi et al.).",
    )
    delta: float = _field(
        1e-5,
        "DP-SGD: the delta at which epsilon is reported, in the summary, report.html, config.json and metrics.jsonl "
        "(Abadi et al. 2016).",
    )
    target_epsilon: float = _field(
        0.0,
        "The epsilon that the whole run may cost a participant; solves for noise_multiplier at delta (dp_sgd) or for "
        "epsilon_per_release (sparse_vector), which must be left at their defaults. 0 = the noise is as given.",
        later=True,
    )
    generator_steps: int = _field(5, "Generator updates in one adversary turn (open).")
    generator_batch_size: int = _field(64, "Latents in one generator update (open).")
    generator_width: int = _field(
        64, "Channels of the generator's last hidden layer, doubled layer by layer before it (DCGAN code; open)."
    )
    generator_optimizer: str = _field(
        "sgd", "Generator optimiser, 'sgd' (Hitaj et al. 2017, section 8.4) or 'adam' (beta1 0.5)."
    )
    generator_learning_rate: float = _field(0.02, "Learning rate of the generator (Hitaj et al. 2017, section 8.4).")
    generator_averaging: float = _field(
        0.0,
        "Reconstructions are drawn by an average of the generators of past rounds, of which this share survives each "
        "round; 0 = by the last one (Hitaj et al. 2017); the average is ours, after Yazici et al. 2019.",
    )
    fakes_per_round: int = _field(500, "Generated images that join the adversary's data each round (open).")
    fake_memory_rounds: int = _field(
        1,
        "For how many rounds a fake stays in the adversary's data: 1 replaces all fakes each round, more accumulates "
        "(open).",
    )
    evaluation_interval: int = _field(20, "Rounds between measurements of leakage.")
    evaluation_samples: int = _field(500, "Reconstructions drawn for one measurement of leakage.")
    fail_if_not_measurable: bool = _field(
        False,
        "Exit with status 3 if the leakage score cannot be measured, as with very few private images; a single run "
        "finds out before it trains.",
        later=True,
    )
    checkpoint_interval: int = _field(10, "Rounds between checkpoints.")
    performance: PerformanceOptions = dataclasses.field(default_factory=PerformanceOptions)


def to_json(config: Any) -> dict[str, Any]:
    """Turns a configuration into nested dictionaries that strict JSON can hold; infinities become "inf" and "-inf".

    Raises ValueError if a float field is not a number.
    """
    encoded: dict[str, Any] = {}
    for name, field_type in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(field_type):
            encoded[name] = to_json(value)
        elif field_type is float:
            encoded[name] = _encode_float(name, float(value))
        else:
            encoded[name] = value
    return encoded


def from_json(cls: type[Any], data: Any) -> Any:
    """Builds the configuration that ``to_json`` encoded: ``from_json(type(config), to_json(config)) == config``.

    Raises ValueError naming the field if one is unknown, missing or of another type.
    """
    return _decode(cls, data, "")


def _encode_float(name: str, value: float) -> float | str:
    if math.isnan(value):
        raise ValueError(f"{name}={value}: expected a number")
    return value if math.isfinite(value) else str(value)


def _decode(cls: type[Any], data: Any, prefix: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(
            f"{prefix.rstrip('.') or cls.__name__}={data!r}: expected an object with the fields of {cls.__name__}"
        )
    field_types = typing.get_type_hints(cls)
    unknown = sorted(prefix + str(name) for name in data.keys() - field_types.keys())
    missing = sorted(prefix + name for name in field_types.keys() - data.keys())
    if unknown or missing:
        problems = [f"unknown {name}" for name in unknown] + [f"missing {name}" for name in missing]
        raise ValueError(f"fields of {cls.__name__}: {', '.join(problems)}")
    return cls(**{name: _decode_value(field_types[name], data[name], prefix + name) for name in field_types})


def _decode_value(field_type: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(field_type):
        return _decode(typing.cast(type[Any], field_type), value, f"{name}.")
    if field_type is float and value in ("inf", "-inf"):
        return float(value)
    # bool is a subclass of int, so that type() and not isinstance() tells them apart.
    if type(value) is field_type or (field_type is float and type(value) is int):
        return field_type(value)
    raise ValueError(f"{name}={value!r}: expected {field_type.__name__}")


def check_counts(config: Any) -> None:
    """Raises ValueError for a whole number other than a seed that is too large to count with, in nested fields too."""
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            check_counts(value)
        elif type(value) is int and name != "seed" and value > LARGEST_COUNT:
            raise ValueError(f"{name}={value}: expected at most {LARGEST_COUNT}")


def check_seed(seed: int) -> None:
    """Raises ValueError for a number that makes no random key."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed={seed}: expected 0 to {LARGEST_SEED}")


def validate(config: AttackConfig) -> None:
    """Checks every value that can be judged without the data.

    Raises ValueError with the name, the value and what is allowed.
    """
    for name, choices in {
        "partition": PARTITIONS,
        "attack": ATTACKS,
        "defense": DEFENSES,
        "schedule": SCHEDULES,
        "aggregation": AGGREGATIONS,
        "upload_criterion": UPLOAD_CRITERIA,
        "generator_optimizer": GENERATOR_OPTIMIZERS,
        "image_size": IMAGE_SIZES,
    }.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}={getattr(config, name)!r}: expected one of {', '.join(map(str, choices))}")
    for name in ("rounds", "local_epochs", "batch_size", "generator_steps", "generator_batch_size", "fakes_per_round"):
        _check_at_least(config, name, 1)
    for name in ("generator_width", "fake_memory_rounds", "evaluation_interval", "checkpoint_interval"):
        _check_at_least(config, name, 1)
    check_counts(config)
    check_seed(config.seed)
    for name in ("samples_per_participant", "participants_per_round", "judge_samples"):
        _check_at_least(config, name, 0)
    for name in ("adversary", "target_class"):
        _check_at_least(config, name, 0)
    _check_at_least(config, "evaluation_samples", 2)
    for name in ("upload_fraction", "download_fraction", "update_count_decay"):
        if not 0.0 < getattr(config, name) <= 1.0:
            raise ValueError(f"{name}={getattr(config, name)}: expected a number in (0, 1]")
    for name in ("learning_rate", "generator_learning_rate", "dirichlet_concentration"):
        if not 0.0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)}: expected a finite number above 0")
    if not 0.0 <= config.generator_averaging < 1.0:
        raise ValueError(f"generator_averaging={config.generator_averaging}: expected a number in [0, 1)")
    for name in ("learning_rate_decay", "upload_threshold"):
        if not 0.0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)}: expected a finite number of at least 0")
    if not config.upload_bound > 0.0:
        raise ValueError(f"upload_bound={config.upload_bound}: expected a number above 0, or inf")
    _check_defense(config)
    if config.aggregation == "average" and config.schedule != "synchronous":
        raise ValueError(f"aggregation='average': expected with schedule 'synchronous', not {config.schedule!r}")
    _check_performance(config.performance)


def _check_performance(options: PerformanceOptions) -> None:
    for name, choices in {
        "convolution": CONVOLUTIONS,
        "participant_mapping": PARTICIPANT_MAPPINGS,
        "seed_mapping": SEED_MAPPINGS,
    }.items():
        if getattr(options, name) not in choices:
            raise ValueError(f"performance.{name}={getattr(options, name)!r}: expected one of {choices}")
    for name, (least, most) in {
        "cpu_devices": (0, MOST_CPU_DEVICES),
        "rounds_per_chunk": (1, _MOST_ROUNDS_PER_CHUNK),
    }.items():
        given = getattr(options, name)
        if given < least:
            raise ValueError(f"performance.{name}={given}: expected at least {least}")
        if given > most:
            raise ValueError(f"performance.{name}={given}: expected at most {most}")


def _check_defense(config: AttackConfig) -> None:
    # Checked whatever the defence, as every other field is: a wrong number is a mistake even where it has no effect.
    if not config.epsilon_per_release > 0.0:
        raise ValueError(f"epsilon_per_release={config.epsilon_per_release}: expected a number above 0, or inf")
    if not 0.0 < config.sensitivity < math.inf:
        raise ValueError(f"sensitivity={config.sensitivity}: expected a finite number above 0")
    if not 0.0 < config.clipping_norm < math.inf:
        raise ValueError(f"clipping_norm={config.clipping_norm}: expected a finite number above 0")
    if not 0.0 <= config.noise_multiplier < math.inf:
        raise ValueError(f"noise_multiplier={config.noise_multiplier}: expected a finite number of at least 0")
    if not 0.0 < config.delta < 1.0:
        raise ValueError(f"delta={config.delta}: expected a number above 0 and below 1")
    _check_target_epsilon(config)
    if config.defense == "sparse_vector" and config.upload_bound == math.inf:
        raise ValueError(
            "upload_bound=inf: expected a finite number above 0 with defense 'sparse_vector', such as 0.001"
        )


def _check_target_epsilon(config: AttackConfig) -> None:
    if not 0.0 <= config.target_epsilon < math.inf:
        raise ValueError(f"target_epsilon={config.target_epsilon}: expected a finite number of at least 0")
    solved_for = {"dp_sgd": "noise_multiplier", "sparse_vector": "epsilon_per_release"}
    if config.target_epsilon and config.defense not in solved_for:
        raise ValueError(
            f"target_epsilon={config.target_epsilon}: expected with defense 'dp_sgd' or 'sparse_vector', "
            f"not {config.defense!r}"
        )
    for field in dataclasses.fields(AttackConfig):
        given = getattr(config, field.name)
        if config.target_epsilon and field.name == solved_for[config.defense] and given != field.default:
            raise ValueError(
                f"target_epsilon={config.target_epsilon}: expected {field.name} left at {field.default}, not {given}, "
                "since the target decides it"
            )


def _check_at_least(config: AttackConfig, name: str, least: int) -> None:
    if getattr(config, name) < least:
        raise ValueError(f"{name}={getattr(config, name)}: expected at least {least}")
