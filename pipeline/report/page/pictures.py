"""Figures of a page. Each figure is drawn from plain numbers, and has a table with these numbers."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.page.document import Figure, Table
from pipeline.report.page.svg import Element, Scale, axes, colour, element, image, picture, polyline, text
from pipeline.report.page.words import count, cut, number, path

__all__ = ["bars", "curves", "histogram", "images", "profiles", "scatter", "thinned"]

_WIDTH = 420.0
_HEIGHT = 260.0
_LEFT = 58.0
_RIGHT = _WIDTH - 12.0
_TOP = 24.0
_BOTTOM = _HEIGHT - 40.0

_MAX_POINTS = 200  # points per curve
_MAX_POINTS_IN_TABLE = 10
_MAX_LABELS = 12  # labels with a name in the figure

_TILE = 56.0  # width and height of an image
_TILE_STEP = _TILE + 6
_PROFILE_WIDTH = 200.0
_PROFILE_HEIGHT = 96.0
_PROFILE_STEP = _PROFILE_HEIGHT + 22
_PROFILE_COLOURS = {"input": 0, "again": 1}


def thinned(n: int, most: int) -> list[int]:
    """Return at most `most` of `n` positions, evenly spread, including the first and the last one."""
    positions = np.linspace(0, n - 1, min(n, most)).round().astype(int)
    return sorted(set(positions.tolist()))


def _figure(
    title: str,
    description: str,
    elements: Sequence[Element],
    table: Table,
    note: str = "",
    size: tuple[float, float] = (_WIDTH, _HEIGHT),
) -> Figure:
    return Figure(title, description, picture(size, title, description, *elements), table, note)


# -- curves --------------------------------------------------------------------------------------------------------


def curves(title: str, lines: Mapping[str, Sequence[float]], levels: Mapping[str, float]) -> Figure:
    """Draw values over epochs, and constant levels to compare them with."""
    elements = _draw_curves(lines, levels)
    return _figure(title, _describe_curves(lines, levels), elements, _table_of_curves(title, lines))


def _draw_curves(lines: Mapping[str, Sequence[float]], levels: Mapping[str, float]) -> list[Element]:
    x, y = _scales_of_curves(lines, levels)
    elements = axes(x, y, "epoch", number)
    for i, (name, line) in enumerate(lines.items()):
        elements += _curve(line, x, y, colour(i))
        elements += _legend(x.start + 90 * i, _TOP - 10, name, colour(i))
    return [*elements, *_levels(levels, x, y)]


def _scales_of_curves(lines: Mapping[str, Sequence[float]], levels: Mapping[str, float]) -> tuple[Scale, Scale]:
    n_epochs = max(map(len, lines.values()))
    values = [value for line in lines.values() for value in line]
    x = Scale(0.5, n_epochs + 0.5, _LEFT, _RIGHT, is_whole=True)
    return x, Scale.over([*values, *levels.values()], _BOTTOM, _TOP, allows_log=True)


def _curve(line: Sequence[float], x: Scale, y: Scale, stroke: str) -> list[Element]:
    chosen = thinned(len(line), _MAX_POINTS)
    xs = [x(i + 1) for i in chosen]
    ys = [y(line[i]) for i in chosen]
    elements = [polyline(xs, ys, stroke, stroke_width=2)]
    if len(line) < 20:
        elements += [element("circle", cx=cx, cy=cy, r=2.5, fill=stroke) for cx, cy in zip(xs, ys, strict=True)]
    return elements


def _levels(levels: Mapping[str, float], x: Scale, y: Scale) -> list[Element]:
    """Draw constants as dashed lines with their names."""
    elements = []
    for i, (name, level) in enumerate(levels.items()):
        height = y(level)
        elements.append(polyline((x.start, x.end), (height, height), colour(9 - i), stroke_dasharray="5 4"))
        elements.append(text(x.start + 6, height - 4, name))
    return elements


def _legend(x: float, y: float, name: str, stroke: str) -> list[Element]:
    """Draw the name of a line, in the colour of other text, because not all colours of lines are readable."""
    return [polyline((x, x + 16), (y - 4, y - 4), stroke, stroke_width=3), text(x + 21, y, name)]


def _describe_curves(lines: Mapping[str, Sequence[float]], levels: Mapping[str, float]) -> str:
    n_epochs = max(map(len, lines.values()))
    ends = [f"{name} from {number(line[0])} to {number(line[-1])}" for name, line in lines.items()]
    constants = [f"{name} {number(level)}" for name, level in levels.items()]
    return f"{count(n_epochs)} epochs: {'; '.join([*ends, *constants])}."


def _table_of_curves(title: str, lines: Mapping[str, Sequence[float]]) -> Table:
    n_epochs = max(map(len, lines.values()))
    rows = []
    for i in thinned(n_epochs, _MAX_POINTS_IN_TABLE):
        rows.append([i + 1, *(number(line[i]) for line in lines.values())])
    return Table.of(title, ", ".join(["epoch", *lines]), rows)


# -- bars ----------------------------------------------------------------------------------------------------------


def bars(title: str, values: Mapping[str, float], to_text: Callable[[float], str] = number, note: str = "") -> Figure:
    """Draw one bar for each value, starting at 0."""
    texts = [(name, to_text(value)) for name, value in values.items()]
    description = "; ".join(f"{name}: {value}" for name, value in texts) + "."
    size = (_WIDTH, 16 + 30.0 * len(values))
    return _figure(title, description, _draw_bars(values, texts), Table.of(title, "name, value", texts), note, size)


def _draw_bars(values: Mapping[str, float], texts: Sequence[tuple[str, str]]) -> list[Element]:
    left = 10 + 7.2 * max(len(name) for name in values)
    x = Scale(0, max(values.values()) or 1, left, _WIDTH - 66)
    elements: list[Element] = []
    for i, (name, text_of_value) in enumerate(texts):
        elements += _bar(name, text_of_value, (x.start, x(values[name])), i)
    return elements


def _bar(name: str, value: str, ends: tuple[float, float], i: int) -> list[Element]:
    """Draw bar `i` between its name and its value."""
    left, right = ends
    top = 8 + 30 * i
    width = max(right - left, 1)
    return [
        text(left - 8, top + 16, name, "end"),
        element("rect", x=left, y=top, width=width, height=22, fill=colour(i), rx=2),
        text(left + width + 6, top + 16, value),
    ]


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], x_name: str, table: Table) -> Figure:
    """Draw the number of values in each bin.

    Parameters
    ----------
    table : Table
        Quantiles of the values.
    """
    fullest = int(np.argmax(counts))
    between = f"between {number(edges[fullest])} and {number(edges[fullest + 1])}"
    description = f"{count(sum(counts))} rows; the most frequent values are {between}."
    return _figure(title, description, _draw_bins(edges, counts, x_name), table)


def _draw_bins(edges: Sequence[float], counts: Sequence[int], x_name: str) -> list[Element]:
    x = Scale(edges[0], edges[-1], _LEFT, _RIGHT)
    y = Scale(0, max(counts) * 1.05 or 1, _BOTTOM, _TOP)
    elements = axes(x, y, x_name, number)
    for i, n in enumerate(counts):
        elements.append(_bin(x(edges[i]), x(edges[i + 1]), y(n), y.start))
    return elements


def _bin(left: float, right: float, top: float, bottom: float) -> Element:
    width = max(right - left - 1, 0.5)
    return element("rect", x=left + 0.5, y=top, width=width, height=bottom - top, fill=colour(0))


# -- points --------------------------------------------------------------------------------------------------------


def scatter(title: str, points: np.ndarray, codes: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw points (n, 2) in the colours of their labels, and the name of each label at the median of its points."""
    groups = [_Group(code, _label(code, names), points[codes == code]) for code in sorted(set(codes.tolist()))]
    colours = ""
    if names:
        colours = f", coloured by {len(groups)} labels"
    description = f"{count(len(points))} rows{colours}."
    has_names = bool(names) and len(groups) <= _MAX_LABELS
    rows = [group.table_row() for group in groups[:_MAX_LABELS]]
    table = Table.of(_title_of_medians(title, names, len(groups)), "label, rows, x, y", rows)
    return _figure(title, description, _draw_groups(groups, points, has_names), table)


def _draw_groups(groups: Sequence[_Group], points: np.ndarray, has_names: bool) -> list[Element]:
    x = Scale.over(points[:, 0].tolist(), 8, _WIDTH - 8)
    y = Scale.over(points[:, 1].tolist(), _HEIGHT - 8, 8)
    frame = element("rect", x=1, y=1, width=_WIDTH - 2, height=_HEIGHT - 2, class_="axis", fill="none")
    elements = [frame, *(group.dots(x, y) for group in groups)]
    if has_names:
        elements += [group.name_at_median(x, y) for group in groups]
    return elements


@dataclass(frozen=True)
class _Group:
    """Points (n, 2) with the same label."""

    code: int
    label: str
    points: np.ndarray

    def median(self) -> tuple[float, float]:
        a, b = np.median(self.points, axis=0).tolist()
        return a, b

    def dots(self, x: Scale, y: Scale) -> Element:
        """Draw the points as one path of lines of length 0, whose round ends look like dots."""
        line = "".join(f"M{x(a):.0f} {y(b):.0f}h0" for a, b in self.points)
        return element("path", d=line, stroke=colour(self.code), class_="dots", fill="none", stroke_width=4.5)

    def name_at_median(self, x: Scale, y: Scale) -> Element:
        a, b = self.median()
        return text(x(a), y(b), cut(self.label, 16), "middle", class_="halo", font_weight="bold")

    def table_row(self) -> tuple[str, str, str, str]:
        a, b = self.median()
        return cut(self.label, 24), count(len(self.points)), number(a), number(b)


def _label(code: int, names: Sequence[str]) -> str:
    if 0 <= code < len(names):
        return names[code]
    if names:
        return "no label"
    return "all"


def _title_of_medians(title: str, names: Sequence[str], n_labels: int) -> str:
    if not names:
        return f"{title}: median"
    if n_labels <= _MAX_LABELS:
        return f"{title}: median of each label"
    return f"{title}: medians of the first {_MAX_LABELS} of {n_labels} labels"


# -- rows and their reconstructions --------------------------------------------------------------------------------


def images(title: str, pairs: Sequence[Mapping[str, Any]], shape: Sequence[int], lines: Mapping[str, str]) -> Figure:
    """Draw rows as images.

    Parameters
    ----------
    pairs : sequence of mapping
        Images of each row in Base64, with its label and error.
    shape : sequence of int
        Shape of the images of rows. Images of features are always square.
    lines : mapping of str to str
        Keys of the images in `pairs`, and their names.
    """
    elements: list[Element] = []
    top = 16.0
    for key, name in lines.items():
        elements.append(text(0, top - 4, name))
        elements += _tiles([pair[key] for pair in pairs], None if key == "code" else shape, top)
        top += _TILE_STEP + 16
    elements += _short_labels(pairs, top - 8)
    description = f"{len(pairs)} rows as images, above their features and reconstructions; errors in the table."
    return _figure(title, description, elements, _table_of_pairs(title, pairs), size=(len(pairs) * _TILE_STEP, top))


def _short_labels(pairs: Sequence[Mapping[str, Any]], y: float) -> list[Element]:
    """Draw the label of each row, or its error if it has no label."""
    elements = []
    for i, pair in enumerate(pairs):
        label = number(pair["error"])
        if pair.get("label") is not None:
            label = cut(pair["label"], 9)
        elements.append(text(i * _TILE_STEP + _TILE / 2, y, label, "middle"))
    return elements


def _tiles(data: Sequence[str], shape: Sequence[int] | None, top: float) -> list[Element]:
    """Draw images next to each other."""
    return [image(_pixels(each, shape), (i * _TILE_STEP, top, _TILE, _TILE)) for i, each in enumerate(data)]


def _pixels(data: str, shape: Sequence[int] | None) -> np.ndarray:
    """Return the image in a Base64 string. The image is square if `shape` is None."""
    values = np.frombuffer(b64decode(data), np.uint8)
    if shape is None:
        side = int(np.sqrt(len(values)))
        shape = (side, side)
    return values.reshape(shape)


def profiles(title: str, pairs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw rows as lines over their columns, and their reconstructions."""
    elements: list[Element] = []
    for i, pair in enumerate(pairs):
        line, side = divmod(i, 2)
        elements += _profile(pair, left=side * (_PROFILE_WIDTH + 20), top=line * _PROFILE_STEP + 14)
    n_lines = -(-len(pairs) // 2)
    bottom = n_lines * _PROFILE_STEP + 20
    elements += _legend_of_profiles(bottom - 4)
    description = f"{len(pairs)} rows and their reconstructions, plotted over the columns; errors in the table."
    size = (2 * _PROFILE_WIDTH + 20, bottom)
    return _figure(title, description, elements, _table_of_pairs(title, pairs), size=size)


def _legend_of_profiles(y: float) -> list[Element]:
    row = _legend(0, y, "scaled row", colour(_PROFILE_COLOURS["input"]))
    reconstruction = _legend(140, y, "reconstruction", colour(_PROFILE_COLOURS["again"]))
    return [*row, *reconstruction]


def _profile(pair: Mapping[str, Any], left: float, top: float) -> list[Element]:
    """Draw a row and its reconstruction, with its label and error above them."""
    words = f"error {number(pair['error'])}"
    if pair.get("label") is not None:
        words = f"{cut(pair['label'], 14)}, {words}"
    width = _PROFILE_WIDTH
    frame = element("rect", x=left, y=top, width=width, height=_PROFILE_HEIGHT, class_="axis", fill="none")
    lines = [_profile_line(pair[key], left, top, colour(i)) for key, i in _PROFILE_COLOURS.items()]
    return [frame, *lines, text(left, top - 4, words)]


def _profile_line(values: Sequence[float], left: float, top: float, stroke: str) -> Element:
    x = Scale(0, max(len(values) - 1, 1), left, left + _PROFILE_WIDTH)
    y = Scale(-0.05, 1.05, top + _PROFILE_HEIGHT, top)
    xs = [x(column) for column in range(len(values))]
    ys = [y(value) for value in np.clip(values, -0.05, 1.05)]
    return polyline(xs, ys, stroke, stroke_width=1.6)


def _table_of_pairs(title: str, pairs: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for pair in pairs:
        label = cut(pair["label"] or "-", 24)
        rows.append((label, path(pair["file"], 40), count(pair["row"]), number(pair["error"])))
    return Table.of(title, "label, file, row, error", rows)
