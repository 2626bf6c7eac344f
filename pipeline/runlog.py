"""Logging with times: on the terminal, in ``run.log``, and the warnings of a run for its report."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["BEHIND_A_BAR", "Dated", "RunLog", "Terminal", "Warnings", "warnings_kept"]

# A record with this attribute says what a progress bar shows already: it is for the file only.
BEHIND_A_BAR = "is_behind_a_bar"

_NAME = "run.log"
_MAX_WARNINGS = 50  # that are kept; a file with thousands of faults causes thousands
_MAX_WAITING = 1000  # lines that are kept until the directory is known


class Dated(logging.Formatter):
    """A format with the time of day, and the date in the first line of each day."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._day = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time of a record."""
        created = time.localtime(record.created)
        day = time.strftime("%Y-%m-%d", created)
        clock = time.strftime("%H:%M:%S", created)
        if day == self._day:
            return clock
        self._day = day
        return f"{day} {clock}"


class Terminal(logging.StreamHandler):
    """Lines on standard error, above a progress bar if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Dated())
        self.addFilter(lambda record: not getattr(record, BEHIND_A_BAR, False))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if "tqdm" not in sys.modules:  # then there is no bar
            super().emit(record)
            return
        try:
            with sys.modules["tqdm"].tqdm.external_write_mode(file=self.stream):
                super().emit(record)
        except Exception:  # of drawing the bar again, say on a terminal that has been closed
            self.handleError(record)


class RunLog(logging.Handler):
    """Lines in ``run.log``, which are kept until the directory is known.

    A log that cannot be written does not stop a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._waiting: list[str] = []
        self._descriptor: int | None = None

    def start(self, directory: Path) -> None:
        """Write to a directory, which belongs to this run."""
        # An existing run.log may be a link to another file, or a pipe that no process reads.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with suppress(OSError):
            descriptor = os.open(directory / _NAME, flags, 0o666)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                os.close(descriptor)  # another name of a file elsewhere
                return
            self._descriptor = descriptor
            for line in self._waiting:
                _write(descriptor, line)
            self._waiting.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Write or keep one line."""
        line = self.format(record)
        if self._descriptor is not None:
            _write(self._descriptor, line)
        elif len(self._waiting) < _MAX_WAITING:
            self._waiting.append(line)

    def say(self, text: str) -> None:
        """Write or keep a line that comes from no logger."""
        self.emit(logging.makeLogRecord({"msg": text, "levelname": "INFO"}))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None
        super().close()


class Warnings(logging.Handler):
    """The first warnings of a run, for its report.

    Attributes
    ----------
    first : list of str
        Their messages, each once.
    n : int
        Number of warnings, in which repetitions of a kept one are not counted.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first: list[str] = []
        self.n = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep or count one warning."""
        line = record.getMessage()
        if line in self.first:
            return
        self.n += 1
        if len(self.first) < _MAX_WARNINGS:
            self.first.append(line)


@contextmanager
def warnings_kept() -> Iterator[Warnings]:
    """Keep the warnings of the pipeline and the kernels within the context."""
    kept = Warnings()
    handlers: list[logging.Handler] = [kept]
    # Where logging has not been set up, Python prints warnings only as long as no handler takes them.
    if logging.lastResort is not None and not logging.getLogger().handlers:
        handlers.append(logging.lastResort)
    places = [(logging.getLogger(name), handler) for name in ("pipeline", "kernels") for handler in handlers]
    for logger, handler in places:
        logger.addHandler(handler)
    try:
        yield kept
    finally:
        for logger, handler in places:
            logger.removeHandler(handler)


def _write(descriptor: int, line: str) -> None:
    with suppress(OSError):  # a full disk, say
        os.write(descriptor, line.encode("utf-8", "backslashreplace") + b"\n")  # names of files need not be UTF-8
