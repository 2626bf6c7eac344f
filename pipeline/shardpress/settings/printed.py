"""Settings as text: a line of settings that differ from their defaults, and a commented file for ``--config``."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator

from shardpress.base.errors import printable, short_list
from shardpress.settings.config import SETTINGS, Config, Setting, in_groups
from shardpress.settings.kinds import Kind, as_typed
from shardpress.settings.presets import values_of_preset

_HEAD = """\
# All settings of a run, for shardpress run --config FILE. Lines that start with # show defaults; remove the # to change
# a value. null is a default that depends on the inputs and on other settings.
"""
_WIDTH = 120

_VALUES_SHOWN = 3
_ALWAYS = ("input", "output")
_NEVER = ("quiet", "verbose")


def summary_line(config: Config) -> str:
    """Return the inputs, the output, and all other settings that differ from their defaults, in a line."""
    values = config.flat()
    defaults = _defaults(config)
    hidden = {*_ALWAYS, *_NEVER}
    changed = [name for name, value in values.items() if value != defaults[name] and name not in hidden]
    return ", ".join(f"{name} {_short_value(SETTINGS[name], values[name])}" for name in [*_ALWAYS, *changed])


def as_yaml(config: Config) -> str:
    """Return a YAML file of all settings with their help texts, in groups; those with their defaults are comments."""
    values = config.flat()
    defaults = _defaults(config)
    lines = [_HEAD]
    for title, settings in in_groups():
        lines.append(f"\n# {f' {title} ':-^{_WIDTH - 2}}\n")
        for setting in settings:
            value = values[setting.name]
            lines += _lines_of_setting(setting, value, is_default=value == defaults[setting.name])
    return "".join(lines)


def _defaults(config: Config) -> dict[str, object]:
    """Return the values without any other setting than the preset."""
    preset = config.training.preset
    return {**Config.of(**values_of_preset(preset)).flat(), "preset": None}


def _short_value(setting: Setting, value: object) -> str:
    if value == ():
        return "none"
    if isinstance(value, tuple):
        return short_list(map(printable, value), _VALUES_SHOWN)
    return printable(_yaml_value(setting.kind, value))


def _lines_of_setting(setting: Setting, value: object, *, is_default: bool) -> Iterator[str]:
    text = setting.help
    if setting.kind.metavar.startswith("{"):
        text = f"{text} Values: {setting.kind.metavar.strip('{}').replace(',', ', ')}."
    yield "\n"
    for line in textwrap.wrap(text, _WIDTH - 3):
        yield f"## {line}\n"
    prefix = ""
    if is_default:
        prefix = "# "
    for line in _yaml_lines(setting.name, _yaml_value(setting.kind, value)):
        yield prefix + line


def _yaml_lines(name: str, value: object) -> list[str]:
    """Return lines of YAML; characters that libyaml can interpret as the end of a line are escaped."""
    import yaml  # only --print-config needs it

    values = value if isinstance(value, list) else [value]
    is_plain = all(str(item).isprintable() for item in values)
    return yaml.safe_dump({name: value}, allow_unicode=is_plain, width=math.inf).splitlines(keepends=True)


def _yaml_value(kind: Kind, value: object) -> object:
    """Return a value as a user would write it into a file."""
    if value == () and kind.is_list:
        return "none"
    if isinstance(value, tuple):
        return list(value)
    if kind.metavar == "BYTES" and value is not None:
        return as_typed(value)
    return value
