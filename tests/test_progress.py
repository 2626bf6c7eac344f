"""Tests of progress: a bar on a terminal, plain lines in a log."""

import io
import logging
import re
import sys
import threading
from contextlib import suppress

import pytest

from shardpress import progress
from shardpress.progress import Progress, activity
from tests.support.logged import mentions


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def lines(caplog):
    """Return a function that returns the lines of the log so far."""
    caplog.set_level("INFO", "shardpress")
    return lambda: [record.getMessage() for record in caplog.records]


def run_pass(total, seconds, **options):
    """Advance a progress bar unit by unit, with a fake clock; all units together take `seconds`."""
    now = [0.0]
    with Progress("scan", total, "rows", clock=lambda: now[0], **options) as progress:
        for _ in range(total - options.get("done", 0)):
            now[0] += seconds / total
            progress.advance()


def test_a_log_shows_progress_and_remaining_time_repeatedly(lines, capsys):
    run_pass(1000, 1000.0)
    found = [re.fullmatch(r"scan: (\d+)/1000 rows \((\d+) %\), .*, ([\w ]+) left", line) for line in lines()[:-1]]
    assert [each[2] for each in found] == ["1", "2", "5", *map(str, range(10, 100, 10))]
    assert [found[i][3] for i in (0, 1, 2, 3, -1)] == ["16 min", "16 min", "16 min", "15 min", "100 s"]
    assert mentions(lines()[-1], "scan:", "1000/1000 rows", "17 min"), "once"
    assert capsys.readouterr().err == ""


def test_progress_lines_are_neither_too_frequent_nor_too_rare(lines):
    run_pass(1000, 4.0)
    assert [mentions(line, "1000/1000", "4.0 s") for line in lines()] == [True], "a short pass logs only its end"
    run_pass(1000, 100.0)
    assert len(lines()) == 1 + len(["5 %", *range(10, 100, 10), "the end"])
    run_pass(1000, 100_000.0)
    assert len(lines()) >= 12 + 100_000 / 600 / 2, "no line for ten minutes"


def test_a_minor_pass_is_logged_only_if_it_is_long(lines):
    run_pass(10, 4.0, is_minor=True)
    assert lines() == []
    run_pass(10, 40.0, is_minor=True)
    assert len(lines()) > 1
    assert mentions(lines()[-1], "10/10 rows")


def test_earlier_work_does_not_count_for_rate_and_remaining_time(lines):
    run_pass(1000, 1000.0, done=900, unit_bytes=10**6)
    assert mentions(lines()[-1], "1000/1000 rows", "100.0 s", "1 rows/s", "1 MB/s")
    run_pass(1000, 10_000.0, done=500)
    assert mentions(lines()[2], "600/1000 rows", 60, "17 min", "67 min")


@pytest.mark.parametrize(
    ("total", "seconds", "expected"),
    [
        (20, 8.4, "4/20 epochs ["),
        (20, 8.4, ", 2.1 s/epoch, note]"),
        (20, 0.5, ", 8.0 epochs/s, note]"),
        (None, 8.4, "4 epochs ["),
    ],
)
def test_a_bar_shows_its_rate_in_its_unit(monkeypatch, caplog, total, seconds, expected):
    caplog.set_level("INFO", "shardpress")
    now = [0.0]
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("training", total, "epochs", clock=lambda: now[0]) as progress:
        now[0] = seconds
        progress.advance(4, "note")
    assert expected in sys.stderr.getvalue()


def test_zero_duration_causes_no_division_by_zero(lines):
    with Progress("scan", 0, "rows", unit_bytes=1, clock=lambda: 0.0):
        pass
    assert lines()[-1].startswith("scan: 0/0 rows")


def test_no_final_line_is_logged_after_an_error(lines):
    progress = Progress("scan", 10, "rows")
    with suppress(KeyError), progress:
        progress.advance(3)
        raise KeyError
    assert lines() == []


@pytest.mark.parametrize(("level", "expected"), [("INFO", True), ("WARNING", False)])
def test_a_terminal_shows_a_bar_unless_quiet(caplog, monkeypatch, level, expected):
    caplog.set_level(level, "shardpress")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("scan", 5, "rows") as progress:
        progress.advance(5, "note")
    assert ("scan: 100%" in sys.stderr.getvalue()) == expected
    assert ("note" in sys.stderr.getvalue()) == expected
    assert bool(caplog.records) == expected


def test_a_terminal_shows_a_step_without_units_until_it_ends(caplog, monkeypatch):
    caplog.set_level("INFO", "shardpress")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with activity("training: compiling", "a minute"):
        assert sys.stderr.getvalue().endswith("training: compiling [00:00, usually a minute]")
    assert not sys.stderr.getvalue().rpartition("\r")[2].strip()
    assert caplog.records == []


def test_a_log_shows_only_a_long_step_without_units(lines, monkeypatch):
    with activity("short", "a second"):
        pass
    assert lines() == []
    is_logged = threading.Event()
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(logging.getLogger("shardpress.progress"), "info", lambda *words: is_logged.set())
    with activity("long", "a second"):
        assert is_logged.wait(60)
