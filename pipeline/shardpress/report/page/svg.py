"""Inline SVG: elements, scales and axes, in colours that are visible on white and on black."""

from __future__ import annotations

import math
import re
import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from shardpress.report.words import number

# Each colour has one meaning on the whole page.
FEATURES = "#3b7dd8"
"""Colour of features, and of everything that is computed from them."""
COMPARED = "#7d7d7d"
"""Colour of everything that features are compared with: input rows, baselines, rows without a label."""
LABELS = ("#d9660f", "#2b8f4a", "#9a5fd0", "#d6404c", "#8a7a10", "#c9498f", "#a5683a")
"""Colours of labels. More labels are distinguished by the shape of their points."""

_LIMITS = (0.01, 0.99)  # quantiles that determine the ends of an axis; usual distributions fit on it completely
_WIDENING = 0.5  # share of the distance between these quantiles by which an axis is longer at each end


def element(name: str, *inside: str, **attributes: object) -> str:
    """Return the markup of an SVG element. Underscores in the names of attributes become hyphens."""
    words = [f' {key.rstrip("_").replace("_", "-")}="{escape(_rounded(value))}"' for key, value in attributes.items()]
    content = "".join(inside)
    end = f">{content}</{name}>" if content else "/>"
    return f"<{name}{''.join(words)}{end}"


def picture(size: tuple[float, float], title: str, description: str, *children: str) -> str:
    """Return the markup of a picture that has a title and a description, and that scales with the page."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    width, height = size
    return element(
        "svg",
        element("title", escape(title, quote=False), id=f"{name}-title"),
        element("desc", escape(description, quote=False), id=f"{name}-desc"),
        *children,
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        viewBox=f"0 0 {_rounded(width)} {_rounded(height)}",
        width=width,
        height=height,
    )


def text(x: float, y: float, content: str, anchor: str = "start", **attributes: object) -> str:
    """Return a line of text."""
    return element("text", escape(content, quote=False), x=x, y=y, text_anchor=anchor, **attributes)


def polyline(xs: ArrayLike, ys: ArrayLike, **attributes: object) -> str:
    """Return points joined by lines."""
    positions = np.column_stack([xs, ys]).tolist()
    points = " ".join(f"{_rounded(x)},{_rounded(y)}" for x, y in positions)
    return element("polyline", points=points, fill="none", **attributes)


@dataclass(frozen=True)
class Scale:
    """Map from values between `low` and `high` to positions between `start` and `end`, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    is_whole: bool = False  # whether all values are whole numbers

    @classmethod
    def over(cls, values: np.ndarray, start: float, end: float, allows_log: bool = False) -> Scale:
        """Return a scale for values, with a margin. A few outliers are beyond its ends.

        The scale is logarithmic if `allows_log` is true and the values span more than a decade.
        """
        inner_low, inner_high = np.quantile(values, _LIMITS).tolist()
        widening = _WIDENING * (inner_high - inner_low)
        low = max(float(values.min()), inner_low - widening)
        high = min(float(values.max()), inner_high + widening)
        if allows_log and low > 0 and high / low > 10:
            return cls(low / 1.1, high * 1.1, start, end, is_log=True)
        margin = 0.04 * (high - low) or abs(high) or 1.0
        return cls(low - margin, high + margin, start, end)

    def __call__(self, values: ArrayLike) -> Any:
        """Return the positions of values. Values beyond the ends have the positions of the ends."""
        ends = np.array([self.low, self.high])
        inside = np.clip(values, *ends)
        if self.is_log:
            ends = np.log(ends)
            inside = np.log(inside)
        return np.interp(inside, ends, (self.start, self.end))

    def ticks(self) -> list[float]:
        """Return two to six round values."""
        if self.is_log:
            return self._log_ticks()
        step = (self.high - self.low) / 4
        unit = 10.0 ** math.floor(math.log10(step))
        step = unit * min((1, 2, 5, 10), key=lambda factor: abs(factor * unit - step))
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step)
        ticks = [i * step for i in range(first, last + 1)]
        return [tick for tick in ticks if not self.is_whole or tick == round(tick)]

    def _log_ticks(self) -> list[float]:
        first = math.floor(math.log10(self.low))
        last = math.ceil(math.log10(self.high))
        factors = [1, 2, 5] if last - first < 3 else [1]
        ticks = [factor * 10.0**exponent for exponent in range(first, last + 1) for factor in factors]
        inside = [tick for tick in ticks if self.low <= tick <= self.high]
        return inside[:: max(1, (last - first) // 5)]


def axes(x: Scale, y: Scale, x_name: str) -> list[str]:
    """Return the lines of both axes, their ticks, and the name of the horizontal axis."""
    elements = [polyline((x.start, x.start, x.end), (y.end, y.start, y.start), class_="axis")]
    for tick in y.ticks():
        elements.append(polyline((x.start, x.end), (y(tick), y(tick)), class_="grid"))
        elements.append(text(x.start - 5, y(tick) + 4, number(tick), "end"))
    for tick in x.ticks():
        elements.append(text(x(tick), y.start + 15, number(tick), "middle"))
    elements.append(text(x.end, y.start + 29, x_name, "end"))
    return elements


def frame(x: float, y: float, width: float, height: float) -> str:
    """Return the frame of a plot without ticks."""
    return element("rect", x=x, y=y, width=width, height=height, class_="axis", fill="none")


def _rounded(value: object) -> str:
    if isinstance(value, (int, float)):  # includes np.float64
        return f"{value:.1f}".removesuffix(".0")
    return str(value)


def image(pixels: np.ndarray, x: float, y: float, side: float) -> str:
    """Return an element with pixels (height, width) or (height, width, 3), uint8."""
    data = "data:image/png;base64," + b64encode(_png(pixels)).decode()
    return element("image", href=data, x=x, y=y, width=side, height=side, style="image-rendering:pixelated")


def _png(pixels: np.ndarray) -> bytes:
    """Return Portable Network Graphics (ISO/IEC 15948) with 8 bits per channel and no filter."""
    height, width = pixels.shape[:2]
    colour_type = 2 if pixels.ndim == 3 else 0  # RGB or grey
    lines = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # each line begins with the number of its filter
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
