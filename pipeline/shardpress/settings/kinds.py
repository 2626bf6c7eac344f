"""Kinds of values of settings: how each value is parsed from text and formatted as text."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Any

from shardpress.errors import printable
from shardpress.settings.condition import Condition


@dataclass(frozen=True)
class Kind:
    """Reading and validity of the values of a setting."""

    read: Callable[[str], Any]  # raises `ValueError` with a description of valid texts
    metavar: str = "NAME"  # placeholder of a value in ``--help``
    is_text: bool = False  # a text that looks like a number needs quotes in YAML
    is_valid: Callable[[Any], bool] = lambda value: True
    expected: str = ""  # description of valid values
    none_texts: tuple[str, ...] = ("", "none", "auto")  # texts that mean None, if the default is None
    is_list: bool = False  # a value is a list in YAML, and a text with commas elsewhere

    def or_none(self) -> Kind:
        """Return the kind of a setting whose value can also be None."""

        def read(text: str) -> Any:
            if text in self.none_texts:
                return None
            return self.read(text)

        return replace(self, read=read, is_valid=lambda value: value is None or self.is_valid(value))


def parse_bytes(text: str) -> int:
    """Return the number of bytes of ``4GiB``, ``500 MB``, ``1.5G`` or ``1048576``.

    ``KB``, ``MB``, ``GB`` and ``TB`` are powers of 1000, all other units powers of 1024.
    """
    # At most 18 digits, which suffices for any size: Python refuses to convert thousands of digits.
    match = re.fullmatch(r"\s*([0-9]{0,18}\.?[0-9]{1,18})\s*([KMGT]?)(i?)(B?)\s*", text, re.IGNORECASE)
    if not match or (match[3] and not match[2]):
        raise ValueError(f"{text!r}, expected bytes with a unit, like 4GiB or 500MB")
    base = 1024 if match[3] or not match[4] else 1000
    exponent = "_KMGT".index(match[2].upper() or "_")
    return int(float(match[1]) * base**exponent)


def n_allowed(limit: str, total: int) -> int:
    """Return how many of `total` a limit like ``25`` or ``1%`` allows."""
    if not limit.endswith("%"):
        return int(limit)
    # As a fraction, since 29 % of 100 is 28.999999999999996 in floats.
    return int(Fraction(limit[:-1]) * total / 100)


def as_typed(value: object) -> str:
    """Return a setting's value as a user would type it."""
    if isinstance(value, tuple):
        return " ".join(printable(item) for item in value) or "None"
    if isinstance(value, int) and value >= 2**20 and value % 2**20 == 0:
        return f"{value // 2**20}MiB"
    return printable(value)


def _reader(convert: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """Return `convert` with an error that describes valid texts."""

    def read(text: str) -> Any:
        try:
            return convert(text)
        except (KeyError, ValueError):  # their messages are about literals and bases
            raise ValueError(f"{text!r}, expected {expected}") from None

    return read


def one_of(*choices: str) -> Kind:
    """Return the kind of a setting that is one of a few words."""
    known = {choice: choice for choice in choices}
    none_texts = tuple(word for word in Kind.none_texts if word not in known)
    read = _reader(known.__getitem__, f"one of {', '.join(choices)}")
    return Kind(read, f"{{{','.join(choices)}}}", none_texts=none_texts)


def _time(text: str) -> str:
    """Check a moment or a duration; it stays a text, because the moment depends on the start of the run."""
    time = text.strip()
    try:
        if hours_of(time) is None:
            datetime.fromisoformat(time if "-" in time else f"2000-01-01T{time}")
    except ValueError:
        raise ValueError(f"{text!r}, expected a time like 06:00, 2030-01-31 06:00 or +8h") from None
    return time


def hours_of(time: str) -> float | None:
    """Return the hours of a duration like ``+8h``, or None for a moment."""
    if not time.startswith("+"):
        return None
    hours = float(time.removeprefix("+").removesuffix("h"))
    if not time.endswith("h") or not 0 < hours < 24 * 366:
        raise ValueError("invalid duration")
    return hours


def _limit(text: str) -> str:
    match = re.fullmatch(r"\s*(?:([0-9]{1,18})|([0-9]{0,3}\.?[0-9]{1,18})\s*%)\s*", text)
    if not match or (match[2] and Fraction(match[2]) > 100):
        raise ValueError(f"{text!r}, expected a whole number, or a percentage like 0.1%")
    return match[1] or f"{match[2]}%"


def _exact_number(text: str) -> float:
    """Read a number; a whole one as an integer, since float64 does not hold all of int64."""
    value: float = _reader(float, "a number")(text)
    if not value.is_integer():
        return value
    try:
        return int(text)
    except ValueError:  # 1e3
        return int(value)


def _path(text: str) -> str:
    """Expand ``~``, which shells leave alone after ``--output=``, in files and in quotes."""
    if not text:
        raise ValueError("is empty, expected a path")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(f"{text!r}, expected the name of a user after ~. For a file with this name, use ./{text}")
    return path


def _scheduler(text: str) -> str:
    """Return an address as it is; expand ``~`` in the path of a file."""
    return text if "://" in text else _path(text)


def _dataset(text: str) -> str:
    """Normalize the path of a dataset, without redundant slashes."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError(f"{text!r}, expected the path of a dataset, like obs/cell_type")
    return "/".join(parts)


def _devices(text: str) -> tuple[str, ...]:
    """Read names of single devices of Theano; ``cuda`` is refused, since it can be any of them."""
    names = tuple(each.strip() for each in text.split(","))
    if names == ("all",):
        return names
    for name in names:
        if not re.fullmatch(r"cpu|cuda[0-9]{1,4}|opencl[0-9]{1,4}:[0-9]{1,4}", name):
            raise ValueError(text)
    return names


def _widths(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    return tuple(int(each) for each in text.split(","))


def whole(least: int) -> Kind:
    """Return the kind of a whole number of `least` or more."""
    return Kind(_reader(int, "a whole number"), "N", False, lambda value: value >= least, f"{least} or more")


def number(is_valid: Callable[[float], bool], expected: str) -> Kind:
    """Return the kind of a number for which `is_valid` returns True."""
    return Kind(_reader(float, "a number"), "X", False, is_valid, expected)


def size(least: int, words: str = "") -> Kind:
    """Return the kind of a number of bytes, `least` or more."""
    return Kind(parse_bytes, "BYTES", False, lambda value: value >= least, words or f"{least} or more")


# The spellings of YAML, environment variables and Python.
_ANSWERS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

NAME = Kind(str, is_text=True)  # an empty name is None if None is the default
CONDITION = Kind(lambda text: str(Condition.parse(text)), "CONDITION", is_text=True)
DATASET = Kind(_dataset, is_text=True)
FILES = Kind(_path, "PATH", is_text=True)
FOLDER = Kind(_path, "DIR", True, lambda value: not value.startswith("~"), "a path without a leading ~")
EXACT_NUMBER = Kind(_exact_number, "X", False, math.isfinite, "a finite number (NaN is always missing)")
LIMIT = Kind(_limit, "N|N%")
TIME = Kind(_time, "TIME", is_text=True)
SCHEDULER = Kind(_scheduler, "ADDRESS|FILE", is_text=True)
SWITCH = Kind(_reader(lambda text: _ANSWERS[text.lower()], "true or false"))
YES_OR_NO = Kind(_reader(lambda text: _ANSWERS[text.lower()], "yes or no"), "{yes,no}")
DEVICES = Kind(
    _reader(_devices, "all, or names like cuda0,cuda1 or opencl0:0"), "NAME,NAME", is_text=True, is_list=True
)
WIDTHS = Kind(  # here, "none" is a value
    _reader(_widths, "whole numbers, like 512 or 512,256, or none"),
    "N,N",
    is_valid=lambda value: all(n >= 1 for n in value),
    expected="1 or more each",
    none_texts=("", "auto"),
    is_list=True,
)
