"""Tests of figures: outliers do not squeeze an axis, labels are in a legend, and each colour has one meaning."""

from __future__ import annotations

import re

import numpy as np

from shardpress.report.page.document import Figure
from shardpress.report.page.pictures import bars, curves, scatter
from shardpress.report.page.svg import COMPARED, FEATURES, LABELS, Scale
from tests.support.pages import Parsed


def dots_of(figure: Figure) -> list[tuple[str, str]]:
    """Return the colour and shape of each dot in a figure, including those of the legend."""
    found = []
    for attributes, _ in Parsed(figure.svg).named("path"):
        if attributes.get("class") == "dots":
            style = (str(attributes["stroke"]), str(attributes["stroke-linecap"]))
            found += [style] * str(attributes["d"]).count("M")
    return found


def words_of(figure: Figure) -> list[str]:
    return [words for _, words in Parsed(figure.svg).named("text")]


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


def test_labels_are_in_a_legend_and_rare_ones_are_joined() -> None:
    codes = np.concatenate([np.repeat(np.arange(20), 10), np.repeat([3, 19], 5), [-1]])
    points = np.random.default_rng(0).normal(size=(len(codes), 2))
    names = [f"label {i}" for i in range(20)]
    figure = scatter("rows", points, codes, names, FEATURES)
    words = words_of(figure)
    assert len(words) == 13
    assert {"label 3", "label 19"} <= set(words)
    styles = dots_of(figure)
    assert len(set(styles)) == 13, "each label has its own colour and shape"
    assert {colour for colour, _ in styles} <= {COMPARED, *LABELS}
    assert len(styles) == len(codes) + 13
    assert figure.table.rows[0][:2] == ("all others", "81")
    few = scatter("rows", points, np.where(codes < 0, -1, codes % 2), names[:2], FEATURES)
    assert words_of(few) == ["no label", "label 0", "label 1"]
    height = float(re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', figure.svg)[0])
    frame, _ = Parsed(figure.svg).named("rect")[0]
    below = [float(str(attributes["y"])) for attributes, _ in Parsed(figure.svg).named("text")]
    assert float(str(frame["height"])) < min(below) <= max(below) < height


def test_each_colour_has_one_meaning() -> None:
    meanings = [FEATURES, COMPARED, *LABELS]
    assert len(set(meanings)) == len(meanings)
    fills = [attributes["fill"] for attributes, _ in Parsed(bars("x", {"a": 1, "b": 2, "c": 3}).svg).named("rect")]
    assert fills == [FEATURES, COMPARED, COMPARED]
    lines = Parsed(curves("x", {"training": [3, 2, 1], "validation": [3, 2, 2]}, {"components": 2.5}).svg)
    strokes = {attributes["stroke"] for attributes, _ in lines.named("polyline") if "stroke" in attributes}
    assert strokes == {FEATURES, COMPARED}
    assert {"training", "validation", "components"} <= {words for _, words in lines.named("text")}
