"""Settings in writing: what was given, in a line, and all of them as a commented file that ``--config`` takes back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pipeline.errors import shown, some
from pipeline.settings.config import Config
from pipeline.settings.kinds import plain

__all__ = ["given"]

_VALUES_SHOWN = 3
_ALWAYS = ("input", "output")
_OF_THE_LINE_ITSELF = ("quiet", "verbose")


def given(config: Config) -> str:
    """Which inputs, which output, and all else that is not as by default, in a line."""
    found = {each.name: getattr(config, each.name) for each in fields(Config) if each.name not in _OF_THE_LINE_ITSELF}
    defaults = vars(Config())
    return ", ".join(f"{name} {_brief(v)}" for name, v in found.items() if name in _ALWAYS or v != defaults[name])


def _brief(value: Any) -> str:
    if isinstance(value, tuple):
        return some(map(shown, value), _VALUES_SHOWN) if value else "none"
    return plain(value)
