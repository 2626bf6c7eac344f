"""Error classes, one for each kind of failure. Their exit codes follow ``sysexits.h``.

An error message states where the error occurred (file, dataset, rows), what was found, what was expected, and what
the user can do.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Messages of libraries that do not define an error class for a lack of memory or threads.
_OUT_OF_RESOURCES = ("can't start new thread", "failed to map segment", "Cannot allocate memory")
# Error numbers that always mean a lack of system resources, wherever they occur.
_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# Error numbers that mean failing storage. The file itself may be intact.
STORAGE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV, errno.EREMOTEIO)


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Problem:
    """Fault in settings, files or rows, with its remedy. Each front end names settings in its own way."""

    where: tuple[str, ...] | str  # names of settings, or a place such as a file
    words: str  # what was found, and what was expected
    remedy: str = ""  # names settings in braces: "Raise {epochs}"

    def text(self, spelled: Callable[[str], str]) -> str:
        """Return sentences in which the names of settings are spelled in this way."""
        place = self.where if isinstance(self.where, str) else " and ".join(map(spelled, self.where))
        sentences = [f"{place}: {self.words}." if place else f"{self.words}."]
        if self.remedy:
            sentences.append(f"{self.remedy.format_map(_Names(spelled))}.")
        return " ".join(sentences)


class _Names(dict[str, str]):
    """Names of settings as a front end spells them."""

    def __init__(self, spelled: Callable[[str], str]) -> None:
        super().__init__()
        self._spelled = spelled

    def __missing__(self, name: str) -> str:
        return self._spelled(name)


class ShardpressError(Exception):
    """Base class of all errors, made from a message or from problems. A direct instance is an internal error."""

    exit_code = 70
    details = ""  # text that is written to run.log because it is too long for the message

    def text(self, spelled: Callable[[str], str]) -> str:
        """Return the message, in which the names of settings are spelled in this way."""
        return " ".join(part.text(spelled) if isinstance(part, Problem) else str(part) for part in self.args)

    def __str__(self) -> str:
        return self.text(flag)


class UsageError(ShardpressError):
    """Error in the command line."""

    exit_code = 64


class DataError(ShardpressError):
    """Unexpected content of an input file."""

    exit_code = 65


class TrainingDiverged(DataError):
    """Divergence of a training run: the cost became NaN or grew without bound."""


class NoInput(ShardpressError):
    """Input file that does not exist or cannot be opened."""

    exit_code = 66


class DeviceError(ShardpressError):
    """Unavailable device or compiler."""

    exit_code = 69


class SystemLimit(ShardpressError):
    """Limit of the operating system that is reached, for example the maximum number of open files or processes."""

    exit_code = 71


class CannotCreate(ShardpressError):
    """Output that cannot be created at the requested path."""

    exit_code = 73


class ReadFailed(ShardpressError):
    """Failure of the storage during a read. The data may be intact."""

    exit_code = 74


class WriteFailed(ShardpressError):
    """Failed write: the disk is full, a quota is used up, or the storage failed."""

    exit_code = 74


class TryAgain(ShardpressError):
    """Temporary failure. The same command can succeed later."""

    exit_code = 75


class DeviceLost(TryAgain):
    """Failure of the device. This process can no longer use the device."""

    why = ""  # reason for the failure, without advice


class OtherVersion(ShardpressError):
    """File that was written by another version of shardpress."""

    exit_code = 76


class NotPermitted(ShardpressError):
    """File permissions that deny access, or that allow other users to write to private files."""

    exit_code = 77


class ConfigError(ShardpressError):
    """Invalid settings. The message lists all of them."""

    exit_code = 78


class VerificationFailed(ShardpressError):
    """Output files that have changed, or that contain features that do not match the input rows."""

    exit_code = 79  # sysexits.h defines codes up to 78


class RowsDrifted(ShardpressError):
    """New rows that differ so much from the rows of the training that the settings do not allow publishing them."""

    exit_code = 80


def quantity(n: int, noun: str) -> str:
    """Return a number followed by a noun in the singular or plural: ``1 row``, ``2 rows``."""
    plural = "" if n == 1 else "s"
    return f"{n} {noun}{plural}"


def short_list(words: Iterable[str], n: int) -> str:
    """Join the first `n` words, and add how many words were left out. Return ``nothing`` if there are no words."""
    all_words = list(words)
    text = ", ".join(all_words[:n]) or "nothing"
    if len(all_words) > n:
        text += f" and {len(all_words) - n} more"
    return text


@contextmanager
def system_failures() -> Iterator[None]:
    """Raise `SystemLimit`, `ReadFailed` or `WriteFailed` in place of Python errors that have such a cause."""
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
    """Return the matching error, or None if neither the system nor the storage has failed."""
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
    """Return the name of a file or dataset for a message. All characters that are not printable are escaped.

    An escaped name cannot forge a line of the log. It also cannot hide or reorder text in a terminal, as U+202E would.
    Bytes that are not valid UTF-8 are escaped, too.
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
