"""The pictures of a run: their content, pixel by pixel, and what they refuse."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gan_leak.evaluation.criteria import summarise
from gan_leak.reports.figures import curves_figure, evolution_figure, reconstructions_figure
from gan_leak.reports.galleries import interval_figure, leakage_against_accuracy_figure, picture_table

WHITE, GREY, BLACK = (255, 255, 255), (176, 176, 176), (0, 0, 0)


def decode(png):
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def images(count, value=-1.0, size=32, channels=1):
    return np.full((count, size, size, channels), value, np.float32)


def tiles(picture):
    """Finds the tiles by their gray frames, row by row in reading order."""
    frame = np.all(picture == GREY, axis=2)
    line = np.lib.stride_tricks.sliding_window_view(frame, 100, axis=1).all(axis=2)
    corners = np.argwhere(line & ~np.pad(line, ((0, 0), (1, 0)))[:, :-1])
    rows = {}
    for y, x in corners:
        rows.setdefault(y, []).append(x)
    edges = sorted(rows)
    found = []
    for top, bottom in zip(edges[::2], edges[1::2], strict=True):
        width = [int(np.argmin(frame[top, x:])) for x in rows[top]]
        found.append(
            [picture[top + 1 : bottom, x + 1 : x + size - 1] for x, size in zip(rows[top], width, strict=True)]
        )
    return found


def only_color(tile):
    (color,) = np.unique(tile.reshape(-1, 3), axis=0)
    return tuple(color.tolist())


def colors(picture):
    return [[only_color(tile) for tile in row] for row in tiles(picture)]


def has_color(picture, color):
    return int((np.abs(picture.astype(int) - color).max(axis=2) < 12).sum())


VERMILION, BLUE, GREEN = (213, 94, 0), (0, 114, 178), (0, 158, 115)


def record(number, *, losses=(0.5, 0.4), accuracy=None, **leakage):
    found = {"round": number, "model_accuracy": accuracy, "losses": list(losses), "attack": None}
    return {**found, "leakage": leakage} if leakage else found


def test_import_leaves_matplotlib_alone():
    modules = "gan_leak.reports.figures, gan_leak.reports.galleries, gan_leak.reports.reproduction"
    code = f"import sys, {modules}; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_reconstruction_lies_under_its_private_image():
    levels = np.linspace(-1, 1, 5, dtype=np.float32)[:, None, None, None]
    picture = decode(reconstructions_figure(images(5, 1.0), images(5, 0.0) + levels, columns=3, title="five"))
    shown = [[tile[0] for tile in row] for row in colors(picture)]
    assert shown == [[0, 64, 128], [255] * 3, [191, 255], [255] * 2]


def test_pixels_stay_whole_and_upright():
    image = images(1)
    image[0, 3, 5, 0] = 1.0
    tile = tiles(decode(reconstructions_figure(image, images(1))))[1][0]
    assert tile.shape == (128, 128, 3)
    expected = np.zeros((128, 128), bool)
    expected[12:16, 20:24] = True
    np.testing.assert_array_equal((tile == WHITE).all(axis=2), expected)
    np.testing.assert_array_equal((tile == BLACK).all(axis=2), ~expected)


@pytest.mark.parametrize("size", [28, 32, 64])
def test_color_images_keep_their_color(size):
    found = np.broadcast_to(np.array([1.0, -1.0, 0.0], np.float32), (2, size, size, 3))
    assert colors(decode(reconstructions_figure(found, images(2, size=size, channels=3)))) == [
        [BLACK] * 2,
        [(255, 0, 128)] * 2,
    ]


def test_at_most_thirty_pairs():
    shown = tiles(decode(reconstructions_figure(images(40), images(40))))
    assert [len(row) for row in shown] == [10] * 6


def test_broken_pixels_show_and_values_out_of_range_are_clipped():
    found = images(3)
    found[0], found[1], found[2] = np.nan, np.inf, 1.5
    shown = colors(decode(reconstructions_figure(found, images(3))))[1]
    assert shown == [(255, 0, 255), (255, 0, 255), WHITE]


def test_rows_are_labeled_in_their_colors():
    picture = decode(reconstructions_figure(images(2), images(2)))
    bar = 8 * 130
    assert has_color(picture, BLUE) > bar
    assert has_color(picture, VERMILION) > bar


def test_a_long_title_with_dollars_is_wrapped_not_cut():
    plain = decode(reconstructions_figure(images(1), images(1)))
    titled = decode(reconstructions_figure(images(1), images(1), title="costs $5 and $x^ " * 5))
    assert titled.shape[0] > plain.shape[0] + 100
    assert titled.shape[1] == plain.shape[1]
    assert (titled[:, -12:] == 255).all()


def test_same_input_same_bytes():
    assert reconstructions_figure(images(2), images(2)) == reconstructions_figure(images(2), images(2))


@pytest.mark.parametrize(
    ("found", "private", "message"),
    [
        (images(2)[0], images(2), r"reconstructions\.shape=\(32, 32, 1\): expected \[M, H, W, C\]"),
        (images(2, channels=2), images(2, channels=2), r"reconstructions\.shape=.*C 1 or 3"),
        (images(0), images(0), r"reconstructions\.shape=\(0, 32, 32, 1\)"),
        (images(2), images(3), r"nearest_private\.shape=\(3, .*expected .*\(2, 32, 32, 1\)"),
        (images(2).astype(np.uint8), images(2), r"reconstructions\.dtype=uint8: expected floating point"),
    ],
)
def test_wrong_images_are_refused(found, private, message):
    with pytest.raises(ValueError, match=message):
        reconstructions_figure(found, private)


def test_wrong_columns_are_refused():
    with pytest.raises(ValueError, match="columns=0: expected at least 1"):
        reconstructions_figure(images(1), images(1), columns=0)
    with pytest.raises(ValueError, match="most_columns=-1: expected at least 1"):
        evolution_figure({1: images(1)}, most_columns=-1)


def test_evolution_runs_down_the_rounds():
    shown = colors(decode(evolution_figure({10: images(3, 1.0), 2: images(3, -1.0), 5: images(3, 0.0)})))
    assert [[tile[0] for tile in row] for row in shown] == [[0] * 3, [128] * 3, [255] * 3]


def test_evolution_keeps_first_and_last_round_of_many():
    rounds = {number: images(4, -1 + number / 50) for number in range(101)}
    shown = colors(decode(evolution_figure(rounds, most_columns=2, title="many")))
    levels = [row[0][0] for row in shown]
    assert [len(row) for row in shown] == [2] * 12
    assert (levels[0], levels[-1]) == (0, 255)
    steps = np.diff(np.asarray(levels, int))
    assert steps.min() > 0
    assert np.ptp(steps) <= 4


def test_evolution_of_one_round_and_image():
    assert colors(decode(evolution_figure({7: images(1, 1.0, channels=3)}))) == [[WHITE]]


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ({}, r"images_by_round=\{\}: expected"),
        ({1: images(2), 4: images(3)}, r"images_by_round\[4\]\.shape=\(3, .*round 1, \(2, "),
        ({3: images(2)[..., 0]}, r"images_by_round\[3\]\.shape=\(2, 32, 32\): expected"),
    ],
)
def test_wrong_evolution_is_refused(rounds, message):
    with pytest.raises(ValueError, match=message):
        evolution_figure(rounds)


def test_curves_show_what_was_measured():
    every = {"leakage_score": 0.5, "judge_accuracy": 0.7, "nearest_neighbour_share": 0.9}
    records = [record(n, accuracy=0.3, **every) if n % 5 == 0 else record(n) for n in range(1, 21)]
    upper = decode(curves_figure(records))
    upper = upper[: len(upper) // 2]
    assert min(has_color(upper, color) for color in (VERMILION, BLUE, GREEN)) > 500
    without = decode(curves_figure([record(n, leakage_score=0.5) for n in range(1, 21)]))
    without = without[: len(without) // 2]
    assert has_color(without, VERMILION) > 500
    assert has_color(without, GREEN) == 0


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_value_is_a_gap_and_a_round_without_evaluation_is_not(missing):
    def drawn(middle):
        records = [record(1, leakage_score=0.5), *middle, record(9, leakage_score=0.5)]
        return has_color(decode(curves_figure(records)), VERMILION)

    whole = drawn([record(3, leakage_score=0.5), record(6, leakage_score=0.5)])
    assert drawn([record(3), record(6)]) > 0.9 * whole
    gap = drawn([record(3, leakage_score=missing), record(6, leakage_score=0.5)])
    assert gap < 0.75 * whole


@pytest.mark.parametrize(
    "records",
    [
        [record(1)],
        [record(1, accuracy=0.1, leakage_score=0.0, judge_accuracy=1.0, nearest_neighbour_share=None)],
        [record(n, losses=(None, 0.0)) for n in (1, 2)],
        [record(n, losses=()) for n in (1, 2)],
        [record(3, losses=(0.1,)), record(1, losses=(float("nan"), 0.4)), {"round": 2}],
        [record(n, losses=np.full(40, 1.0 / n)) for n in range(1, 300)],
        [record(n, losses=(0.1, None) * 6) for n in (1, 2)],
    ],
)
def test_curves_of_few_many_and_missing_values(records):
    height, width, _ = decode(curves_figure(records)).shape
    assert height > 500
    assert width > 500


def test_curves_need_a_record():
    with pytest.raises(ValueError, match=r"records=\[\]: expected"):
        curves_figure([])


def single(value, size=32, channels=1):
    return images(1, value, size, channels)[0]


def test_a_picture_table_keeps_its_rows_columns_and_gaps():
    rows = {"digit 0": [single(-1.0), single(0.0), None], "digit 1": [None, single(1.0), single(-1.0)]}
    picture = decode(picture_table(rows, ["actual image", "inversion", "GAN"], title="five"))
    assert [[tile[0] for tile in row] for row in colors(picture)] == [[0, 128], [255, 0]]
    # Empty places are as large as tiles, without a frame; letters have a few pixels of that gray as well.
    pale = int((picture == (243, 243, 243)).all(axis=2).sum())
    assert 2 * 130 * 130 <= pale < 2 * 130 * 130 + 500


def test_columns_of_a_picture_table_stand_under_each_other():
    rows = {name: [single(np.nan)] * 4 for name in ("one", "a much longer name of a row")}
    picture = decode(picture_table(rows, ["original", "a", "b", "with a longer label than a tile is wide"], title=""))
    drawn = (picture == (255, 0, 255)).all(axis=2)
    np.testing.assert_array_equal(np.unique(drawn.sum(axis=0)), [0, 2 * 128])
    np.testing.assert_array_equal(np.unique(drawn.sum(axis=1)), [0, 4 * 128])


def test_a_picture_table_mixes_sizes_and_colors():
    red = np.broadcast_to(np.array([1.0, -1.0, -1.0], np.float32), (64, 64, 3))
    shown = colors(decode(picture_table({"a": [single(-1.0, 28), red, single(1.0, 32)]}, list("xyz"), title="")))
    (found,) = [row for row in shown if len(row) == 2] or shown
    assert (255, 0, 0) in found
    assert WHITE in found


def test_broken_pixels_of_a_picture_table_show():
    assert colors(decode(picture_table({"a": [single(np.nan)]}, ["x"], title=""))) == [[(255, 0, 255)]]


def test_a_film_strip_of_many_rounds_is_one_row():
    strip = {f"{kind}, seed 0": [single(value / 10) for value in range(-10, 10)] for kind in ("passive", "active")}
    shown = colors(decode(picture_table(strip, [f"round {number}" for number in range(20)], title="Figure 9")))
    assert [len(row) for row in shown] == [20, 20]
    assert (np.diff(np.asarray(shown, int)[:, :, 0], axis=1) > 0).all()


def test_labels_with_dollars_and_long_words_are_drawn_inside():
    labels = ["costs $5 and $x^ ", "w" * 200]
    picture = decode(picture_table({"$y_ $ " * 20: [single(0.0)] * 2}, labels, title="$z^ $ " * 30))
    for edge in (picture[:12], picture[-12:], picture[:, :12], picture[:, -12:]):
        assert (edge == 255).all()


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ({}, ["x"], r"rows of \[\].*expected at least one of each"),
        ({"a": []}, [], r"column_labels=\[\]: expected at least one of each"),
        ({"a": [single(0.0)]}, ["x", "y"], r"rows\['a'\] has 1 images: expected 2"),
        ({"a": [None]}, ["x"], "rows hold no image"),
        ({"a": [images(1)]}, ["x"], r"rows\['a'\]\[0\]\.shape=\(1, 32, 32, 1\): expected \[H, W, C\]"),
        ({"a": [single(0.0, channels=2)]}, ["x"], r"rows\['a'\]\[0\]\.shape=.*C 1 or 3"),
        ({"a": [single(0.0).astype(np.uint8)]}, ["x"], r"rows\['a'\]\[0\]\.dtype=uint8"),
    ],
)
def test_wrong_picture_tables_are_refused(rows, labels, message):
    with pytest.raises(ValueError, match=message):
        picture_table(rows, labels, title="")


ORANGE, PINK = (230, 159, 0), (204, 121, 167)


def test_leakage_against_accuracy_draws_each_setting_in_its_color():
    seeds = [[(0.1, 0.0), (0.5, 0.3), (0.9, 0.7)], [(0.2, 0.1), (0.95, 0.6)]]
    picture = decode(
        leakage_against_accuracy_figure({"6 (a)": seeds, "$6^ (b)": [[(0.3, 0.2), (0.4, 0.9)]]}, title="$t^")
    )
    # Lines are slightly transparent: a color is found by its hue, not exactly.
    blue, orange = (has_hue(picture, color) for color in (BLUE, ORANGE))
    assert blue > orange > 200
    assert has_hue(picture, PINK) == 0


def has_hue(picture, color):
    pale = 255 - 0.85 * (255 - np.asarray(color))
    return int((np.abs(picture - pale).max(axis=2) < 12).sum())


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_pairs_without_a_number_are_left_out(nothing):
    whole = {"a": [[(0.1, 0.2), (0.9, 0.8)]]}
    gaps = {"a": [[(0.1, 0.2), (nothing, 0.5), (0.5, nothing), (0.9, 0.8)], [(nothing, nothing)], []]}
    assert leakage_against_accuracy_figure(gaps) == leakage_against_accuracy_figure(whole)
    empty = decode(leakage_against_accuracy_figure({"a": [[(nothing, 0.5)]], "b": []}))
    assert has_hue(empty, BLUE) == 0


def test_leakage_against_accuracy_needs_a_setting():
    with pytest.raises(ValueError, match=r"series=\{\}: expected"):
        leakage_against_accuracy_figure({})


def interval_row(role, *scores, name="row"):
    return {"name": name, "role": role, "metrics": {"leakage_score": summarise(scores)._asdict()}}


def test_intervals_are_drawn_in_the_color_of_their_role():
    picture = decode(interval_figure([interval_row("attack", 0.2, 0.5), interval_row("control", 0.4, 0.41)]))
    # The interval of the attack is many times as long.
    assert has_color(picture, VERMILION) > 1.5 * has_color(picture, BLUE) > 500
    assert has_color(picture, GREEN) == 0


def test_an_interval_stays_within_its_metric():
    wide = decode(interval_figure([interval_row("attack", 0.0, 0.9)]))
    assert wide.shape == decode(interval_figure([interval_row("attack", 0.4, 0.5)])).shape
    assert (wide[:, -8:] == 255).all()


def test_rows_without_numbers_and_unknown_metrics_are_drawn():
    rows = [
        interval_row("control", name="$x^ none " * 12),
        interval_row("attack", None),
        interval_row("reference", 0.5),
    ]
    assert has_color(decode(interval_figure(rows, title="$long^ " * 30)), VERMILION) < 2500
    for metric in ("diversity", "own"):
        decode(
            interval_figure(
                [{"name": "a", "role": "attack", "metrics": {metric: summarise([3, 4])._asdict()}}], metric=metric
            )
        )
    decode(interval_figure([{"name": "a", "role": "attack", "metrics": {}}]))


def test_wrong_intervals_are_refused():
    with pytest.raises(ValueError, match=r"rows=\[\]: expected"):
        interval_figure([])
    with pytest.raises(ValueError, match="role='victim' of 'row': expected one of attack, control, reference"):
        interval_figure([interval_row("victim", 0.5)])


def test_same_results_same_pictures():
    table = {"a": [single(0.0), None]}
    assert picture_table(table, ["x", "y"], title="t") == picture_table(table, ["x", "y"], title="t")
    rows = [interval_row("attack", 0.1, 0.2)]
    assert interval_figure(rows) == interval_figure(rows)
