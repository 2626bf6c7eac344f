"""Pictures as inline SVG, written small: elements, scales and axes. Colours that tell on white and on black alike."""

from __future__ import annotations

import math
import re
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

__all__ = ["COLOURS", "Element", "Scale", "axes", "colour", "element", "image", "picture", "polyline", "text"]

COLOURS = (
    *("#3b7dd8", "#d9660f", "#2b8f4a", "#d6404c", "#9a5fd0"),
    *("#1788a0", "#c9498f", "#8a7a10", "#a5683a", "#7d7d7d"),
)

Element = ElementTree.Element


def colour(i: int) -> str:
    """Of the i-th of several things."""
    return COLOURS[i % len(COLOURS)]


def element(name: str, *children: Element, content: str = "", **attributes: Any) -> Element:
    """An SVG element; underscores in attributes' names stand for hyphens."""
    plain = {key.rstrip("_").replace("_", "-"): _spelled(value) for key, value in attributes.items()}
    made = ElementTree.Element(name, plain)
    made.text = content or None
    made.extend(children)
    return made


def picture(size: tuple[float, float], title: str, description: str, *children: Element) -> str:
    """The whole of one: markup that names and describes itself, and grows and shrinks with the page."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    named: dict[str, Any] = {"role": "img", "aria_labelledby": f"{name}-title {name}-desc"}
    width, height = size
    root = element(
        "svg",
        element("title", content=title, id=f"{name}-title"),
        element("desc", content=description, id=f"{name}-desc"),
        *children,
        **named,
        viewBox=f"0 0 {_spelled(width)} {_spelled(height)}",
        width=width,
        height=height,
    )
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def text(x: float, y: float, content: str, anchor: str = "start", **attributes: Any) -> Element:
    """A line of text."""
    return element("text", content=content, x=x, y=y, text_anchor=anchor, **attributes)


def polyline(xs: Sequence[float], ys: Sequence[float], stroke: str, **attributes: Any) -> Element:
    """Points joined by lines."""
    points = " ".join(f"{_spelled(x)},{_spelled(y)}" for x, y in zip(xs, ys, strict=True))
    return element("polyline", points=points, fill="none", stroke=stroke, **attributes)


@dataclass(frozen=True)
class Scale:
    """From values to places on the picture, by their logarithms or as they are."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    is_whole: bool = False  # whether nothing lies between whole numbers

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, may_log: bool = False) -> Scale:
        """One that holds all values with a margin; logarithmic where these span more than a decade and may be."""
        low, high = min(values), max(values)
        if may_log and low > 0 and high / low > 10:
            return cls(low / 1.1, high * 1.1, start, end, True)
        margin = 0.04 * (high - low) or abs(high) or 1.0
        return cls(low - margin, high + margin, start, end)

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        low, high, at = map(math.log, (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Two to six round values."""
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            tens = [f * 10.0**e for e in range(first, last + 1) for f in ((1, 2, 5) if last - first < 3 else (1,))]
            return [tick for tick in tens if self.low <= tick <= self.high][:: max(1, (last - first) // 5)]
        rough = (self.high - self.low) / 4
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * min((1, 2, 5, 10), key=lambda factor: abs(factor * unit - rough))
        first = math.ceil(self.low / step)
        ticks = [i * step for i in range(first, math.floor(self.high / step) + 1)]
        return [tick for tick in ticks if not self.is_whole or tick == round(tick)]


def axes(x: Scale, y: Scale, x_name: str, spelled: Callable[[float], str] = "{:.3g}".format) -> list[Element]:
    """Lines of both axes with their ticks' values, and what lies along the horizontal one."""
    made = [
        element("path", d=_path((x.start, y.end), (x.start, y.start), (x.end, y.start)), class_="axis", fill="none")
    ]
    for tick in y.ticks():
        at = y(tick)
        made += [
            element("path", d=_path((x.start, at), (x.end, at)), class_="grid"),
            text(x.start - 5, at + 4, spelled(tick), "end"),
        ]
    made += [text(x(tick), y.start + 15, spelled(tick), "middle") for tick in x.ticks()]
    return [*made, text(x.end, y.start + 29, x_name, "end")]


def _path(*points: tuple[float, float]) -> str:
    return "M" + "L".join(f"{_spelled(x)} {_spelled(y)}" for x, y in points)


def _spelled(value: object) -> str:
    if isinstance(value, (int, float, np.floating, np.integer)):
        return f"{float(value):.1f}".removesuffix(".0")
    return str(value)


def image(pixels: np.ndarray, place: tuple[float, float, float, float]) -> Element:
    """Pixels (height, width), or (height, width, 3) in colour, uint8, at x, y, width and height, as data."""
    x, y, width, height = place
    data = "data:image/png;base64," + b64encode(_png(pixels)).decode()
    return element("image", href=data, x=x, y=y, width=width, height=height, style="image-rendering:pixelated")


def _png(pixels: np.ndarray) -> bytes:
    """Portable Network Graphics (ISO/IEC 15948), 8 bits a channel, no filter."""
    height, width = pixels.shape[:2]
    kind = 2 if pixels.ndim == 3 else 0  # colour, or shades of grey
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
