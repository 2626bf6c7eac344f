"""Conditions that select rows by the values of an extra, such as ``split == train``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMPARISON = re.compile(r"(.+?)\s*(==|!=|<=|>=|<|>)\s*(.+)", re.DOTALL)
_MEMBERSHIP = re.compile(r"(.+?)\s+(not\s+in|in)\s+(.+)", re.DOTALL)
EXPECTED = "a comparison like split==train, 'split in train,val' or 'quality>0.5'"


@dataclass(frozen=True)
class Condition:
    """A comparison of an extra with one or more values."""

    name: str  # of the extra, or the path of its dataset
    operator: str  # ==, !=, <, <=, >, >=, in or not in
    values: tuple[str, ...]  # as a user has typed them: several for ``in`` and ``not in``, otherwise one

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Return the condition that a text describes. Raise `ValueError` if it is not a condition."""
        text = text.strip()
        match = _COMPARISON.fullmatch(text) or _MEMBERSHIP.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r}, expected {EXPECTED}")
        name, operator, value = match.groups()
        operator = " ".join(operator.split())
        values = [value]
        if operator in ("in", "not in"):
            has_brackets = (value[0], value[-1]) in (("(", ")"), ("[", "]"), ("{", "}"))
            values = (value[1:-1] if has_brackets else value).split(",")
        unquoted = tuple(_without_quotes(value.strip()) for value in values)
        if "" in unquoted or any(value.startswith("=") for value in unquoted):
            raise ValueError(f"{text!r}, expected {EXPECTED}")
        return cls(_without_quotes(name.strip()), operator, unquoted)

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {','.join(self.values)}"


def _without_quotes(text: str) -> str:
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
