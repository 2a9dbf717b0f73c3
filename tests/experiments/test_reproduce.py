"""The reproduction: every figure becomes rows, controls and a verdict; what is finished is kept, whatever happens."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
from html import escape

import pytest

import gan_leak
from experiments import reproduce
from experiments.common import flags
from experiments.reproduce import ReproduceConfig
from experiments.reproduction import execution, preparation
from experiments.reproduction import hitaj as paper
from experiments.reproduction.claims import read_claim, settings_at
from gan_leak.reports.reproduction_results import NEAREST_VARIANT, PAPER_VARIANT, check_results
from gan_leak.runs.federated import rows as reproduction
from gan_leak.runs.hosts import workers
from gan_leak.runs.storage.directory import close_run, read_config_file
from gan_leak.runs.storage.integrity import sealed_json
from reference.quick import use_linear_networks, write_stripes

TINY = """
--participant_classes=0-4;5-9
--samples_per_participant=40
--batch_size=16
--learning_rate=0.001
--generator_steps=1
--generator_batch_size=8
--fakes_per_round=8
--target_class=3
--rounds=2
--evaluation_interval=1
--evaluation_samples=12
"""


@pytest.fixture(scope="module", autouse=True)
def _tiny(tmp_path_factory):
    """The real presets of the figures over settings that take a second, and networks that compile in one."""
    folder = tmp_path_factory.mktemp("presets")
    shutil.copytree(flags.PRESETS, folder, dirs_exist_ok=True)
    stripes = write_stripes(folder / "stripes.npz", classes=10, per_class=40)
    (folder / "hitaj_mnist.flags").write_text(f"--dataset=npz:{stripes}\n{TINY}")
    for preset in (folder / "hitaj").glob("nearest_*.flags"):
        preset.write_text("--learning_rate=0.2\n--rounds=2\n")
    for preset in (folder / "hitaj").glob("quick_*.flags"):
        rounds = "--rounds=1\n" if preset.stem == "quick_mnist_short" else ""
        preset.write_text(f"--evaluation_interval=1\n{rounds}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "PRESETS", folder)
        # One method of inversion, briefly, for both: what it finds is tested elsewhere.
        invert = reproduction.invert_all_classes
        patch.setattr(
            reproduction,
            "invert_all_classes",
            lambda kind, *arguments, **_: invert("cnn", *arguments, epochs=1, steps=2),
        )
        use_linear_networks(patch)
        yield


class Counted:
    """Stands in for ``run_batch`` and tells which batches were made, not only read back."""

    def __init__(self, patch):
        self.made, self.run = [], workers.run_batch
        patch.setattr(workers, "run_batch", self)

    def __call__(self, configs, directory, *arguments):
        if not (directory / "result.json").exists():
            self.made.append(directory.name)
        return self.run(configs, directory, *arguments)


def call(workdir, figures, *, resume=False, **changes):
    config = ReproduceConfig(
        **{"figures": figures, "num_seeds": 2, "workers": 1, "cifar10": "npz:/nowhere.npz", **changes}
    )
    assert reproduce.execute(reproduce.prepare(config, workdir, resume)) == 0
    return read(workdir)


def read(workdir):
    results = json.loads((workdir / "results.json").read_text())
    check_results(results)
    return results, {entry["figure"]: entry for entry in results["figures"]}


def refused(workdir, figures, *, resume=False, **changes):
    with pytest.raises(ValueError, match=r".") as raised:
        call(workdir, figures, resume=resume, **changes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.fixture(scope="module")
def finished_reproduction(_tiny, tmp_path_factory):
    """A finished reproduction of figures of every layout; nobody may change its files."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(patch)
        call(workdir, "12,accuracy,6")
        first = len(counted.made)
        # Figure 10 is drawn from the runs of 6 (a), and so is the curve.
        call(workdir, "10", resume=True)
    before = files(workdir)
    yield workdir, first, counted.made
    assert files(workdir) == before


@pytest.fixture
def run_of_whole(finished_reproduction):
    """``run_batch`` that takes what the finished reproduction has run from there."""
    run = workers.run_batch

    def borrow(configs, directory, *arguments):
        if not directory.exists() and (finished_reproduction[0] / "batches" / directory.name).exists():
            shutil.copytree(finished_reproduction[0] / "batches" / directory.name, directory)
        return run(configs, directory, *arguments)

    return borrow


def rows(entry):
    return [(row["name"], row["role"]) for row in entry["rows"]]


CONTROLS = [("passive adversary", "control"), ("class without an owner", "control")]
REFERENCES = [("untrained generator", "reference"), ("fresh real images", "reference")]


@pytest.mark.slow
def test_every_setting_control_and_reference_is_a_row(finished_reproduction):
    results, figures = read(finished_reproduction[0])
    assert list(figures) == ["6", "10", "12", "accuracy"]
    assert rows(figures["6"]) == [
        *((f"6 {name}, nearest that works", "attack") for name in ("(a)", "(b)", "(c)")),
        *((f"6 (a), {name}", role) for name, role in CONTROLS),
        *REFERENCES,
    ]
    for number in ("10", "12"):
        controls = [(f"{number}, {name}", role) for name, role in CONTROLS]
        plain = [("12, without the defense", "reference")] if number == "12" else []
        assert rows(figures[number]) == [(f"{number}, nearest that works", "attack"), *controls, *plain, *REFERENCES]
    assert figures["6"]["notes"][-1].startswith("6 (c), random: not run. With a random tenth downloaded")
    for entry in figures.values():
        assert entry["error"] is None
        for row in entry["rows"]:
            assert len(row["metrics"]["leakage_score"]["values"]) == 2
    assert (results["version"], results["scale"], results["num_seeds"]) == (gan_leak.__version__, "quick", 2)
    assert {"versions", "device"} & set(results["environment"])
    (judge,) = results["judges"].values()
    assert judge["test_accuracy"] == 0.5


def test_every_claim_gets_a_verdict_with_its_criteria_and_numbers(finished_reproduction):
    _, figures = read(finished_reproduction[0])
    for number, entry in figures.items():
        (figure,) = paper.select_figures(number)
        assert [(verdict["name"], verdict["variant"]) for verdict in entry["verdicts"]] == [
            (label, NEAREST_VARIANT) for label in settings_at(figure.settings, "quick")
        ]
        for verdict, preset in zip(entry["verdicts"], settings_at(figure.settings, "quick").values(), strict=True):
            claim = read_claim(preset)
            assert verdict["reproduced_if"] == claim.reproduced_if.text
            assert verdict["partly_if"] == claim.partly_if.text
            assert verdict["claim"] == claim.claim
            assert claim.claim in entry["claim"]
            answers = [line.endswith(": yes") for line in verdict["because"]]
            assert all(line.endswith((": yes", ": no")) for line in verdict["because"])
            assert verdict["holds"] == answers
            assert verdict["row"] in [row["name"] for row in entry["rows"] if row["role"] == "attack"]
            controls = [row["name"] for row in entry["rows"] if row["role"] == "control"]
            assert verdict["controls"]
            assert set(verdict["controls"]) <= set(controls)


def test_a_verdict_is_of_its_own_row(finished_reproduction):
    """Its reasons cite the numbers of that row, and of the controls beside it."""
    _, figures = read(finished_reproduction[0])
    for entry in (figures["6"], figures["12"]):
        # Criteria call the rows beside the one judged by these names.
        metrics = {row["name"]: row["metrics"] for row in entry["rows"]}
        for verdict in entry["verdicts"]:
            cited = {}
            for line in verdict["because"]:
                cited.update({name: float(value) for name, value in re.findall(r"([a-z_.]+) (-?[\d.]+)", line)})
            assert cited
            for name, value in cited.items():
                *other, metric, statistic = name.split(".")
                row = {"": verdict["row"], "passive": verdict["controls"][0], "unowned": verdict["controls"][-1]}
                row["undefended"] = "12, without the defense"
                assert value == pytest.approx(metrics[row["".join(other)]][metric][statistic], abs=0.01)


def test_a_private_setting_tells_what_it_promises(finished_reproduction):
    """0.01 for each of the 32 x 32 x 11 + 11 parameters of the linear network, over one round."""
    _, figures = read(finished_reproduction[0])
    (promise,) = figures["12"]["privacy"]
    assert promise["name"] == "12, nearest that works"
    assert promise["epsilon_per_round"] == pytest.approx(0.01 * 11_275)
    assert promise["epsilon_total"] == promise["epsilon_per_round"]
    assert figures["6"]["privacy"] == []


def test_the_curve_splits_at_an_accuracy(finished_reproduction):
    _, figures = read(finished_reproduction[0])
    assert [name for name, _ in rows(figures["accuracy"])][:2] == [
        "accuracy, nearest that works, accuracy from 80%",
        "accuracy, nearest that works, accuracy below 80%",
    ]
    assert any(name.startswith("passive") and role == "control" for name, role in rows(figures["accuracy"]))


@pytest.mark.slow
def test_each_variant_of_the_curve_is_held_against_its_own_evaluations(run_of_whole, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "run_batch", run_of_whole)
    _, figures = call(tmp_path / "run", "accuracy", scale="paper")
    entry = figures["accuracy"]
    names = [(verdict["row"], verdict["controls"]) for verdict in entry["verdicts"]]
    assert names == [
        (f"accuracy, {variant}, accuracy from 80%", [f"accuracy, {variant}, accuracy below 80%"])
        for variant in ("the paper's", "nearest that works")
    ]


def test_settings_that_figures_share_are_run_once(finished_reproduction):
    """Figure 10 and the curve are runs of figure 6, whose three settings have two controls; figure 12 has four."""
    _, first, made = finished_reproduction
    assert len(set(made)) == len(made) == first == 5 + 4


def test_the_report_is_one_file_with_verdicts_first_and_all_rows(finished_reproduction):
    _, figures = read(finished_reproduction[0])
    page = (finished_reproduction[0] / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert page.index('class="badge') < page.index('id="experiment-0"')
    for entry in figures.values():
        for row in entry["rows"]:
            assert row["name"].replace("'", "&#x27;") in page
    pictures = list((finished_reproduction[0] / "figures").rglob("*.png"))
    assert page.count("data:image/png;base64,") == len(pictures) >= 3 * len(figures)


def test_a_second_call_makes_nothing_anew(finished_reproduction, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    before = files(workdir / "figures") | files(workdir / "batches")
    times = {path: path.stat().st_mtime_ns for path in before}
    monkeypatch.setattr(execution, "make_section", lambda *_: pytest.fail("a finished figure was made again"))
    _, figures = call(workdir, "6,10,accuracy", resume=True)
    assert list(figures) == ["6", "10", "12", "accuracy"]
    assert files(workdir / "figures") | files(workdir / "batches") == before
    assert {path: path.stat().st_mtime_ns for path in before} == times


def test_one_setting_of_a_figure_is_judged_by_itself(finished_reproduction, tmp_path, monkeypatch):
    """And the whole figure again, later, from the same runs."""
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    before = files(workdir / "figures")
    monkeypatch.setattr(workers, "run_batch", lambda *_: pytest.fail("a finished batch was run again"))
    _, figures = call(workdir, "figure6a", resume=True)
    assert [verdict["name"] for verdict in figures["6"]["verdicts"]] == ["6 (a)"]
    names = [name for name, _ in rows(figures["6"]) if name.startswith("6")]
    assert names == ["6 (a), nearest that works", "6 (a), passive adversary", "6 (a), class without an owner"]
    assert "6 (b): not run. It was not asked for." in figures["6"]["notes"]
    call(workdir, "6", resume=True)
    assert files(workdir / "figures") == before


def test_another_criterion_gives_another_verdict_from_the_same_runs(finished_reproduction, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    shutil.copytree(flags.PRESETS, tmp_path / "presets")
    path = tmp_path / "presets" / "hitaj" / "claims.toml"
    before, entry, after = re.split(r"(\[figure10\][^\[]*)", path.read_text())
    changed = re.sub(r'reproduced_if = """.*?"""', 'reproduced_if = "leakage_score.mean >= 0"', entry, flags=re.DOTALL)
    assert changed != entry
    path.write_text(before + changed + after)
    monkeypatch.setattr(flags, "PRESETS", tmp_path / "presets")
    monkeypatch.setattr(workers, "run_batch", lambda *_: pytest.fail("a finished batch was run again"))
    before = {path: path.stat().st_mtime_ns for path in (workdir / "figures" / "6").iterdir()}
    assert read(workdir)[1]["10"]["verdicts"][0]["verdict"] != "reproduced"
    _, figures = call(workdir, "6,10", resume=True)
    assert figures["10"]["verdicts"][0]["verdict"] == "reproduced"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_time_and_the_commands_of_all_calls_are_told(finished_reproduction, monkeypatch, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    before = read(workdir)[0]
    assert before["seconds"] > 0
    monkeypatch.setattr(sys, "argv", ["reproduce", "--second"])
    after, _ = call(workdir, "10", resume=True)
    assert after["seconds"] > before["seconds"]
    assert after["command"] == before["command"] + "; python -m experiments.reproduce --second"


def test_a_directory_is_not_taken_up_by_accident(finished_reproduction):
    assert "resume" in refused(finished_reproduction[0], "6")


def test_a_figure_that_fails_leaves_the_earlier_ones_and_its_own_runs(run_of_whole, tmp_path, monkeypatch):
    """And the next call goes on from there."""
    workdir, done = tmp_path / "run", []

    def fail(configs, directory, *arguments):
        if configs[0].defense.kind == "sparse_vector" and configs[0].attack.kind == "passive":
            raise MemoryError
        done.append(directory.name)
        return run_of_whole(configs, directory, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "run_batch", fail)
        with pytest.raises(MemoryError):
            call(workdir, "10,12")
    _, figures = read(workdir)
    assert list(figures) == ["10"]
    assert "12, nearest that works" not in (workdir / "report.html").read_text()
    assert len(done) == 4
    kept = {path: path.stat().st_mtime_ns for path in (*files(workdir / "figures"), *files(workdir / "batches"))}
    monkeypatch.setattr(workers, "run_batch", run_of_whole)
    _, figures = call(workdir, "10,12", resume=True)
    assert list(figures) == ["10", "12"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_at_the_paper_s_scale_its_own_setting_stands_beside_the_nearest(run_of_whole, tmp_path, monkeypatch):
    """Each with its verdict, and with what was changed to get from one to the other."""
    monkeypatch.setattr(workers, "run_batch", run_of_whole)
    _, figures = call(tmp_path / "run", "10", scale="paper")
    entry = figures["10"]
    assert [verdict["variant"] for verdict in entry["verdicts"]] == [PAPER_VARIANT, NEAREST_VARIANT]
    assert rows(entry) == [
        *(("10, the paper's", "attack"), ("10, nearest that works", "attack")),
        *((f"10, {name}", role) for name, role in CONTROLS),
        *REFERENCES,
    ]
    left_open = {"rounds", "generator_steps", "generator_batch_size", "generator_width", "fakes_per_round"}
    for row, departures in zip(entry["rows"][:3], ({}, *[{"learning_rate": [0.001, 0.2]}] * 2), strict=True):
        found = {name: values for name, values in row["differences"].items() if name not in left_open}
        assert found == departures
        assert {name: row["differences"][name][0] for name in left_open} == dict.fromkeys(left_open)


@pytest.mark.slow
def test_a_cut_for_want_of_time_is_shown_as_a_difference(tmp_path):
    """A cut to more than there is, as that of the samples here, changes nothing."""
    _, figures = call(tmp_path / "run", "10", most_rounds=1, most_samples=400)
    attack, *others = figures["10"]["rows"]
    assert attack["differences"]["rounds"] == [None, 1]
    assert "samples_per_participant" not in attack["differences"]
    assert [row["rounds"] for row in (attack, *others[:2])] == [1, 1, 1]


@pytest.mark.slow
def test_methods_are_compared_on_all_ten_digits(tmp_path):
    _, figures = call(tmp_path / "run", "5")
    entry = figures["5"]
    assert rows(entry) == [
        ("model inversion, multilayer perceptron", "attack"),
        ("model inversion, convolutional network", "attack"),
        ("5, nearest that works", "attack"),
        *REFERENCES,
    ]
    assert all(len(row["metrics"]["leakage_score"]["values"]) == 10 for row in entry["rows"])
    (verdict,) = entry["verdicts"]
    assert any("inversion_cnn.leakage_score" in line for line in verdict["because"])


# CIFAR-10 has to be brought along.


@pytest.fixture
def three_figures(monkeypatch):
    """There are only figures 3, 7 and 10."""
    figures = paper.select_figures("3,7,10")
    monkeypatch.setattr(paper, "FIGURES", figures)
    for module in (preparation, execution):
        monkeypatch.setattr(module, "FIGURES", figures)
        monkeypatch.setattr(module, "TABLES", ())


@pytest.mark.slow
def test_without_cifar_10_all_other_figures_are_made_and_with_it_the_missing_one(
    run_of_whole, tmp_path, monkeypatch, three_figures
):
    workdir = tmp_path / "run"
    monkeypatch.setattr(workers, "run_batch", run_of_whole)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    _, figures = call(workdir, "all", cifar10="tfds:cifar10")
    assert list(figures) == ["3", "7", "10"]
    assert "cifar10" in figures["3"]["error"]
    assert figures["7"]["error"].startswith("Not run: Each of 41 participants trains in turn")
    assert not figures["3"].get("rows")
    assert figures["10"]["error"] is None
    assert escape(figures["3"]["error"]) in (workdir / "report.html").read_text()
    brought = write_stripes(tmp_path / "color.npz", classes=10, per_class=40, channels=3)
    finished = (workdir / "figures" / "10" / "section.json").stat().st_mtime_ns
    _, figures = call(workdir, "all", resume=True, cifar10=f"npz:{brought}")
    assert figures["3"]["error"] is None
    assert rows(figures["3"])[0] == ("3, nearest that works", "attack")
    assert figures["7"]["error"]
    assert str(brought) in figures["3"]["setup"]
    assert (workdir / "figures" / "10" / "section.json").stat().st_mtime_ns == finished


def test_a_cifar_10_that_was_named_has_to_be_there(tmp_path, three_figures):
    assert "nowhere.npz" in refused(tmp_path / "run", "all")
    assert not (tmp_path / "run").exists()


def test_asked_for_by_name_the_missing_cifar_10_is_an_error(tmp_path):
    assert "nowhere.npz" in refused(tmp_path / "run", "3")
    assert not (tmp_path / "run").exists()


# Bad input.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"version": "0.0.9"}, ("0.0.9", gan_leak.__version__)),
        ({"format": 99}, ("format 99", "format 1")),
    ],
)
def test_results_of_another_version_are_refused_and_kept(finished_reproduction, tmp_path, changes, named):
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    results = json.loads((workdir / "results.json").read_text())
    (workdir / "results.json").write_text(json.dumps({**results, **changes}))
    before = files(workdir)
    message = refused(workdir, "6", resume=True)
    assert all(text in message for text in named)
    assert files(workdir) == before


def test_unfinished_results_of_another_version_are_refused(finished_reproduction, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    (workdir / "results.json").unlink()
    environment = read_config_file(workdir)
    environment["versions"]["gan_leak"] = "0.0.9"
    (workdir / "config.json").write_bytes(sealed_json("config.json", environment))
    assert "0.0.9" in refused(workdir, "6", resume=True)
    # The directory is free again.
    assert "0.0.9" in refused(workdir, "6", resume=True)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_results_that_cannot_be_read_are_refused_and_kept(tmp_path, content):
    """Where config.json does not tell whose they are."""
    (tmp_path / "results.json").write_text(content)
    assert "holds 'results.json' but no config.json" in refused(tmp_path, "10", resume=True)
    assert files(tmp_path) == {tmp_path / "results.json": content.encode()}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_damaged_is_told_and_made_again(finished_reproduction, tmp_path, capfd):
    """Sections, their pictures, a batch, the list of calls, and the results made of them."""
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    flip(workdir / "figures" / "10" / "section.json")
    flip(workdir / "figures" / "accuracy" / "0.png")
    batch = (
        workdir
        / "batches"
        / json.loads((workdir / "figures" / "6" / "section.json").read_text())["basis"].split('"')[5]
    )
    flip(batch / "pictures.npz")
    flip(workdir / "calls.json")
    (workdir / "results.json").write_text("{")
    before, expected = read(finished_reproduction[0])
    results, figures = call(workdir, "10,accuracy", resume=True)
    shown = "".join(capfd.readouterr())
    for text in (
        "results.json: damaged, will be written again",
        "calls.json: damaged",
        "10/section.json: damaged",
        "accuracy: damaged",
        "pictures.npz: damaged",
    ):
        assert text in shown
    assert {number: {**entry, "seconds": 0} for number, entry in figures.items()} == {
        number: {**entry, "seconds": 0} for number, entry in expected.items()
    }
    assert results["judges"] == before["judges"]
    assert (workdir / "calls.json.damaged").exists()
    assert (workdir / "figures" / "10.damaged").is_dir()


def test_a_damaged_section_that_is_not_asked_for_leaves_the_report_until_it_is(finished_reproduction, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    (workdir / "figures" / "6" / "section.json").write_text("[]")
    assert list(call(workdir, "10", resume=True)[1]) == ["10", "12", "accuracy"]
    assert list(call(workdir, "6", resume=True)[1]) == ["6", "10", "12", "accuracy"]


def test_directories_of_versions_without_digests_are_taken_up(finished_reproduction, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    for path in (*workdir.glob("figures/*/section.json"), *workdir.glob("batches/*/result.json")):
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({name: stored[name] for name in stored if not name.endswith("sha256")}))
    (workdir / "calls.json").write_text(json.dumps(json.loads((workdir / "calls.json").read_text())["calls"]))
    monkeypatch.setattr(execution, "make_section", lambda *_: pytest.fail("a finished figure was made again"))
    results, figures = call(workdir, "6,10,accuracy", resume=True)
    assert figures == read(finished_reproduction[0])[1]
    assert results["seconds"] > read(finished_reproduction[0])[0]["seconds"]


@pytest.mark.parametrize("name", ["batches", "figures", "tables", "results.json"])
def test_what_stands_where_something_else_belongs_is_refused(finished_reproduction, tmp_path, name):
    workdir = tmp_path / "run"
    shutil.copytree(finished_reproduction[0], workdir)
    if (workdir / name).is_dir():
        shutil.rmtree(workdir / name)
    (workdir / name).unlink(missing_ok=True)
    if name == "results.json":
        (workdir / name).mkdir()
    else:
        (workdir / name).touch()
    assert f"{name}: expected a" in refused(workdir, "10", resume=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"figures": "6,99"}, "figures=99"),
        ({"figures": ""}, "figures="),
        ({"figures": "7"}, "figures=7, scale=quick: expected the scale paper. Each of 41 participants"),
        ({"figures": "he_cifar10"}, "figures=he_cifar10, scale=quick: expected the scale paper. After six"),
        ({"num_seeds": -1}, "num_seeds=-1"),
        ({"num_seeds": 1}, "num_seeds=1"),
        ({"most_rounds": -1}, "most_rounds=-1"),
        ({"most_samples": -1}, "most_samples=-1"),
        ({"workers": -1}, "workers=-1"),
        # Fewer than a batch.
        ({"most_samples": 1}, "batch_size=16"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changes, named):
    assert named in refused(tmp_path / "run", **{"figures": "10", **changes})
    assert not (tmp_path / "run").exists()


def test_other_seeds_or_another_scale_do_not_get_the_directory(finished_reproduction):
    assert "num_seeds" in refused(finished_reproduction[0], "6", resume=True, num_seeds=3)
    assert "scale" in refused(finished_reproduction[0], "6", resume=True, scale="paper")


@pytest.mark.parametrize("preset", ["--epsilon_per_release=0", "--sensitivity=-1", "--upload_fraction=2"])
def test_a_preset_with_a_wrong_number_is_refused_before_anything_is_run(tmp_path, monkeypatch, preset):
    shutil.copytree(flags.PRESETS, tmp_path / "presets")
    with (tmp_path / "presets" / "hitaj" / "figure14a.flags").open("a") as file:
        file.write(f"\n{preset}\n")
    monkeypatch.setattr(flags, "PRESETS", tmp_path / "presets")
    assert preset[2:].partition("=")[0] in refused(tmp_path / "run", "14")
    assert not (tmp_path / "run").exists()


def test_a_directory_in_use_is_refused(finished_reproduction):
    config = ReproduceConfig(figures="10", num_seeds=2, cifar10="npz:/nowhere.npz")
    prepared = reproduce.prepare(config, finished_reproduction[0], True)
    try:
        assert "another process" in refused(finished_reproduction[0], "10", resume=True)
    finally:
        close_run(prepared.directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "named"),
    [("--figures=6,99", "figures=99"), ("--num_seeds=-1", "num_seeds=-1"), ("--scale=huge", "huge")],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, argument, named):
    command = [sys.executable, "-m", "experiments.reproduce", f"--workdir={tmp_path / 'run'}", argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=pathlib.Path(__file__).parents[2])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
