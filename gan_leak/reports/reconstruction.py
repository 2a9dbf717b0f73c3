"""The report of attacks on single images: measures of every setting, reconstructions, and leakage over utility."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gan_leak.evaluation.criteria import Interval, summarise
from gan_leak.reports.drawing import (
    BLACK,
    BLUE,
    CHART_DPI,
    SERIES_COLORS,
    Row,
    draw_axes,
    framed_tiles,
    grid_png,
    or_gap,
    png,
)
from gan_leak.reports.html import definitions_list, figure, half_width, notes_panel, page, section, settings_table
from gan_leak.reports.reproduction_results import ROLES
from gan_leak.reports.rows import ROWS_STYLE, rows_table

_MOST_SHOWN = 12
# Equal images have no finite PSNR.
_MOST_DECIBELS = 100.0
DEFINITIONS = {
    "psnr": "10 log10(peak^2 / mean squared error) in dB, the standard form; 100 for equal images.",
    "ssim": "Structural similarity with a uniform window of 7 pixels, of images in their full range.",
    "recovered": "Share of images with an SSIM of at least 0.6, the rule of the released evaluation code of GRNN.",
    "control_psnr": "PSNR of the same reconstructions against other private images, which the attack has not seen. "
    "Each measure that begins with control is this baseline of the measure after it.",
    "re_identified": "Share of reconstructions that correlate with their own image more than with any other of its "
    "class: among all test images in split inference, otherwise among the attacked images and a gallery of 2,000.",
    "class_psnr": "PSNR of the mean of the class in the place of the reconstruction: the baseline of an attack that "
    "learns only the class. Each measure that begins with class is this baseline of the measure after it.",
    "blank_psnr": "PSNR of a black picture in the place of the reconstruction: the baseline of an attack that learns "
    "nothing. Each measure that begins with blank is this baseline of the measure after it.",
    "label_right": "Share of images whose label the attack infers, after matching; none if the labels are given.",
    "identified": "Share of reconstructions whose nearest image, of 2,000 that were not attacked, has the right label: "
    "another photograph of the person, or another image of the digit.",
    "rmse": "Root of the mean squared error in gray levels from 0 to 255; the authors of GRNN report it as MSE.",
    "group_psnr": "10 log10(255^2 / that root); the authors of GRNN report it as PSNR.",
    "ssim_by_range": "SSIM with the range of each reconstruction, as He et al. 2019 computed it.",
    "published_psnr": "The value that the authors report for this setting, if they do.",
    "distance": "Distance between the gradients of the reconstruction and of the private batch: squared, or one minus "
    "the cosine.",
    "client_identified": "Share of pictures that are nearest, of all clients' held-out images of their class, to those "
    "of their own client; chance is one in the number of clients. Measures that begin with embedding are taken in the "
    "embedding of owners, all others on pixels.",
    "client_identified_pooled": "The same for the mean distance of all pictures of a client.",
    "client_rank": "Place of the client among all clients by distance; 1 is the nearest.",
    "client_auc": "Probability that a picture of a client is relatively nearer to the client's held-out images than "
    "another client's picture of the class; chance is 0.5.",
    "user_gap": "Mean distance to the held-out images of the other clients less that to the client's own; chance is 0.",
    "record_gap": "Mean distance to the client's held-out images less that to the images that it sent. Above 0 the "
    "pictures show records rather than a person.",
    "identification_score": "Share of identified pictures between that of pictures which are the same for every client "
    "(0) and that of the clients' own held-out images (1).",
    "as_another_client": "Share of pictures that identify a client although they were made for another: a control, "
    "below chance if the pictures tell clients apart.",
    "as_outsider": "The same for a person outside of the federation, who takes the place of the client: a control, at "
    "most near chance.",
    "p_value": "Probability of distances as small if clients were exchanged at random.",
    "category_accuracy": "Share of pictures whose nearest held-out image of any client has the class they should show.",
    "similarity": "SSIM with the nearest image that the client sent of the class; control_similarity is with the next "
    "client's. Neither tells who the client is.",
    "source_accuracy": "Share of the clients' records that are assigned to their client by the loss of local models.",
    "linked": "Share of clients whose updates of two rounds are linked, one to one, without their names.",
    "local_epsilon": "Epsilon at delta 1e-5 of all uploads of a client against the server, for any change of all its "
    "data; only behind clipping and then Gaussian noise.",
    "chance": "The rate of a guess.",
    "model_accuracy": "Accuracy of the network with the defense, on test images.",
    "attacked_accuracy": "Accuracy of the attacked network on test images, if it was trained before the attack.",
}


def measured_row(name: str, role: str, measures: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table: the mean and the 95% interval of each measure, an array over images or one number."""
    intervals = {}
    for measure, values in measures.items():
        numbers = np.asarray(values, np.float64).reshape(-1)
        if "psnr" in measure:
            numbers = np.minimum(numbers, _MOST_DECIBELS)
        intervals[measure] = summarise(numbers.tolist())
    return interval_row(name, role, intervals)


def interval_row(name: str, role: str, intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """A row of a table from the interval of each measure. Raises ValueError for a role that is none of ``ROLES``."""
    if role not in ROLES:
        raise ValueError(f"role={role!r} of {name!r}: expected one of {', '.join(ROLES)}")
    return {"name": name, "role": role, "metrics": {of: _as_json(found._asdict()) for of, found in intervals.items()}}


def _as_json(interval: Mapping[str, Any]) -> dict[str, Any]:
    # A number that stands alone has no interval; JSON knows no NaN.
    ends = {name: None if np.isnan(interval[name]) else interval[name] for name in ("mean", "low", "high")}
    return {**ends, "values": [None if np.isnan(value) else value for value in interval["values"]]}


def render_reconstructions(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, bytes],
    environment: Mapping[str, Any],
) -> str:
    """Write a run as one self-contained HTML page.

    rows: from ``measured_row``, optionally with ``notes``. pictures: PNG bytes by caption.
    environment: as in config.json, with the settings under ``config``.
    """
    measured = {metric for row in rows for metric in row["metrics"]}
    known = {name: text for name, text in DEFINITIONS.items() if name in measured}
    others = {name: value for name, value in environment.items() if name != "config"}
    shown = "".join(figure(caption, drawn, half_width(caption, drawn)) for caption, drawn in pictures.items())
    sections = (
        notes_panel([f"{row['name']}: {note}" for row in rows for note in row.get("notes", ())]),
        section("Means over images, with 95% intervals", rows_table(rows)),
        section("Pictures", shown),
        section("What the numbers mean", definitions_list(known)),
        section("Settings", settings_table(environment["config"])),
        section("Environment", settings_table(others)),
    )
    return page(title, sections, ROWS_STYLE)


def pictures_figure(originals: np.ndarray, drawn: Mapping[str, np.ndarray], *, title: str = "") -> bytes:
    """A row of tiles for the originals [M, H, W, C], if any are known, and one for each setting, as PNG.

    Images are in [-1, 1].
    """
    rows = [Row("private", BLACK, framed_tiles(originals[:_MOST_SHOWN]), 0)] if len(originals) else []
    rows += [Row(name, BLUE, framed_tiles(images[:_MOST_SHOWN]), 6) for name, images in drawn.items()]
    return grid_png(rows, title)


def trade_off_figure(
    series: Mapping[str, Sequence[tuple[str, float, float]]], *, measure: str, title: str = ""
) -> bytes:
    """Leakage over utility: for each defense a line through (strength, accuracy, leakage), as PNG."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(6.4, 4.2), dpi=CHART_DPI, facecolor="white", layout="constrained")
    axes = chart.subplots()
    draw_axes(axes)
    axes.set_xlabel("accuracy with the defense", fontsize=9.5)
    axes.set_ylabel(measure, fontsize=9.5)
    # The whole range of a fraction, so that charts can be compared.
    axes.set_ylim(-0.05, 1.05)
    for place, (name, points) in enumerate(series.items()):
        color = SERIES_COLORS[place % len(SERIES_COLORS)]
        across, up = ([or_gap(point[axis]) for point in points] for axis in (1, 2))
        axes.plot(across, up, marker="o", markersize=4, linewidth=1.2, color=color, label=name)
        for strength, x, y in points:
            axes.annotate(strength, (x, y), (4, 4), textcoords="offset points", fontsize=7, color=color)
    axes.legend(fontsize=8.5, frameon=False)
    axes.set_title(title, fontsize=9.5, loc="left")
    return png(chart, CHART_DPI)
