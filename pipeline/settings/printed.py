"""Settings in writing: what was given, in a line, and all of them as a commented file that ``--config`` takes back."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pipeline.errors import shown, some
from pipeline.settings.config import SETTINGS, Config, Setting
from pipeline.settings.kinds import Kind, plain

__all__ = ["as_yaml", "given"]

_HEAD = """\
# All settings of a run, for shardpress run --config FILE. Those behind a # have their default, which is left to the
# version that reads the file; null stands for what follows from the inputs and from other settings.
"""
_WIDTH = 120

_VALUES_SHOWN = 3
_ALWAYS = ("input", "output")
_OF_THE_LINE_ITSELF = ("quiet", "verbose")


def given(config: Config) -> str:
    """Return the inputs, the output, and all other settings that differ from their defaults, in a line."""
    values = config.flat()
    hidden = {*_ALWAYS, *_OF_THE_LINE_ITSELF}
    changed = [name for name, value in values.items() if value != SETTINGS[name].default and name not in hidden]
    return ", ".join(f"{name} {_brief(SETTINGS[name], values[name])}" for name in [*_ALWAYS, *changed])


def as_yaml(config: Config, stages: Mapping[str, Sequence[str]]) -> str:
    """Every setting with what it is for; as a comment where it has its default.

    Parameters
    ----------
    stages : mapping
        Names of settings, by the headings under which they stand.
    """
    values = config.flat()
    lines = [_HEAD]
    for title, names in stages.items():
        lines.append(f"\n# {f' {title} ':-^{_WIDTH - 2}}\n")
        for name in names:
            lines += _explained(SETTINGS[name], values[name])
    return "".join(lines)


def _brief(setting: Setting, value: Any) -> str:
    if isinstance(value, tuple):
        return some(map(shown, value), _VALUES_SHOWN) if value else "none"
    return shown(_spelled(setting.kind, value))


def _explained(setting: Setting, value: Any) -> Iterator[str]:
    kind = setting.kind
    choices = f" {kind.metavar}" if kind.metavar.startswith("{") else ""
    yield "\n"
    yield from (f"## {line}\n" for line in textwrap.wrap(setting.help + choices, _WIDTH - 3))
    lines = _dumped(setting.name, _spelled(kind, value))
    yield from (line if value != setting.default else f"# {line}" for line in lines)


def _dumped(name: str, value: Any) -> list[str]:
    """Lines of YAML; libyaml takes some characters for the end of a line unless they are escaped."""
    is_plain = all(str(each).isprintable() for each in (value if isinstance(value, list) else [value]))
    return yaml.safe_dump({name: value}, allow_unicode=is_plain, width=math.inf).splitlines(keepends=True)


def _spelled(kind: Kind, value: Any) -> Any:
    """A value as a user would write it into a file."""
    if isinstance(value, tuple):
        return list(value) if value or not kind.is_list else "none"
    return plain(value) if kind.metavar == "BYTES" and value is not None else value
