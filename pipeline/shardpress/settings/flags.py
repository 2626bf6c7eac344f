"""Settings from the command line, the environment and a configuration file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from shardpress.base.commandline import Parser
from shardpress.base.errors import ConfigError, UsageError, flag, printable
from shardpress.settings.config import SETTINGS, Config, Setting, in_groups
from shardpress.settings.conflicts import conflicts
from shardpress.settings.kinds import SWITCH, YES_OR_NO, Kind, as_typed
from shardpress.settings.presets import values_of_preset
from shardpress.settings.printed import as_yaml

_ENVIRONMENT_PREFIX = "SHARDPRESS_"

_Shown = Literal["none", "common", "all"]  # settings on a page

_FLAGGED = {name: setting for name, setting in SETTINGS.items() if setting.has_flag}

_OTHER_FLAGS = {
    "--help-all": "Print a page with all settings and exit.",
    "--config": "Read settings from this YAML file; names have _ instead of -.",
    "--print-config": "Print all settings as a YAML file for --config, and exit.",
}
"""Flags that are not settings, with their help texts."""


def parse(arguments: Sequence[str], environment: Mapping[str, str], description: str) -> Config:
    """Return the settings of a run from all sources, see `parse_with_settings`."""
    config, _ = _parse(_parser_of_settings(description, "common"), arguments, environment)
    return config


def parse_with_settings(
    parser: Parser, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[Config, argparse.Namespace]:
    """Return the settings from all sources, and the values of the arguments that a command adds to those of a run.

    Flags override the environment, then the file, then the defaults. The settings are added to the parser of the
    command's own arguments, but not to its ``--help`` page. Raise `UsageError` for an invalid flag, and
    `ConfigError` for any other invalid value.
    """
    _add_settings(parser, "none")
    return _parse(parser, arguments, environment)


def _parse(
    parser: Parser, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[Config, argparse.Namespace]:
    own, flags = _parse_flags(parser, arguments)
    if flags.pop("help_all", False):
        _parser_of_settings(parser.description or "", "all").print_help()
        raise SystemExit(0)
    is_printed = flags.pop("print_config", False)
    config = _merge(flags, _variables(environment))
    problems = tuple(conflicts(config))
    # --corruption 0.001 must end with the same exit code as --corruption ten. The run refuses other problems.
    if any(name in flags for problem in problems for name in problem.where):
        raise UsageError(*problems)
    if is_printed:
        sys.stdout.write(as_yaml(config))
        raise SystemExit(0)
    return config, own


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are settings, by the names of the settings."""
    return {
        name.removeprefix(_ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_ENVIRONMENT_PREFIX)
    }


def _merge(flags: dict[str, object], variables: dict[str, str]) -> Config:
    """Return the settings of all sources; the key ``config`` is removed from flags and variables."""
    from_variable = variables.pop("config", "")
    path = os.path.expanduser(str(flags.pop("config", from_variable)))
    values: dict[str, object] = {}
    if path:
        from shardpress.settings.configfile import read_configuration  # loads PyYAML

        values |= convert_settings(read_configuration(path), f"config={printable(path)}: key ", ConfigError)
    values |= convert_settings(variables, "environment: ", ConfigError, lambda name: _ENVIRONMENT_PREFIX + name.upper())
    values |= convert_settings(flags, "", UsageError, flag)
    return Config.of(**{**values_of_preset(values.get("preset")), **values})


def _parser_of_settings(description: str, shown: _Shown) -> Parser:
    """Return a parser of all settings. Its ``--help`` page shows some of them, in groups."""
    parser = Parser(description=description)
    _add_settings(parser, shown)
    return parser


def _add_settings(parser: Parser, shown: _Shown) -> None:
    """Add all settings to a parser, some of them to its ``--help`` page."""
    for other, text in _OTHER_FLAGS.items():
        kind: dict[str, Any] = {"metavar": "FILE"} if other == "--config" else {"action": "store_true"}
        parser.add_argument(
            other, default=argparse.SUPPRESS, help=argparse.SUPPRESS if shown == "none" else text, **kind
        )
    for title, settings in in_groups():
        group = parser.add_argument_group(title)
        for setting in settings:
            is_shown = shown == "all" or (shown == "common" and setting.is_common)
            text = _help(setting, is_short=shown == "common") if is_shown else argparse.SUPPRESS
            # Sources other than the flags provide the values of the rest.
            group.add_argument(flag(setting.name), default=argparse.SUPPRESS, help=text, **_argument(setting))


def _help(setting: Setting, is_short: bool) -> str:
    """Return the help text of a setting. The short one is its first sentence, followed by the default."""
    text = setting.help
    if is_short:
        first, *others = text.removesuffix(".").split(". ")
        text = ". ".join([first, *(other for other in others if other.startswith("Default: "))]) + "."
    if setting.default not in (None, ()) and setting.default is not False:
        text += f" Default: {as_typed(setting.default)}."
    return text.replace("%", "%%")


def _parse_flags(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """Return the values of the command's own arguments, and the settings that were given."""
    # parse_args would not suggest a similar flag.
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = printable(unknown[0].split("=")[0])
        page = f"{parser.prog} --help".strip()
        raise UsageError(f"unknown argument {name}.{_advice(unknown)} See {page}.")
    of_run = {*_FLAGGED, *(other.strip("-").replace("-", "_") for other in _OTHER_FLAGS)}
    flags = {name: value for name, value in vars(known).items() if name in of_run}
    own = {name: value for name, value in vars(known).items() if name not in of_run}
    return argparse.Namespace(**own), flags


def _advice(unknown: Sequence[str]) -> str:
    """Return advice about arguments that no flag accepts."""
    name, _, value = unknown[0].partition("=")
    if name == "--device":
        device = printable(value or "".join(unknown[1:2]) or "cuda")
        return f" Theano chooses the device: set the environment variable THEANO_FLAGS=device={device}."
    if name.startswith("-"):
        return _suggestion(name, flag, "help", "help_all", "print_config")
    return f" Did you mean --input {printable(unknown[0])}?"


def _argument(setting: Setting) -> dict[str, Any]:
    """Return the arguments of `add_argument` for the values of a setting."""
    if setting.kind is SWITCH:
        return {"action": argparse.BooleanOptionalAction}
    if setting.kind is YES_OR_NO:  # the flag alone means yes
        return {"metavar": setting.kind.metavar, "nargs": "?", "const": "yes"}
    if isinstance(setting.default, tuple):
        return {"metavar": setting.kind.metavar, "nargs": "+", "action": "extend"}
    return {"metavar": setting.kind.metavar}


def convert_settings(
    values: Mapping[str, object], where: str, error: type[UsageError | ConfigError], spelled: Callable[[str], str] = str
) -> dict[str, object]:
    """Return settings as values of the right types, given texts or plain values.

    Raise `error` with a message for each invalid value. Each message begins with `where` and the name as it is
    ``spelled`` in the source of the values.
    """
    complaints: list[str] = []
    settings = {}
    for name, value in values.items():
        if name not in _FLAGGED:
            complaints.append(f"{where}{printable(spelled(name))} is unknown.{_suggestion(name, spelled)}")
            continue
        try:
            settings[name] = _convert(_FLAGGED[name], value)
        except ValueError as complaint:
            complaints.append(f"{where}{spelled(name)}: {complaint}")
    if complaints:
        raise error("; ".join(complaints))
    return settings


def _convert(setting: Setting, value: object) -> object:
    kind = setting.kind
    if not isinstance(setting.default, tuple):
        text = _text(kind, value)
        if setting.default is None and text in kind.none_texts:
            return None
        return setting.checked(kind.parse(text))
    values = value
    if isinstance(value, str):
        values = value.split(os.pathsep)
    if values in (None, [], [""]) and not setting.default:  # the spellings of an empty list in all sources
        return ()
    if not isinstance(values, list) or not values:
        raise ValueError(f"{value!r}, expected at least one value")
    return tuple(kind.parse(_text(kind, item)) for item in values)


def _text(kind: Kind, value: object) -> str:
    """Return one value as a flag would spell it.

    A name that looks like a number is refused, since YAML reads it as a number: 2024_01 is 202401.
    """
    if value is None:
        return ""
    if isinstance(value, list) and kind.is_list:
        value = ",".join(map(str, value)) or "none"
    if isinstance(value, (list, dict)):
        raise ValueError(f"{value!r}, expected one value")
    if kind.is_text and isinstance(value, (bool, int, float)):
        raise ValueError(f"{value!r} (as YAML reads it), expected a string. Put it in quotes.")
    if "\0" in str(value):
        raise ValueError(f"{value!r}, expected a string without NUL characters")  # NUL would end a path in C
    return str(value)


def _suggestion(name: str, spelled: Callable[[str], str], *more: str) -> str:
    """Return a question about the setting that looks like `name` or begins with it; empty if there is none."""
    name = name.strip("-").replace("-", "_")
    if not name:
        return ""
    known = [*more, *_FLAGGED]
    if name != "config":  # a file cannot name another file
        known.append("config")
    near = get_close_matches(name, known, n=1, cutoff=0.7)
    near += [other for other in known if other.startswith(name)]
    if not near:
        return ""
    return f" Did you mean {spelled(near[0])}?"
