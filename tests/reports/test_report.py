"""The HTML report: whole, escaped, self-contained."""

import base64
import re

import numpy as np
import pytest
from html_page import HOSTILE, Page, png

from gan_leak.config import make_config
from gan_leak.reports.run import render_report, report_files, summary_lines
from gan_leak.runs.federated.result import DIVERGED_STATUS, NOT_MEASURABLE_STATUS, RunResult, exit_status

METRICS = {
    "leakage_score": 0.78649,
    "leakage_by_representation": {"pixels": 0.8, "edges": 0.75, "judge": 0.9},
    "judge_accuracy": 1.0,
    "nearest_neighbour_share": 0.99712,
    "l1_to_nearest": 0.01234,
    "ssim_to_nearest": 0.6,
    "coverage": None,
    "diversity": float("nan"),
}


def render(**changes):
    parts = {
        "title": "GAN attack",
        "summary": {"leakage score": "0.786"},
        "config": {"dataset": "mnist", "attack": {"rate": 1.234567e-4, "bound": None}, "owned": [[0, 1], [2]]},
        "environment": {"backend": "cpu", "versions": {"python": "3.11.2"}},
        "records": [],
        "comparison": {"reconstructions": METRICS},
        "figures": {"the pictures": png(10), "the curves": png(20)},
        "definitions": {"leakage_score": "how much leaked"},
        "notes": [],
    }
    return render_report(**{**parts, **changes})


def test_page_shows_every_part():
    page = Page(render(notes=["stopped in round 12: NaN"]))
    assert page.text("title") == page.text("h1") == ["GAN attack"]
    assert page.text("dd") == ["0.786", "how much leaked"]
    assert page.text("dt") == ["leakage score", "leakage score"]
    assert page.text("li") == ["stopped in round 12: NaN"]
    assert page.text("figcaption") == ["the pictures", "the curves"]


def test_comparison_has_a_row_a_set_and_a_column_a_metric():
    other = {"diversity": 1, "leakage_score": 0.0, "leakage_by_representation": None}
    head, first, second = Page(render(comparison={"found": METRICS, "own": other}, config={}, environment={})).rows
    assert head[:5] == ["images", "leakage score", "leakage by pixels", "leakage by edges", "leakage by judge"]
    assert first == ["found", "0.786", "0.800", "0.750", "0.900", "1.00", "0.997", "0.0123", "0.600", "n/a", "n/a"]
    assert second == ["own", "0.00", *["n/a"] * 8, "1"]


def test_columns_do_not_depend_on_the_first_row():
    rows = Page(render(comparison={"own": {"diversity": 1.0}, "found": METRICS}, config={}, environment={})).rows
    assert rows[0][1] == "leakage score"
    assert rows[1] == ["own", *["n/a"] * 9, "1.00"]


def test_numbers_have_three_digits():
    values = {"a": 123456.0, "b": 123.4, "c": 1e-7, "d": np.float32(0.25), "e": 105707, "f": float("-inf"), "g": -0.5}
    rows = Page(render(comparison={"x": values}, config={}, environment={})).rows
    assert rows[1][1:] == ["1.23e+05", "123", "1.00e-07", "0.250", "105707", "n/a", "-0.500"]


def test_evaluated_rounds_are_listed():
    plain = {"round": 4, "model_accuracy": None, "losses": [0.2, 0.1], "attack": None}
    evaluated = {**plain, "round": 5, "losses": [0.2, None], "leakage": METRICS}
    rows = Page(render(records=[plain, evaluated], comparison={}, config={}, environment={})).rows
    assert rows[0][:4] == ["round", "model accuracy", "mean training loss", "leakage score"]
    assert [row[:4] for row in rows[1:]] == [["5", "n/a", "0.200", "0.786"]]


def test_settings_are_exact():
    rows = Page(render(comparison={})).rows
    assert rows == [
        ["dataset", "mnist"],
        ["attack.rate", "0.0001234567"],
        ["attack.bound", "null"],
        ["owned", "[[0, 1], [2]]"],
        ["backend", "cpu"],
        ["versions.python", "3.11.2"],
    ]


def test_figures_are_embedded():
    sources = [image["src"] for image in Page(render()).all("img")]
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in sources)
    assert [base64.b64decode(source.removeprefix(prefix)) for source in sources] == [png(10), png(20)]


def test_hostile_text_stays_text():
    source = render(
        title=HOSTILE,
        summary={HOSTILE: HOSTILE},
        config={HOSTILE: HOSTILE, "list": [HOSTILE]},
        environment={HOSTILE: {HOSTILE: object()}},
        records=[{"round": HOSTILE, "leakage": {HOSTILE: HOSTILE}}],
        comparison={HOSTILE: {HOSTILE: HOSTILE}},
        figures={HOSTILE: png(0)},
        definitions={HOSTILE: HOSTILE},
        notes=[HOSTILE],
        sounds={HOSTILE: b"RIFF"},
    )
    page = Page(source)
    assert page.text("h1") == page.text("title") == page.text("li") == [HOSTILE]
    assert page.text("figcaption") == [HOSTILE, HOSTILE]
    assert page.all("script") == []
    assert [image["alt"] for image in page.all("img")] == [HOSTILE]
    assert "<script" not in source


def test_nothing_is_fetched():
    source = render()
    page = Page(source)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        assert not {"href", "srcset", "action", "style", "onload", "onclick"} & set(attributes)
        assert attributes.get("src", "data:").startswith("data:")
    assert not re.search(r"https?:|@import|url\(", source)
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.all("meta"))


def test_page_suits_dark_mode_and_paper():
    style = "".join(Page(render()).text("style"))
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_empty_parts_leave_no_empty_sections():
    source = render(summary={}, config={}, environment={}, comparison={}, figures={}, definitions={})
    assert {tag for tag, _ in Page(source).tags} == {"html", "head", "meta", "title", "style", "body", "h1"}


def test_a_figure_must_be_png():
    with pytest.raises(ValueError, match=r"figures\['bad'\]=b'GIF89a'\.\.\.: expected the bytes of a PNG"):
        render(figures={"bad": b"GIF89a"})


def found(**changes):
    return RunResult(make_config(target_class=1), ("zero", "one"), "f00d", np.zeros((2, 8, 8, 1)), True, **changes)


def test_a_result_without_records_is_a_page_without_figures():
    files = report_files(found(divergence="Training diverged in round 1."))
    assert list(files) == ["report.html"]
    page = Page(files["report.html"].decode())
    assert page.text("h1") == ["GAN attack on mnist, class one"]
    assert page.text("li") == ["Training diverged in round 1."]
    assert ["data set SHA-256", "f00d"] in page.rows


def test_sounds_are_played():
    page = Page(report_files(found(sounds={"one": b"RIFF1", "two": b"RIFF2"}))["report.html"].decode())
    players = [player["src"].removeprefix("data:audio/wav;base64,") for player in page.all("audio")]
    assert [base64.b64decode(player) for player in players] == [b"RIFF1", b"RIFF2"]
    assert page.text("figcaption") == ["one", "two"]
    assert "media-src data:" in page.all("meta")[1]["content"]


def test_notes_say_first_why_training_ended_and_last_that_nobody_owns_the_target():
    result = found(divergence="Diverged.", limits=["Edges are left out."])._replace(target_is_owned=False)
    notes = Page(report_files(result)["report.html"].decode()).text("li")
    assert notes[:2] == ["Diverged.", "Edges are left out."]
    assert "is not leakage" in notes[2]


def test_the_summary_tells_the_score_of_each_set_of_images():
    measures = {"leakage_score": 0.5, "judge_accuracy": 1.0, "nearest_neighbour_share": 0.25, "diversity": 0.75}
    record = {"round": 7, "model_accuracy": 0.9}
    comparison = {"reconstructions": measures, "untrained generator": {"leakage_score": None}}
    lines = summary_lines(found(records=[record], comparison=comparison, judge_test_accuracy=0.99))
    words = [line.split() for line in lines]
    assert ["leakage", "score", "0.50"] in words
    assert ["rounds", "7"] in words
    assert ["leakage", "score,", "untrained", "generator", "not", "measurable"] in words


def test_exit_statuses():
    assert exit_status(found()) == 0
    assert exit_status(found(divergence="Diverged.")) == DIVERGED_STATUS == 1
    assert exit_status(found(is_trained=False)) == NOT_MEASURABLE_STATUS == 3
