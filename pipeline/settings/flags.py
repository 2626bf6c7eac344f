"""Settings from the command line, the environment and a configuration file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

from pipeline.commandline import Parser
from pipeline.errors import ConfigError, UsageError, shown
from pipeline.settings.config import SETTINGS, Config, Setting, problems
from pipeline.settings.configfile import read_configuration
from pipeline.settings.kinds import SWITCH, Kind, plain
from pipeline.settings.printed import as_yaml

__all__ = ["add_settings", "converted", "parse", "parser_of_settings"]

ENVIRONMENT_PREFIX = "SHARDPRESS_"

_COMPLAINTS_LISTED = 50  # of a file that is no configuration every line may be one

# The settings under --help, by what they are about.
_STAGES = {
    "input": ("input", "follow", "dataset", "orientation", "match_columns", "carry"),
    "bad data": ("on_bad_data", "max_bad_rows", "max_bad_shards", "missing_value", "impute"),
    "model": (
        *("model", "n_features", "hidden", "activation", "code_activation", "decoder_gain"),
        *("start", "biases", "clip_quantile", "on_drift"),
    ),
    "training": (
        *("epochs", "batch_size", "optimizer", "learning_rate", "schedule", "momentum", "corruption", "weight_decay"),
        *("replicas", "finish_by", "max_hours", "seed"),
        *("validation_fraction", "patience", "baseline", "shuffle_window"),
    ),
    "output": (
        *("output", "storage_dtype", "compression", "max_feature_error", "single_file"),
        *("checkpoint_minutes", "verify", "restart", "overwrite"),
    ),
    "machine": ("block_rows", "threads", "memory_budget", "device_memory_budget", "require_device"),
    "cluster": (
        *("workers", "devices", "scheduler", "scheduler_file"),
        *("insecure_cluster", "mixed_processors", "dashboard"),
    ),
    "messages": ("quiet", "verbose"),
}


def parse(arguments: Sequence[str], environment: Mapping[str, str], description: str) -> Config:
    """Settings from every source: default < configuration file < environment < flag.

    Parameters
    ----------
    arguments : sequence of str
        Flags, without the program's name.
    environment : mapping
        Variables; those that start with ``SHARDPRESS_`` count.
    description : str
        The head of the ``--help`` page.

    Raises
    ------
    SystemExit
        Once ``--help``, ``--version`` or ``--print-config`` has been answered.
    UsageError
        For an unknown flag, or a flag's value that cannot be read or cannot work.
    ConfigError
        For what cannot be read in the file or the environment.
    """
    flags = _parse_flags(arguments, description)
    is_printed = flags.pop("print_config", False)
    variables = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }
    path = os.path.expanduser(flags.pop("config", None) or variables.pop("config", None) or "")
    values: dict[str, Any] = {}
    if path:
        values |= converted(read_configuration(path), f"config={shown(path)}: key ", ConfigError)
    values |= converted(variables, "environment: ", ConfigError, lambda name: ENVIRONMENT_PREFIX + name.upper())
    values |= converted(flags, "", UsageError, _flag)
    config = Config.of(**values)
    wrong = problems(config)
    # So that --epochs 0 ends as --epochs ten does.
    if any(name in flags for line in wrong for name in line.split(":")[0].split(" and ")):
        raise UsageError("; ".join(wrong))
    if is_printed:
        sys.stdout.write(as_yaml(config, _STAGES))
        raise SystemExit(0)
    return config


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parser_of_settings(description: str) -> argparse.ArgumentParser:
    """What reads the flags, each setting under its stage."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)  # other sources give the rest
    add_settings(parser)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting to a parser, in groups by stage."""
    parser.add_argument("--version", action="version", version=f"shardpress {version('shardpress')}")
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the settings below, spelled with _")
    parser.add_argument(
        "--print-config", action="store_true", help="print all settings as a YAML file for --config, and do no more"
    )
    titled = {title: parser.add_argument_group(title) for title in _STAGES}
    group_of = {name: titled[title] for title, names in _STAGES.items() for name in names}
    for name, setting in SETTINGS.items():
        group_of[name].add_argument(_flag(name), **_described(setting))


def _parse_flags(arguments: Sequence[str], description: str) -> dict[str, Any]:
    # Not parse_args, which suggests nothing.
    known, unknown = parser_of_settings(description).parse_known_args(arguments)
    if unknown:
        flag = unknown[0].split("=")[0]
        is_flag = flag.startswith("-")
        meant = (
            _nearest(flag, _flag, "help", "version", "print_config")
            if is_flag
            else f" Did you mean --input {shown(unknown[0])}?"
        )
        raise UsageError(f"unknown argument {shown(flag)}.{meant} See --help.")
    return vars(known)


def _described(setting: Setting) -> dict[str, Any]:
    """What argparse is told of a setting."""
    text = setting.help.replace("%", "%%")
    if setting.default not in (None, ()) and setting.default is not False:
        text += f" (default: {plain(setting.default)})".replace("%", "%%")
    kind = setting.kind
    if kind is SWITCH:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    how: dict[str, Any] = {"nargs": "+", "action": "extend"} if isinstance(setting.default, tuple) else {}
    if setting.type.startswith("bool"):  # by itself the flag is a yes
        how = {"nargs": "?", "const": "yes"}
    return {"metavar": kind.metavar, "help": text, **how}


def converted(
    values: Mapping[str, Any],
    where: str,
    error: type[UsageError | ConfigError],
    spelled: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Settings' values of the right types, from whatever texts or plain values stand for them.

    Parameters
    ----------
    where : str
        What stands before each complaint.
    error : type
        Raised with all complaints.
    spelled : callable
        How whoever gave them spells a setting's name.
    """
    complaints: list[str] = []
    found = {}
    for name, value in values.items():
        if len(complaints) == _COMPLAINTS_LISTED:
            complaints.append("and more")
            break
        if name not in SETTINGS:
            complaints.append(f"{where}{shown(spelled(name))} is unknown.{_nearest(name, spelled)}")
            continue
        try:
            found[name] = _convert(SETTINGS[name], value)
        except ValueError as complaint:
            complaints.append(f"{where}{spelled(name)}: {complaint}")
    if complaints:
        raise error("; ".join(complaints))
    return found


def _convert(setting: Setting, value: Any) -> Any:
    kind = setting.kind
    if not isinstance(setting.default, tuple):
        return kind.read(_typed(kind, value))
    values = value.split(os.pathsep) if isinstance(value, str) else value
    if values in (None, [], [""]) and not setting.default:  # as a report spells its settings
        return ()
    if not isinstance(values, list) or not values:
        raise ValueError(f"{value!r}, expected one value or more")
    return tuple(kind.read(_typed(kind, item)) for item in values)


def _typed(kind: Kind, value: Any) -> str:
    """One value as a flag would have it. Of a name like a number YAML keeps the number alone: 2024_01 is 202401."""
    if isinstance(value, list) and kind.is_list:
        value = ",".join(map(str, value)) or "none"
    if isinstance(value, (list, dict)):
        raise ValueError(f"{value!r}, expected one value")
    if kind.is_text and isinstance(value, (bool, int, float)):
        raise ValueError(f"{value!r} to YAML, expected a text. Put it in quotes.")
    if "\0" in str(value):
        raise ValueError(f"{value!r}, expected a text without the character 0")  # which would end a path in C
    return "" if value is None else str(value)


def _nearest(name: str, spelled: Callable[[str], str], *more: str) -> str:
    """A question after the setting that looks like `name` or begins with it, if there is one."""
    name = name.strip("-").replace("-", "_")
    known = [*more, *SETTINGS]
    known += ["config"] if name != "config" else []  # which is unknown in the file that it names
    near = get_close_matches(name, known, n=1, cutoff=0.7) or [other for other in known if other.startswith(name)]
    return f" Did you mean {spelled(near[0])}?" if near and name else ""
