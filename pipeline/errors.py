"""One class for each kind of failure, each with its exit code (sysexits.h).

An error's sentence says where (file, dataset, rows), what was found, what was expected and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "STORAGE",
    "CannotCreate",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DeviceLost",
    "NewerFormat",
    "NoInput",
    "NotPermitted",
    "ReadFailed",
    "ShardpressError",
    "SystemLimit",
    "TrainingDiverged",
    "TryAgain",
    "UsageError",
    "VerificationFailed",
    "WriteFailed",
    "counted",
    "shown",
    "some",
    "system_failures",
]

# By which libraries that have no class for it say that the system has no more memory or threads.
_OF_THE_SYSTEM = ("can't start new thread", "failed to map segment", "Cannot allocate memory")
# Errors of the operating system that no program can cause by itself, wherever they are raised.
_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

STORAGE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV, errno.EREMOTEIO)
"""Error numbers by which storage says that it failed, and nothing about the file that was to be read."""


class ShardpressError(Exception):
    """Base of all; on its own, a fault of the program."""

    exit_code = 70
    details = ""  # what is too long for a line, and stands in run.log only


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
    """The device or a compiler that is needed is not available."""

    exit_code = 69


class SystemLimit(ShardpressError):
    """The operating system has no more of something: open files, processes."""

    exit_code = 71


class CannotCreate(ShardpressError):
    """The output cannot be made where it was asked for."""

    exit_code = 73


class ReadFailed(ShardpressError):
    """The storage failed while reading; nothing is known to be wrong with the data."""

    exit_code = 74


class WriteFailed(ShardpressError):
    """Writing failed on the way: disk full, quota, a storage error."""

    exit_code = 74


class TryAgain(ShardpressError):
    """Nothing is wrong but the moment: type the same command again."""

    exit_code = 75


class DeviceLost(TryAgain):
    """The device has failed, and this process can use it no more."""

    why = ""  # alone, without what to type


class NewerFormat(ShardpressError):
    """A later version of shardpress wrote this."""

    exit_code = 76


class NotPermitted(ShardpressError):
    """The file system's permissions forbid it, or they leave something open that must be private."""

    exit_code = 77


class ConfigError(ShardpressError):
    """Settings that cannot work, all of them in one list."""

    exit_code = 78


class VerificationFailed(ShardpressError):
    """What stands in an output's files is not what its rows encode to, or not what was written."""

    exit_code = 79  # sysexits.h ends before it


def counted(n: int, noun: str) -> str:
    """So many of something: ``1 row``, ``2 rows``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def some(words: Iterable[str], n: int) -> str:
    """The first `n` of many words, and how many more there are; ``nothing`` where there are none."""
    every = list(words)
    more = f" and {len(every) - n} more" if len(every) > n else ""
    return (", ".join(every[:n]) or "nothing") + more


@contextmanager
def system_failures() -> Iterator[None]:
    """Turn what Python and its libraries raise when the system or the storage fails into an error of ours.

    Raises
    ------
    SystemLimit
        When memory, threads, processes or open files run out.
    ReadFailed, WriteFailed
        When the storage fails in a place that has no error of its own for it.
    """
    try:
        yield
    except ShardpressError:
        raise
    except Exception as error:
        failure = _system_failure(error)
        if failure is None:
            raise
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error


def _system_failure(error: Exception) -> ShardpressError | None:
    """Return the error of ours for a failure of the system or the storage; None for anything else."""
    number = error.errno if isinstance(error, OSError) else None
    if number in STORAGE or number in _DISK:
        kind = ReadFailed if number in STORAGE else WriteFailed
        name = getattr(error, "filename", None)
        where = f"file={shown(name)}: " if name else ""
        words = getattr(error, "strerror", None) or str(error)
        return kind(f"{where}the storage failed: {shown(words)}. Check the disk, then type the same command again.")
    is_limit = isinstance(error, MemoryError) or number in _LIMITS
    if not is_limit and not any(sign in str(error) for sign in _OF_THE_SYSTEM):
        return None
    why = f"{type(error).__name__}: {error}" if str(error) else "the memory has run out"
    advice = "Raise its limits (ulimit -v, -u, -n), or use fewer --threads."
    return SystemLimit(f"the system gives no more: {shown(why)}. {advice}")


def shown(name: object) -> str:
    """A file's or data set's name with everything escaped that cannot be printed, so that it forges no line of a log.

    That includes what reorders or hides text in a terminal, such as U+202E, and bytes that are not UTF-8.
    """
    return "".join(char if char.isprintable() else _escaped(ord(char)) for char in str(name))


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
