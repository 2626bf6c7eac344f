"""Lines with their time, on the terminal and in ``run.log``, for the morning after the terminal was closed."""

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

# A record that has this attribute says what a bar shows already: it is for the file.
BEHIND_A_BAR = "is_behind_a_bar"

_NAME = "run.log"
_MOST_WARNINGS = 50  # that are kept in their words; a file of thousands of faults says thousands
_MAX_WAITING = 1000  # lines, of a run that is refused thousands of files before its directory is known


class Dated(logging.Formatter):
    """For the terminal: the time of day, with the date in the first line of each day."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._day = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """When a record was made."""
        day, clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created)).split()
        is_new, self._day = day != self._day, day
        return f"{day} {clock}" if is_new else clock


class Terminal(logging.StreamHandler):
    """Lines on standard error, above a bar that may be there."""

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
    """Keeps lines until it is told the directory, and writes them there from then on.

    A log that cannot be written is no reason to stop: it then keeps silent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._waiting: list[str] = []
        self._descriptor: int | None = None

    def start(self, directory: Path) -> None:
        """Write to a directory, which is ours by now."""
        # What lies there in its place may be a link to somebody's file, or a pipe that nobody reads.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with suppress(OSError):
            descriptor = os.open(directory / _NAME, flags, 0o666)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                os.close(descriptor)  # a second name of somebody's file
                return
            self._descriptor = descriptor
            waiting, self._waiting = self._waiting, []
            for line in waiting:
                _write(descriptor, line)

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line."""
        line = self.format(record)
        if self._descriptor is not None:
            _write(self._descriptor, line)
        elif len(self._waiting) < _MAX_WAITING:
            self._waiting.append(line)

    def say(self, text: str) -> None:
        """Take a line that no logger brings."""
        self.emit(logging.makeLogRecord({"msg": text, "levelname": "INFO"}))

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None
        super().close()


class Warnings(logging.Handler):
    """Keeps the first warnings of a run for its report, and counts all of them.

    Attributes
    ----------
    first : list of str
        In their words, each once.
    n : int
        How many there were; of those that are kept each counts once.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first: list[str] = []
        self.n = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line."""
        line = record.getMessage()
        if line in self.first:
            return
        self.n += 1
        if len(self.first) < _MOST_WARNINGS:
            self.first.append(line)


@contextmanager
def warnings_kept() -> Iterator[Warnings]:
    """Within the context, keep what is warned of by the pipeline and the kernels."""
    kept, last = Warnings(), logging.lastResort
    # Where nobody has set up logging, Python prints warnings as long as nothing takes them.
    handlers = [kept, last] if last and not logging.getLogger().handlers else [kept]
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
