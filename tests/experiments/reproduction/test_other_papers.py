"""The papers beside Hitaj et al.: every preset runs, every table becomes rows, verdicts and pictures, and is kept."""

import dataclasses
import itertools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import reproduce
from experiments.common import user_config
from experiments.common.flags import PRESETS, preset_text
from experiments.common.gradient_config import check
from experiments.common.split_rows import row_measures, row_settings
from experiments.reproduction import execution, preparation, table_sections
from experiments.reproduction.claims import read_claim, settings_at
from experiments.reproduction.other_papers import GRADIENT_INVERSION, SPLIT_INFERENCE, TABLES, USER_LEAKAGE
from experiments.reproduction.table_sections import (
    TableRun,
    configurations_of,
    table_basis,
    table_jobs,
    table_section,
)
from gan_leak.attacks.gradient import grnn
from gan_leak.evaluation.criteria import evaluate_criterion
from gan_leak.models.grnn_generator import Generated, Generator
from gan_leak.reports.reconstruction import measured_row
from gan_leak.reports.reproduction_results import check_results
from gan_leak.runs.hosts.workers import running
from gan_leak.runs.inversion import gradient as inversion
from gan_leak.runs.inversion import split
from gan_leak.settings import replace
from gan_leak.types import Model
from reference.mgan_ai import use_linear_people
from reference.quick import people_settings, write_people

NAMES = {preset: table for table in TABLES for preset in table.settings.values()}


def write_small(path, size, channels):
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(10), 40)
    images = rng.integers(0, 40, (400, size, size, *[channels][: channels > 1]), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 6, 4:20] = rng.integers(150, 250)
    np.savez(path, images=images, labels=labels)
    return f"npz:{path}"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The real presets over few images and iterations, with networks that compile in no time."""
    size = 32 * 32

    def linear(name, initialisation, num_classes, image_size, channels):
        shape = (size * channels, num_classes)
        return Model(
            lambda key: {"kernel": jnp.full(shape, 0.01), "bias": jnp.zeros(num_classes)},
            lambda params, images: images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None],
        )

    def generator(num_classes, *, image_size, channels, noise_size):
        return Generator(
            lambda key: {
                "image": jnp.zeros((1, image_size, image_size, channels)),
                "label": jnp.zeros((1, num_classes)),
            },
            lambda params, noise: Generated(
                jnp.repeat(params["image"], len(noise), 0),
                jnp.repeat(jnp.ones_like(params["label"]) / num_classes + params["label"], len(noise), 0),
            ),
        )

    use_linear_people(monkeypatch)
    monkeypatch.setattr(inversion, "network_for", linear)
    monkeypatch.setattr(grnn, "grnn_generator", generator)
    grey, colour = write_small(tmp_path / "grey.npz", 32, 1), write_small(tmp_path / "colour.npz", 32, 3)
    thin = write_small(tmp_path / "thin.npz", 28, 1)
    people = people_settings(write_people(tmp_path / "people.npz")) | {"first_round": 0}
    configurations = table_sections.configurations_of

    def shortened(run, table):
        found = {}
        for label, config in configurations(run, table).items():
            if table.binary is USER_LEAKAGE:
                steps = min(config.attack.generator_steps, 1)
                changes = people | {"generator_steps": steps, "discriminator_steps": steps}
                found[label] = replace(config, **changes)
            elif table.binary is SPLIT_INFERENCE:
                few = {"epochs": 1, "attack_epochs": 1, "iterations": 2, "images": 2, "samples": 64}
                few["dataset"] = thin if config.network == "mnist" else colour
                # All attacks run in the test of the binary.
                few |= {"attacks": "white_box", "splits": "conv1" if config.network == "mnist" else "conv11"}
                found[label] = dataclasses.replace(config, **few)
            else:
                sizes = ",".join(dict.fromkeys(str(min(int(size), 8)) for size in config.batch_sizes.split(",")))
                few = {"dataset": grey, "images": 2, "iterations": 3, "batch_sizes": sizes}
                few["utility_steps"] = min(config.utility_steps, 2)
                few["defenses"] = ",".join(config.defenses.split(",")[:3])
                found[label] = dataclasses.replace(config, **few)
        return found

    monkeypatch.setattr(table_sections, "configurations_of", shortened)
    return colour


def made(run, table):
    with running(table_jobs(run, table), 1, None, print) as wait:
        return table_section(run, table, wait)


@pytest.mark.slow
@pytest.mark.parametrize("table", [pytest.param(table, id=table.number) for table in TABLES])
def test_every_table_becomes_rows_verdicts_and_pictures(small, tmp_path, table):
    run = TableRun("quick" if settings_at(table.settings, "quick") else "paper", tmp_path / "tables", small)
    section = made(run, table)
    entry, pictures = section.entry, section.pictures
    attacks = {row["name"]: row["metrics"] for row in entry["rows"] if row["role"] == "attack"}
    assert all(table.measure in metrics for metrics in attacks.values())
    if table.binary is not USER_LEAKAGE:
        assert len(attacks) == len(entry["rows"])
    judged = {verdict["row"] for verdict in entry["verdicts"]}
    assert judged <= set(attacks)
    assert len(pictures) >= len(settings_at(table.settings, run.scale)) + 1
    assert all(image.startswith(b"\x89PNG") for image in pictures.values())
    named = [preset for preset in table.settings.values() if f"--preset={preset}" in entry["setup"]]
    assert named == list(settings_at(table.settings, run.scale).values())
    unnamed = [label for label, preset in table.settings.items() if preset not in named]
    assert [note.partition(": not run")[0] for note in entry["notes"] if ": not run" in note] == unnamed
    # Read back, it is the same.
    assert made(run, table).entry == entry
    assert entry["seconds"] > 0


def test_rows_that_a_claim_compares_with_are_named_and_not_judged():
    """In the order of the table; the criterion of the active server has the numbers of the passive one."""
    claim = read_claim("faces_active")
    table = NAMES["faces_active"]

    def row(name, role, identified):
        numbers = {"mean": identified, "low": identified - 0.1, "high": identified + 0.1, "values": []}
        metrics = {"client_identified": numbers, "p_value": {**numbers, "mean": 0.001}}
        return {"name": f"active: {name}", "role": role, "metrics": metrics}

    rows = [
        row("ceiling", "reference", 0.9),
        row("representatives, passive", "attack", 0.4),
        row("representatives, active", "attack", 0.6),
        row("representatives, active, pruning 0.9", "attack", 0.45),
    ]
    found, notes = table_sections._verdicts(claim, table, rows)
    assert not notes
    assert {verdict["row"]: verdict["verdict"] for verdict in found} == {
        "active: representatives, active": "reproduced",
        "active: representatives, active, pruning 0.9": "partly",
    }


@pytest.mark.parametrize("preset", [preset for preset, table in NAMES.items() if table.binary is SPLIT_INFERENCE])
def test_every_row_that_the_paper_has_is_judged_and_the_others_are_named(preset, tmp_path):
    """All rows of the real settings, of which the tests above run few; their numbers are made up."""
    table = NAMES[preset]
    (label,) = [label for label, of_label in table.settings.items() if of_label == preset]
    config = configurations_of(TableRun("paper", tmp_path, "npz:x"), table)[label]
    victim = split.victim_for(config.network)
    saved = {measure: np.full(20, 0.5) for measure in split.Outcome._fields[1:]} | {"accuracy": np.array(0.99)}
    settings = {str(setting): setting for setting in row_settings(config, victim)}
    rows = [
        measured_row(name, "attack", row_measures(victim, setting, saved, 10)) for name, setting in settings.items()
    ]
    verdicts, notes = table_sections._verdicts(read_claim(preset), table, rows)
    judged = [verdict["row"] for verdict in verdicts]
    if preset in ("he_noise", "he_dropout"):
        # They are compared with the first row, which has no defense, and not with published values.
        assert judged == list(settings)[1:]
        assert not notes
    else:
        published = [
            name
            for name, (layer, attack, knowledge, _) in settings.items()
            if split.published_scores(victim, attack, knowledge, layer)
        ]
        assert judged == published != []
        assert [note.partition(": not judged")[0] for note in notes] == [n for n in settings if n not in published]


@pytest.mark.slow
def test_a_table_is_a_section_of_the_reproduction_and_is_kept(small, tmp_path, monkeypatch):
    """Its settings run side by side, each in a process of its own."""
    monkeypatch.setattr(preparation, "check_table", lambda run, table: None)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    config = reproduce.ReproduceConfig(figures="he_defenses", workers=2)
    assert reproduce.execute(reproduce.prepare(config, tmp_path / "run", False)) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    check_results(results)
    assert [entry["figure"] for entry in results["figures"]] == ["he_defenses"]
    assert "Noise and dropout" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.setattr(execution, "table_section", lambda *_: pytest.fail("a finished table was made again"))
    assert reproduce.execute(reproduce.prepare(config, tmp_path / "run", True)) == 0


def test_images_that_do_not_fit_a_table_are_refused_before_any_work(tmp_path):
    """The data set is read and split as the table will, so that hours of figures do not end in a traceback."""
    grey = write_small(tmp_path / "grey.npz", 32, 1)
    config = reproduce.ReproduceConfig(figures="he_cifar10", scale="paper", cifar10=grey, workers=1)
    with pytest.raises(ValueError, match=r"images of \(32, 32, 1\), expected \(32, 32, 3\)"):
        reproduce.prepare(config, tmp_path / "run", False)
    assert not (tmp_path / "run").exists()


def test_an_unknown_table_is_refused(tmp_path):
    config = reproduce.ReproduceConfig(figures="grnn,vae")
    with pytest.raises(ValueError, match=r"figures=vae: expected all, or some of 3, 5, .*, he_mnist, he_cifar10"):
        reproduce.prepare(config, tmp_path / "run", False)


@pytest.mark.parametrize("preset", NAMES)
def test_claims_can_be_judged(preset):
    claim = read_claim(preset)
    assert claim.claim.endswith(".")
    assert claim.not_quick.endswith(".") if claim.not_quick else preset_text(claim.quick)
    names = sorted({*claim.reproduced_if.names, *claim.partly_if.names})
    # Shares, similarities and decibels; enough to be on either side of every limit.
    verdicts = set()
    for values in itertools.product((0.0, 0.3, 0.6, 0.97, 20.0), repeat=len(names)):
        lookup = dict(zip(names, values, strict=True))
        ends = [lookup.get(name.replace(".low", ".mean"), 20.0) - lookup[name] for name in names if ".low" in name]
        if min(ends, default=0.0) < 0.0:
            continue
        partly = evaluate_criterion(claim.partly_if, lookup)
        reproduced = evaluate_criterion(claim.reproduced_if, lookup)
        assert partly or not reproduced, lookup
        verdicts.add((reproduced, partly))
    assert verdicts == {(True, True), (False, True), (False, False)}


def test_every_preset_is_a_setting_or_stands_behind_one():
    """Nothing lies about that no table runs."""
    heads = {path.stem: path.read_text().splitlines()[0] for path in PRESETS.rglob("*.flags")}
    ours = {name for name, head in heads.items() if "experiments.gan_attack" not in head}
    behind = {read_claim(preset).quick for preset in NAMES} - {""}
    apart = {"gradient_defenses", "he_defenses", "quick_he_defenses", "inverting_reshuffled"}
    apart |= {"mnist_writers", "spoken_digits"}
    assert ours == {*NAMES, *behind, *apart}


@pytest.mark.parametrize("scale", ["quick", "paper"])
@pytest.mark.parametrize("table", TABLES, ids=[table.number for table in TABLES])
def test_every_preset_is_a_setting_that_its_binary_accepts(table, scale, tmp_path):
    """Checked as a run would be, up to the data."""
    for config in configurations_of(TableRun(scale, tmp_path, "npz:x"), table).values():
        if table.binary is SPLIT_INFERENCE:
            assert list(row_settings(config, split.victim_for(config.network)))
        elif table.binary is USER_LEAKAGE:
            user_config.check(config)
        else:
            check(config)


def test_other_images_make_another_section_in_another_directory(small, tmp_path):
    table = next(table for table in TABLES if table.number == "he_cifar10")
    run, colour = TableRun("paper", tmp_path, small), pathlib.Path(small.removeprefix("npz:"))
    (label, config), *_ = table_sections.configurations_of(run, table).items()
    before = table_basis(run, table), table_sections._workdir(run, table, label, config)
    with np.load(colour) as arrays:
        np.savez(colour, **{**arrays, "images": 255 - arrays["images"]})
    table_sections._fingerprint.cache_clear()
    after = table_basis(run, table), table_sections._workdir(run, table, label, config)
    assert all(was != now for was, now in zip(before, after, strict=True))


def test_another_claim_makes_another_section(small, tmp_path, monkeypatch):
    table = TABLES[0]
    run = TableRun("quick", tmp_path, small)
    before = table_basis(run, table)
    assert table_basis(run, table) == before
    claim = read_claim("he_mnist")
    monkeypatch.setattr(table_sections, "read_claim", lambda _: claim._replace(claim="Another."))
    assert table_basis(run, table) != before


def test_the_binaries_of_the_tables_are_those_of_their_presets():
    for preset, table in NAMES.items():
        assert table.binary.module in preset_text(preset).splitlines()[0]
    assert {table.binary for table in TABLES} == {GRADIENT_INVERSION, SPLIT_INFERENCE, USER_LEAKAGE}
    assert (
        configurations_of(TableRun("paper", pathlib.Path("x"), "npz:x"), TABLES[1])["He et al., CIFAR-10"].dataset
        == "npz:x"
    )
