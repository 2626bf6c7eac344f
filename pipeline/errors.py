"""Error classes, one for each kind of failure, with exit codes as in ``sysexits.h``.

A message states where the error is (file, dataset, rows), what was found, what was expected, and what to do.
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
    "printable",
    "quantity",
    "short_list",
    "system_failures",
]

# Messages of libraries that have no error class for a lack of memory or threads.
_OUT_OF_RESOURCES = ("can't start new thread", "failed to map segment", "Cannot allocate memory")
# Error numbers that are never caused by the program alone, wherever they occur.
_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

STORAGE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV, errno.EREMOTEIO)
"""Error numbers of failing storage, which do not mean that a file is damaged."""


class ShardpressError(Exception):
    """Base class of all errors. An instance of the class itself is an internal error."""

    exit_code = 70
    details = ""
    """Text for run.log that is too long for a message."""


class UsageError(ShardpressError):
    """The command line is invalid."""

    exit_code = 64


class DataError(ShardpressError):
    """The content of an input file is not as expected."""

    exit_code = 65


class TrainingDiverged(DataError):
    """The cost became NaN or grew without bound."""


class NoInput(ShardpressError):
    """An input file does not exist or cannot be opened."""

    exit_code = 66


class DeviceError(ShardpressError):
    """The device or the compiler is not available."""

    exit_code = 69


class SystemLimit(ShardpressError):
    """A limit of the operating system is reached, such as that of open files or processes."""

    exit_code = 71


class CannotCreate(ShardpressError):
    """The output cannot be created at the requested path."""

    exit_code = 73


class ReadFailed(ShardpressError):
    """The storage failed during a read. The data need not be damaged."""

    exit_code = 74


class WriteFailed(ShardpressError):
    """A write failed: the disk is full, a quota is used up, or the storage failed."""

    exit_code = 74


class TryAgain(ShardpressError):
    """A temporary failure: the same command can succeed later."""

    exit_code = 75


class DeviceLost(TryAgain):
    """The device has failed and cannot be used any more by this process."""

    why = ""
    """Reason without advice."""


class NewerFormat(ShardpressError):
    """A file was written by a later version of shardpress."""

    exit_code = 76


class NotPermitted(ShardpressError):
    """Permissions of the file system forbid an access, or allow other users to write what must be private."""

    exit_code = 77


class ConfigError(ShardpressError):
    """Some settings are invalid. The message lists all of them."""

    exit_code = 78


class VerificationFailed(ShardpressError):
    """Files of an output have changed, or contain features that do not match the input rows."""

    exit_code = 79  # sysexits.h defines codes up to 78


def quantity(n: int, noun: str) -> str:
    """Return a number with a noun in singular or plural: ``1 row``, ``2 rows``."""
    plural = "" if n == 1 else "s"
    return f"{n} {noun}{plural}"


def short_list(words: Iterable[str], n: int) -> str:
    """Return the first `n` words and the number of the others; ``nothing`` if there are no words."""
    all_words = list(words)
    text = ", ".join(all_words[:n]) or "nothing"
    if len(all_words) > n:
        text += f" and {len(all_words) - n} more"
    return text


@contextmanager
def system_failures() -> Iterator[None]:
    """Turn errors of Python and its libraries into errors of shardpress if the system or the storage has failed.

    Raises
    ------
    SystemLimit
        If memory, threads, processes or open files run out.
    ReadFailed, WriteFailed
        If the storage fails, and the code that uses it does not handle that.
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
    """Return the error for a failure of the system or the storage; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    if number in STORAGE:
        return ReadFailed(_storage_message(error))
    if number in _DISK:
        return WriteFailed(_storage_message(error))
    is_limit = isinstance(error, MemoryError) or number in _LIMITS
    if not is_limit and not any(sign in str(error) for sign in _OUT_OF_RESOURCES):
        return None
    why = f"{type(error).__name__}: {error}" if str(error) else "out of memory"
    advice = "Raise its limits (ulimit -v, -u, -n), or use fewer --threads."
    return SystemLimit(f"the operating system refused a resource: {printable(why)}. {advice}")


def _storage_message(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    message = f"the storage failed: {printable(reason)}. Check the disk, then run the same command again."
    name = getattr(error, "filename", None)
    return f"file={printable(name)}: {message}" if name else message


def printable(name: object) -> str:
    """Return the name of a file or dataset for a message, with all characters escaped that cannot be printed.

    A name can then neither forge a line of the log nor hide or reorder text in a terminal, as U+202E would. Bytes that
    are not UTF-8 are escaped, too.
    """
    return "".join(map(_escaped, str(name)))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\U{code:08x}"
