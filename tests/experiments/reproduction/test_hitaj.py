"""The paper as data: every figure is there, every constant is the paper's, every claim can be judged."""

import re

import pytest

from experiments.common.flags import PRESETS, config_from_arguments, preset_text
from experiments.common.result_pages import read_page
from experiments.reproduction import hitaj as paper
from experiments.reproduction.claims import read_claim, rows_named_by
from experiments.reproduction.hitaj import (
    FIGURES,
    arguments_for,
    check_names,
    controls_of,
    not_named,
    not_stated,
    select_figures,
    variants_of,
)
from experiments.reproduction.other_papers import TABLES
from experiments.results import ROOT
from gan_leak.config import RunConfig
from gan_leak.data import parse_participant_classes
from gan_leak.evaluation.leakage import Leakage
from gan_leak.reports.reproduction_results import NEAREST_VARIANT, PAPER_VARIANT
from gan_leak.settings import values_of

SETTINGS = {preset: figure for figure in FIGURES for preset in figure.settings.values()}
MNIST = [
    *("figure6a", "figure6b", "figure6c", "figure6c_random", "figure9", "figure10", "figure12", "accuracy"),
    *("figure14a", "figure14b", "figure14c", "figure14d", "dp_sgd_a", "dp_sgd_b", "dp_sgd_c"),
]
FACES = [
    *("figure8a", "figure8b", "figure8c", "figure8c_random", "figure13"),
    *("figure11a", "figure11b", "figure11c", "figure11d"),
]
FACES_41 = ["figure7", "figure7_private"]
SHORT = [preset for preset in SETTINGS if read_claim(preset).quick]


def config_for(preset, variant=PAPER_VARIANT, scale="paper"):
    return config_from_arguments(RunConfig, arguments_for(preset, variant, scale))


def test_every_figure_of_the_paper_is_there():
    assert [(figure.number, len(figure.settings)) for figure in FIGURES] == [
        *(("3", 1), ("5", 1), ("6", 4), ("7", 2), ("8", 4), ("9", 1), ("10", 1), ("11", 4), ("12", 1), ("13", 1)),
        *(("14", 4), ("dp_sgd", 3), ("accuracy", 1)),
    ]
    assert set(SETTINGS) == {"figure3", "figure5", *MNIST, *FACES, *FACES_41}


@pytest.mark.parametrize("preset", SETTINGS)
def test_a_preset_names_the_page_that_has_its_rows(preset):
    (path,) = re.findall("^# Results: (.*)\\.md$", preset_text(preset), re.MULTILINE)
    page = read_page(ROOT / f"{path}.json")
    (label,) = [label for label, of_label in SETTINGS[preset].settings.items() if of_label == preset]
    names = [row["name"] for table in page["tables"] for row in table["rows"]]
    assert any(name == label or name.startswith(f"{label}, ") for name in names)


def test_labels_are_unique():
    """They name rows of results, which have to differ."""
    labels = [label for figure in FIGURES for label in figure.settings]
    assert len(set(labels)) == len(labels)


def test_all_figures_come_in_the_order_of_the_paper():
    assert select_figures("all") == select_figures(" all ") == FIGURES
    assert [figure.number for figure in select_figures("accuracy,14, 6 ,3")] == ["3", "6", "14", "accuracy"]
    assert [figure.number for figure in select_figures("6,6")] == ["6"]


def test_a_figure_named_by_presets_has_only_their_settings():
    nine, eleven = select_figures("figure11c, 9,figure11a")
    assert nine in FIGURES
    assert eleven.settings == {"11 (100, 1)": "figure11a", "11 (10, 1)": "figure11c"}
    whole = next(figure for figure in FIGURES if figure.number == "11")
    assert eleven._replace(settings=whole.settings) == whole
    assert (not_named(eleven), not_named(nine)) == (["11 (100, 0.1)", "11 (10, 0.1)"], [])
    assert select_figures("11,figure11a") == (whole,)
    assert select_figures("figure11a", TABLES) == ()


@pytest.mark.parametrize(
    ("text", "named"), [("6,99", "figures=99"), ("", "figures="), ("6,", "figures="), ("6a", "6a")]
)
def test_an_unknown_figure_names_those_there_are(text, named):
    known = [figure.number for figure in FIGURES]
    with pytest.raises(ValueError, match=named) as raised:
        check_names(text, known)
    assert str(raised.value).endswith(
        "expected all, or some of 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, dp_sgd, accuracy, or presets of their "
        "settings, such as figure7"
    )
    for allowed in (" all ", "6, accuracy", "6, figure7"):
        check_names(allowed, known)


# Claims.

MEASURES = {name for name in Leakage._fields if name != "leakage_by_representation"}
WITH_ACCURACY = MEASURES | {"model_accuracy"}
# By layout: what the row judged has, and what may stand beside it.
NAMES = {
    "settings": {
        "": WITH_ACCURACY,
        "passive": WITH_ACCURACY,
        "unowned": WITH_ACCURACY,
        "undefended": WITH_ACCURACY,
        "untrained": MEASURES,
        "fresh": MEASURES,
    },
    "methods": {"": WITH_ACCURACY, "inversion_mlp": WITH_ACCURACY, "inversion_cnn": WITH_ACCURACY},
    "curve": {"": {"leakage_score"}, "below": {"leakage_score"}},
}
NAMES["film strip"] = NAMES["settings"]


@pytest.mark.parametrize("preset", SETTINGS)
def test_every_setting_states_its_claim_and_criteria_that_can_be_judged(preset):
    claim = read_claim(preset)
    assert claim.claim.endswith(".")
    allowed = NAMES[SETTINGS[preset].layout]
    for criterion in (claim.reproduced_if, claim.partly_if):
        for name in criterion.names:
            *row, metric, _ = name.split(".")
            assert metric in allowed["".join(row)], name
    assert (PRESETS / "hitaj" / f"{claim.nearest}.flags").exists()
    assert claim.nearest.startswith("nearest_")
    if not claim.quick:
        assert claim.not_quick.endswith(".")
        return
    assert (PRESETS / "hitaj" / f"{claim.quick}.flags").exists()
    # A preset for MNIST behind one for faces would be another experiment.
    data = claim.nearest.replace("nearest_", "quick_").removesuffix("_long").removesuffix("_slow")
    assert claim.quick in (data, *(f"{data}_{length}" for length in ("short", "long")))


@pytest.mark.parametrize("preset", SETTINGS)
def test_the_criterion_for_partly_is_met_wherever_that_for_reproduced_is(preset):
    """In the plain case of narrow intervals, far from and between the thresholds."""
    from gan_leak.evaluation.criteria import evaluate_criterion

    claim = read_claim(preset)
    names = {*claim.reproduced_if.names, *claim.partly_if.names}
    for judged in (0.0, 0.05, 0.2, 0.4, 0.9):
        for beside in (0.0, 0.05, 0.2, 0.4, 0.9):
            lookup = {name: beside if name.count(".") == 2 else judged for name in names}
            if evaluate_criterion(claim.reproduced_if, lookup):
                assert evaluate_criterion(claim.partly_if, lookup)


# Settings.


@pytest.mark.parametrize(
    ("preset", "rate", "batch_size"),
    [
        *((preset, 1e-3, 64) for preset in [*MNIST, "figure3", "figure5"]),
        *((preset, 0.02, 32) for preset in FACES),
        *((preset, 0.02, 1) for preset in FACES_41),
    ],
)
def test_the_paper_s_own_hyper_parameters_are_the_paper_s(preset, rate, batch_size):
    """Hitaj et al. 2017, section 8.4; all images take part."""
    config = config_for(preset)
    federation = config.federation
    assert (federation.learning_rate, federation.batch_size, federation.learning_rate_decay) == (rate, batch_size, 1e-7)
    assert (config.attack.generator_optimizer, config.attack.generator_learning_rate) == ("sgd", 0.02)
    assert config.data.image_size == (64 if preset in FACES + FACES_41 else 32)
    assert config.data.samples_per_participant == 0
    assert (config.attack.kind, federation.schedule, federation.local_epochs) == ("active", "round_robin", 1)
    assert (config.attack.generator_width, config.attack.generator_averaging) == (64, 0.0)


@pytest.mark.parametrize(
    ("preset", "upload_fraction", "download_fraction"),
    [
        *(("figure6a", 1.0, 1.0), ("figure6b", 0.1, 1.0), ("figure6c", 0.1, 0.1)),
        *(("figure8a", 1.0, 1.0), ("figure8b", 0.1, 1.0), ("figure8c", 0.1, 0.1)),
        *(("figure7", 1.0, 1.0), ("figure9", 1.0, 1.0), ("figure10", 1.0, 1.0)),
        *(("figure6c_random", 0.1, 0.1), ("figure8c_random", 0.1, 0.1)),
    ],
)
@pytest.mark.parametrize("variant", [PAPER_VARIANT, NEAREST_VARIANT])
def test_fractions_are_those_of_the_figures(preset, upload_fraction, download_fraction, variant):
    config = config_for(preset, variant)
    federation = config.federation
    assert (federation.upload_fraction, federation.download_fraction) == (upload_fraction, download_fraction)
    assert config.defense.kind == "none"


@pytest.mark.parametrize("preset", ["figure6c", "figure8c"])
@pytest.mark.parametrize("variant", [PAPER_VARIANT, NEAREST_VARIANT])
def test_the_other_reading_of_a_partial_download_differs_by_the_download_and_the_memory(preset, variant):
    paper, ours = (values_of(config_for(name, variant)) for name in (preset, f"{preset}_random"))
    assert {name: (paper[name], ours[name]) for name in paper if paper[name] != ours[name]} == {
        "download_criterion": ("most_updated", "random"),
        "discriminator": ("local", "remembered"),
    }


@pytest.mark.parametrize(
    ("preset", "epsilon", "upload_fraction"),
    [
        *(("figure11a", 100.0, 1.0), ("figure11b", 100.0, 0.1), ("figure11c", 10.0, 1.0), ("figure11d", 10.0, 0.1)),
        *(("figure14a", 100.0, 1.0), ("figure14b", 100.0, 0.1), ("figure14c", 10.0, 1.0), ("figure14d", 10.0, 0.1)),
        *(("figure12", 0.01, 1.0), ("figure13", 0.01, 1.0), ("figure7_private", 100.0, 1.0)),
    ],
)
@pytest.mark.parametrize("variant", [PAPER_VARIANT, NEAREST_VARIANT])
def test_privacy_is_that_of_the_figures(preset, epsilon, upload_fraction, variant):
    """Section 9.4: tau 1e-4, gamma 1e-3, everything downloaded; the sensitivity is twice gamma."""
    config = config_for(preset, variant)
    assert (config.defense.kind, config.defense.hyperparameters.epsilon_per_release) == ("sparse_vector", epsilon)
    federation = config.federation
    assert (federation.upload_fraction, federation.download_fraction) == (upload_fraction, 1.0)
    assert (federation.upload_threshold, federation.upload_bound, config.defense.hyperparameters.sensitivity) == (
        1e-4,
        1e-3,
        2e-3,
    )


def test_dp_sgd_differs_by_its_noise_only():
    configs = [config_for(f"dp_sgd_{letter}") for letter in "abc"]
    assert {config.defense.kind for config in configs} == {"dp_sgd"}
    assert [config.defense.hyperparameters.noise_multiplier for config in configs] == [0.3, 0.6, 1.2]
    assert {(config.defense.hyperparameters.clipping_norm, config.defense.delta) for config in configs} == {(1.0, 1e-5)}


@pytest.mark.parametrize("preset", [preset for preset in SETTINGS if preset != "figure5"])
def test_the_target_belongs_to_a_victim_and_not_to_the_adversary(preset):
    config = config_for(preset)
    owners = parse_participant_classes(config.data.participant_classes, 40 if "faces" in config.data.dataset else 10)
    assert config.attack.target_class not in owners[config.attack.adversary]
    assert sum(config.attack.target_class in classes for classes in owners) == 1
    if preset in MNIST:
        assert owners == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
        assert config.attack.target_class == (0 if preset == "figure9" else 3)
    elif preset in FACES:
        assert owners == (tuple(range(20)), tuple(range(20, 40)))
    elif preset in FACES_41:
        assert owners == (*((person,) for person in range(40)), ())
        assert config.attack.adversary == 40


@pytest.mark.parametrize("preset", SETTINGS)
def test_the_nearest_setting_changes_no_more_than_training(preset):
    """Neither the data, nor who owns and wants what, nor the defence and how much is exchanged."""
    free = {"learning_rate", "samples_per_participant", "rounds", "evaluation_interval", "evaluation_samples"}
    free |= {"generator_steps", "generator_width", "generator_learning_rate", "generator_batch_size"}
    free |= {"fakes_per_round", "batch_size", "generator_averaging"}
    own = values_of(config_for(preset))
    for scale in ("paper", *(["quick"] if preset in SHORT else [])):
        used = values_of(config_for(preset, NEAREST_VARIANT, scale))
        assert {name for name in own if own[name] != used[name]} <= free


@pytest.mark.parametrize("preset", SHORT)
def test_quick_shortens_the_nearest_setting_only(preset):
    whole = config_for(preset, NEAREST_VARIANT, "paper")
    assert config_for(preset, NEAREST_VARIANT, "quick").federation.rounds < whole.federation.rounds
    assert config_for(preset, PAPER_VARIANT, "quick") == config_for(preset, PAPER_VARIANT, "paper")


def test_a_quick_run_leaves_the_paper_s_own_setting_out():
    assert variants_of("quick", True) == variants_of("paper", False) == (NEAREST_VARIANT,)
    assert variants_of("paper", True) == (PAPER_VARIANT, NEAREST_VARIANT)


# Controls.


@pytest.mark.parametrize(
    ("preset", "scale"), [*((preset, "paper") for preset in SETTINGS), *((preset, "quick") for preset in SHORT)]
)
def test_controls_change_one_thing(preset, scale):
    """Passive: only what the adversary adds. Unowned: only that nobody has the target class."""
    arguments = arguments_for(preset, NEAREST_VARIANT, scale)
    config = config_from_arguments(RunConfig, arguments)
    controls = {name: config_from_arguments(RunConfig, flags) for name, flags in controls_of(arguments).items()}
    assert set(controls) == {"passive", "unowned"}
    for name, changed in {"passive": "attack", "unowned": "participant_classes"}.items():
        own, used = values_of(config), values_of(controls[name])
        assert {field for field in own if own[field] != used[field]} == {changed}
    assert controls["passive"].attack.kind == "passive"
    classes = 40 if "faces" in config.data.dataset else 10
    before = parse_participant_classes(config.data.participant_classes, classes)
    after = parse_participant_classes(controls["unowned"].data.participant_classes, classes)
    without = tuple(tuple(label for label in owned if label != config.attack.target_class) for owned in before)
    assert after == without
    assert after != before


def test_undefended_is_the_setting_without_its_defence_and_shared_with_the_figure_that_has_none():
    """What fails under a small budget then works without it, in the runs of Figures 6 (a) and 8."""
    for private, plain in (("figure12", "figure6a"), ("figure13", "figure8a")):
        assert rows_named_by(read_claim(private)) >= {"undefended"}
        arguments = controls_of(arguments_for(private, NEAREST_VARIANT, "paper"), undefended=True)["undefended"]
        assert config_from_arguments(RunConfig, arguments) == config_for(plain, NEAREST_VARIANT, "paper")
    assert "undefended" not in controls_of(arguments_for("figure12", NEAREST_VARIANT, "paper"))


def test_what_the_paper_leaves_open():
    """Section 9.2.2 counts the generator's steps by the adversary's images; with 41 participants it has none."""
    assert "generator_steps" in not_stated(config_for("figure6a")) & not_stated(config_for("figure7"))
    assert "generator_steps" not in not_stated(config_for("figure8a"))
    for preset in SETTINGS:
        assert not_stated(config_for(preset)) >= {"rounds", "fakes_per_round"}
        assert "learning_rate" not in not_stated(config_for(preset))


def test_the_curve_is_drawn_from_the_runs_of_figure_10():
    """Which are then not run twice."""
    arguments = [arguments_for(preset, NEAREST_VARIANT, "quick") for preset in ("figure10", "accuracy")]
    configs = [config_from_arguments(RunConfig, flags) for flags in arguments]
    assert configs[0] == configs[1]
    assert paper.SCALES == ("quick", "paper")
