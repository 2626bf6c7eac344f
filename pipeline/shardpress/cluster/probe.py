"""Paths that workers access before a run, to find out whether they see the same files as the driver."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """Paths that must lead to the same files on workers and on the driver."""

    directory: str  # the driver's current directory. Workers change to it, because paths are relative to it
    output: str  # the absolute path of the output directory
    inputs: tuple[str, ...]
    mixed_processors: bool = False  # whether to allow different processors, compilers and C libraries
