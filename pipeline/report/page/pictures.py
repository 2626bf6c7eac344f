"""The pictures of a report, each from plain numbers, with these numbers in a table beside it."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report.page.document import Figure, Table
from pipeline.report.page.svg import Element, Scale, axes, colour, element, image, picture, polyline, text
from pipeline.report.page.words import count, cut, number, path

__all__ = ["bars", "curves", "histogram", "images", "profiles", "scatter", "thinned"]

_WIDTH, _HEIGHT = 420.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 24.0, 40.0
_MOST_POINTS, _TOLD = 200, 10  # of a curve: that are drawn, and that its table has
_TILE = 56.0
_MOST_LABELS = 12  # that are named


def thinned(n: int, most: int) -> list[int]:
    """At most so many of n positions, evenly spread, the first and the last among them."""
    return sorted(set(np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist()))


def curves(title: str, lines: Mapping[str, Sequence[float]], levels: Mapping[str, float]) -> Figure:
    """Values over epochs, and levels to hold them against."""
    n = max(map(len, lines.values()))
    y_values = [value for line in lines.values() for value in line] + list(levels.values())
    x = Scale(0.5, n + 0.5, _LEFT, _WIDTH - _RIGHT, is_whole=True)
    y = Scale.over(y_values, _HEIGHT - _BOTTOM, _TOP, may_log=True)
    drawn = axes(x, y, "epoch", number)
    for i, (name, line) in enumerate(lines.items()):
        chosen = thinned(len(line), _MOST_POINTS)
        places = [x(at + 1) for at in chosen], [y(line[at]) for at in chosen]
        drawn.append(polyline(*places, colour(i), stroke_width=2))
        if n < 20:
            drawn += [element("circle", cx=a, cy=b, r=2.5, fill=colour(i)) for a, b in zip(*places, strict=True)]
        drawn += _legend(x.start + 90 * i, _TOP - 10, name, colour(i))
    for i, (name, level) in enumerate(levels.items()):
        line_of = polyline((x.start, x.end), (y(level), y(level)), colour(9 - i), stroke_dasharray="5 4")
        drawn += [line_of, text(x.start + 6, y(level) - 4, name)]
    rows = [[at + 1, *(number(line[at]) for line in lines.values())] for at in thinned(n, _TOLD)]
    table = Table.of(title, ", ".join(["epoch", *lines]), rows)
    ends = "; ".join(f"{name} goes from {number(line[0])} to {number(line[-1])}" for name, line in lines.items())
    beside = "".join(f"; {name} has {number(level)}" for name, level in levels.items())
    description = f"Over {count(n)} epochs {ends}{beside}."
    return Figure(title, description, picture((_WIDTH, _HEIGHT), title, description, *drawn), table)


def _legend(x: float, y: float, name: str, stroke: str) -> list[Element]:
    """What a line is called; in the colour of all text, since not every colour can be read."""
    return [polyline((x, x + 16), (y - 4, y - 4), stroke, stroke_width=3), text(x + 21, y, name)]


def bars(title: str, values: Mapping[str, float], spelled: Any = number, note: str = "") -> Figure:
    """A bar for each value, from 0."""
    names, height = list(values), 16 + 30.0 * len(values)
    left = 10 + 7.2 * max(len(name) for name in names)
    x = Scale(0, max(values.values()) or 1, left, _WIDTH - 66)
    drawn: list[Element] = []
    for i, (name, value) in enumerate(values.items()):
        top = 8 + 30 * i
        width = max(x(value) - left, 1)
        drawn += [
            text(left - 8, top + 16, name, "end"),
            element("rect", x=left, y=top, width=width, height=22, fill=colour(i), rx=2),
            text(left + width + 6, top + 16, spelled(value)),
        ]
    description = "; ".join(f"{name}: {spelled(value)}" for name, value in values.items()) + "."
    table = Table.of(title, "what, value", [(name, spelled(value)) for name, value in values.items()])
    return Figure(title, description, picture((_WIDTH, height), title, description, *drawn), table, note)


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], x_name: str, table: Table) -> Figure:
    """How often values lie between each two edges; `table` tells their quantiles."""
    x = Scale(edges[0], edges[-1], _LEFT, _WIDTH - _RIGHT)
    y = Scale(0, max(counts) * 1.05 or 1, _HEIGHT - _BOTTOM, _TOP)
    drawn = axes(x, y, x_name, number)
    for low, high, n in zip(edges, edges[1:], counts, strict=False):
        place: dict[str, Any] = {
            "x": x(low) + 0.5,
            "y": y(n),
            "width": max(x(high) - x(low) - 1, 0.5),
            "height": y.start - y(n),
        }
        drawn.append(element("rect", **place, fill=colour(0)))
    fullest = int(np.argmax(counts))
    description = (
        f"{count(sum(counts))} rows, most often between {number(edges[fullest])} and {number(edges[fullest + 1])}."
    )
    return Figure(title, description, picture((_WIDTH, _HEIGHT), title, description, *drawn), table)


def scatter(title: str, points: np.ndarray, codes: np.ndarray, names: Sequence[str]) -> Figure:
    """Points (n, 2) in the colours of their groups, each of these named where its middle lies."""
    x = Scale.over(points[:, 0].tolist(), 8, _WIDTH - 8)
    y = Scale.over(points[:, 1].tolist(), _HEIGHT - 8, 8)
    dots, middles, rows = list[Element](), list[Element](), list[list[str]]()
    nobody = "no label" if names else "all"
    for code in sorted(set(codes.tolist())):
        these, name = points[codes == code], names[code] if 0 <= code < len(names) else nobody
        line = "".join(f"M{x(a):.0f} {y(b):.0f}h0" for a, b in these)  # a line of no length with round ends is a dot
        dots.append(element("path", d=line, stroke=colour(code), class_="dots", fill="none", stroke_width=4.5))
        a, b = np.median(these, axis=0)
        middles.append(text(x(a), y(b), cut(name, 16), "middle", class_="halo", font_weight="bold"))
        rows.append([cut(name, 24), count(len(these)), number(a), number(b)])
    frame = element("rect", x=1, y=1, width=_WIDTH - 2, height=_HEIGHT - 2, class_="axis", fill="none")
    description = f"{count(len(points))} rows" + (f" in the colours of {len(rows)} labels." if names else ".")
    drawn = [frame, *dots, *(middles if names and len(middles) <= _MOST_LABELS else ())]
    which = "each label" if len(rows) <= _MOST_LABELS else f"the first {_MOST_LABELS} of {len(rows)} labels"
    middle = f"{title}: the middle of {which}" if names else f"{title}: the middle"
    table = Table.of(middle, "label, rows, across, up", rows[:_MOST_LABELS])
    return Figure(title, description, picture((_WIDTH, _HEIGHT), title, description, *drawn), table)


def images(title: str, pairs: Sequence[Mapping[str, Any]], shape: Sequence[int], lines: Mapping[str, str]) -> Figure:
    """Rows as images: for each of `lines` the pictures that stand under its key, above what it is called."""
    n, drawn = len(pairs), list[Element]()
    step = _TILE + 6
    for j, (key, name) in enumerate(lines.items()):
        top = 16 + j * (step + 16)
        drawn.append(text(0, top - 4, name))
        for i, pair in enumerate(pairs):
            values = np.frombuffer(b64decode(pair[key]), np.uint8)
            side = int(np.sqrt(len(values)))
            pixels = values.reshape(shape if key != "code" else (side, side))
            drawn.append(image(pixels, (i * step, top, _TILE, _TILE)))
    bottom = 16 + len(lines) * (step + 16)
    for i, pair in enumerate(pairs):
        words = cut(pair["label"], 9) if pair.get("label") is not None else number(pair["error"])
        drawn.append(text(i * step + _TILE / 2, bottom - 8, words, "middle"))
    description = f"{n} rows as images, above what their features give back; errors in the table."
    return Figure(title, description, picture((n * step, bottom), title, description, *drawn), _told(title, pairs))


def profiles(title: str, pairs: Sequence[Mapping[str, Any]]) -> Figure:
    """Rows as lines over their columns, and what their features give back."""
    drawn, width, height = list[Element](), 200.0, 96.0
    for i, pair in enumerate(pairs):
        left, top = (i % 2) * (width + 20), (i // 2) * (height + 22) + 14
        x = Scale(0, max(len(pair["input"]) - 1, 1), left, left + width)
        y = Scale(-0.05, 1.05, top + height, top)
        drawn.append(element("rect", x=left, y=top, width=width, height=height, class_="axis", fill="none"))
        for k, key in enumerate(("input", "again")):
            values = np.clip(pair[key], -0.05, 1.05)
            places = [x(at) for at in range(len(values))], [y(value) for value in values]
            drawn.append(polyline(*places, colour(k), stroke_width=1.6))
        words = f"{cut(pair['label'], 14)}, error " if pair.get("label") is not None else "error "
        drawn.append(text(left, top - 4, words + number(pair["error"])))
    bottom = -(-len(pairs) // 2) * (height + 22) + 20
    drawn += _legend(0, bottom - 4, "the row, scaled", colour(0))
    drawn += _legend(140, bottom - 4, "and again, from its features", colour(1))
    description = f"{len(pairs)} rows over their columns, and what their features give back; errors in the table."
    size = 2 * width + 20, bottom
    return Figure(title, description, picture(size, title, description, *drawn), _told(title, pairs))


def _told(title: str, pairs: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (cut(pair["label"] or "-", 24), path(pair["file"], 40), count(pair["row"]), number(pair["error"]))
        for pair in pairs
    ]
    return Table.of(title, "label, file, row, error", rows)
