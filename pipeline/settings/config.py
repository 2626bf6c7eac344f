"""Settings: one frozen dataclass, filled from defaults, a configuration file, the environment and flags.

Later ones of these win. Every setting is a flag ``--like-this``, a key ``like_this`` of the YAML file that ``--config``
names, and an environment variable ``SHARDPRESS_LIKE_THIS``. The device is Theano's business: ``THEANO_FLAGS`` and
``.theanorc`` choose it.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from fractions import Fraction
from importlib.metadata import version
from typing import Any, NoReturn

from pipeline.errors import ConfigError, UsageError, shown
from pipeline.settings.configfile import read_configuration

__all__ = ["LEARNING_RATES", "Config", "allowed", "parse", "parse_bytes", "plain", "problems"]

ENVIRONMENT_PREFIX = "SHARDPRESS_"

# Each rule's own good start; see docs/training.md for the measurements.
LEARNING_RATES = {"momentum": 0.1, "nesterov": 0.1, "adam": 0.003, "rmsprop": 0.001}

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_COMPLAINTS_LISTED = 50


def parse_bytes(text: str) -> int:
    """Bytes of ``4GiB``, ``500 MB``, ``1.5G`` or ``1048576``.

    ``KB`` and its kin are powers of 1000, all other units powers of 1024.
    """
    match = re.fullmatch(r"\s*([0-9]{0,18}\.?[0-9]{1,18})\s*([KMGT]?)(i?)(B?)\s*", str(text), re.IGNORECASE)
    if not match or (match[3] and not match[2]):
        raise ValueError(f"{text!r}, expected bytes with a unit, like 4GiB or 500MB")
    unit = match[2].upper()
    factor = _UNITS[unit] if match[3] or not match[4] else 1000 ** "_KMGT".index(unit or "_")
    return int(float(match[1]) * factor)


def allowed(limit: str, total: int) -> int:
    """How many of `total` a limit like ``25`` or ``1%`` allows."""
    # Exactly: in floats, 29 % of 100 are 28.999999999999996.
    return int(Fraction(limit[:-1]) * total / 100) if limit.endswith("%") else int(limit)


def _limit(text: str) -> str:
    match = re.fullmatch(r"\s*(?:([0-9]{1,18})|([0-9]{0,3}\.?[0-9]{1,18})\s*%)\s*", str(text))
    if not match or (match[2] and Fraction(match[2]) > 100):
        raise ValueError(f"{text!r}, expected a whole number, or a percentage like 0.1%")
    return match[1] or f"{match[2]}%"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r}, expected a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r}, expected a number") from None


def _exact_number(text: str) -> float:
    """A number; a whole one as an integer, since float64 does not hold all of int64."""
    number = _number(text)
    if not number.is_integer():
        return number
    try:
        return int(text)
    except ValueError:  # 1e3
        return int(number)


def _yes_or_no(text: str) -> bool:
    answers = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return answers[str(text).lower()]
    except KeyError:
        raise ValueError(f"{text!r}, expected true or false") from None


@dataclass(frozen=True)
class _OneOf:
    choices: tuple[str, ...]

    def __call__(self, text: str) -> str:
        if text not in self.choices:
            raise ValueError(f"{text!r}, expected one of {', '.join(self.choices)}")
        return text


def _optional(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text in ("", "none", "auto") else convert(text)


def _text(text: str) -> str:
    if not text:
        raise ValueError("found nothing, expected a name")
    return text


def _path(text: str) -> str:
    """Of a leading ``~`` the home directory: no shell has expanded it behind ``--output=``, in a file or in quotes."""
    found = os.path.expanduser(_text(text))
    if found.startswith("~"):
        raise ValueError(f"{text!r}, expected a user whose home is known behind ~ (a name that begins so: ./{text})")
    return found


# What stands for a value in --help.
_METAVARS: Mapping[Callable[[str], Any], str] = {
    _whole: "N",
    _number: "X",
    _exact_number: "X",
    parse_bytes: "BYTES",
    _limit: "N|N%",
}


def _dataset_path(text: str) -> str:
    """The path of a dataset, without slashes that say nothing."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError(f"{text!r}, expected the path of a dataset, like obs/cell_type")
    return "/".join(parts)


def _setting(default: Any, convert: Callable[[str], Any], help: str, metavar: str = "") -> Any:
    """A setting.

    One whose default is a tuple takes several values, each converted by itself; one whose default is None can be none.
    """
    choices = f"{{{','.join(convert.choices)}}}" if isinstance(convert, _OneOf) else ""
    return field(
        default=default,
        metadata={
            "convert": _optional(convert) if default is None else convert,
            "help": help,
            "is_text": convert in (str, _path, _dataset_path),
            "metavar": metavar or choices or _METAVARS.get(convert, "NAME"),
        },
    )


@dataclass(frozen=True)
class Config:
    """All settings of a run; the help texts of the fields describe them."""

    input: tuple[str, ...] = _setting(
        ("data/*.h5",), _path, "HDF5 shards: files, directories or globs, one or more", "PATH"
    )
    follow: tuple[str, ...] = _setting(
        (), _path, "folders in which the files may lie that a master file among the inputs stacks", "DIR"
    )
    dataset: str | None = _setting(None, str, "dataset with the rows (default: X, else the only candidate)")
    orientation: str | None = _setting(
        None,
        _OneOf(("rows", "columns")),
        "along which axis of the dataset its rows lie: rows, the first one, or columns, the last one, as of files that "
        "MATLAB, Fortran, Julia or R have written (default: rows; MATLAB's files must be told)",
    )
    carry: tuple[str, ...] = _setting(
        (),
        _dataset_path,
        "datasets elsewhere in the files that ride along too, as labels do: paths from the root, like obs/cell_type",
        "NAME",
    )
    output: str = _setting("features", _path, "directory for the features", "DIR")
    model: str | None = _setting(None, _path, "encode with this model.h5 or output directory, no training", "PATH")
    n_features: int | None = _setting(
        None, _whole, "columns out (default: 64, or half the columns where there are fewer than 128)"
    )
    epochs: int = _setting(20, _whole, "passes over the training rows, at most")
    batch_size: int | None = _setting(
        None, _whole, "rows of one training step (default: 128, or a fiftieth of the rows, at least 16)"
    )
    optimizer: str = _setting("adam", _OneOf(tuple(LEARNING_RATES)), "update rule")
    learning_rate: float | None = _setting(
        None, _number, f"step size (default: {', '.join(f'{v} for {k}' for k, v in LEARNING_RATES.items())})"
    )
    schedule: str = _setting(
        "linear",
        _OneOf(("constant", "linear")),
        "learning rate over the steps: constant, or linear (up over the first epoch, then down to 0 at the end)",
    )
    biases: str = _setting("mean", _OneOf(("mean", "zero")), "start of the biases: the columns' mean, or zero")
    momentum: float = _setting(0.9, _number, "decay of the update rule's running average")
    seed: int = _setting(0, _whole, "where all randomness starts")
    validation_fraction: float = _setting(0.05, _number, "share of the rows kept out of training to watch its progress")
    patience: int = _setting(5, _whole, "stop after so many epochs without a better validation cost (0: never)")
    block_rows: int | None = _setting(None, _whole, "rows read at once (default: about 8 MiB of them)")
    threads: int | None = _setting(None, _whole, "Dask threads (default: one for each processor core)")
    memory_budget: int = _setting(2 * 2**30, parse_bytes, "host memory for rows and features, like 4GiB")
    device_memory_budget: int = _setting(2**30, parse_bytes, "device memory for rows, like 4GiB")
    shuffle_window: int = _setting(256 * 2**20, parse_bytes, "bytes of rows that are shuffled together")
    on_bad_data: str = _setting(
        "raise",
        _OneOf(("raise", "skip", "quarantine")),
        "rows with NaN or Inf, and shards that cannot be read: raise stops, skip leaves them out (NaN features), "
        "quarantine also lists them in quarantine.jsonl",
    )
    max_bad_rows: str = _setting("1%", _limit, "bad rows that skip and quarantine let pass, a number or a percentage")
    max_bad_shards: str = _setting("1%", _limit, "the same for shards")
    missing_value: float | None = _setting(
        None, _exact_number, "a value that stands for a missing one, like -9999: its rows are bad rows"
    )
    out_of_range: str = _setting(
        "allow",
        _OneOf(("allow", "clip", "raise")),
        "with --model, rows outside the range that it was trained on: allow counts them, clip moves them to its edge",
    )
    checkpoint_minutes: float = _setting(5.0, _number, "how much of the training an interruption may cost, at most")
    verify: str = _setting(
        "digests", _OneOf(("digests", "sizes")), "what is compared of files that an earlier run has finished"
    )
    restart: bool = _setting(False, _yes_or_no, "forget what an earlier run left in the output directory; begin again")
    require_device: bool = _setting(False, _yes_or_no, "stop when Theano's device cannot be used, do not take the CPU")
    overwrite: bool = _setting(False, _yes_or_no, "replace results of the same input files made with other settings")
    single_file: bool = _setting(False, _yes_or_no, "also write single.h5: all rows in one file that needs no other")
    quiet: bool = _setting(False, _yes_or_no, "print warnings, errors and the summary only")
    verbose: bool = _setting(False, _yes_or_no, "print details")


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
    UsageError
        For an unknown flag, or a flag's value that cannot be read or cannot work.
    ConfigError
        For what cannot be read in the file or the environment.
    """
    flags = _parse_flags(arguments, description)
    variables = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }
    path = os.path.expanduser(flags.pop("config", None) or variables.pop("config", None) or "")
    config = Config(
        **{
            **(_converted(read_configuration(path), f"config={shown(path)}: key ", ConfigError) if path else {}),
            **_converted(variables, "environment: ", ConfigError, lambda name: ENVIRONMENT_PREFIX + name.upper()),
            **_converted(flags, "", UsageError, _flag),
        }
    )
    wrong = problems(config)
    # So that --epochs 0 ends as --epochs ten does.
    if any(name in flags for line in wrong for name in line.split(":")[0].split(" and ")):
        raise UsageError("; ".join(wrong))
    return config


def problems(config: Config) -> list[str]:
    """Everything that is wrong with the settings in themselves, one sentence each."""
    rate, missing = config.learning_rate, config.missing_value
    checks: list[tuple[bool, str, object, str]] = [
        (config.n_features is None or config.n_features >= 1, "n_features", config.n_features, "1 or more"),
        (not config.output.startswith("~"), "output", config.output, "a path whose ~ is expanded"),
        (config.epochs >= 1, "epochs", config.epochs, "1 or more"),
        (config.batch_size is None or config.batch_size >= 1, "batch_size", config.batch_size, "1 or more"),
        (rate is None or 0 < rate < math.inf, "learning_rate", rate, "a finite number above 0"),
        (0 <= config.momentum < 1, "momentum", config.momentum, "from 0 up to but not including 1"),
        (config.seed >= 0, "seed", config.seed, "0 or more"),
        (
            0 <= config.validation_fraction < 1,
            "validation_fraction",
            config.validation_fraction,
            "from 0 to below 1",
        ),
        (
            0 <= config.checkpoint_minutes < math.inf,
            "checkpoint_minutes",
            config.checkpoint_minutes,
            "0 or more, and finite",
        ),
        (missing is None or math.isfinite(missing), "missing_value", missing, "a finite number: NaN always is"),
        (not (config.overwrite and config.restart), "overwrite and restart", "both", "at most one of them"),
        (config.patience >= 0, "patience", config.patience, "0 or more"),
        (config.block_rows is None or config.block_rows >= 1, "block_rows", config.block_rows, "1 or more"),
        (config.threads is None or config.threads >= 1, "threads", config.threads, "1 or more"),
        (config.memory_budget >= 2**24, "memory_budget", config.memory_budget, "16MiB or more"),
        (config.device_memory_budget >= 0, "device_memory_budget", config.device_memory_budget, "0 or more"),
        (config.shuffle_window >= 1, "shuffle_window", config.shuffle_window, "1 or more"),
        (not (config.quiet and config.verbose), "quiet and verbose", "both", "at most one of them"),
    ]
    return [f"{name}: {found}, expected {expected}" for good, name, found, expected in checks if not good]


# The settings under --help, by what they are about.
_STAGES = {
    "input": ("input", "follow", "dataset", "orientation", "carry"),
    "bad data": ("on_bad_data", "max_bad_rows", "max_bad_shards", "missing_value"),
    "model": ("n_features", "biases", "model", "out_of_range"),
    "training": (
        *("epochs", "batch_size", "optimizer", "learning_rate", "schedule", "momentum"),
        *("validation_fraction", "patience", "seed", "shuffle_window"),
    ),
    "output": ("output", "single_file", "overwrite", "restart", "verify", "checkpoint_minutes"),
    "machine": ("threads", "block_rows", "memory_budget", "device_memory_budget", "require_device"),
    "messages": ("quiet", "verbose"),
}


# -- sources -----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See --help.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parse_flags(arguments: Sequence[str], description: str) -> dict[str, Any]:
    parser = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"shardpress {version('shardpress')}")
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the settings below, spelled with _")
    titled = {title: parser.add_argument_group(title) for title in _STAGES}
    groups = {name: titled[title] for title, names in _STAGES.items() for name in names}
    for setting in fields(Config):
        text = setting.metadata["help"]
        if setting.default not in (None, ()) and setting.default is not False:
            text += f" (default: {plain(setting.default)})"
        text = text.replace("%", "%%")
        if setting.type == "bool":
            groups.get(setting.name, parser).add_argument(
                _flag(setting.name), action=argparse.BooleanOptionalAction, help=text
            )
        else:
            how: dict[str, Any] = {"nargs": "+", "action": "extend"} if _takes_several(setting) else {}
            groups.get(setting.name, parser).add_argument(
                _flag(setting.name), metavar=setting.metadata["metavar"], help=text, **how
            )
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].split("=")[0]
        meant = (
            f" Did you mean --input {shown(unknown[0])}?"
            if flag[:1] != "-"
            else _nearest(flag, _flag, "help", "version")
        )
        raise UsageError(f"unknown argument {shown(flag)}.{meant} See --help.")
    return vars(known)


def plain(value: object) -> str:
    """A setting's value as a user would type it."""
    if isinstance(value, tuple):
        return " ".join(shown(item) for item in value) or "None"
    if isinstance(value, int) and value >= 2**20 and value % 2**20 == 0:
        return f"{value // 2**20}MiB"
    return shown(value)


def _converted(
    values: Mapping[str, Any],
    where: str,
    error: type[UsageError | ConfigError],
    spelled: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Values of the right types, or every complaint in one error."""
    known = {setting.name: setting for setting in fields(Config)}
    complaints: list[str] = []
    converted = {}
    for name, value in values.items():
        if len(complaints) == _COMPLAINTS_LISTED:
            complaints.append("and more")
            break
        if name not in known:
            complaints.append(f"{where}{shown(spelled(name))} is unknown.{_nearest(name, spelled)}")
            continue
        try:
            converted[name] = _convert(known[name], value)
        except ValueError as complaint:
            complaints.append(f"{where}{spelled(name)}: {complaint}")
    if complaints:
        raise error("; ".join(complaints))
    return converted


def _convert(setting: Field[Any], value: Any) -> Any:
    convert = setting.metadata["convert"]
    if _takes_several(setting):
        values = value.split(os.pathsep) if isinstance(value, str) else value
        if values in (None, [], [""]) and not setting.default:  # as a report spells its settings
            return ()
        if not isinstance(values, list) or not values:
            raise ValueError(f"{value!r}, expected one value or more")
        return tuple(convert(_typed(setting, item)) for item in values)
    return convert(_typed(setting, value))


def _typed(setting: Field[Any], value: Any) -> str:
    """One value as a flag would have it. Of a name like a number YAML keeps the number alone: 2024_01 is 202401."""
    if isinstance(value, (list, dict)):
        raise ValueError(f"{value!r}, expected one value")
    if setting.metadata["is_text"] and isinstance(value, (bool, int, float)):
        raise ValueError(f"{value!r} to YAML, expected a text. Put it in quotes.")
    if "\0" in str(value):
        raise ValueError(f"{value!r}, expected a text without the character 0")
    return "" if value is None else str(value)


def _takes_several(setting: Field[Any]) -> bool:
    return isinstance(setting.default, tuple)


def _nearest(name: str, spelled: Callable[[str], str], *more: str) -> str:
    """A question after the setting that looks like `name` or begins with it, if there is one."""
    name = name.strip("-").replace("-", "_")
    known = [*more, *(setting.name for setting in fields(Config))]
    known += ["config"] if name != "config" else []  # which is unknown in the file that it names
    near = get_close_matches(name, known, n=1, cutoff=0.7) or [other for other in known if other.startswith(name)]
    return f" Did you mean {spelled(near[0])}?" if near and name else ""
