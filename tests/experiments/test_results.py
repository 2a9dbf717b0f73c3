"""Pages of results: made of their JSON, whose numbers are those that runs wrote."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from experiments.common.flags import config_from_arguments
from experiments.common.result_pages import (
    WIDTH,
    _column_cell,
    cell,
    embedded_tables,
    page_bytes,
    page_markdown,
    read_page,
)
from experiments.results import CONFIG_CLASSES, PAGES, ROOT, ResultsConfig, run
from gan_leak.evaluation import measurability
from gan_leak.evaluation.criteria import Verdict
from gan_leak.runs.storage.integrity import sealed_json

NAMES = sorted(path.stem for path in (ROOT / PAGES).glob("*.json"))
ENVIRONMENT = {"versions": {"gan_leak": "9.0", "jax": "8.0"}, "backend": "cpu", "device_kind": "cpu"}


def write_run(directory, binary, config, name, content):
    """The directory of a run as it would look: a configuration of these flags, and a file of results."""
    directory.mkdir(parents=True)
    recorded = {"seed": 0, "num_seeds": 1, **config} if binary == "sweep" else {"seed": 0, **config}
    environment = {**ENVIRONMENT, "device_count": 1, "cpu_count": 2}
    (directory / "config.json").write_bytes(sealed_json("config.json", {"config": recorded, **environment}))
    (directory / name).write_text(content)
    return directory


def records(score):
    views = {"pixels": 1.0, "edges": score, "judge": 1.0, "contrast": 0.5}
    leakage = {
        "leakage_score": score,
        "leakage_by_representation": views,
        "judge_accuracy": 1.0,
        "nearest_neighbour_share": 0.5,
        "l1_to_nearest": 0.25,
        "ssim_to_nearest": 0.5,
        "coverage": 0.75,
        "diversity": 0.875,
    }
    lines = [{"round": 1, "model_accuracy": 0.1}, {"round": 2, "model_accuracy": 0.9, "leakage": leakage}]
    return "".join(json.dumps(line) + "\n" for line in lines)


def interval(mean):
    return {"mean": mean, "low": mean - 0.25, "high": mean + 0.25, "values": [mean] * 20}


@pytest.fixture
def checkout(tmp_path):
    """A checkout without pages, whose README shows two numbers of one."""
    (tmp_path / PAGES).mkdir(parents=True)
    (tmp_path / "README.md").write_text("# A\n\n<!-- results/mine: leakage_score, diversity -->\n| stale |\n\nEnd.\n")
    return tmp_path


@pytest.fixture
def runs(tmp_path):
    """Two seeds of one setting."""
    for seed, score in ((0, 0.25), (1, 0.75)):
        config = {"seed": seed, "rounds": 2, "attack": "passive"}
        write_run(tmp_path / "runs" / f"seed{seed}", "gan_attack", config, "metrics.jsonl", records(score))
    return tmp_path / "runs"


def test_all_pages_and_tables_of_this_checkout_are_what_their_json_gives():
    assert run(ResultsConfig(check=True)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_how_its_numbers_came_to_be(name):
    page = read_page(ROOT / PAGES / f"{name}.json")
    assert page["commands"]
    assert page["date"].startswith("20")
    assert page["machine"]
    for command in page["commands"]:
        python, dash_m, module, *arguments = shlex.split(command)
        assert (python, dash_m) == ("python", "-m")
        config_from_arguments(CONFIG_CLASSES[module.removeprefix("experiments.")], arguments)
    assert all(len(line) <= WIDTH for line in page_markdown(name, page).splitlines())


def test_scores_of_measurable_classes_meet_the_bar():
    _, classes = read_page(ROOT / PAGES / "measurability.json")["tables"]
    measurable = [row for row in classes["rows"] if row["not_measurable"] is None]
    assert measurable
    for row in measurable:
        assert row["copies"] >= measurability.LEAST_COPIES_SCORE
        assert row["held_out"] >= measurability.LEAST_HELD_OUT_SCORE
        assert row["highest_control"] <= measurability.MOST_CONTROL_SCORE
        assert len(row["deciding"].split(", ")) >= measurability.LEAST_WORKING_VIEWS


def test_runs_of_several_seeds_become_one_row_with_their_range(checkout, runs):
    sources = f"watching={runs / 'seed0'},{runs / 'seed1'}"
    assert run(ResultsConfig(name="mine", sources=sources, title="Mine"), checkout) == 0
    page = read_page(checkout / PAGES / "mine.json")
    means, each = page["tables"]
    assert means["rows"][0]["leakage_score"] == {"mean": 0.5, "low": 0.25, "high": 0.75, "values": [0.25, 0.75]}
    assert [row["name"] for row in each["rows"]] == ["watching, seed 0", "watching, seed 1"]
    assert page["commands"] == ["python -m experiments.gan_attack --rounds=2 --attack=passive"]
    assert (page["version"], page["versions"], page["seeds"]) == ("9.0", {"jax": "8.0"}, [0, 1])
    assert page["transcribed"] == ""
    assert "| watching | 0.50 (0.25-0.75) |" in (checkout / PAGES / "mine.md").read_text()
    assert "| watching | 0.50 (0.25-0.75) | 0.88 (0.88-0.88) |\n\nEnd." in (checkout / "README.md").read_text()
    assert "[Mine](mine.md)" in (checkout / PAGES / "index.md").read_text()
    assert run(ResultsConfig(check=True), checkout) == 0


@pytest.mark.parametrize("edited", ["mine.md", "index.md", "mine.json", "../../README.md"])
def test_an_edited_page_or_table_is_noticed_and_written_anew(checkout, runs, edited, capsys):
    run(ResultsConfig(name="mine", sources=f"a={runs / 'seed0'},{runs / 'seed1'}"), checkout)
    path = checkout / PAGES / edited
    text = path.read_text()
    path.write_text(text.replace("0.5", "0.6", 1) if "0.5" in text else text + "more\n")
    assert run(ResultsConfig(check=True), checkout) == 1
    assert "differs from its JSON" in capsys.readouterr().err
    assert run(ResultsConfig(), checkout) == 0
    assert run(ResultsConfig(check=True), checkout) == 0


def test_new_numbers_keep_the_words_and_columns_of_a_page(checkout, runs):
    run(ResultsConfig(name="mine", sources=f"a={runs / 'seed0'}", title="Mine"), checkout)
    path = checkout / PAGES / "mine.json"
    page = read_page(path)
    page |= {"text": ["Why."], "transcribed": "a paper"}
    page["tables"][0] |= {"caption": "What.", "columns": page["tables"][0]["columns"][:6]}
    path.write_bytes(page_bytes(page))
    run(ResultsConfig(name="mine", sources=f"a={runs / 'seed1'}"), checkout)
    again = read_page(path)
    assert (again["title"], again["text"], again["tables"][0]["caption"]) == ("Mine", ["Why."], "What.")
    assert len(again["tables"][0]["columns"]) == 6
    assert again["transcribed"] == ""
    assert again["tables"][0]["rows"][0]["leakage_score"]["mean"] == 0.75


def test_merging_keeps_the_rows_that_the_sources_do_not_have(checkout, runs):
    """Rows of both, the newer of two of one name; and the origin names both."""
    write_run(runs / "later", "gan_attack", {"seed": 2, "rounds": 7}, "metrics.jsonl", records(0.125))
    run(ResultsConfig(name="mine", sources=f"a={runs / 'seed0'};b={runs / 'seed0'}"), checkout)
    run(ResultsConfig(name="mine", sources=f"b={runs / 'later'};c={runs / 'seed1'}", merge=True), checkout)
    page = read_page(checkout / PAGES / "mine.json")
    scores = {row["name"]: row["leakage_score"]["mean"] for row in page["tables"][0]["rows"]}
    assert list(scores.items()) == [("a", 0.25), ("b", 0.125), ("c", 0.75)]
    assert page["seeds"] == [0, 1, 2]
    assert len(page["commands"]) == 2
    assert run(ResultsConfig(check=True), checkout) == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", "0.1.0", "expected numbers of one version of gan_leak, found 0.1.0 and 9.0"),
        ("transcribed", "a paper", "expected a page of result files, found one transcribed from a paper"),
    ],
)
def test_numbers_of_another_version_and_transcribed_ones_do_not_mix_with_new_ones(
    checkout, runs, field, value, message
):
    run(ResultsConfig(name="mine", sources=f"a={runs / 'seed0'}"), checkout)
    path = checkout / PAGES / "mine.json"
    path.write_bytes(page_bytes(read_page(path) | {field: value}))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(message)):
        run(ResultsConfig(name="mine", sources=f"b={runs / 'seed1'}", merge=True), checkout)
    assert path.read_bytes() == before


def test_a_table_laid_out_by_hand_gives_way_to_what_result_files_hold(checkout, runs):
    run(ResultsConfig(name="mine", sources=f"a={runs / 'seed0'}"), checkout)
    path = checkout / PAGES / "mine.json"
    page = read_page(path)
    by_hand = {"columns": [{"title": "luck", "measure": "luck", "digits": 0}], "rows": [{"name": "a", "luck": 7}]}
    page["tables"][0] |= {"caption": "Of luck.", **by_hand}
    path.write_bytes(page_bytes(page))
    (checkout / "README.md").write_text("")
    run(ResultsConfig(name="mine", sources=f"a={runs / 'seed1'}"), checkout)
    table = read_page(path)["tables"][0]
    assert table["caption"] == ""
    assert "leakage_score" in {column["measure"] for column in table["columns"]}


def result_files():
    """A small result file of every binary but the main job: its name and its content."""
    metrics = {"leakage_score": interval(0.5), "model_accuracy": interval(0.75)}
    images = [{"name": "dlg, batch 1", "metrics": {"psnr": interval(20.0), "singled_out": interval(1.0)}}]
    timed = [
        {"case": "a step", "options": "matmul, map", "median_seconds": 0.0025, "gflops": 50.0, "memory_bytes": 2**21}
    ]
    people = [{"name": "representatives", "metrics": {"client_identified": interval(0.5), "p_value": interval(0.25)}}]
    class_row = {"data": "MNIST", "class": "3", "private_images": 4, "deciding": ["edges", "judge"], "raised_by": []}
    class_row |= {"not_measurable": None, "copies": 1.0, "held_out": 0.875, "highest_control": 0.0}
    impostor = {"class": "3", "kind": "mirrored", "variant": "own class 5", "score": 0.125, "smallest_view": 0.25}
    impostor |= {"looks_like_the_class": 0.5, "shows_class": ""}
    degraded = {"class": "3", "kind": "blur", "strengths": [0.0, 0.5], "scores": [1.0, 0.75]}
    copies = {"class": "3", "kind": "copies", "score": 1.0, "smallest_view": 1.0}
    attacked = {"impostors": [impostor], "degradations": [degraded], "references": [copies]}
    verdict = {"name": "6 (a)", "variant": "", "verdict": Verdict.PARTLY, "reproduced_if": "a", "partly_if": "b"}
    verdict |= {"because": [], "claim": "It works.", "row": "attack", "controls": ["passive"]}
    figure_rows = [
        {"name": "attack", "role": "attack", "rounds": 5, "metrics": metrics},
        {"name": "passive", "role": "control", "rounds": 5, "metrics": {"leakage_score": interval(0.0)}},
        {"name": "6 (a), without the defense", "role": "reference", "metrics": metrics},
        {"name": "fresh real images", "role": "reference", "metrics": metrics},
    ]
    figure = {"figure": "6", "title": "MNIST", "claim": "", "verdicts": [verdict], "rows": figure_rows}
    reproduction = {
        "format": 1,
        "version": "9.0",
        "scale": "quick",
        "num_seeds": 3,
        "command": "python -m x --workdir=a; python -m x --n=2 --workdir=a --resume",
    }
    reproduction |= {"environment": {}, "seconds": 1.0, "definitions": {}, "judges": {}, "figures": [figure]}
    return {
        "sweep": (
            "results.jsonl",
            json.dumps({"name": "rounds=5", "rounds": 5, "cell": {"rounds": 5}, "metrics": metrics}) + "\n",
        ),
        "gradient_inversion": ("results.json", json.dumps(images)),
        "split_inference": ("results.json", json.dumps(images)),
        "user_leakage": ("results.json", json.dumps(people)),
        "benchmark": ("benchmark.json", json.dumps({"gemm_flops": 1e11, "rows": timed})),
        "measurability": ("results.json", json.dumps({"rows": [class_row]})),
        "score_attacks": ("results.json", json.dumps(attacked)),
        "reproduce": ("results.json", json.dumps(reproduction)),
    }


def test_rows_of_each_kind_of_results(checkout, tmp_path):
    """Of every kind of binary but the main job."""
    contents = result_files()
    expected = {
        "sweep": "| rounds=5 | 5 | 0.50 (0.25-0.75) | 0.75 (0.50-1.00) |",
        "gradient_inversion": "| dlg, batch 1 | 20.00 (19.75-20.25) | 1.00 (0.75-",
        "split_inference": "| dlg, batch 1 | 20.00 (19.75-20.25) | 1.00 (0.75-",
        "user_leakage": "| representatives | 0.50 (0.25-0.75) | 0.25000 (0.00000-0.50000) |",
        "benchmark": "| a step | 2.5 ms | 50 | 2 MiB |",
        "measurability": "| MNIST, 4 images | 1 of 1 | 1.00 | 0.88 | 0.00 | none |",
        "score_attacks": "| class 3, mirrored | 0.12 | 0.25 | 0.50 | own class 5 | no |",
        "reproduce": "| 6 (a) | partly | 0.50 (0.25-0.75) | 0.00 | 0.75 (0.50-1.00) |",
    }
    telling = {"split_inference": {"splits": "conv1"}, "user_leakage": {"owners_per_client": 2}}
    (checkout / "README.md").write_text("")
    for binary, (name, content) in contents.items():
        config = telling.get(binary, {})
        directory = write_run(tmp_path / binary, binary, config, name, content)
        run(ResultsConfig(name=binary, sources=str(directory)), checkout)
        assert expected[binary] in (checkout / PAGES / f"{binary}.md").read_text()
    page = read_page(checkout / PAGES / "reproduce.json")
    assert page["commands"] == ["python -m x", "python -m x --n=2"]
    assert page["tables"][0]["notes"] == ["Claim of 6 (a): It works."]
    references = ["6 (a), without the defense", "6, fresh real images"]
    assert [row["name"] for row in page["tables"][1]["rows"]] == ["attack", "passive", *references]
    assert read_page(checkout / PAGES / "split_inference.json")["commands"] == [
        "python -m experiments.split_inference --splits=conv1"
    ]


def test_federations_of_several_seeds_become_rows_with_intervals_over_seeds(checkout, tmp_path):
    """Student's t of 0.4 and 0.6: 0.5 +- 12.7062 * 0.1. Of the p-values, the largest."""
    (checkout / "README.md").write_text("")
    directories, nothing = [], {"mean": None, "low": None, "high": None, "values": [None]}
    for seed, (identified, p_value) in enumerate([(0.4, 0.001), (0.6, 0.25)]):
        metrics = {"client_identified": interval(identified), "p_value": interval(p_value), "user_gap": nothing}
        linked = {"name": "linkability", "metrics": {"linked": interval(1.0), "p_value": interval(p_value)}}
        content = json.dumps([linked, {"name": "representatives", "metrics": metrics}])
        config = {"owners_per_client": 2, "seed": seed}
        directories.append(write_run(tmp_path / f"seed{seed}", "user_leakage", config, "results.json", content))
    run(ResultsConfig(name="people", sources=f"faces={directories[0]},{directories[1]}"), checkout)
    page = read_page(checkout / PAGES / "people.json")
    table, senders = page["tables"]
    assert [row["name"] for row in senders["rows"]] == ["faces, linkability"]
    assert senders["rows"][0]["linked"]["mean"] == 1.0
    assert "linked" not in {column["measure"] for column in table["columns"]}
    (row,) = table["rows"]
    assert (row["name"], row["p_value"], page["seeds"]) == ("faces, representatives", 0.25, [0, 1])
    assert row["client_identified"] == pytest.approx({"mean": 0.5, "low": 0.5 - 1.27062, "high": 0.5 + 1.27062})
    assert row["user_gap"] == {"mean": None, "low": None, "high": None}
    assert table["spread"] == "95% intervals over seeds"
    (directories[1] / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="expected in all"):
        run(ResultsConfig(name="people", sources=f"faces={directories[0]},{directories[1]}"), checkout)


def test_sweeps_of_other_seeds_become_rows_over_all_seeds(checkout, tmp_path):
    """Student's t of 0.4, 0.6 and 0.8."""
    (checkout / "README.md").write_text("")

    def sweep(name, seed, scores, **config):
        score = {"mean": None, "low": None, "high": None, "values": scores}
        line = json.dumps({"name": "the only cell", "rounds": 7, "cell": {}, "metrics": {"leakage_score": score}})
        config = {"seed": seed, "num_seeds": len(scores), **config}
        return write_run(tmp_path / name, "sweep", config, "results.jsonl", line + "\n")

    first, second = sweep("first", 0, [0.4, None]), sweep("second", 2, [0.6, 0.8])
    run(ResultsConfig(name="seeds", sources=f"faces={first},{second}"), checkout)
    page = read_page(checkout / PAGES / "seeds.json")
    (row,) = page["tables"][0]["rows"]
    assert (row["name"], row["rounds"], page["seeds"]) == ("faces", 7, [0, 1, 2, 3])
    score, half = row["leakage_score"], 4.302653 * 0.2 / 3**0.5
    assert score["values"] == [0.4, None, 0.6, 0.8]
    assert (score["mean"], score["low"], score["high"]) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    twice, longer = sweep("twice", 1, [0.5]), sweep("longer", 5, [0.5], rounds=9)
    for other, message in [(twice, f"{twice}: seed 1 is in {first} too"), (longer, f"{longer}: .* to differ in seeds")]:
        with pytest.raises(ValueError, match=message):
            run(ResultsConfig(name="seeds", sources=f"faces={first},{other}"), checkout)


def test_a_page_of_several_binaries_has_tables_and_commands_of_each_and_a_picture(checkout, tmp_path):
    """A label alone names the row of a directory that has only one."""
    (checkout / "README.md").write_text("")
    (checkout / "experiments" / "pictures").mkdir()
    contents = result_files()
    metrics = {"leakage_score": interval(0.25)}
    alone = json.dumps({"name": "the only cell", "rounds": 7, "cell": {}, "metrics": metrics}) + "\n"
    sources = [
        ("far=", write_run(tmp_path / "alone", "sweep", {}, "results.jsonl", alone)),
        ("dlg, far=", write_run(tmp_path / "gradient", "gradient_inversion", {}, *contents["gradient_inversion"])),
        ("near=", write_run(tmp_path / "grid", "sweep", {"seed": 3, "rounds": 5}, *contents["sweep"])),
    ]
    text = ";".join(f"{label}{directory}" for label, directory in sources)
    run(ResultsConfig(name="mixed", sources=text, picture=True), checkout)
    page = read_page(checkout / PAGES / "mixed.json")
    names = [[row["name"] for row in table["rows"]] for table in page["tables"]]
    assert names == [["far", "near, rounds=5"], ["dlg, far"]]
    assert page["commands"] == [
        "python -m experiments.sweep --num_seeds=1",
        "python -m experiments.sweep --seed=3 --num_seeds=1 --rounds=5",
        "python -m experiments.gradient_inversion",
    ]
    assert page["seeds"] == [0, 3]
    picture = (checkout / "experiments" / "pictures" / "mixed_page.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    # From the JSON alone, the same picture.
    (checkout / "experiments" / "pictures" / "mixed_page.png").unlink()
    run(ResultsConfig(name="mixed", picture=True), checkout)
    assert (checkout / "experiments" / "pictures" / "mixed_page.png").read_bytes() == picture
    # New numbers give a new picture without being asked for it.
    run(ResultsConfig(name="mixed", sources=f"near={tmp_path / 'grid'}"), checkout)
    assert (checkout / "experiments" / "pictures" / "mixed_page.png").read_bytes() != picture


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 2, "n/a"),
        ("given", 2, "given"),
        (4000, 0, "4,000"),
        (0.9996e-3, "seconds", "1 ms"),
        (0.0376, "seconds", "37.6 ms"),
        (17.82, "seconds", "17.8 s"),
        (5.0e-9, "seconds", "0.005 µs"),
        (2**30, "bytes", "1 GiB"),
        ([0.5, None], 1, "0.5 / n/a"),
        ({"mean": 0.5, "low": 0.25, "high": 0.75}, 2, "0.50 (0.25-0.75)"),
        ({"mean": 0.5, "low": -0.25, "high": 0.75}, 2, "0.50 (-0.25 to 0.75)"),
        ({"mean": 0.5, "low": None, "high": None}, 2, "0.50"),
        ({"mean": None, "low": None, "high": None}, 2, "n/a"),
    ],
)
def test_a_measure_as_text(value, digits, text):
    assert cell(value, digits) == text


def test_an_interval_is_cut_to_the_range_of_its_measure_in_the_page_and_not_in_the_json():
    wide = {"mean": 0.5, "low": -0.5, "high": 1.5}
    assert cell(wide, 2, "leakage_score") == "0.50 (0.00-1.00)"
    judged = {"measure": "measured", "digits": 2}
    assert _column_cell(judged, {"measured": wide, "measure": "leakage_score"}) == "0.50 (0.00-1.00)"
    assert _column_cell(judged, {"measured": wide, "measure": "psnr"}) == "0.50 (-0.50 to 1.50)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mine"}, "sources=: expected together with --name"),
        ({"name": "Mine!", "sources": "{runs}/seed0"}, "name=Mine!: expected lower-case letters"),
        ({"name": "mine", "sources": "{runs}/gone"}, "gone: expected the directory of a run"),
        ({"name": "mine", "sources": "{runs}"}, "expected a finished run with one of results.json"),
        ({"name": "mine", "sources": "{runs}/seed0", "check": True}, "check=True: expected without --name=mine"),
        ({"name": "mine", "sources": "a={runs}/seed0,{runs}/other"}, "expected runs of 'a' to differ in seeds"),
        ({"name": "mine", "sources": "a={runs}/seed0,{runs}/sweep"}, "written by sweep, expected gan_attack"),
        ({"name": "mine", "picture": True}, "name=mine: expected one of"),
        ({"title": "Mine"}, "title=Mine: expected together with --sources"),
        ({"picture": True}, "picture=True: expected together with --name"),
        ({"merge": True}, "merge=True: expected together with --sources"),
        ({"name": "mine", "sources": "{runs}/list"}, "damaged (not readable as JSON"),
        ({"name": "mine", "sources": "{runs}/sweep"}, "in the form of this version (KeyError: 'metrics')"),
    ],
)
def test_bad_input_is_told_in_one_line(checkout, runs, arguments, message):
    write_run(runs / "other", "gan_attack", {"rounds": 7}, "metrics.jsonl", records(0.5))
    write_run(runs / "sweep", "sweep", {}, "results.jsonl", '{"name": "a", "rounds": 1}\n')
    write_run(runs / "list", "gradient_inversion", {}, "results.json", "[")
    given = {name: value.format(runs=runs) if isinstance(value, str) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        run(ResultsConfig(**given), checkout)
    assert "\n" not in str(error.value)
    assert not list((checkout / PAGES).iterdir())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("date", None, "expected 'date' of type str"),
        ("more", 1, "'more' is no field"),
        ("tables", [{}], "tables[0]: expected 'title' of type str"),
    ],
)
def test_a_page_of_another_form_is_refused(checkout, runs, field, value, message):
    run(ResultsConfig(name="mine", sources=str(runs / "seed0")), checkout)
    path = checkout / PAGES / "mine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=re.escape(message)):
        run(ResultsConfig(check=True), checkout)


def test_a_marker_of_a_page_or_measure_that_there_is_not_is_refused(checkout, runs):
    run(ResultsConfig(name="mine", sources=str(runs / "seed0")), checkout)
    pages = {"mine": read_page(checkout / PAGES / "mine.json")}
    with pytest.raises(ValueError, match="expected one of the pages mine"):
        list(embedded_tables("<!-- results/yours: diversity -->\n", pages))
    with pytest.raises(ValueError, match="'luck' is no column"):
        list(embedded_tables("<!-- results/mine: luck -->\n", pages))
    wide = ", ".join(column["measure"] for column in pages["mine"]["tables"][0]["columns"])
    with pytest.raises(ValueError, match="expected fewer measures"):
        list(embedded_tables(f"<!-- results/mine: {wide} -->\n", pages))


def test_the_binary_refuses_in_one_line():
    command = [sys.executable, "-m", "experiments.results", "--name=mine"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
