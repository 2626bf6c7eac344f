"""Logging to the terminal and to ``run.log``, with times, and collection of warnings for the report."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SHOWN_BY_BAR = "is_shown_by_bar"  # attribute of records that a progress bar already shows: only the file gets them
BAD_FILE = "is_about_bad_file"  # attribute of records about a file that cannot be used: a plan lists these itself
_NAME = "run.log"
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
MAX_WARNINGS = 50  # maximum in the report; a file with thousands of faults causes thousands of warnings
_MAX_WAITING = 1000  # maximum number of lines in memory before the directory is known


class Terminal(logging.StreamHandler):
    """Handler that writes lines to standard error, above the progress bar if one is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
        self.addFilter(lambda record: not getattr(record, SHOWN_BY_BAR, False))

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" not in sys.modules:  # there is no bar
            super().emit(record)
            return
        try:
            with sys.modules["tqdm"].tqdm.external_write_mode(file=self.stream):
                super().emit(record)
        except Exception:  # tqdm fails if the terminal has been closed
            self.handleError(record)


class RunLog(logging.Handler):
    """Handler that writes lines to ``run.log``.

    The lines are kept in memory until the directory is known. If the file cannot be written, the run continues.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self._waiting: list[str] = []
        self._descriptor: int | None = None

    def start(self, directory: Path) -> None:
        """Start writing to ``run.log`` in an output directory, which this run has locked."""
        # Without O_NONBLOCK, a run would wait for a process that reads a named pipe.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        with suppress(OSError):
            self._descriptor = os.open(directory / _NAME, flags, 0o666)
            for line in self._waiting:
                _write(self._descriptor, line)
            self._waiting.clear()

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if self._descriptor is not None:
            _write(self._descriptor, line)
        elif len(self._waiting) < _MAX_WAITING:
            self._waiting.append(line)

    def write(self, text: str) -> None:
        """Write a line that is not a log record."""
        self.emit(logging.makeLogRecord({"msg": text, "levelname": "INFO"}))

    def close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None
        super().close()


class Warnings(logging.Handler):
    """Handler that collects the first warnings of a run."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first: list[str] = []  # messages of the first warnings, without repetitions
        self.n = 0  # number of warnings without repetitions of those in `first`

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line in self.first:
            return
        self.n += 1
        if len(self.first) < MAX_WARNINGS:
            self.first.append(line)


@contextmanager
def collect_warnings(with_bad_files: bool = True) -> Iterator[Warnings]:
    """Collect the warnings that the pipeline and the kernels log within the context."""
    collected = Warnings()
    if not with_bad_files:
        collected.addFilter(lambda record: not getattr(record, BAD_FILE, False))
    loggers = [logging.getLogger(name) for name in ("shardpress", "shardpress_kernels")]
    for logger in loggers:
        logger.addHandler(collected)
    try:
        yield collected
    finally:
        for logger in loggers:
            logger.removeHandler(collected)


def _write(descriptor: int, line: str) -> None:
    data = line.encode("utf-8", "backslashreplace")  # file names may contain bytes that are not UTF-8
    with suppress(OSError):  # for example if the disk is full
        os.write(descriptor, data + b"\n")
