"""Figures of a page. Each figure is drawn from plain numbers, and has a table with these numbers."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shardpress.report.page.document import Figure, Table
from shardpress.report.page.svg import (
    COMPARED,
    FEATURES,
    LABELS,
    Scale,
    axes,
    element,
    frame,
    image,
    picture,
    polyline,
    text,
)
from shardpress.report.words import cut, number, path
from shardpress.result.facts import Pair

_WIDTH = 420.0
_HEIGHT = 260.0
_LEFT = 58.0
_RIGHT = _WIDTH - 12.0
_TOP = 24.0
_BOTTOM = _HEIGHT - 40.0

_LETTER = 7.6  # width of a letter on a phone, where text is larger
_MAX_POINTS = 80  # points per curve
_MAX_POINTS_IN_TABLE = 10
_MAX_LABELS = 12  # labels with a colour and a name; all others are drawn like rows without a label
_LEGEND_COLUMNS = 3
_LEGEND_STEP = 20.0

_TILE = 56.0  # width and height of an image
_TILE_STEP = _TILE + 6
_LARGE = "font-size:15px"  # the figure of images is wider than others, and so is drawn smaller
_DOTTED: dict[str, object] = {"stroke_dasharray": "2 3"}
_DASHED: dict[str, object] = {"stroke_dasharray": "5 4", "stroke_width": 2}
_PROFILE_WIDTH = 200.0
_PROFILE_HEIGHT = 96.0
_PROFILE_STEP = _PROFILE_HEIGHT + 22


# -- curves --------------------------------------------------------------------------------------------------------


def curves(title: str, lines: Mapping[str, Sequence[float]], levels: Mapping[str, float]) -> Figure:
    """Draw values over epochs, and constant levels to compare them with.

    The last line is the one that counts, and is drawn solid. The others are dotted, and levels are dashed.
    """
    n_epochs = max(map(len, lines.values()))
    rows = [[i + 1, *(line[i] for line in lines.values())] for i in _thinned(n_epochs, _MAX_POINTS_IN_TABLE)]
    ends = [f"{name} from {number(line[0])} to {number(line[-1])}" for name, line in lines.items()]
    constants = [f"{name} {number(level)}" for name, level in levels.items()]
    description = f"{n_epochs:,} epochs: {'; '.join([*ends, *constants])}."
    svg = picture((_WIDTH, _HEIGHT), title, description, *_draw_curves(lines, levels, n_epochs))
    return Figure(title, svg, Table.of(title, ", ".join(["epoch", *lines]), rows))


def _draw_curves(lines: Mapping[str, Sequence[float]], levels: Mapping[str, float], n_epochs: int) -> list[str]:
    x = Scale(0.5, n_epochs + 0.5, _LEFT, _RIGHT, is_whole=True)
    y = Scale.over(np.concatenate([*lines.values(), list(levels.values())]), _BOTTOM, _TOP, allows_log=True)
    elements = axes(x, y, "epoch")
    left = x.start
    for name, line in lines.items():
        style = {} if name == list(lines)[-1] else _DOTTED
        chosen = np.array(_thinned(len(line), _MAX_POINTS))
        xs = x(chosen + 1)
        ys = y(np.array(line)[chosen])
        elements.append(polyline(xs, ys, stroke=FEATURES, stroke_width=2, **style))
        if len(line) == 1:
            elements.append(element("circle", cx=xs[0], cy=ys[0], r=3, fill=FEATURES))
        elements += _legend(left, _TOP - 10, name, stroke=FEATURES, **style)
        left += 90
    for name, level in levels.items():
        elements.append(polyline((x.start, x.end), (y(level), y(level)), stroke=COMPARED, **_DASHED))
        elements += _legend(left, _TOP - 10, name, stroke=COMPARED, **_DASHED)
        left += 90
    return elements


def _thinned(n: int, most: int) -> list[int]:
    """Return at most `most` of `n` positions, evenly spread, including the first and the last one."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist()


def _legend(x: float, y: float, name: str, **style: object) -> list[str]:
    """Draw the name of a line, in the colour of other text, because not all colours of lines are readable."""
    line = polyline((x, x + 16), (y - 4, y - 4), **{"stroke_width": 3, **style})
    return [line, text(x + 21, y, name)]


# -- bars ----------------------------------------------------------------------------------------------------------


def bars(title: str, values: Mapping[str, float], to_text: Callable[[float], str] = number, note: str = "") -> Figure:
    """Draw one bar for each value, starting at 0; negative ones are empty. The first value is that of the features."""
    texts = [(name, to_text(value)) for name, value in values.items()]
    description = "; ".join(f"{name}: {value}" for name, value in texts) + "."
    left = 12 + _LETTER * max(len(name) for name in values)
    x = Scale(0, max(0, *values.values()) or 1, left, _WIDTH - 76)
    elements = []
    for i, (name, value_text) in enumerate(texts):
        top = 8 + 30 * i
        width = max(x(values[name]) - left, 1)
        fill = COMPARED if i else FEATURES
        elements.append(text(left - 8, top + 16, name, "end"))
        elements.append(element("rect", x=left, y=top, width=width, height=22, fill=fill, rx=2))
        elements.append(text(left + width + 6, top + 16, value_text))
    svg = picture((_WIDTH, 16 + 30.0 * len(values)), title, description, *elements)
    return Figure(title, svg, Table.of(title, "name, value", texts), note)


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], x_name: str, table: Table) -> Figure:
    """Draw the number of values in each bin. `table` contains quantiles of the values."""
    fullest = int(np.argmax(counts))
    between = f"between {number(edges[fullest])} and {number(edges[fullest + 1])}"
    description = f"{sum(counts):,} rows; the most frequent values are {between}."
    x = Scale(edges[0], edges[-1], _LEFT, _RIGHT)
    y = Scale(0, max(counts) * 1.05 or 1, _BOTTOM, _TOP)
    elements = axes(x, y, x_name)
    lefts = x(edges)
    for left, width, top in zip(lefts, np.diff(lefts), y(counts), strict=False):
        bar = {"x": left + 0.5, "y": top, "width": max(width - 1, 0.5), "height": y.start - top}
        elements.append(element("rect", **bar, fill=FEATURES))
    return Figure(title, picture((_WIDTH, _HEIGHT), title, description, *elements), table)


# -- points --------------------------------------------------------------------------------------------------------


def scatter(title: str, points: np.ndarray, codes: np.ndarray, names: Sequence[str], colour: str) -> Figure:
    """Draw points (n, 2) in the colours of their labels, with a legend. A few outliers are drawn at the frame.

    If the rows have no labels, `names` is empty, and the points have the given colour.
    """
    groups = _groups(points, codes, names) if names else [_Group("all", points, colour)]
    x = Scale.over(points[:, 0], 8, _WIDTH - 8)
    y = Scale.over(points[:, 1], _HEIGHT - 8, 8)
    description = f"{len(points):,} rows."
    bottom = _HEIGHT
    elements = [frame(1, 1, _WIDTH - 2, _HEIGHT - 2)]
    elements += [group.dots(x(group.points[:, 0]), y(group.points[:, 1])) for group in groups]
    if names:
        elements += _legend_of_points(groups)
        bottom += 10 + _LEGEND_STEP * -(-len(groups) // _LEGEND_COLUMNS)
        description = f"{len(points):,} rows, coloured by {len(np.unique(codes))} labels."
    rows = []
    for group in groups:
        rows.append((cut(group.label, 24), len(group.points), *np.median(group.points, axis=0).tolist()))
    table = Table.of(f"{title}: median of each label", "label, rows, x, y", rows)
    return Figure(title, picture((_WIDTH, bottom), title, description, *elements), table)


@dataclass(frozen=True)
class _Group:
    """Points (n, 2) with the same label, and how they are drawn."""

    label: str
    points: np.ndarray
    colour: str
    cap: str = "round"  # end of lines, and so the shape of points

    def dots(self, xs: np.ndarray, ys: np.ndarray, width: float = 4.5) -> str:
        """Draw points as one path of lines of length 0, whose ends look like dots or squares."""
        line = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
        if self.cap == "square":
            width *= 0.9  # a square of the same width looks larger
        style: dict[str, object] = {"stroke": self.colour, "stroke_width": width, "stroke_linecap": self.cap}
        return element("path", d=line, class_="dots", **style)


def _groups(points: np.ndarray, codes: np.ndarray, names: Sequence[str]) -> list[_Group]:
    """Return the points of each label. Rare labels, and points without a label, are drawn first, in one group."""
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    most_frequent = np.argsort(-sizes, kind="stable")[:_MAX_LABELS].tolist()
    shown = sorted(code for code in most_frequent if sizes[code])
    groups = []
    others = points[~np.isin(codes, shown)]
    if len(others):
        name = "no label" if (sizes > 0).sum() <= len(shown) else "all others"
        groups.append(_Group(name, others, COMPARED))
    for i, code in enumerate(shown):
        cap = "round" if i < len(LABELS) else "square"
        groups.append(_Group(names[code], points[codes == code], LABELS[i % len(LABELS)], cap))
    return groups


def _legend_of_points(groups: Sequence[_Group]) -> list[str]:
    elements = []
    for i, group in enumerate(groups):
        line, column = divmod(i, _LEGEND_COLUMNS)
        left = 8 + column * (_WIDTH - 8) / _LEGEND_COLUMNS
        top = _HEIGHT + 20 + _LEGEND_STEP * line
        elements.append(group.dots(np.array([left]), np.array([top - 4]), width=8))
        elements.append(text(left + 10, top, cut(group.label, 14)))
    return elements


# -- rows and their reconstructions --------------------------------------------------------------------------------


def images(title: str, pairs: Sequence[Pair], shape: Sequence[int]) -> Figure:
    """Draw rows as images of a shape, above their reconstructions, with their labels or errors below."""
    elements = []
    for top, name, drawn in (
        (20.0, "rows", [pair.input for pair in pairs]),
        (40.0 + _TILE_STEP, "reconstructions", [pair.again for pair in pairs]),
    ):
        elements.append(text(0, top - 5, name, style=_LARGE))
        for i, encoded in enumerate(drawn):
            assert isinstance(encoded, str)
            pixels = np.frombuffer(b64decode(encoded), np.uint8).reshape(shape)
            elements.append(image(pixels, i * _TILE_STEP, top, _TILE))
    bottom = 60 + 2 * _TILE_STEP
    for i, pair in enumerate(pairs):
        label = number(pair.error) if pair.label is None else cut(pair.label, 7)
        elements.append(text(i * _TILE_STEP + _TILE / 2, bottom - 8, label, "middle", style=_LARGE))
    description = f"{len(pairs)} rows as images, above their reconstructions; errors in the table."
    svg = picture((len(pairs) * _TILE_STEP, bottom), title, description, *elements)
    return Figure(title, svg, _table_of_pairs(title, pairs))


def profiles(title: str, pairs: Sequence[Pair]) -> Figure:
    """Draw rows as lines over their columns, and their reconstructions."""
    elements: list[str] = []
    values = np.concatenate([line for pair in pairs for line, _ in _lines_of(pair)])
    ends = Scale.over(values, 0, 1)  # the same for all rows, so that they can be compared
    for i, pair in enumerate(pairs):
        line, side = divmod(i, 2)
        elements += _profile(pair, side * (_PROFILE_WIDTH + 20), line * _PROFILE_STEP + 14, ends)
    n_lines = -(-len(pairs) // 2)
    bottom = n_lines * _PROFILE_STEP + 20
    elements += _legend(0, bottom - 4, "scaled row", stroke=COMPARED)
    elements += _legend(140, bottom - 4, "reconstruction", stroke=FEATURES)
    description = f"{len(pairs)} rows and their reconstructions, plotted over the columns; errors in the table."
    svg = picture((2 * _PROFILE_WIDTH + 20, bottom), title, description, *elements)
    return Figure(title, svg, _table_of_pairs(title, pairs))


def _lines_of(pair: Pair) -> Iterator[tuple[list[float], str]]:
    """Yield the values of a row and of its reconstruction, with their colours."""
    for line, colour in ((pair.input, COMPARED), (pair.again, FEATURES)):
        assert isinstance(line, list)
        yield line, colour


def _profile(pair: Pair, left: float, top: float, ends: Scale) -> list[str]:
    """Draw a row and its reconstruction, with its label and error above them."""
    words = f"error {number(pair.error)}"
    if pair.label is not None:
        words = f"{cut(pair.label, 10)}, {words}"
    y = replace(ends, start=top + _PROFILE_HEIGHT, end=top)
    elements = [frame(left, top, _PROFILE_WIDTH, _PROFILE_HEIGHT)]
    for line, colour in _lines_of(pair):
        xs = np.linspace(left, left + _PROFILE_WIDTH, len(line))
        elements.append(polyline(xs, y(line), stroke=colour, stroke_width=1.6))
    return [*elements, text(left, top - 4, words)]


def _table_of_pairs(title: str, pairs: Sequence[Pair]) -> Table:
    rows = [(cut(pair.label or "-", 24), path(pair.file, 40), pair.row, pair.error) for pair in pairs]
    return Table.of(title, "label, file, row, error", rows)
