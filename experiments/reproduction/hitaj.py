"""Hitaj et al. 2017 as data: the figures, their presets and their controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.common.flags import check_distinct, config_from_arguments
from experiments.reproduction.claims import read_claim
from gan_leak.config import RunConfig
from gan_leak.data import parse_participant_classes
from gan_leak.defenses import parse_composition
from gan_leak.reports.reproduction_results import NEAREST_VARIANT, PAPER_VARIANT
from gan_leak.settings import settings_of

SCALES = ("quick", "paper")


class Figure(NamedTuple):
    """One figure: its settings by label, each a preset, and the layout of its pictures."""

    number: str
    title: str
    settings: dict[str, str]
    layout: str = "settings"


FIGURES = (
    Figure("3", "A class of CIFAR-10", {"3": "figure3"}),
    Figure("5", "Model inversion and GAN, each given all data", {"5": "figure5"}, "methods"),
    Figure(
        "6",
        "MNIST, two participants, upload and download fractions",
        {"6 (a)": "figure6a", "6 (b)": "figure6b", "6 (c)": "figure6c", "6 (c), random": "figure6c_random"},
    ),
    Figure(
        "7",
        "AT&T faces, 41 participants, an adversary without data",
        {"7": "figure7", "7, private": "figure7_private"},
    ),
    Figure(
        "8",
        "AT&T faces, two participants, upload and download fractions",
        {
            "8 (1, 1)": "figure8a",
            "8 (0.1, 1)": "figure8b",
            "8 (0.1, 0.1)": "figure8c",
            "8 (0.1, 0.1), random": "figure8c_random",
        },
    ),
    Figure("9", "Passive against active adversary, digit 0", {"9": "figure9"}, "film strip"),
    Figure("10", "Passive against active adversary, digit 3", {"10": "figure10"}, "film strip"),
    Figure(
        "11",
        "AT&T faces under differential privacy",
        {
            "11 (100, 1)": "figure11a",
            "11 (100, 0.1)": "figure11b",
            "11 (10, 1)": "figure11c",
            "11 (10, 0.1)": "figure11d",
        },
    ),
    Figure("12", "MNIST under a small privacy budget", {"12": "figure12"}),
    Figure("13", "AT&T faces under a small privacy budget", {"13": "figure13"}),
    Figure(
        "14",
        "MNIST under differential privacy",
        {"14 (a)": "figure14a", "14 (b)": "figure14b", "14 (c)": "figure14c", "14 (d)": "figure14d"},
    ),
    Figure(
        "dp_sgd",
        "MNIST under DP-SGD, which the paper names and does not run",
        {"DP-SGD, noise 0.3": "dp_sgd_a", "DP-SGD, noise 0.6": "dp_sgd_b", "DP-SGD, noise 1.2": "dp_sgd_c"},
    ),
    Figure("accuracy", "Leakage against the accuracy of the shared model", {"accuracy": "accuracy"}, "curve"),
)


# The user supplies the data set of these figures; any other one would be judged by claims about CIFAR-10.
CIFAR10_FIGURES = ("3",)


def select_figures(text: str, sections: Sequence[Any] = FIGURES) -> tuple[Any, ...]:
    """The sections in ``--figures``, in the order of ``sections``.

    text: 'all', or numbers and presets separated by commas. Of a figure named by presets, only their settings are left.
    """
    wanted = {part.strip() for part in text.split(",")}
    return tuple(chosen for section in sections if (chosen := _chosen(section, wanted)) is not None)


def _chosen(section: Any, wanted: set[str]) -> Any:
    if wanted == {"all"} or section.number in wanted:
        return section
    settings = section.settings.items() if isinstance(section, Figure) else ()
    named = {label: preset for label, preset in settings if preset in wanted}
    return section._replace(settings=named) if named else None


def check_names(text: str, known: Sequence[str]) -> None:
    """Raise ValueError for an unknown or repeated part of ``--figures``. known: the numbers of all sections."""
    names = [] if text.strip() == "all" else [name.strip() for name in text.split(",")]
    presets = {preset for figure in FIGURES for preset in figure.settings.values()}
    for name in names:
        if name not in known and name not in presets:
            raise ValueError(
                f"figures={name}: expected all, or some of {', '.join(known)}, or presets of their settings, such as "
                "figure7"
            )
    check_distinct("figures", names)


def arguments_for(preset: str, variant: str, scale: str) -> list[str]:
    """The command line of a setting: the paper's own, or the nearest that works, shortened at the quick scale."""
    claim = read_claim(preset)
    arguments = [f"--preset={preset}"]
    if variant == NEAREST_VARIANT:
        if not claim.nearest:
            raise ValueError(f"preset={preset}: expected the key nearest in its claim, the nearest setting that works")
        arguments.append(f"--preset={claim.nearest}")
        if scale == "quick":
            arguments.append(f"--preset={claim.quick}")
    return arguments


def not_named(figure: Figure) -> list[str]:
    """The settings of a figure that ``select_figures`` did not leave in it."""
    whole = next(section for section in FIGURES if section.number == figure.number)
    return [label for label in whole.settings if label not in figure.settings]


def variants_of(scale: str, paper_hyperparameters: bool) -> tuple[str, ...]:
    """The variants of a scale. A quick run is too short for the paper's own learning rate."""
    return (PAPER_VARIANT, NEAREST_VARIANT) if scale == "paper" and paper_hyperparameters else (NEAREST_VARIANT,)


def not_stated(config: RunConfig) -> frozenset[str]:
    """The hyper-parameters that the paper leaves open for the setting of this configuration."""
    open_everywhere = frozenset(name for name, setting in settings_of(RunConfig).items() if not setting.stated)
    # For faces the paper counts the generator's steps by the images of the adversary, if any (section 9.2.2).
    counted = config.data.dataset == "orl_faces" and not config.data.participant_classes.endswith(";")
    return open_everywhere if counted else open_everywhere | {"generator_steps"}


def controls_of(arguments: list[str], *, undefended: bool = False) -> dict[str, list[str]]:
    """The controls of a setting by name: a passive adversary, and a target class without an owner.

    With ``undefended`` also the setting without its defense: if this fails, the defense is not the reason.
    """
    config = config_from_arguments(RunConfig, arguments)
    owners = parse_participant_classes(config.data.participant_classes, 1_000)
    without = ";".join(
        ",".join(str(label) for label in classes if label != config.attack.target_class) for classes in owners
    )
    controls = {
        "passive": [*arguments, "--attack=passive"],
        "unowned": [*arguments, f"--participant_classes={without}"],
    }
    if undefended:
        settings = settings_of(RunConfig).values()
        chosen = {defense.name for defense in parse_composition(config.defense.kind)}
        of_defense = [setting for setting in settings if chosen & set(setting.defenses)]
        plain = [f"--{setting.name}={setting.default}" for setting in of_defense]
        controls["undefended"] = [*arguments, "--defense=none", *plain]
    return controls
