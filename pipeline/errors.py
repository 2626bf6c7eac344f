"""One class for each kind of failure, each with its exit code (sysexits.h).

An error's sentence says where (file, dataset, rows), what was found, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "CannotCreate",
    "ConfigError",
    "DataError",
    "DeviceError",
    "NoInput",
    "NotPermitted",
    "ShardpressError",
    "TrainingDiverged",
    "TryAgain",
    "UsageError",
    "WriteFailed",
    "shown",
]


class ShardpressError(Exception):
    """Base of all; on its own, a fault of the program."""

    exit_code = 70


class UsageError(ShardpressError):
    """The command line cannot be understood."""

    exit_code = 64


class DataError(ShardpressError):
    """An input file holds something else than the format asks for."""

    exit_code = 65


class TrainingDiverged(DataError):
    """The cost became NaN or grew without bound."""


class NoInput(ShardpressError):
    """An input file is not there or cannot be opened."""

    exit_code = 66


class DeviceError(ShardpressError):
    """The device, a compiler or an HDF5 filter that is needed is not available."""

    exit_code = 69


class CannotCreate(ShardpressError):
    """The output cannot be made where it was asked for."""

    exit_code = 73


class WriteFailed(ShardpressError):
    """Writing failed on the way: disk full, quota, a storage error."""

    exit_code = 74


class TryAgain(ShardpressError):
    """Nothing is wrong but the moment: type the same command again."""

    exit_code = 75


class NotPermitted(ShardpressError):
    """The file system's permissions forbid it, or they leave something open that must be private."""

    exit_code = 77


class ConfigError(ShardpressError):
    """Settings that cannot work, all of them in one list."""

    exit_code = 78


def shown(name: object) -> str:
    """A file's or data set's name with control characters escaped, so that it cannot forge a line of the log."""
    return str(name).encode("utf-8", "backslashreplace").decode().translate(_ESCAPES)


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
