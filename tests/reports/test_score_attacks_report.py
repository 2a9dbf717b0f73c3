"""The drawings of attacks on the score: their sizes, and one tile for each picture that is shown."""

import numpy as np
import pytest

from gan_leak.reports.score_attacks import degradations_figure, impostors_figure, render_score_attacks, scores_figure

ROWS = [
    {"class": name, "kind": kind, "score": score, "smallest_view": 0.5, "looks_like_the_class": 0.25}
    | {"variant": "<b>", "shows_class": "the judge & its gradients" if score else ""}
    for name in ("3", "4")
    for kind, score in (("mirrored", 0.0), ("optimized", 0.75))
]
DEGRADED = [
    {"class": name, "kind": kind, "strengths": [0.0, 1.0, 2.0], "scores": [1.0, 0.5, 0.0]}
    for name in ("3", "4")
    for kind in ("blur", "noise")
]
PNG = b"\x89PNG\r\n\x1a\n"


def test_every_drawing_is_a_png():
    pictures = {kind: np.zeros((3, 32, 32, 1), np.float32) for kind in ("mirrored", "optimized")}
    for drawn in (
        impostors_figure(ROWS[:2], pictures, title="Impostors"),
        degradations_figure(DEGRADED),
        degradations_figure(DEGRADED[:1]),
        scores_figure(ROWS),
    ):
        assert drawn.startswith(PNG)


def test_impostors_without_pictures_are_refused():
    with pytest.raises(KeyError, match="mirrored"):
        impostors_figure(ROWS[:1], {}, title="Impostors")


def test_the_page_names_every_impostor_and_escapes_text():
    environment = {"config": {"seed": 0}, "cpu_count": 2}
    page = render_score_attacks({"impostors": ROWS}, {"The scores": scores_figure(ROWS)}, environment)
    assert page.count("<tr><th") >= len(ROWS)
    assert "class 4, optimized" in page
    assert "&lt;b&gt;" in page
    assert "the judge &amp; its gradients" in page
    assert "<script" not in page
