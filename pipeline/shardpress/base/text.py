"""Durations and sizes as text."""

from __future__ import annotations

_LONGEST_IN_SECONDS = 119.5


def duration(seconds: float, decimals_below: float = 0.0) -> str:
    """Return a rounded duration: ``40 s``, ``12 min``, ``3 h 05 min``, or ``4.2 s`` below `decimals_below` seconds."""
    if seconds < min(decimals_below, _LONGEST_IN_SECONDS):
        return f"{seconds:.1f} s"
    if seconds < _LONGEST_IN_SECONDS:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02} min"


def exact_duration(seconds: float) -> str:
    """Return a duration, with seconds if it is shorter than an hour: ``4.2 s``, ``12 min 5 s`` or ``3 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(n_bytes: float) -> str:
    """Return a number of bytes with three significant digits and a decimal unit, such as ``512 B`` or ``1.21 MB``."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while n_bytes >= 1000 and len(units) > 1:
        n_bytes /= 1000
        units.pop(0)
    unit = units[0]
    if unit == "B" or 100 <= n_bytes < 1000:
        return f"{n_bytes:.0f} {unit}"
    return f"{n_bytes:.3g} {unit}"
