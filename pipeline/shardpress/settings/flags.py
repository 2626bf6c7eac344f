"""Settings from the command line, the environment and a configuration file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

from shardpress.commandline import Parser
from shardpress.errors import ConfigError, UsageError, printable
from shardpress.settings.config import SETTINGS, Config, Setting, problems
from shardpress.settings.configfile import read_configuration
from shardpress.settings.kinds import SWITCH, Kind, as_typed
from shardpress.settings.presets import values_of_preset
from shardpress.settings.printed import as_yaml

__all__ = ["add_settings", "convert_settings", "parse", "parser_of_settings"]

ENVIRONMENT_PREFIX = "SHARDPRESS_"

_COMPLAINTS_LISTED = 50  # each line of a file that is not a configuration can cause one

# Groups of settings in --help.
_STAGES = {
    "input": ("input", "dataset", "orientation", "match_columns", "include", "labels"),
    "bad data": ("on_bad_data", "max_bad", "missing_value", "impute", "missing_indicator"),
    "model": (
        *("model", "preset", "n_features", "hidden", "activation", "code_activation", "nested", "output_layer"),
        *("row_scale", "transform", "scale", "clip_quantile", "on_drift"),
    ),
    "training": (
        *("epochs", "batch_size", "optimizer", "learning_rate", "corruption"),
        *("fit_on", "target", "target_weight", "replicas", "finish_by", "seed"),
        *("validation_fraction", "patience", "shuffle_window"),
    ),
    "output": (
        *("output", "storage_dtype", "compression", "format", "single_file"),
        *("checkpoint_minutes", "verify", "restart", "overwrite", "append", "drop_missing", "on_append_drift"),
        *("retrain", "keep_generations", "align_to"),
    ),
    "machine": ("block_rows", "threads", "memory_budget", "device_memory_budget", "require_device"),
    "cluster": ("workers", "devices", "scheduler", "insecure_cluster", "mixed_processors"),
    "messages": ("quiet", "verbose"),
}

_FLAGGED = {name: setting for name, setting in SETTINGS.items() if setting.has_flag}

_REMOVED = {
    **dict.fromkeys(
        ("start", "biases", "schedule", "momentum", "weight_decay", "decoder_gain"),
        "use --preset reference for the value of the reference model; other models use the default",
    ),
    "baseline": "the baseline is always computed if there are validation rows",
    "max_bad_rows": "use --max-bad, which limits rows and shards",
    "max_bad_shards": "use --max-bad, which limits rows and shards",
    "max_hours": "use --finish-by, for example --finish-by +8h",
    "dashboard": "the address of a dashboard is logged if the scheduler has one",
    "scheduler_file": "give the file with --scheduler",
    "follow": "give the files that hold the rows with --input",
    "max_feature_error": "use --storage-dtype float16, whose rounding error the report states",
}
"""What replaces each setting of version 0.2, in words."""


def parse(arguments: Sequence[str], environment: Mapping[str, str], description: str) -> Config:
    """Return the settings from all sources. Flags override the environment, then the file, then the defaults.

    Parameters
    ----------
    arguments : sequence of str
        Flags, without the program's name.
    environment : mapping
        Variables; only those that start with ``SHARDPRESS_`` are used.
    description : str
        First part of the ``--help`` page.

    Raises
    ------
    SystemExit
        After ``--help``, ``--version`` or ``--print-config``.
    UsageError
        If a flag is unknown, or has an invalid value.
    ConfigError
        If a value in the file or the environment is invalid.
    """
    flags = _parse_flags(arguments, description)
    is_printed = flags.pop("print_config", False)
    config = _merge(flags, _variables(environment))
    wrong = problems(config)
    # --epochs 0 must end with the same exit code as --epochs ten.
    wrong_names = {name for line in wrong for name in line.split(":")[0].split(" and ")}
    if wrong_names & flags.keys():
        raise UsageError("; ".join(wrong))
    if is_printed:
        sys.stdout.write(as_yaml(config, _STAGES))
        raise SystemExit(0)
    return config


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are settings, by the names of the settings."""
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }


def _merge(flags: dict[str, Any], variables: dict[str, str]) -> Config:
    """Return the settings of all sources; the key ``config`` is removed from flags and variables."""
    from_variable = variables.pop("config", "")
    path = os.path.expanduser(flags.pop("config", None) or from_variable)
    values: dict[str, Any] = {}
    if path:
        values |= convert_settings(read_configuration(path), f"config={printable(path)}: key ", ConfigError)
    values |= convert_settings(variables, "environment: ", ConfigError, _variable)
    values |= convert_settings(flags, "", UsageError, _flag)
    return Config.of(**{**values_of_preset(values.get("preset")), **values})


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parser_of_settings(description: str) -> argparse.ArgumentParser:
    """Return a parser of all flags, with the settings in groups."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)  # other sources provide the rest
    add_settings(parser)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting to a parser, in groups by subject."""
    parser.add_argument(
        "--version", action="version", version=f"shardpress {version('shardpress')}", help="Print the version and exit."
    )
    parser.add_argument(
        "--config", metavar="FILE", help="Read settings from this YAML file; names have _ instead of -."
    )
    parser.add_argument(
        "--print-config", action="store_true", help="Print all settings as a YAML file for --config, and exit."
    )
    group_of: dict[str, Any] = {}
    for title, names in _STAGES.items():
        group_of |= dict.fromkeys(names, parser.add_argument_group(title))
    for name, setting in _FLAGGED.items():
        group_of[name].add_argument(_flag(name), **_argument(setting))


def _parse_flags(arguments: Sequence[str], description: str) -> dict[str, Any]:
    # parse_args would not suggest a similar flag.
    known, unknown = parser_of_settings(description).parse_known_args(arguments)
    if unknown:
        argument = unknown[0]
        name = argument.split("=")[0]
        suggestion = f" Did you mean --input {printable(argument)}?"
        if name.startswith("-"):
            suggestion = _suggestion(name, _flag, "help", "version", "print_config")
        raise UsageError(f"unknown argument {printable(name)}.{suggestion} See --help.")
    return vars(known)


def _argument(setting: Setting) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a setting."""
    text = setting.help
    if setting.default not in (None, ()) and setting.default is not False:
        text += f" Default: {as_typed(setting.default)}."
    text = text.replace("%", "%%")
    if setting.kind is SWITCH:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    arguments = {"metavar": setting.kind.metavar, "help": text}
    if setting.type.startswith("bool"):  # the flag alone means yes
        return {**arguments, "nargs": "?", "const": "yes"}
    if isinstance(setting.default, tuple):
        return {**arguments, "nargs": "+", "action": "extend"}
    return arguments


def convert_settings(
    values: Mapping[str, Any],
    where: str,
    error: type[UsageError | ConfigError],
    spelled: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Return settings as values of the right types, given texts or plain values.

    Parameters
    ----------
    where : str
        Beginning of each message.
    error : type
        Error that is raised with all messages.
    spelled : callable
        Function that returns the spelling of a setting's name in the source of the values.
    """
    complaints: list[str] = []
    settings = {}
    for name, value in values.items():
        if len(complaints) == _COMPLAINTS_LISTED:
            complaints.append("and more")
            break
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


def _convert(setting: Setting, value: Any) -> Any:
    kind = setting.kind
    if not isinstance(setting.default, tuple):
        return kind.read(_text(kind, value))
    values = value
    if isinstance(value, str):
        values = value.split(os.pathsep)
    if values in (None, [], [""]) and not setting.default:  # the spellings of an empty list in all sources
        return ()
    if not isinstance(values, list) or not values:
        raise ValueError(f"{value!r}, expected at least one value")
    return tuple(kind.read(_text(kind, item)) for item in values)


def _text(kind: Kind, value: Any) -> str:
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
    if name in _REMOVED:
        return f" It was removed: {_REMOVED[name]}."
    known = [*more, *_FLAGGED]
    if name != "config":  # a file cannot name another file
        known.append("config")
    near = get_close_matches(name, known, n=1, cutoff=0.7)
    near += [other for other in known if other.startswith(name)]
    if not near:
        return ""
    return f" Did you mean {spelled(near[0])}?"
