"""Batches: every lane is the run of its configuration, nothing finished is done twice, nothing is mixed up."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak import trees
from gan_leak.attacks import GanAttackHyperParameters, gan_attack
from gan_leak.collaboration import RoundHyperParameters, init_federation, make_round, make_rounds, selective_upload
from gan_leak.defenses.composition import traced
from gan_leak.defenses.sparse_vector import DEFENSE
from gan_leak.performance import PerformanceOptions
from gan_leak.runs.federated import batch, setup
from gan_leak.runs.federated.batch import batch_directory, check_batch, make_lanes, run_batch, stack_federations
from gan_leak.runs.federated.measurement import make_instrument_source
from gan_leak.runs.storage import checkpoints
from gan_leak.settings import replace
from reference.quick import small_run
from reference.small import (
    FAKE_CLASS,
    IMAGE_SHAPE,
    federation_data,
    largest_difference,
    linear_classifier,
    linear_generator,
)
from reference.whole_run import run

# The smallest view instead of the product.
OLDER_SCORE = {"leakage_score": 0.25, "leakage_by_representation": {"edges": 0.5, "judge": 0.25}}


@pytest.fixture(scope="module", autouse=True)
def _linear_networks(linear_networks):
    """What is tested here does not depend on the networks."""


@pytest.fixture(scope="module")
def config(stripes):
    return small_run(stripes, samples_per_participant=40, generator_steps=2, generator_learning_rate=0.5)


@pytest.fixture(scope="module")
def instruments():
    return make_instrument_source(lambda text: None)


def no_instruments(data):
    raise AssertionError("a finished batch needs no judge")


class Shown(list):
    """Collects what ``show`` was called with; raises an error after a round."""

    def __init__(self, stop_after=None, error=KeyboardInterrupt):
        super().__init__()
        self.stop_after, self.error = stop_after, error

    def __call__(self, round, text):
        self.append((round, text))
        if round == self.stop_after:
            raise self.error

    @property
    def rounds(self):
        return [round for round, _ in self]


def fields(result):
    """All of a result but the time it took, as data that compares by value."""
    kept = result._replace(seconds=0.0, pictures=result.pictures.tobytes(), private=result.private.tobytes())
    return json.loads(json.dumps(kept._asdict(), default=repr))


def numbers_in(leakage):
    return [*leakage["leakage_by_representation"].values(), *(leakage[name] for name in leakage if name[-1] != "n")]


@pytest.mark.slow
def test_every_lane_is_what_gan_attack_does_with_its_configuration(config, instruments, tmp_path):
    """Same pictures, accuracy, uploads and measures as the training loop of a single run."""
    own = {"seed": 3, "target_class": 1, "learning_rate": 0.2, "upload_fraction": 0.1, "generator_learning_rate": 0.1}
    configs = [config, replace(config, **own)]
    result = run_batch(configs, tmp_path / "batch", instruments)
    assert result.rounds == [2, 4]
    assert result.pictures.shape == (2, 2, 12, 32, 32, 1)
    for lane, single in enumerate(configs):
        run(single, tmp_path / f"single{lane}")
        lines = (tmp_path / f"single{lane}" / "metrics.jsonl").read_text().splitlines()
        expected = [record for record in map(json.loads, lines) if "leakage" in record]
        images = np.load(tmp_path / f"single{lane}" / "reconstructions.npz")["images"].reshape(2, 12, 32, 32, 1)
        # Pictures are kept in half precision.
        np.testing.assert_allclose(result.pictures[lane], images, atol=1e-3)
        for found, record in zip(result.records[lane], expected, strict=True):
            assert (found["round"], found["uploaded"]) == (record["round"], record["uploaded"])
            assert found["model_accuracy"] == pytest.approx(record["model_accuracy"], abs=0.01)
            assert found["leakage"].keys() == record["leakage"].keys()
            np.testing.assert_allclose(numbers_in(found["leakage"]), numbers_in(record["leakage"]), atol=1e-3)
    # Without this, lanes that were mixed up, or shared their numbers, might pass.
    assert np.abs(result.pictures[0] - result.pictures[1]).max() > 0.05


@pytest.mark.slow
def test_a_result_holds_what_a_report_needs(config, instruments, tmp_path):
    """References beside the lanes, sizes, and for each last picture the nearest private image."""
    result = run_batch([config], tmp_path / "batch", instruments)
    assert set(result.comparison[0]) == {"fresh real images", "untrained generator", "adversary's own classes"}
    assert result.comparison[0]["fresh real images"]["leakage_score"] > 0.8
    assert result.samples == [40, 40]
    assert result.coordinates == (32 * 32 + 1) * 5
    assert result.judge == {"test_accuracy": 0.5, "test_images": 160}
    assert result.records[0][-1]["uploaded"] == [result.coordinates] * 2
    private = batch.prepare_data(config).private
    for picture, nearest in zip(result.pictures[0, -1], result.private[0], strict=True):
        distances = np.abs(private - picture).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(private[np.argmin(distances)], nearest, atol=1e-3)


@pytest.mark.slow
def test_how_seeds_are_mapped_does_not_change_the_result(config, instruments, tmp_path):
    seeds = [config, replace(config, seed=1)]
    results = []
    for mapping in ("map", "vmap"):
        performance = PerformanceOptions(seed_mapping=mapping)
        configs = [replace(lane, performance=performance) for lane in seeds]
        results.append(run_batch(configs, tmp_path / mapping, instruments))
    np.testing.assert_allclose(results[0].pictures, results[1].pictures, atol=1e-3)
    for one, other in zip(*(result.records for result in results), strict=True):
        assert [record["uploaded"] for record in one] == [record["uploaded"] for record in other]
        assert [r["model_accuracy"] for r in one] == pytest.approx([r["model_accuracy"] for r in other], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [1e30, 1e38], ids=["update", "weights"])
def test_a_lane_that_diverges_is_told_apart_and_harms_no_other(config, instruments, tmp_path, learning_rate):
    """Whether only the norm of an update overflows, at which a single run stops too, or the weights do."""
    alone = run_batch([config, replace(config, seed=1)], tmp_path / "alone", instruments)
    shown = Shown()
    configs = [config, replace(config, learning_rate=learning_rate)]
    result = run_batch(configs, tmp_path / "batch", instruments, shown)
    sound, broken = result.records
    assert sound == alone.records[0]
    np.testing.assert_array_equal(result.pictures[0], alone.pictures[0])
    assert not any(record["diverged"] for record in sound)
    assert (broken[-1]["diverged"], broken[-1]["leakage"]) == (True, None)
    assert np.isfinite(result.private).all()
    assert shown[-1][1].endswith(f"leakage {sound[-1]['leakage']['leakage_score']:.2f}")


# The same on the level of the compiled program, where every number of the state can be compared.


@functools.cache
def small_experiment(transform_name, fakes_per_round):
    transform = {"selective": selective_upload("largest"), "sparse vector": traced(DEFENSE)}[transform_name]
    classifier = linear_classifier()
    attack = gan_attack(
        classifier,
        linear_generator(),
        IMAGE_SHAPE,
        generator_steps=2,
        generator_batch_size=3,
        fakes_per_round=fakes_per_round,
    )
    arguments = {"schedule": "round_robin", "batch_size": 3, "attack": attack, "adversary": 1}
    return classifier, transform, attack, make_round(classifier, transform, **arguments)


NUMBERS = RoundHyperParameters(
    0.1,
    0.01,
    0.5,
    1.0,
    1e-4,
    0.3,
    defense={"sensitivity": 0.01, "epsilon_per_release": 10.0},
    attack=GanAttackHyperParameters(1, 4, 0.5),
)
LANES = [
    NUMBERS,
    NUMBERS._replace(learning_rate=0.02),
    NUMBERS._replace(upload_fraction=0.1, download_fraction=0.3),
    NUMBERS._replace(defense={"sensitivity": 0.1, "epsilon_per_release": 0.1}),
    NUMBERS._replace(attack=GanAttackHyperParameters(2, FAKE_CLASS, 0.1)),
    NUMBERS,
]


def run_lanes(experiment, mapping, seeds, federations, numbers, count):
    classifier, transform, attack, round_fn = experiment
    states = [init_federation(jax.random.key(seed), classifier, transform, 2, attack) for seed in seeds]
    arguments = (
        jnp.stack([jax.random.key(100 + seed) for seed in seeds]),
        trees.stack(states),
        stack_federations(federations),
        batch._stack_hyperparameters(numbers),
    )
    return jax.jit(make_lanes(round_fn, mapping))(*arguments, count)


@functools.cache
def single_runs(experiment, count):
    return jax.jit(make_rounds(experiment[-1], count))


def run_alone(experiment, seed, federation, numbers, count):
    classifier, transform, attack, _ = experiment
    state = init_federation(jax.random.key(seed), classifier, transform, 2, attack)
    return single_runs(experiment, count)(jax.random.key(100 + seed), state, federation, numbers, count)


@pytest.mark.slow
@pytest.mark.parametrize(("transform", "mapping"), [("selective", "vmap"), ("sparse vector", "map")])
def test_lanes_end_in_the_states_of_their_single_runs(transform, mapping):
    """Every lane has a number, a seed or a federation of its own."""
    experiment = small_experiment(transform, 4)
    seeds = [0, 0, 0, 0, 0, 7]
    federations = [federation_data((7, 5), seed=int(lane == 4)) for lane in range(len(LANES))]
    states, infos = run_lanes(experiment, mapping, seeds, federations, LANES, 3)
    differing = set()
    for lane, (seed, federation, numbers) in enumerate(zip(seeds, federations, LANES, strict=True)):
        state, info = run_alone(experiment, seed, federation, numbers, 3)
        assert largest_difference(trees.take(states, lane), state) < 1e-5
        np.testing.assert_array_equal(infos.turns.uploaded[lane, :3], info.turns.uploaded)
        differing.add(np.asarray(state.server.params["kernel"]).tobytes())
    # Only the budget of a release means nothing to a defence that has none.
    assert len(differing) == len(LANES) - (transform == "selective")


@pytest.mark.slow
def test_padding_to_the_longest_federation_has_no_influence():
    """A federation of 5 images in a lane beside one of 9 ends as it would alone, if the adversary adds no fakes."""
    experiment = small_experiment("selective", 0)
    federations = [federation_data((5, 4), length=5), federation_data((9, 3), length=9)]
    states, _ = run_lanes(experiment, "map", [0, 1], federations, [NUMBERS] * 2, 3)
    state, _ = run_alone(experiment, 0, federations[0], NUMBERS, 3)
    assert largest_difference(trees.take(states, 0), state) < 1e-5


@pytest.mark.slow
def test_what_the_padding_holds_has_no_influence():
    """With fakes, which stand behind the padding, only the order of the adversary's samples depends on its length."""
    experiment = small_experiment("selective", 4)
    federations = [federation_data((5, 4), length=5), federation_data((9, 3), length=9)]
    states, _ = run_lanes(experiment, "map", [0, 1], federations, [NUMBERS] * 2, 3)
    garbage = ((0, 0), (0, 4))
    padded = federations[0]._replace(
        inputs=jnp.pad(federations[0].inputs, (*garbage, (0, 0), (0, 0), (0, 0)), constant_values=jnp.nan),
        labels=jnp.pad(federations[0].labels, garbage, constant_values=3),
    )
    state, _ = run_alone(experiment, 0, padded, NUMBERS, 3)
    assert largest_difference(trees.take(states, 0), state) < 1e-5


def test_federations_are_stacked_with_zeros_behind_the_shorter_ones():
    short, long = federation_data((5, 4), length=5), federation_data((9, 3), length=9)
    stacked = stack_federations([short, long])
    assert stacked.inputs.shape == (2, 2, 9, *IMAGE_SHAPE)
    np.testing.assert_array_equal(stacked.inputs[0, :, :5], short.inputs)
    np.testing.assert_array_equal(stacked.labels[1], long.labels)
    assert not np.any(stacked.inputs[0, :, 5:])
    assert not np.any(stacked.labels[0, :, 5:])
    np.testing.assert_array_equal(stacked.sizes, [[5, 4], [9, 3]])


# What is finished stays finished.


@pytest.fixture(scope="module")
def uninterrupted(config, instruments, tmp_path_factory):
    """Two lanes, an evaluation after every fourth round, and how the host was told of every second."""
    long = replace(config, rounds=8, evaluation_interval=4)
    configs, shown = [long, replace(long, seed=1)], Shown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_MOST_ROUNDS_PER_CALL", 2)
        yield configs, run_batch(configs, tmp_path_factory.mktemp("whole"), instruments, shown)
    assert shown.rounds == [0, 2, 4, 6, 8]
    assert [bool(text) for _, text in shown] == [False, False, True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize(("stop_after", "continued"), [(2, [2, 4, 6, 8]), (4, [4, 6, 8]), (6, [6, 8]), (8, [8])])
def test_an_interrupted_batch_continues_to_the_same_result(uninterrupted, instruments, tmp_path, stop_after, continued):
    """From the last rounds that are finished, and to the same bits."""
    configs, expected = uninterrupted
    with pytest.raises(KeyboardInterrupt):
        run_batch(configs, tmp_path / "batch", instruments, Shown(stop_after))
    again = Shown()
    result = run_batch(configs, tmp_path / "batch", instruments, again)
    assert again.rounds == continued
    assert fields(result) == fields(expected)
    assert result.seconds > 0


@pytest.mark.slow
def test_an_interruption_while_saving_costs_one_evaluation_at_most(uninterrupted, instruments, tmp_path, monkeypatch):
    """The checkpoint is still of round 4."""
    configs, expected = uninterrupted
    save = checkpoints.save

    def interrupt(directory, round, *arguments, **keywords):
        if round == 8:
            raise KeyboardInterrupt
        return save(directory, round, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_batch(configs, tmp_path / "batch", instruments)
    again = Shown()
    assert fields(run_batch(configs, tmp_path / "batch", instruments, again)) == fields(expected)
    assert again.rounds == [4, 6, 8]


@pytest.mark.slow
@pytest.mark.parametrize(("stop_after", "continued"), [(2, [2, 4, 6, 8]), (6, [6, 8])])
def test_long_evaluation_intervals_lose_no_more_than_a_minute(
    uninterrupted, instruments, tmp_path, monkeypatch, stop_after, continued
):
    """Here no time at all, however it ends: what is kept between evaluations continues to the same result."""
    configs, expected = uninterrupted
    monkeypatch.setattr(batch, "_MOST_SECONDS_TO_LOSE", 0.0)
    with pytest.raises(MemoryError):
        run_batch(configs, tmp_path / "batch", instruments, Shown(stop_after, MemoryError))
    again = Shown()
    assert fields(run_batch(configs, tmp_path / "batch", instruments, again)) == fields(expected)
    assert again.rounds == continued


def stopped_after_6(configs, directory, instruments):
    with pytest.raises(KeyboardInterrupt):
        run_batch(configs, directory, instruments, Shown(6))
    return sorted(path for path in (directory / "checkpoints").iterdir() if path.is_dir())[-1]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["records.json", "pictures.npz", "_CHECKPOINT_METADATA"])
def test_the_checkpoint_before_a_damaged_one_is_continued(uninterrupted, instruments, tmp_path, monkeypatch, name):
    configs, expected = uninterrupted
    monkeypatch.setattr(batch, "_MOST_SECONDS_TO_LOSE", 0.0)
    newest = stopped_after_6(configs, tmp_path / "batch", instruments)
    flip(newest / name)
    said, again = [], Shown()
    assert fields(run_batch(configs, tmp_path / "batch", instruments, again, said.append)) == fields(expected)
    assert again.rounds[0] == 4
    assert said == [f"{newest}: damaged or unfinished, skipped"]


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(("leakage", "why"), [(OLDER_SCORE, "an earlier version"), ({"score": 1}, "cannot be read")])
def test_checkpoints_with_other_scores_are_computed_again(uninterrupted, instruments, tmp_path, leakage, why):
    """In a checkpoint without a digest, since one with a digest that differs is damaged anyway."""
    configs, expected = uninterrupted
    newest = stopped_after_6(configs, tmp_path / "batch", instruments)
    stored = json.loads((newest / "records.json").read_text())
    stored["records"][0][-1]["leakage"] = leakage
    (tmp_path / "batch" / "records.json").write_text(json.dumps(stored))
    (newest / "pictures.npz").rename(tmp_path / "batch" / "pictures.npz")
    (newest / "records.json").unlink()
    manifest = newest.with_name(f"{newest.name}.sha256")
    files = json.loads(manifest.read_text())["files"]
    manifest.write_text(json.dumps({name: files[name] for name in files if (newest / name).exists()}))
    said = []
    assert fields(run_batch(configs, tmp_path / "batch", instruments, notify=said.append)) == fields(expected)
    assert why in said[-1]
    assert said[-1].endswith("the batch is computed again")


def test_a_batch_without_an_undamaged_checkpoint_is_computed_again(uninterrupted, instruments, tmp_path):
    configs, expected = uninterrupted
    directory = tmp_path / "batch"
    stopped_after_6(configs, directory, instruments)
    for path in directory.glob("checkpoints/*/records.json"):
        flip(path)
    said = []
    assert fields(run_batch(configs, directory, instruments, notify=said.append)) == fields(expected)
    assert len(said) == 1
    assert "every checkpoint is damaged" in said[0]
    assert (directory / "checkpoints.damaged").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["result.json", "pictures.npz", "no pictures", "nonsense", "no object", "a field less", "older scores"]
)
def test_a_damaged_result_is_renamed_and_computed_again(uninterrupted, instruments, tmp_path, damage):
    configs, expected = uninterrupted
    directory = tmp_path / "batch"
    run_batch(configs, directory, instruments)
    if damage in ("result.json", "pictures.npz"):
        flip(directory / damage)
    elif damage == "no pictures":
        (directory / "pictures.npz").unlink()
    elif damage == "older scores":
        stored = json.loads((directory / "result.json").read_text())
        del stored["sha256"]
        stored["records"][0][-1]["leakage"] |= OLDER_SCORE
        (directory / "result.json").write_text(json.dumps(stored))
    else:
        content = {"nonsense": b"\xff{", "no object": b"[]", "a field less": b'{"rounds": [1]}'}[damage]
        (directory / "result.json").write_bytes(content)
    said = []
    assert fields(run_batch(configs, directory, instruments, notify=said.append)) == fields(expected)
    assert len(said) == 1
    assert said[0].endswith(": the batch is computed again")
    assert (directory / "result.json.damaged").exists()
    assert fields(run_batch(configs, directory, no_instruments)) == fields(expected)


def test_a_result_of_a_version_without_digests_is_read(uninterrupted, instruments, tmp_path):
    configs, expected = uninterrupted
    run_batch(configs, tmp_path / "batch", instruments)
    path = tmp_path / "batch" / "result.json"
    stored = json.loads(path.read_text())
    del stored["sha256"], stored["pictures_sha256"]
    path.write_text(json.dumps(stored))
    assert fields(run_batch(configs, tmp_path / "batch", no_instruments)) == fields(expected)


@pytest.mark.slow
def test_a_checkpoint_of_a_version_without_digests_is_continued(uninterrupted, instruments, tmp_path):
    configs, expected = uninterrupted
    newest = stopped_after_6(configs, tmp_path / "batch", instruments)
    for name in ("records.json", "pictures.npz"):
        (newest / name).rename(tmp_path / "batch" / name)
    manifest = newest.with_name(f"{newest.name}.sha256")
    files = json.loads(manifest.read_text())["files"]
    manifest.write_text(json.dumps({name: files[name] for name in files if (newest / name).exists()}))
    said, again = [], Shown()
    assert fields(run_batch(configs, tmp_path / "batch", instruments, again, said.append)) == fields(expected)
    assert again.rounds[0] == 6
    assert "of a version without digests" in said[0]


@pytest.mark.slow
def test_damaged_lanes_are_written_again_where_the_name_of_the_directory_tells_them(config, instruments, tmp_path):
    directory = batch_directory(tmp_path, [config])
    first = run_batch([config], directory, instruments)
    intact = (directory / "lanes.json").read_bytes()
    for content in (b"\xff\xfe", b"[]", intact[:-2]):
        (directory / "lanes.json").write_bytes(content)
        said = []
        assert fields(run_batch([config], directory, no_instruments, notify=said.append)) == fields(first)
        assert "lanes.json: damaged" in said[0]
        assert (directory / "lanes.json").read_bytes() == intact


def test_a_finished_batch_is_read_back(config, instruments, tmp_path):
    shown = Shown()
    first = run_batch([config], tmp_path / "batch", instruments, shown)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "batch").rglob("*")}
    shown.clear()
    assert fields(run_batch([config], tmp_path / "batch", no_instruments, shown)) == fields(first)
    assert not shown
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "batch").rglob("*")} == files
    assert not list((tmp_path / "batch").rglob("round_*")), "checkpoints of a finished batch only take room"


def test_checkpoints_that_a_kill_left_beside_a_result_are_deleted(config, instruments, tmp_path):
    first = run_batch([config], tmp_path / "batch", instruments)
    checkpoints.save(tmp_path / "batch" / "checkpoints", 4, {"left": jnp.zeros(3)})
    assert fields(run_batch([config], tmp_path / "batch", no_instruments)) == fields(first)
    assert not list((tmp_path / "batch" / "checkpoints").iterdir())


def test_the_directory_of_another_batch_is_refused(config, instruments, tmp_path):
    """Whether that is finished or not, and nothing in it changes."""
    run_batch([config], tmp_path / "batch", instruments)
    before = {path: path.read_bytes() for path in (tmp_path / "batch").rglob("*") if path.is_file()}
    for other in ([replace(config, seed=1)], [config, replace(config, seed=1)]):
        with pytest.raises(ValueError, match="other configurations") as raised:
            run_batch(other, tmp_path / "batch", no_instruments)
        assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in (tmp_path / "batch").rglob("*") if path.is_file()} == before


# What goes together.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": 5}, "rounds=5"),
        ({"dataset": "mnist"}, "dataset='mnist'"),
        ({"attack": "passive"}, "attack='passive'"),
        ({"defense": "dp_sgd"}, "defense='dp_sgd'"),
        ({"batch_size": 8}, "batch_size=8"),
        ({"participant_classes": "1;2,3"}, "participant_classes='1;2,3'"),
        ({"performance": PerformanceOptions(seed_mapping="vmap")}, "seed_mapping='vmap'"),
    ],
)
def test_lanes_of_other_shapes_are_refused(config, tmp_path, changes, named):
    lanes = [config, replace(config, seed=1), replace(config, seed=2, **changes)]
    with pytest.raises(ValueError, match="in one lane") as raised:
        check_batch(lanes)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="in one lane"):
        run_batch(lanes, tmp_path / "batch", no_instruments)
    assert not (tmp_path / "batch").exists()


def test_lanes_may_have_their_own_numbers(config):
    own = {"seed": 9, "target_class": 1, "learning_rate": 1.0, "upload_fraction": 0.5, "epsilon_per_release": 1.0}
    more = {"clipping_norm": 2.0, "noise_multiplier": 3.0, "generator_learning_rate": 1.0, "upload_bound": 0.1}
    check_batch([config, replace(config, **own), replace(config, **more)])


def test_a_batch_without_lanes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="configs: empty"):
        run_batch([], tmp_path / "batch", no_instruments)


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"seed": 1, "target_class": 1, "learning_rate": 0.2, "upload_fraction": 0.1, "rounds": 7}, True),
        ({"participant_classes": "1;2,3", "samples_per_participant": 30}, True),
        ({"generator_steps": 3}, False),
        ({"attack": "passive"}, False),
        ({"defense": "dp_sgd"}, False),
        ({"performance": PerformanceOptions(convolution="lax")}, False),
    ],
)
def test_configurations_of_one_shape_share_their_functions(config, changes, shared):
    """Which is how JAX knows that it has compiled them."""
    data = setup.prepare_data(config)
    first, second = (setup.build_experiment(one, data) for one in (config, replace(config, **changes)))
    assert (first.round is second.round) == shared
    assert second.hyperparameters.learning_rate == changes.get("learning_rate", config.federation.learning_rate)
