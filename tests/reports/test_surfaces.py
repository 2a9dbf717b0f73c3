"""The map of a sweep: every cell's number stands where its settings put it."""

import pytest

from gan_leak.reports import surfaces
from gan_leak.reports.surfaces import surface_figure


def row(score, **cell):
    measured = {} if score is None else {"mean": score, "low": score - 0.1, "high": score + 0.1}
    return {"cell": cell, "metrics": {"leakage_score": measured}}


@pytest.fixture
def drawn(monkeypatch):
    """The figure itself, in place of its PNG."""
    monkeypatch.setattr(surfaces, "png", lambda figure, dpi: figure)
    return lambda rows: [axes for axes in surface_figure(rows).axes if axes.get_visible()]


def texts(axes):
    return {text.get_position(): text.get_text() for text in axes.texts}


def test_numbers_stand_at_their_settings(drawn):
    rows = [row(0.1, down=1, across="a"), row(0.9, down=1, across="b"), row(None, down=2, across="b")]
    (axes,) = drawn(rows)
    assert texts(axes) == {(0, 0): "0.10\n± 0.10", (1, 0): "0.90\n± 0.10", (1, 1): "n/a"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1", "2"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("across", "down")


def test_further_settings_make_panels(drawn):
    rows = [row(0.1 * x + 0.01 * panel, panel=panel, y=0, x=x) for panel in range(4) for x in range(2)]
    panels = drawn(rows)
    assert [axes.get_title(loc="left") for axes in panels] == [f"panel {panel}" for panel in range(4)]
    assert texts(panels[3])[1, 0].startswith("0.13")


def test_it_is_a_png():
    assert surface_figure([row(0.1, y=1, x=1)]).startswith(b"\x89PNG")


@pytest.mark.parametrize("rows", [[], [row(0.1, x=1)], [row(0.1, panel=panel, y=1, x=1) for panel in range(13)]])
def test_what_cannot_be_drawn_is_refused(rows):
    with pytest.raises(ValueError, match="expected"):
        surface_figure(rows)
