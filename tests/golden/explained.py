"""The commit that the golden set compares with, and the differences from it that are intended."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EXPLAINED", "REFERENCE", "Explained"]

REFERENCE = "21e2429c"
"""The commit that resolved the previous issue. When it moves on, empty `EXPLAINED`."""


@dataclass(frozen=True)
class Explained:
    """Intended differences of one scenario.

    Attributes
    ----------
    scenario : str
    arrays : str
        Patterns of the names of the arrays that differ, separated by spaces, for example "features model/*".
    why : str
    """

    scenario: str
    arrays: str
    why: str


EXPLAINED: tuple[Explained, ...] = ()
