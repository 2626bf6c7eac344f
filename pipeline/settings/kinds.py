"""The kinds of values that settings have: how each is read from a text, and spelled as one."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Any

from pipeline.errors import shown

__all__ = [
    "DATASET",
    "DEVICES",
    "EXACT_NUMBER",
    "FILES",
    "FOLDER",
    "FOLDERS",
    "LIMIT",
    "NAME",
    "SWITCH",
    "TIME",
    "WIDTHS",
    "YES_OR_NO",
    "Kind",
    "allowed",
    "number",
    "one_of",
    "parse_bytes",
    "plain",
    "size",
    "whole",
]


@dataclass(frozen=True)
class Kind:
    """How the values of a setting are written, and which of them can work."""

    read: Callable[[str], Any]  # makes a value of a text; a `ValueError` says what was expected
    metavar: str = "NAME"  # what stands for a value in --help
    is_text: bool = False  # a name: one that YAML takes for a number must stand in quotes
    holds: Callable[[Any], bool] = lambda value: True  # whether a value can work
    expected: str = ""  # which can, in words
    leaves_open: tuple[str, ...] = ("", "none", "auto")  # where it may be left open, by these
    is_list: bool = False  # in YAML a list stands for what commas part in a text

    def or_none(self) -> Kind:
        """The same, or None for a text that leaves it open."""
        return replace(
            self,
            read=lambda text: None if text in self.leaves_open else self.read(text),
            holds=lambda value: value is None or self.holds(value),
        )


def parse_bytes(text: str) -> int:
    """Bytes of ``4GiB``, ``500 MB``, ``1.5G`` or ``1048576``.

    ``KB`` and its kin are powers of 1000, all other units powers of 1024.
    """
    # No more digits than any size has: Python refuses to make numbers of thousands of them.
    match = re.fullmatch(r"\s*([0-9]{0,18}\.?[0-9]{1,18})\s*([KMGT]?)(i?)(B?)\s*", text, re.IGNORECASE)
    if not match or (match[3] and not match[2]):
        raise ValueError(f"{text!r}, expected bytes with a unit, like 4GiB or 500MB")
    base = 1024 if match[3] or not match[4] else 1000
    return int(float(match[1]) * base ** "_KMGT".index(match[2].upper() or "_"))


def allowed(limit: str, total: int) -> int:
    """How many of `total` a limit like ``25`` or ``1%`` allows."""
    # Exactly: in floats, 29 % of 100 are 28.999999999999996.
    return int(Fraction(limit[:-1]) * total / 100) if limit.endswith("%") else int(limit)


def plain(value: object) -> str:
    """A setting's value as a user would type it."""
    if isinstance(value, tuple):
        return " ".join(shown(item) for item in value) or "None"
    if isinstance(value, int) and value >= 2**20 and value % 2**20 == 0:
        return f"{value // 2**20}MiB"
    return shown(value)


def _by(convert: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """`convert`, with what was expected where it fails."""

    def read(text: str) -> Any:
        try:
            return convert(text)
        except (KeyError, ValueError):  # whose own words speak of literals and bases
            raise ValueError(f"{text!r}, expected {expected}") from None

    return read


def one_of(*choices: str) -> Kind:
    """One of a few words."""
    known = {choice: choice for choice in choices}
    leaves_open = tuple(word for word in Kind.leaves_open if word not in known)
    read = _by(known.__getitem__, f"one of {', '.join(choices)}")
    return Kind(read, f"{{{','.join(choices)}}}", leaves_open=leaves_open)


def _time(text: str) -> str:
    """A time of day, or a date with one; as it was typed, since only a run knows which day it is."""
    try:
        datetime.fromisoformat(text if "-" in text else f"2000-01-01T{text.strip()}")
    except ValueError:
        raise ValueError(f"{text!r}, expected a time like 06:00, or 2030-01-31 06:00") from None
    return text.strip()


def _limit(text: str) -> str:
    match = re.fullmatch(r"\s*(?:([0-9]{1,18})|([0-9]{0,3}\.?[0-9]{1,18})\s*%)\s*", text)
    if not match or (match[2] and Fraction(match[2]) > 100):
        raise ValueError(f"{text!r}, expected a whole number, or a percentage like 0.1%")
    return match[1] or f"{match[2]}%"


def _exact_number(text: str) -> float:
    """A number; a whole one as an integer, since float64 does not hold all of int64."""
    found: float = _by(float, "a number")(text)
    if not found.is_integer():
        return found
    try:
        return int(text)
    except ValueError:  # 1e3
        return int(found)


def _path(text: str) -> str:
    """Of a leading ``~`` the home directory: no shell has expanded it behind ``--output=``, in a file or in quotes."""
    if not text:
        raise ValueError("found nothing, expected a name")
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise ValueError(f"{text!r}, expected a user whose home is known behind ~ (a name that begins so: ./{text})")
    return found


def _dataset(text: str) -> str:
    """The path of a dataset, without slashes that say nothing."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError(f"{text!r}, expected the path of a dataset, like obs/cell_type")
    return "/".join(parts)


def _devices(text: str) -> tuple[str, ...]:
    """Devices as Theano names them, one each: ``cuda`` alone could be any."""
    found = tuple(each.strip() for each in text.split(","))
    if found != ("all",) and not all(
        re.fullmatch(r"cpu|cuda[0-9]{1,4}|opencl[0-9]{1,4}:[0-9]{1,4}", each) for each in found
    ):
        raise ValueError(text)
    return found


def _widths(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(each) for each in text.split(","))


def whole(least: int) -> Kind:
    """Whole numbers of `least` or more."""
    return Kind(_by(int, "a whole number"), "N", False, lambda value: value >= least, f"{least} or more")


def number(holds: Callable[[float], bool], expected: str) -> Kind:
    """Numbers for which `holds`."""
    return Kind(_by(float, "a number"), "X", False, holds, expected)


def size(least: int, words: str = "") -> Kind:
    """Bytes, `least` or more."""
    return Kind(parse_bytes, "BYTES", False, lambda value: value >= least, words or f"{least} or more")


# As YAML, environment variables and Python spell them.
_ANSWERS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

NAME = Kind(str, is_text=True)  # may be empty, which is none where that is the default
DATASET = Kind(_dataset, is_text=True)
FILES = Kind(_path, "PATH", is_text=True)
FOLDERS = Kind(_path, "DIR", is_text=True)
FOLDER = Kind(_path, "DIR", True, lambda value: not value.startswith("~"), "a path whose ~ is expanded")
EXACT_NUMBER = Kind(_exact_number, "X", False, math.isfinite, "a finite number: NaN always is")
LIMIT = Kind(_limit, "N|N%")
TIME = Kind(_time, "TIME", is_text=True)
SWITCH = Kind(_by(lambda text: _ANSWERS[text.lower()], "true or false"))
YES_OR_NO = Kind(_by(lambda text: _ANSWERS[text.lower()], "yes or no"), "{yes,no}")
DEVICES = Kind(_by(_devices, "all, or names like cuda0,cuda1 or opencl0:0"), "NAME,NAME", is_text=True, is_list=True)
WIDTHS = Kind(  # none is a value here
    _by(_widths, "whole numbers, like 512 or 512,256, or none"),
    "N,N",
    holds=lambda value: all(n >= 1 for n in value),
    expected="1 or more each",
    leaves_open=("", "auto"),
    is_list=True,
)
