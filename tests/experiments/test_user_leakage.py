"""The binary for user-level leakage: bad input is one line before any work, and a run writes what a check needs."""

import json
import math

import numpy as np
import pytest

from experiments import user_leakage
from experiments.common.user_config import (
    UserLeakageConfig,
    check,
    parse_defended,
    parse_local_trainings,
    variants_of,
)
from experiments.common.user_rows import local_privacy
from gan_leak import local_gaussian_epsilon
from gan_leak.data import to_float
from gan_leak.evaluation.client_distances import Galleries
from gan_leak.reports.clients import LabeledImages, clients_figure, one_of_each
from gan_leak.runs.server.federation import steps_of
from gan_leak.runs.server.measurement import nearest_category, outsider_galleries
from gan_leak.settings import replace
from reference.mgan_ai import use_linear_people
from reference.quick import people_settings, write_people

CLIENTS = 5


def config_for(path, **changes):
    return replace(UserLeakageConfig(), **{**people_settings(path), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": "asleep"}, "modes=asleep: expected some of passive, active, shuffled, none twice"),
        ({"modes": "active,active"}, "modes=active,active: expected some of passive, active, shuffled, none twice"),
        ({"baselines": "luck"}, "baselines=luck: expected some of auxiliary, class_means"),
        ({"first_round": 2}, "first_round=2: expected below rounds=2"),
        ({"local_trainings": "4"}, "local_trainings=4: expected epochs x batch size, such as 4x0"),
        ({"local_trainings": "0x4"}, "local_trainings=0x4: expected epochs x batch size, such as 4x0"),
        ({"local_trainings": "4x0,4x0"}, "local_trainings="),
        ({"defenses": "hope"}, "defenses=hope: "),
        ({"defenses": "pruning:2"}, "defenses=pruning:2: expected as strength"),
        ({"defenses": "pruning:much"}, "defenses=pruning:much: expected as strength"),
        ({"defenses": "none:3"}, "defenses=none:3"),
        ({"clients": 1}, "clients=1: expected"),
        ({"representatives": 0}, "representatives=0: expected"),
        ({"victims": "5"}, "victims=5: expected clients from 0 to 4, with commas between"),
        ({"victims": "-1"}, "victims=-1: expected clients from 0 to 4"),
        ({"victims": "0,x"}, "victims=0,x: expected clients from 0 to 4"),
        ({"victims": "1,1"}, "victims="),
    ],
)
def test_wrong_settings_are_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")) as caught:
        check(config_for("people.npz", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        ({}, {"dataset": "mnist"}, "it has no owners"),
        ({}, {"clients": 9}, "8 owners have enough images, expected 9"),
        ({}, {"held_out_per_class": 5}, "expected 7"),
        ({}, {"batch_size": 5}, "batch_size=5: expected at most 4, the images of a client"),
        ({}, {"local_trainings": "1x8"}, "batch_size=8: expected at most 4, the images of a client"),
        ({}, {"client_owners": "0;1;2;3;4", "auxiliary_owner_list": "4"}, "owner 4 belongs to"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_a_directory_is_made(tmp_path, made, changes, message):
    path = write_people(tmp_path / "people.npz", **made)
    with pytest.raises(ValueError, match=message) as caught:
        user_leakage.prepare(config_for(path, **changes), tmp_path / "run", False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_defenses_are_read_with_their_strengths():
    (none, nothing), (names, numbers) = parse_defended("none,clipping:2+gaussian:0.5")
    assert (none, nothing, names) == ("none", {}, "clipping+gaussian")
    assert sorted(numbers.values()) == [0.5, 2.0]


def test_only_clipping_and_then_noise_has_a_local_epsilon():
    defenses = "none,clipping:1+gaussian:20,gaussian:20+clipping:1,pruning:0.9,clipping:1+gaussian:0.001"
    found = {
        name: local_privacy(variant, 10) for name, variant in variants_of(config_for("x", defenses=defenses)).items()
    }
    known = {name: loss.epsilon for name, loss in found.items() if loss is not None}
    assert list(known) == ["passive, clipping 1 + gaussian 20", "passive, clipping 1 + gaussian 0.001"]
    assert known["passive, clipping 1 + gaussian 20"] == local_gaussian_epsilon(1.0, 20.0, 1e-5, 10).epsilon
    assert known["passive, clipping 1 + gaussian 0.001"] == math.inf


def test_each_federation_has_a_name_of_its_own():
    config = config_for(
        "people.npz", modes="passive,active", defenses="none,secure_aggregation,pruning:0.9", local_trainings="4x0,1x2"
    )
    found = variants_of(config)
    assert list(found) == [
        "passive",
        "active",
        "passive, secure aggregation",
        "active, secure aggregation",
        "passive, pruning 0.9",
        "active, pruning 0.9",
        "passive, 4 epochs of batches of all",
        "passive, 1 epochs of batches of 2",
    ]
    assert [variant.mode for variant in found.values()] == ["passive", "active"] * 3 + ["passive"] * 2
    assert parse_local_trainings("4x0,1x2") == [(4, 0), (1, 2)]


def test_local_steps_are_counted_over_batches(tmp_path):
    config = config_for(write_people(tmp_path / "people.npz"))
    _, federation = user_leakage.load_data(config)
    steps = [
        steps_of(variant, federation) for variant in variants_of(replace(config, local_trainings="3x0,2x3")).values()
    ]
    assert steps == [1, 3, 4]


def test_the_category_is_that_of_the_nearest_held_out_image():
    galleries = Galleries(np.array([[[-1.0, -0.5]], [[0.5, 1.0]]]).reshape(2, 2, 1, 1, 1), np.array([[3, 1], [2, 3]]))
    pictures = np.array([-0.9, -0.4, 0.6, 0.9]).reshape(4, 1, 1, 1)
    assert nearest_category(galleries, pictures).tolist() == [3, 1, 2, 3]


def test_galleries_of_outsiders_are_complete_and_of_third_parties_only(tmp_path):
    path = write_people(tmp_path / "people.npz", owners=12)
    config = config_for(path, third_party_owners=5, auxiliary_owners=1)
    dataset, federation = user_leakage.load_data(config)
    galleries = Galleries(federation.held_out, federation.held_out_labels)
    found = outsider_galleries(dataset, federation.split, galleries)
    assert found.images.shape == galleries.images.shape
    np.testing.assert_array_equal(np.sort(found.labels), np.sort(galleries.labels))
    third = to_float(dataset.train_images[federation.split.third_parties]).reshape(-1, 28 * 28)
    for image in found.images.reshape(-1, 28 * 28):
        assert np.any(np.all(third == image, axis=1))
    # A person with fewer images of a class is left out, and two people stand for clients of two.
    few = Galleries(np.repeat(galleries.images, 9, axis=1), np.repeat(galleries.labels, 9, axis=1))
    assert outsider_galleries(dataset, federation.split, few) is None
    pairs = federation.split._replace(owners=np.zeros((5, 2), np.int64))
    assert len(outsider_galleries(dataset, pairs, galleries).images) == 2
    mixtures = federation.split._replace(owners=np.zeros((5, 0), np.int64))
    assert outsider_galleries(dataset, mixtures, galleries) is None


def test_a_figure_shows_all_clients():
    own = LabeledImages(np.arange(3.0, dtype=np.float32).reshape(3, 1, 1, 1) / 2, np.array([4, 2, 4]))
    assert one_of_each(own, np.array([2, 3, 4])).ravel().tolist() == [0.5, 0.0, 0.0]
    larger = LabeledImages(np.zeros((8, 16, 16, 1), np.float32), np.arange(8))
    assert clients_figure([0, 3], {"private images": [larger] * 2}).startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_writes_what_anyone_needs_to_check_it_and_resumes_to_the_same_bits(tmp_path, capfd, monkeypatch):
    use_linear_people(monkeypatch)
    config = config_for(
        write_people(tmp_path / "people.npz", owners=12),
        defenses="none,secure_aggregation",
        auxiliary_owners=3,
        third_party_owners=3,
    )
    assert user_leakage.execute(user_leakage.prepare(config, tmp_path / "run", False)) == 0
    run = tmp_path / "run"
    rows = {row["name"]: row["metrics"] for row in json.loads((run / "results.json").read_text())}
    federation, found = np.load(run / "federation.npz"), np.load(run / "reconstructions.npz")
    people_file = np.load(tmp_path / "people.npz")
    assert federation["owners"].shape == (CLIENTS, 1)
    for name in ("sent", "held_out"):
        # Indices into the training part: every fifth image of a class is a test image.
        assert federation[name].shape == (CLIENTS, 4)
    assert not set(federation["sent"].ravel()) & set(federation["held_out"].ravel())
    assert len(people_file["owners"]) > federation["sent"].max()
    assert sorted(set(found["stage"])) == ["generator", "representative"]
    assert set(found["victims"]) == set(range(CLIENTS))
    assert len({len(found[name]) for name in ("images", "labels", "victims", "rounds", "stage")}) == 1
    assert rows["held-out images of each client (ceiling)"]["client_identified"]["mean"] > 0.8
    # Pictures that are the same for all clients identify nobody, whatever they show.
    for name in (
        "auxiliary images alone",
        "class-level GAN at the server",
        "representatives, passive, secure aggregation",
    ):
        assert rows[name]["client_identified"]["mean"] == pytest.approx(1 / CLIENTS)
    assert rows["means of the private classes"]["as_outsider"]["mean"] < 1 / CLIENTS
    for name in ("the cosine of raw updates", "label counts", "representatives (Siamese network)"):
        assert {"linked", "p_value", "chance"} == set(rows[f"linkability by {name}"])
    assert len((run / "metrics.jsonl").read_text().splitlines()) == config.federation.rounds
    before = {path.name: path.read_bytes() for path in run.glob("*.npz")}
    for path in [*run.glob("federations/*"), *run.glob("rows/*")]:
        path.unlink()
    (run / "reconstructions.npz").unlink()
    assert user_leakage.execute(user_leakage.prepare(config, run, True)) == 0
    assert {path.name: path.read_bytes() for path in run.glob("*.npz")} == before


@pytest.mark.slow
def test_a_passive_server_changes_no_bit_of_the_federation_and_an_active_one_does(tmp_path, monkeypatch):
    import jax

    from gan_leak.runs.server.attack import run_attack
    from gan_leak.runs.server.rounds import recording, run_rounds
    from gan_leak.runs.storage.resumable import UNSAVED

    use_linear_people(monkeypatch)
    config = config_for(write_people(tmp_path / "people.npz"))
    _, federation = user_leakage.load_data(config)
    passive, active = variants_of(replace(config, modes="passive,active")).values()
    found = {
        name: run_attack(jax.random.key(0), federation, variant, [3, 0], config.attack, config.federation, UNSAVED)
        for name, variant in (("passive", passive), ("active", active))
    }
    honest = run_rounds(
        jax.random.split(jax.random.key(0))[0], federation, passive, recording(CLIENTS), (), config.federation, UNSAVED
    )
    shuffled = variants_of(replace(config, modes="shuffled"))["shuffled"]
    control = run_attack(
        jax.random.key(0), federation, shuffled, range(CLIENTS), config.attack, config.federation, UNSAVED
    )
    flat, _ = jax.flatten_util.ravel_pytree(honest.federation.server.params)
    np.testing.assert_array_equal(found["passive"].params, flat)
    everyone = run_attack(
        jax.random.key(0), federation, passive, range(CLIENTS), config.attack, config.federation, UNSAVED
    )
    for name in ("representatives", "generated", "distances"):
        of_all, of_two = getattr(everyone, name), getattr(found["passive"], name)
        np.testing.assert_array_equal(of_all[[3, 0]], of_two)
    assert np.any(found["active"].params != flat)
    np.testing.assert_array_equal(control.params, flat)
    assert not np.array_equal(control.representatives, everyone.representatives)
