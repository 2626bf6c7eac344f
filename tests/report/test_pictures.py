"""Tests of figures: outliers do not squeeze them, labels are in a legend, and each colour has one meaning."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from shardpress.report.page.document import Figure
from shardpress.report.page.pictures import bars, curves, profiles, scatter
from shardpress.report.page.svg import COMPARED, FEATURES, LABELS, Scale
from tests.support.pages import Parsed


def points_of(figure: Figure, colour: str | None = None) -> np.ndarray:
    """Return the positions (n, 2) of the points in a figure, or of those in one colour, without the legend."""
    found = []
    for attributes, _ in Parsed(figure.svg).named("path"):
        line = str(attributes["d"])
        is_legend = line.count("M") == 1 and attributes.get("stroke-width", "").startswith(("8", "7"))  # type: ignore[union-attr]
        if attributes.get("class") == "dots" and not is_legend and colour in (None, attributes["stroke"]):
            found += [tuple(map(float, each)) for each in re.findall(r"M(-?[\d.]+) (-?[\d.]+)h0", line)]
    return np.array(found)


def words_of(figure: Figure) -> list[str]:
    return [words for _, words in Parsed(figure.svg).named("text")]


def lines_of(figure: Figure) -> list[np.ndarray]:
    """Return the positions (n, 2) of each line with more than two points, without axes."""
    drawn = [attributes for attributes, _ in Parsed(figure.svg).named("polyline") if "class" not in attributes]
    lines = [str(attributes["points"]).split() for attributes in drawn]
    return [np.array([list(map(float, pair.split(","))) for pair in line]) for line in lines if len(line) > 2]


def test_usual_values_fit_on_an_axis_and_outliers_are_at_its_ends() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=500), rng.uniform(size=40), np.arange(3.0), np.ones(5)):
        scale = Scale.over(values, 0, 100)
        assert scale.low <= values.min() <= values.max() <= scale.high
    values = np.append(rng.normal(size=500), [1e6, -1e6])
    scale = Scale.over(values, 0, 100)
    assert np.ptp([scale(value) for value in values[:-2]]) > 30
    assert (scale(1e6), scale(-1e6)) == (100, 0)
    costs = np.append(1 / np.arange(1, 400), 1e9)
    scale = Scale.over(costs, 0, 100, allows_log=True)
    assert scale(1e9) == 100
    assert 0 <= scale(-1.0) < scale(0.01) < scale(0.5) <= 100


def test_an_outlier_does_not_squeeze_points_curves_and_rows() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 2))
    points[7] = 1e5
    figure = scatter("rows", points, np.zeros(300, int), [], FEATURES)
    found = points_of(figure)
    assert (np.ptp(np.delete(found, 7, axis=0), axis=0) > 80).all()
    costs = [0.5 - i / 1000 for i in range(300)]
    costs[150] = 400.0
    (line,) = lines_of(curves("costs", {"training": costs}, {}))
    assert np.ptp(line[line[:, 1] > line[:, 1].min(), 1]) > 80
    rows = [{"input": [0.0, 10.0] * 40, "again": [1.0, 9.0] * 40, "label": None, "error": 0.1, "file": "a", "row": 1}]
    rows[0]["input"] = [*rows[0]["input"], 1e6]  # type: ignore[misc]
    row, _ = lines_of(profiles("rows", rows))
    assert np.ptp(row[:-1, 1]) > 30


def test_rows_of_any_scale_fill_their_frames() -> None:
    rng = np.random.default_rng(0)
    for factor, offset in ((1, 0), (30, -200), (1e-3, 5)):
        values = (rng.random((4, 50)) * factor + offset).tolist()
        pairs: list[dict[str, Any]] = []
        for each in values:
            pairs.append({"input": each, "again": each, "label": "x", "error": 0.1, "file": "a", "row": 1})
        for line in lines_of(profiles("rows", pairs)):
            assert np.ptp(line[:, 1]) > 60


def test_labels_are_in_a_legend_and_rare_ones_are_joined() -> None:
    codes = np.concatenate([np.repeat(np.arange(20), 10), np.repeat([3, 19], 5), [-1]])
    points = np.random.default_rng(0).normal(size=(len(codes), 2))
    names = [f"label {i}" for i in range(20)]
    figure = scatter("rows", points, codes, names, FEATURES)
    words = words_of(figure)
    assert len(words) == 13
    assert {"label 3", "label 19"} <= set(words)
    assert len(points_of(figure)) == len(codes)
    assert len(points_of(figure, COMPARED)) == 8 * 10 + 1
    height = float(re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', figure.svg)[0])
    frame, _ = Parsed(figure.svg).named("rect")[0]
    below = [float(str(attributes["y"])) for attributes, _ in Parsed(figure.svg).named("text")]
    assert float(str(frame["height"])) < min(below) <= max(below) < height
    assert figure.table.rows[0][:2] == ("all others", "81")
    few = scatter("rows", points, np.where(codes < 0, -1, codes % 2), names[:2], FEATURES)
    assert words_of(few) == ["no label", "label 0", "label 1"]


def test_each_shown_label_has_its_own_colour_and_shape() -> None:
    codes = np.arange(120) % 12
    points = np.random.default_rng(0).normal(size=(120, 2))
    parsed = Parsed(scatter("rows", points, codes, [str(i) for i in range(12)], FEATURES).svg)
    styles = [(attributes["stroke"], attributes["stroke-linecap"]) for attributes, _ in parsed.named("path")]
    assert len(set(styles)) == 12
    assert {colour for colour, _ in styles} <= set(LABELS)


def test_each_colour_has_one_meaning() -> None:
    meanings = [FEATURES, COMPARED, *LABELS]
    assert len(set(meanings)) == len(meanings)
    fills = [attributes["fill"] for attributes, _ in Parsed(bars("x", {"a": 1, "b": 2, "c": 3}).svg).named("rect")]
    assert fills == [FEATURES, COMPARED, COMPARED]
    lines = Parsed(curves("x", {"training": [3, 2, 1], "validation": [3, 2, 2]}, {"components": 2.5}).svg)
    strokes = {attributes["stroke"] for attributes, _ in lines.named("polyline") if "stroke" in attributes}
    assert strokes == {FEATURES, COMPARED}
    assert {"training", "validation", "components"} <= {words for _, words in lines.named("text")}
