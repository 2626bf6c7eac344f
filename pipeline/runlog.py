"""Logging with times on the terminal and in ``run.log``, and a list of warnings for the report."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["SHOWN_BY_BAR", "Dated", "RunLog", "Terminal", "Warnings", "collect_warnings"]

SHOWN_BY_BAR = "is_shown_by_bar"
"""Attribute of log records that a progress bar already shows, so that they are written to the file only."""

_NAME = "run.log"
_MAX_WARNINGS = 50  # warnings in the report; a file with thousands of faults causes thousands of warnings
_MAX_WAITING = 1000  # lines that are kept in memory until the directory is known


class Dated(logging.Formatter):
    """Formatter that shows the time of day, and the date in the first line of each day."""

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
    """Handler that writes lines to standard error, above a progress bar if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Dated())
        self.addFilter(lambda record: not getattr(record, SHOWN_BY_BAR, False))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if "tqdm" not in sys.modules:  # there is no bar
            super().emit(record)
            return
        try:
            with sys.modules["tqdm"].tqdm.external_write_mode(file=self.stream):
                super().emit(record)
        except Exception:  # drawing the bar fails on a terminal that has been closed
            self.handleError(record)


class RunLog(logging.Handler):
    """Handler that writes lines to ``run.log``, and keeps them in memory until the directory is known.

    If the file cannot be written, the run continues.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._waiting: list[str] = []
        self._descriptor: int | None = None

    def start(self, directory: Path) -> None:
        """Write to an output directory that this run has locked."""
        # An existing run.log could be a link to another file, or a pipe that no process reads.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with suppress(OSError):
            descriptor = os.open(directory / _NAME, flags, 0o666)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                os.close(descriptor)  # a hard link is another name of a file elsewhere
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

    def write(self, text: str) -> None:
        """Write or keep a line that is not a log record."""
        self.emit(logging.makeLogRecord({"msg": text, "levelname": "INFO"}))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None
        super().close()


class Warnings(logging.Handler):
    """Handler that collects the first warnings of a run.

    Attributes
    ----------
    first : list of str
        Distinct messages of the first warnings.
    n : int
        Number of warnings, without repetitions of those in `first`.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first: list[str] = []
        self.n = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Collect or count one warning."""
        line = record.getMessage()
        if line in self.first:
            return
        self.n += 1
        if len(self.first) < _MAX_WARNINGS:
            self.first.append(line)


@contextmanager
def collect_warnings() -> Iterator[Warnings]:
    """Collect the warnings of the pipeline and the kernels within the context."""
    collected = Warnings()
    handlers: list[logging.Handler] = [collected]
    # If logging is not configured, Python prints warnings only as long as there is no handler.
    if logging.lastResort is not None and not logging.getLogger().handlers:
        handlers.append(logging.lastResort)
    places = [(logging.getLogger(name), handler) for name in ("pipeline", "kernels") for handler in handlers]
    for logger, handler in places:
        logger.addHandler(handler)
    try:
        yield collected
    finally:
        for logger, handler in places:
            logger.removeHandler(handler)


def _write(descriptor: int, line: str) -> None:
    data = line.encode("utf-8", "backslashreplace")  # names of files need not be UTF-8
    with suppress(OSError):  # for example if the disk is full
        os.write(descriptor, data + b"\n")
