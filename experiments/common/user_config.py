"""The flags of the binary for user-level leakage, the federations that they name, and their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.common.flags import check_distinct
from gan_leak.attacks.server.settings import MganAiConfig, ServerFederationConfig
from gan_leak.data.owner_settings import OwnerConfig
from gan_leak.defenses.composition import parse_composition
from gan_leak.defenses.contract import AGGREGATION, LOCAL_TRAINING, UPLOAD, Defense, HyperParameter
from gan_leak.runs.server.federation import MODES, OwnedFederation, Variant
from gan_leak.settings import FLAT, check_values, option

BASELINES = ("auxiliary", "class_means", "class_gan", "model_inversion", "source_inference", "linkability")
_STAGES = {LOCAL_TRAINING, UPLOAD, AGGREGATION}


@dataclasses.dataclass(frozen=True)
class UserLeakageConfig:
    """A federation of people, a server that attacks it, defenses and baselines."""

    data: OwnerConfig = dataclasses.field(default_factory=OwnerConfig, metadata=FLAT)
    federation: ServerFederationConfig = dataclasses.field(default_factory=ServerFederationConfig, metadata=FLAT)
    attack: MganAiConfig = dataclasses.field(default_factory=MganAiConfig, metadata=FLAT)
    victims: str = option(
        "", "Clients to attack, such as 0,3; all if left out. An active server trains a federation for each."
    )
    modes: str = option(
        "passive",
        "Rows: 'passive' only analyzes what the server receives; 'active' isolates one client, in a federation for "
        "each victim (Wang et al. 2019). 'shuffled' is a control: a passive server that receives the updates of each "
        "round in random order.",
    )
    defenses: str = option(
        "none",
        "Rows: none, or defenses of the round joined by '+', each with :strength, such as secure_aggregation, "
        "pruning:0.9 or clipping:1+gaussian:0.01.",
    )
    local_trainings: str = option(
        "",
        "More rows: other local trainings as epochs x batch size, such as 4x0,20x0,1x2; a batch size of 0 is all "
        "images of a client.",
    )
    baselines: str = option(",".join(BASELINES), f"Rows without the attack: some of {', '.join(BASELINES)}, or none.")


def check(config: UserLeakageConfig) -> None:
    """Raise ValueError in one line for settings that are wrong whatever the data are."""
    check_values(config)
    if config.attack.first_round >= config.federation.rounds:
        raise ValueError(f"first_round={config.attack.first_round}: expected below rounds={config.federation.rounds}")
    parse_victims(config.victims, config.data.clients)
    parse_modes(config.modes)
    parse_baselines(config.baselines)
    parse_local_trainings(config.local_trainings)
    parse_defended(config.defenses)


def check_batches(config: UserLeakageConfig, federation: OwnedFederation) -> None:
    """Raise ValueError for a batch larger than the data of a client."""
    least = int(np.min(federation.data.sizes))
    for _, size in [(0, config.federation.batch_size), *parse_local_trainings(config.local_trainings)]:
        if size > least:
            raise ValueError(f"batch_size={size}: expected at most {least}, the images of a client")


def parse_victims(text: str, clients: int) -> list[int]:
    """The victims of a text such as '0,3', or all; raises ValueError for others than clients, and for one twice."""
    if not text:
        return list(range(clients))
    parts = [part.strip() for part in text.split(",")]
    known = {str(client): client for client in range(clients)}
    if not set(parts) <= set(known):
        raise ValueError(f"victims={text}: expected clients from 0 to {clients - 1}, with commas between")
    victims = [known[part] for part in parts]
    check_distinct("victims", victims)
    return victims


def parse_modes(text: str) -> list[str]:
    """The modes of the server; raises ValueError for unknown or repeated ones."""
    return _chosen("modes", text, MODES)


def parse_baselines(text: str) -> list[str]:
    """The baselines; raises ValueError for unknown or repeated ones."""
    return [] if text.strip() == "none" else _chosen("baselines", text, BASELINES)


def _chosen(name: str, text: str, known: tuple[str, ...]) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    if not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
        raise ValueError(f"{name}={text}: expected some of {', '.join(known)}, none twice")
    return chosen


def parse_local_trainings(text: str) -> list[tuple[int, int]]:
    """Pairs of epochs and batch size from '4x0,1x2'; raises ValueError for another text."""
    if not text:
        return []
    found = []
    for part in text.split(","):
        epochs, cross, size = part.strip().partition("x")
        if not (cross and epochs.isdigit() and size.isdigit() and 1 <= int(epochs) <= 10**6 and int(size) <= 10**6):
            raise ValueError(f"local_trainings={part.strip()}: expected epochs x batch size, such as 4x0")
        found.append((int(epochs), int(size)))
    check_distinct("local_trainings", found)
    return found


def parse_defended(text: str) -> list[tuple[str, dict[str, float]]]:
    """Compositions and their numbers from 'none,clipping:1+gaussian:0.01'.

    Returns for each the names joined by '+' and the hyperparameters by name. Raises ValueError for an unknown or
    repeated defense, for one that has no stage in a round, and for a wrong strength.
    """
    found = []
    for part in (part.strip() for part in text.split(",")):
        if part == "none":
            found.append((part, dict[str, float]()))
            continue
        pairs = [term.strip().partition(":") for term in part.split("+")]
        names = "+".join(name for name, _, _ in pairs)
        numbers: dict[str, float] = {}
        for defense, (name, _, strength) in zip(_parsed(part, names), pairs, strict=True):
            if not _STAGES & set(defense.stages):
                raise ValueError(f"defenses={name}: expected a defense of local training, uploads or the aggregation")
            numbers |= {parameter.name: float(parameter.default) for parameter in defense.hyperparameters}
            if strength:
                numbers |= _strength(name, strength, defense.hyperparameters)
        found.append((names, numbers))
    check_distinct("defenses", [(names, tuple(numbers.items())) for names, numbers in found])
    return found


def _parsed(part: str, names: str) -> tuple[Defense, ...]:
    try:
        if names == "none":
            raise ValueError("expected none without a strength")
        return parse_composition(names)
    except ValueError as error:
        raise ValueError(f"defenses={part}: {error}") from None


def _strength(name: str, text: str, parameters: Sequence[HyperParameter]) -> dict[str, float]:
    if not parameters:
        raise ValueError(f"defenses={name}:{text}: expected no strength")
    first = parameters[0]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value not in first.bounds:
        raise ValueError(f"defenses={name}:{text}: expected as strength {first.bounds}")
    return {first.name: value}


def variants_of(config: UserLeakageConfig) -> dict[str, Variant]:
    """The federations to attack, by name: modes and defenses with the local training of the flags, then the others."""
    own = (config.federation.local_epochs, config.federation.batch_size)
    found = {}
    for names, numbers in parse_defended(config.defenses):
        for mode in parse_modes(config.modes):
            name = ", ".join(part for part in (mode, "" if names == "none" else _shown(names, numbers)) if part)
            found[name] = Variant(*own, parse_composition(names), numbers, mode)
    for epochs, size in parse_local_trainings(config.local_trainings):
        found[f"passive, {epochs} epochs of batches of {size or 'all'}"] = Variant(epochs, size, (), {})
    return found


def _shown(names: str, numbers: dict[str, float]) -> str:
    shown = []
    for defense in parse_composition(names):
        first = defense.hyperparameters[:1]
        is_strength = first and AGGREGATION not in defense.stages
        shown.append(f"{defense.name} {numbers[first[0].name]:g}" if is_strength else defense.name)
    return " + ".join(shown).replace("_", " ")
