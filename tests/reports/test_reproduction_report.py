"""The report of a reproduction: all of the results, verdicts first, whole, escaped, self-contained."""

import base64
import copy
import json
import math
import re

import pytest
from html_page import HOSTILE, Page, png

from gan_leak.evaluation.criteria import summarise
from gan_leak.reports.reproduction import render_reproduction
from gan_leak.reports.reproduction_results import NEAREST_VARIANT, PAPER_VARIANT, check_results


def metric(*values):
    return json.loads(json.dumps(summarise(values)._asdict()))


def row(name, role, *scores, **more):
    return {"name": name, "role": role, "rounds": 40, "seeds": 3, "metrics": {"leakage_score": metric(*scores)}, **more}


REASONS = ["leakage_score.low 0.41 > 0.1: yes", "judge_accuracy.mean n/a >= 0.5: no"]


def verdict(name, variant, result, row, **more):
    criteria = {"reproduced_if": "leakage_score.low > 0.1", "partly_if": "leakage_score.mean > 0.1"}
    reasons = {"because": REASONS, "holds": [True, False]}
    return {"name": name, "variant": variant, "verdict": result, "row": row, **criteria, **reasons, **more}


CONTROLS = ["6 (a), passive", "unowned"]


def figure_six():
    changed = {"learning_rate": [0.001, 0.05], "bound": [None, "[0, 1]"]}
    rows = [
        row("6 (a), the paper's hyper-parameters", "attack", 0.0, 0.01, 0.2),
        row("6 (a), nearest that works", "attack", 0.5, 0.6, 0.7, differences=changed),
        row("6 (b), nearest that works", "attack", 0.3, None, 0.35, differences=changed),
        row("6 (a), passive", "control", 0.1, 0.11, 0.12),
        row("unowned", "control", 0.2, 0.21, 0.22),
        row("fresh", "reference", 0.99, 0.98, 1.0, rounds=None),
    ]
    rows[1]["metrics"] |= {
        "diversity": metric(0.5),
        "own_measure": metric(123.4, 123.5),
        "ssim_to_nearest": metric(-0.1, 0.1),
    }
    return {
        "figure": "6",
        "title": "Two participants",
        "claim": "The digits of the victim come back.",
        "setup": "Target digit 3.",
        "seconds": 203.2,
        "verdicts": [
            verdict("6 (a)", NEAREST_VARIANT, "reproduced", "6 (a), nearest that works", controls=CONTROLS),
            verdict("6 (a)", PAPER_VARIANT, "not reproduced", "6 (a), the paper's hyper-parameters", controls=CONTROLS),
            verdict("6 (b)", NEAREST_VARIANT, "partly", "6 (b), nearest that works"),
        ],
        "rows": rows,
        "privacy": [
            {
                "name": "6 (a), DP",
                "mechanism": "DP-SGD",
                "epsilon_per_round": None,
                "epsilon_total": 7.934,
                "delta": 1e-5,
                "unit": "record",
                "note": "for research",
            }
        ],
        "notes": ["One seed diverged."],
        "error": None,
    }


def results(*figures, **changes):
    return {
        "format": 1,
        "version": "0.1.0",
        "scale": "quick",
        "num_seeds": 3,
        "command": "python -m experiments.reproduce",
        "environment": {"jax": {"version": "0.10.2"}},
        "seconds": 7384.5,
        "definitions": {"leakage_score": "how much leaked"},
        "judges": {
            "mnist": {"test_accuracy": 0.991, "test_images": 10000},
            "faces": {"test_accuracy": None, "test_images": 80},
        },
        "figures": list(figures or [figure_six()]),
        **changes,
    }


def tables(source):
    """The rows of all tables, those of each under its first head, with ranges written by hyphens and single spaces."""
    source = source.replace("\N{EN DASH}", "-")
    found = {}
    for part in re.findall(r"<table.*?</table>", source, re.DOTALL):
        rows = [[" ".join(cell.split()) for cell in row] for row in Page(part).rows]
        found.setdefault(rows[0][0] or rows[0][1], rows)
    return found


def test_verdicts_stand_first_in_a_table_with_scores_and_best_control():
    source = render_reproduction(results(), {})
    assert source.index("✗ not reproduced") < source.index('id="experiment-0"')
    heads, first, second = tables(source)["figure"]
    assert heads == [
        "figure",
        "the paper's claim",
        "setting",
        "measured, the paper's hyper-parameters",
        "measured, nearest setting that works",
        "best control",
    ]
    assert first == [
        "Figure 6: Two participants",
        "The digits of the victim come back.",
        "6 (a)",
        "0.070 (0.000-0.350) ✗ not reproduced",
        "0.600 (0.352-0.848) ✓ reproduced",
        "0.210 (0.185-0.235) unowned",
    ]
    assert second == ["6 (b)", "n/a", "0.325 (0.007-0.643) 2 of 3 seeds ◐ partly", "n/a"]


def test_a_verdict_names_its_row_and_controls():
    entry = figure_six()
    entry["verdicts"] = [verdict("six", "our own", "partly", "unowned", controls=["fresh", "6 (a), passive"])]
    heads, line = tables(render_reproduction(results(entry), {}))["figure"]
    assert heads[3] == "measured, our own"
    assert line[2:] == ["six", "0.210 (0.185-0.235) ◐ partly", "0.990 (0.965-1.000) fresh"]


def test_a_verdict_may_name_another_measure_and_its_control():
    entry = figure_six()
    metrics = {
        "psnr": {"mean": 20.0, "low": 18.0, "high": 22.0, "values": [18.0, 22.0]},
        "control_psnr": {"mean": 8.0, "low": 7.0, "high": 9.0, "values": [7.0, 9.0]},
    }
    entry["rows"].append({"name": "drawn", "role": "attack", "metrics": metrics})
    judged = verdict("drawn", "our own", "reproduced", "drawn")
    entry["verdicts"] = [{**judged, "measure": "psnr", "control_measure": "control_psnr"}]
    _, line = tables(render_reproduction(results(entry), {}))["figure"]
    assert line[2:] == ["drawn", "20.0 (18.0-22.0) PSNR in dB ✓ reproduced", "8.00 (7.00-9.00) control PSNR"]


def test_summary_counts_the_verdicts_of_each_variant():
    page = Page(render_reproduction(results(), {}))
    cards = [text for tag, text in page.texts if tag in {"dt", "dd", "span"}]
    assert cards[:8] == [
        "the paper's hyper-parameters",
        "0 ✓ reproduced",
        "0 ◐ partly",
        "1 ✗ not reproduced",
        "nearest setting that works",
        "1 ✓ reproduced",
        "1 ◐ partly",
        "0 ✗ not reproduced",
    ]
    assert cards[8:16] == ["experiments", "1", "seeds", "3", "scale", "quick", "time", "2 h 03 min"]


def test_every_row_stands_with_mean_and_interval_and_controls_are_marked():
    source = render_reproduction(results(), {})
    heads, *rows = tables(source)["rounds"]
    assert heads == ["", "rounds", "seeds", "leakage score", "SSIM to nearest private", "diversity", "own measure"]
    assert rows[1] == [
        "6 (a), nearest that works attack",
        "40",
        "3",
        "0.600 (0.352-0.848)",
        "0.000 (-1.000 to 1.000)",
        "0.500 (n/a)",
        "123 (123-124)",
    ]
    assert rows[3] == ["6 (a), passive control", "40", "3", "0.110 (0.085-0.135)", "n/a", "n/a", "n/a"]
    assert rows[5][:4] == ["fresh reference", "n/a", "3", "0.990 (0.965-1.000)"]
    kinds = [attributes.get("class") for attributes in Page(source).all("tr")]
    assert [kind for kind in kinds if kind not in (None, "first")] == [
        "attack",
        "attack",
        "attack",
        "control",
        "control",
        "reference",
    ]


def test_reasons_criteria_differences_privacy_and_notes_are_shown():
    source = render_reproduction(results(), {})
    page = Page(source)
    assert page.text("code") == ["leakage_score.low > 0.1", "leakage_score.mean > 0.1"]
    assert page.text("li") == [*REASONS * 3, "One seed diverged."]
    assert [attributes.get("class") for attributes in page.all("li")][:2] == ["yes", "no"]
    assert [re.sub(r"\s+", " ", text) for text in page.text("h4")] == ["6 (a) ", "6 (a) ", "6 (b) "]
    alike = "6 (a), nearest that works6 (b), nearest that works"
    assert tables(source)["rows"][1:] == [[alike, "learning_rate", "0.001", "0.05"], ["bound", "not stated", "[0, 1]"]]
    assert tables(source)["mechanism"][1] == [
        "6 (a), DP",
        "DP-SGD",
        "n/a",
        "7.93",
        "1.00e-05",
        "record",
        "for research",
    ]
    assert tables(source)["data"][1:] == [["mnist", "0.991", "10000"], ["faces", "n/a", "80"]]
    assert "Target digit 3." in page.text("p")
    assert "3 min 23 s" in page.text("span")
    assert ["jax.version", "0.10.2"] in page.rows
    assert ["command", "python -m experiments.reproduce"] in page.rows
    assert "how much leaked" in page.text("dd")


def test_reasons_of_an_earlier_version_are_shown_without_their_marks():
    entry = figure_six()
    for one in entry["verdicts"]:
        del one["holds"]
    page = Page(render_reproduction(results(entry), {}))
    assert page.text("li")[:2] == REASONS
    assert {attributes.get("class") for attributes in page.all("li")} == {None}


def test_every_picture_is_embedded_in_its_section():
    other = {"figure": "curve", "title": "Leakage by accuracy", "claim": "Good from 80%."}
    pictures = {"6": {"one": png(1), "two": png(2)}, "curve": {"three": png(3)}}
    source = render_reproduction(results(figure_six(), other), pictures)
    page = Page(source)
    images = page.all("img")
    assert [image["alt"] for image in images] == page.text("figcaption") == ["one", "two", "three"]
    found = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images]
    assert found == [png(1), png(2), png(3)]
    assert {image["width"] for image in images} == {"2"}
    assert source.index(">two<") < source.index('id="experiment-1"') < source.index(">three<")
    assert page.text("h2")[1:3] == ["Figure 6: Two participants", "Leakage by accuracy"]


def test_a_figure_that_stopped_says_why():
    stopped = {"figure": "3", "title": "Pictures", "claim": "", "error": "Not run: no CIFAR-10"}
    page = Page(render_reproduction(results(stopped, figure_six()), {}))
    assert ("span", "✗ stopped") in page.texts
    assert "not judged" in page.text("td")
    assert page.text("aside") == [" Not run: no CIFAR-10"]
    assert "2 (1 stopped)" in page.text("dd")


def test_nothing_run_yet_is_a_page():
    page = Page(render_reproduction(results(figures=[], definitions={}, judges={}, seconds=None), {}))
    assert page.text("h2") == ["Environment"]
    assert "n/a" in page.text("dd")


def hostile(value):
    if isinstance(value, dict):
        return {name: hostile(part) for name, part in value.items()}
    if isinstance(value, list):
        return [hostile(part) for part in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text():
    entry = hostile(figure_six())
    for place, found in enumerate(entry["rows"]):
        found["name"] += str(place)
        found["role"] = "control" if place else "attack"
        found["metrics"][HOSTILE] = metric(0.1, 0.2)
        found["differences"] = {HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]}
    for found in entry["verdicts"]:
        found["verdict"], found["row"] = "partly", entry["rows"][0]["name"]
        found["controls"] = [entry["rows"][1]["name"]]
    entry["error"] = HOSTILE
    texts = {name: HOSTILE for name in ("version", "scale", "command")}
    judges = {HOSTILE: {"test_accuracy": 0.5, "test_images": 3}}
    mappings = {"environment": {HOSTILE: HOSTILE}, "definitions": {HOSTILE: HOSTILE}, "judges": judges}
    source = render_reproduction(results(entry, **texts, **mappings), {HOSTILE: {HOSTILE: png(0)}})
    page = Page(source)
    assert {tag for tag, _ in page.tags} & {"script", "title"} == {"title"}
    assert [image["alt"] for image in page.all("img")] == [HOSTILE]
    assert "<script" not in source
    assert "evil.example/x>" not in source


def test_nothing_is_fetched():
    source = render_reproduction(results(), {"6": {"one": png(1)}})
    page = Page(source)
    identifiers = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        assert not {"srcset", "action", "style", "onload", "onclick"} & set(attributes)
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#experiment-0").removeprefix("#") in identifiers
    assert not re.search(r"https?:|@import|url\(", source)
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.all("meta"))
    style = "".join(page.text("style"))
    assert style.count("prefers-color-scheme: dark") == style.count("@media print") == 2


def test_the_same_results_give_the_same_page_and_stay_as_they_are():
    given = results()
    kept = copy.deepcopy(given)
    pictures = {"6": {"one": png(1)}}
    assert render_reproduction(given, pictures) == render_reproduction(json.loads(json.dumps(given)), pictures)
    assert str(given) == str(kept)


def test_missing_numbers_are_not_available_whichever_way_they_are_told():
    for nothing in (None, math.nan, math.inf):
        entry = figure_six()
        entry["rows"][0]["metrics"]["leakage_score"] = {
            "mean": nothing,
            "low": nothing,
            "high": nothing,
            "values": [nothing],
        }
        source = render_reproduction(results(entry), {})
        assert tables(source)["figure"][1][3] == "n/a ✗ not reproduced"
        assert tables(source)["rounds"][1][3] == "n/a"


MISTAKES = {
    "format": (lambda data: data.update(format=2), r"results\.format=2: expected one of 1"),
    "missing": (lambda data: data.pop("scale"), r"results: 'scale' is missing, there is format, version"),
    "text": (lambda data: data.update(version=1), r"results\.version=1: expected a text"),
    "whole": (lambda data: data.update(num_seeds=1.5), r"results\.num_seeds=1\.5: expected a whole number"),
    "flag": (lambda data: data.update(seconds=True), r"results\.seconds=True: expected a number"),
    "list": (lambda data: data.update(figures={}), r"results\.figures=\{\}: expected a list"),
    "judge": (lambda data: data["judges"].update(x={}), r"results\.judges\.x: 'test_accuracy' is missing"),
    "twice": (lambda data: data["figures"].append(figure_six()), r"figure='6' occurs more than once"),
    "role": (
        lambda data: data["figures"][0]["rows"][0].update(role="victim"),
        r"figures\[0\]\.rows\[0\]\.role='victim': expected one of attack, control, reference",
    ),
    "row": (
        lambda data: data["figures"][0]["rows"].append(row("unowned", "control", 0.1)),
        r"figures\[0\]\.rows: name='unowned' occurs more than once",
    ),
    "metric": (
        lambda data: data["figures"][0]["rows"][0]["metrics"].update(diversity=0.5),
        r"rows\[0\]\.metrics\.diversity=0\.5: expected a mapping",
    ),
    "number": (
        lambda data: data["figures"][0]["rows"][0]["metrics"]["leakage_score"].update(low="0"),
        r"metrics\.leakage_score\.low='0': expected a number or None",
    ),
    "difference": (
        lambda data: data["figures"][0]["rows"][0].update(differences={"rate": [1]}),
        r"differences\.rate=\[1\]: expected a list of 2",
    ),
    "verdict": (
        lambda data: data["figures"][0]["verdicts"][0].update(verdict="yes"),
        r"verdicts\[0\]\.verdict='yes': expected one of reproduced, partly, not reproduced",
    ),
    "unnamed row": (lambda data: data["figures"][0]["verdicts"][0].pop("row"), r"verdicts\[0\]: 'row' is missing"),
    "answers": (
        lambda data: data["figures"][0]["verdicts"][0].update(holds=[True]),
        r"verdicts\[0\]\.holds: 1 answers, expected 2",
    ),
    "judged row": (
        lambda data: data["figures"][0]["verdicts"][1].update(row="six"),
        r"figures\[0\]\.verdicts\[1\]: 'six' is none of its rows",
    ),
    "controls": (
        lambda data: data["figures"][0]["verdicts"][1].update(controls=["six"]),
        r"verdicts\[1\]: 'six' is none of its rows",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_malformed_results_are_refused(mistake):
    spoil, message = MISTAKES[mistake]
    data = results()
    check_results(data)
    spoil(data)
    with pytest.raises(ValueError, match=message):
        render_reproduction(data, {})


def test_results_that_are_no_mapping_are_refused():
    with pytest.raises(ValueError, match=r"results=\[\]: expected a mapping"):
        render_reproduction([], {})


def test_pictures_must_be_png_and_belong_to_a_figure():
    with pytest.raises(ValueError, match=r"pictures\['7'\]: expected one of the figures \['6'\]"):
        render_reproduction(results(), {"7": {"seven": png(7)}})
    with pytest.raises(ValueError, match=r"'bad'.*expected the bytes of a PNG"):
        render_reproduction(results(), {"6": {"bad": b"GIF89a"}})
