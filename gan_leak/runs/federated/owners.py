"""A description of the partition in words: the classes of each participant, the adversary and its target."""

from __future__ import annotations

from collections.abc import Sequence

from gan_leak.config import RunConfig
from gan_leak.runs.federated.setup import AttackData

_SHOWN_PARTICIPANTS = 12
_SHOWN_CLASSES = 12


def name_classes(numbers: Sequence[int], class_names: Sequence[str]) -> str:
    """The names of classes in order; three or more in a row as 'first to last'; 'no class' for none."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts: list[str] = []
    for run in runs:
        names = [class_names[number] for number in run]
        texts += names if len(run) < 3 else [f"{names[0]} to {names[-1]}"]
    more = [f"... ({len(texts) - _SHOWN_CLASSES} more)"] if len(texts) > _SHOWN_CLASSES else []
    return ", ".join([*texts[:_SHOWN_CLASSES], *more]) or "no class"


def describe_owners(data: AttackData, adversary: int) -> list[str]:
    """A line for each participant with the names of its classes; at most a dozen lines, always with the adversary."""
    participants = range(len(data.held_classes))
    shown = [index for index in participants if index < _SHOWN_PARTICIPANTS - 1 or index == adversary]
    if len(participants) == _SHOWN_PARTICIPANTS:
        shown = list(participants)
    lines = []
    for index in shown:
        role = ", the adversary" if index == adversary else ""
        classes = name_classes(data.held_classes[index], data.class_names)
        lines.append(f"participant {index}{role}: {classes} ({int(data.federation.sizes[index]):,} images)")
    if left := len(participants) - len(shown):
        lines.append(f"... and {left:,} more participants")
    return lines


def describe_target(data: AttackData, target_class: int, attack: str) -> str:
    """The line that says which class an attack is after, and who owns it."""
    owners = [index for index, held in enumerate(data.held_classes) if target_class in held]
    some = ", ".join(map(str, owners[:_SHOWN_PARTICIPANTS])) + (", ..." if len(owners) > _SHOWN_PARTICIPANTS else "")
    owned = "owned by no participant" if not owners else f"owned by participant{'s' if len(owners) > 1 else ''} {some}"
    return f"target of the {attack} attack: class {data.class_names[target_class]} (number {target_class}), {owned}"


def describe_run(config: RunConfig, data: AttackData) -> list[str]:
    """The lines that a run prints at its start: notes on the data, the partition, and the adversary's target."""
    if config.attack.kind == "none":
        return [*data.notes, *describe_owners(data, -1)]
    return [
        *data.notes,
        *describe_owners(data, config.attack.adversary),
        describe_target(data, config.attack.target_class, config.attack.kind),
    ]
