"""Types of settings: their valid values, and how each value is parsed from text and formatted as text."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args, get_origin

from msgspec import Meta

from shardpress.base.errors import printable
from shardpress.settings.condition import EXPECTED, Condition

ROW_SCALES = ("total", "median", "norm", "max")
"""Sizes that rows are divided by."""
TRANSFORMS = ("log1p",)
"""Transformations of values."""


@dataclass(frozen=True)
class Kind:
    """The form in which users write the values of a type."""

    metavar: str  # placeholder of a value in ``--help``
    read: Callable[[str], object]  # raises `KeyError` or `ValueError` for invalid texts
    expected: str  # description of valid values
    is_text: bool = False  # a text that looks like a number needs quotes in YAML
    none_texts: tuple[str, ...] = ("", "none", "auto")  # texts that mean None, if the default is None
    is_list: bool = False  # a value is a list in YAML, and a text with commas elsewhere

    def parse(self, text: str) -> object:
        """Return the value that a text describes. Raise `ValueError` with a description of valid values."""
        try:
            return self.read(text)
        except (KeyError, ValueError):  # their messages are about literals and bases
            raise ValueError(f"{text!r}, expected {self.expected}") from None


def _bytes(text: str) -> int:
    """Return the number of bytes of ``4GiB``, ``500 MB``, ``1.5G`` or ``1048576``.

    ``KB``, ``MB``, ``GB`` and ``TB`` are powers of 1000, all other units powers of 1024.
    """
    # At most 18 digits, which suffices for any size: Python refuses to convert thousands of digits.
    match = re.fullmatch(r"\s*([0-9]{0,18}\.?[0-9]{1,18})\s*([KMGT]?)(i?)(B?)\s*", text, re.IGNORECASE)
    if not match or (match[3] and not match[2]):
        raise ValueError("not a size")
    base = 1024 if match[3] or not match[4] else 1000
    exponent = "_KMGT".index(match[2].upper() or "_")
    return int(float(match[1]) * base**exponent)


def n_allowed(limit: str, total: int) -> int:
    """Return how many of `total` a limit like ``25`` or ``1%`` allows."""
    if not limit.endswith("%"):
        return int(limit)
    # As a fraction, since 29 % of 100 is 28.999999999999996 in floats.
    return int(Fraction(limit[:-1]) * total / 100)


def sufficient_percentage(n: int, total: int) -> int:
    """Return the smallest whole percentage that allows `n` of `total`."""
    return -(-100 * n // total)


def as_typed(value: object) -> str:
    """Return a setting's value as a user would type it."""
    if isinstance(value, tuple):
        return " ".join(printable(item) for item in value) or "none"
    if isinstance(value, int) and value >= 2**20 and value % 2**20 == 0:
        return f"{value // 2**20}MiB"
    return printable(value)


def _time(text: str) -> str:
    """Check a moment or a duration; it stays a text, because the moment depends on the start of the run."""
    time = text.strip()
    if _hours_of(time) is None:
        datetime.fromisoformat(time if "-" in time else f"2000-01-01T{time}")
    return time


def _hours_of(time: str) -> float | None:
    """Return the hours of a duration like ``+8h``, or None for a moment."""
    if not time.startswith("+"):
        return None
    hours = float(time.removeprefix("+").removesuffix("h"))
    if not time.endswith("h") or not 0 < hours < 24 * 366:
        raise ValueError("invalid duration")
    return hours


def deadline_of(finish_by: str | None, start: float) -> float | None:
    """Return when a run that started at `start` must end, in seconds since 1970; None if there is no limit."""
    if finish_by is None:
        return None
    hours = _hours_of(finish_by)
    if hours is not None:
        return start + 3600 * hours
    if "-" in finish_by:
        return datetime.fromisoformat(finish_by).timestamp()
    now = datetime.fromtimestamp(start)
    time_of_day = datetime.fromisoformat(f"2000-01-01T{finish_by}").time()
    moment = datetime.combine(now.date(), time_of_day)
    if moment <= now:
        moment += timedelta(days=1)
    return moment.timestamp()


def time_in_words(ends_by: float) -> str:
    """Return a time of day, with its date if the date is not today."""
    moment = datetime.fromtimestamp(ends_by)
    if moment.date() == datetime.now().date():
        return f"{moment:%H:%M}"
    return f"{moment:%Y-%m-%d %H:%M}"


def _limit(text: str) -> str:
    match = re.fullmatch(r"\s*(?:([0-9]{1,18})|([0-9]{0,3}\.?[0-9]{1,18})\s*%)\s*", text)
    if not match or (match[2] and Fraction(match[2]) > 100):
        raise ValueError("neither a number nor a percentage")
    return match[1] or f"{match[2]}%"


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("infinite or NaN")
    return value


def _exact_number(text: str) -> float:
    """Read a number; a whole one as an integer, since float64 does not hold all of int64."""
    value = _finite_number(text)
    if not value.is_integer():
        return value
    try:
        return int(text)
    except ValueError:  # 1e3
        return int(value)


def _path(text: str) -> str:
    """Expand ``~``, which shells leave alone after ``--output=``, in files and in quotes."""
    path = os.path.expanduser(text)
    if not path or path.startswith("~"):
        raise ValueError("empty, or of an unknown user")
    return path


def _scheduler(text: str) -> str:
    """Return an address as it is; expand ``~`` in the path of a file."""
    return text if "://" in text else _path(text)


def _dataset(text: str) -> str:
    """Normalize the path of a dataset, without redundant slashes."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError("empty")
    return "/".join(parts)


def _devices(text: str) -> tuple[str, ...]:
    """Read names of single devices of Theano; ``cuda`` is refused, since it can be any of them."""
    names = tuple(name.strip() for name in text.split(","))
    if names == ("all",):
        return names
    for name in names:
        if not re.fullmatch(r"cpu|cuda[0-9]{1,4}|opencl[0-9]{1,4}:[0-9]{1,4}", name):
            raise ValueError(text)
    return names


def _widths(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    return tuple(int(width) for width in text.split(","))


# The spellings of YAML, environment variables and Python.
_ANSWERS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

SWITCH = Kind("", lambda text: _ANSWERS[text.lower()], "true or false")
YES_OR_NO = replace(SWITCH, metavar="{yes,no}", expected="yes or no")


def _choice(names: Iterable[str]) -> Kind:
    return Kind(f"{{{','.join(names)}}}", str, f"one of {', '.join(names)}")


def one_of(names: Iterable[str]) -> Meta:
    """Return the annotation of a text that is one of some names, which `Literal` cannot take from other modules."""
    return Meta(pattern=rf"^({'|'.join(names)})\Z", extra={"kind": _choice(names)})


def _form(metavar: str, read: Callable[[str], object], expected: str, **other: Any) -> Meta:
    """Return the annotation of a type whose values have a `Kind` of their own."""
    return Meta(extra={"kind": Kind(metavar, read, expected, **other)})


_PATH = "a path, where ~USER is a home directory, and ./~USER is a file with this name"

Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
ExactNumber = Annotated[int | float, _form("X", _exact_number, "a finite number (NaN is always missing)")]
Bytes = Annotated[int, _form("BYTES", _bytes, "bytes with a unit, like 4GiB or 500MB")]
BadDataLimit = Annotated[str, _form("N|N%", _limit, "a whole number, or a percentage like 0.1%")]
YesOrNo = Annotated[bool, Meta(extra={"kind": YES_OR_NO})]
FilePath = Annotated[str, _form("PATH", _path, _PATH, is_text=True)]
FolderPath = Annotated[str, _form("DIR", _path, _PATH, is_text=True)]
DatasetPath = Annotated[str, _form("NAME", _dataset, "the path of a dataset, like obs/cell_type", is_text=True)]
Label = Annotated[str, _form("VALUE", str, "a number or a text", none_texts=("",))]
ConditionText = Annotated[str, _form("CONDITION", lambda text: str(Condition.parse(text)), EXPECTED, is_text=True)]
Time = Annotated[str, _form("TIME", _time, "a time like 06:00, 2030-01-31 06:00 or +8h", is_text=True)]
SchedulerAddress = Annotated[str, _form("ADDRESS|FILE", _scheduler, f"an address, or {_PATH}", is_text=True)]
Devices = Annotated[
    tuple[str, ...], _form("NAME,NAME", _devices, "all, or names like cuda0,cuda1 or opencl0:0", is_list=True)
]
Widths = Annotated[
    tuple[Positive, ...],
    # Here, "none" is a value.
    _form(
        "N,N", _widths, "positive whole numbers, like 512 or 512,256, or none", none_texts=("", "auto"), is_list=True
    ),
]

_PLAIN = {
    str: Kind("NAME", str, "a name", is_text=True),
    bool: SWITCH,
    int: Kind("N", int, "a whole number"),
    float: Kind("X", _finite_number, "a finite number"),
}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def kind_of(type: Any) -> Kind:
    """Return the kind of the values of a type that are not None; of each value, if the type is a tuple."""
    if type in _PLAIN:
        return _PLAIN[type]
    first, *others = get_args(type)
    if get_origin(type) is Literal:
        return _choice([first, *others])
    if get_origin(type) is not Annotated:
        return kind_of(first)
    kinds = [meta.extra["kind"] for meta in others if meta.extra]
    kind = kinds[0] if kinds else kind_of(first)
    limits = [
        f"{words} {as_typed(getattr(meta, name))}"
        for meta in others
        for name, words in _LIMITS.items()
        if getattr(meta, name) is not None
    ]
    if not limits:
        return kind
    return replace(kind, expected=f"{kind.expected}, {' and '.join(limits)}")
