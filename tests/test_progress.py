"""Tests of progress: a bar on a terminal, plain lines in a log."""

import io
import re
import sys
from contextlib import suppress

import pytest

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
    n_lines = len(lines())
    run_pass(1000, 100_000.0)
    assert len(lines()) >= n_lines + 100_000 / 600 / 2, "no line for ten minutes"
    n_lines = len(lines())
    run_pass(10, 4.0, is_minor=True)
    assert len(lines()) == n_lines, "a minor pass is logged only if it is long"
    run_pass(10, 40.0, is_minor=True)
    assert mentions(lines()[-1], "10/10 rows")


def test_earlier_work_does_not_count_for_rate_and_remaining_time(lines):
    run_pass(1000, 1000.0, done=900, unit_bytes=10**6)
    assert mentions(lines()[-1], "1000/1000 rows", "100.0 s", "1 rows/s", "1 MB/s")
    run_pass(1000, 10_000.0, done=500)
    assert mentions(lines()[2], "600/1000 rows", 60, "17 min", "67 min")


@pytest.mark.parametrize(
    ("total", "seconds", "expected"),
    [(20, 8.4, ("4/20 epochs [", "2.1 s/epoch, note")), (20, 0.5, ("8.0 epochs/s",)), (None, 8.4, ("4 epochs [",))],
)
def test_a_terminal_shows_a_bar_with_its_rate_unless_quiet(monkeypatch, caplog, total, seconds, expected):
    for level in ("WARNING", "INFO"):
        caplog.set_level(level, "shardpress")
        now = [0.0]
        monkeypatch.setattr(sys, "stderr", Terminal())
        with Progress("training", total, "epochs", clock=lambda now=now: now[0]) as progress:
            now[0] = seconds
            progress.advance(4, "note")
        assert bool(sys.stderr.getvalue()) == bool(caplog.records) == (level == "INFO")
    for text in expected:
        assert text in sys.stderr.getvalue()


def test_an_empty_pass_is_logged_but_not_a_failed_one(lines):
    with Progress("scan", 0, "rows", unit_bytes=1, clock=lambda: 0.0):
        pass
    with suppress(KeyError), Progress("training", 10, "rows") as progress:
        progress.advance(3)
        raise KeyError
    (line,) = lines()
    assert line.startswith("scan: 0/0 rows")


def test_a_step_without_units_is_shown_until_it_ends(caplog, monkeypatch):
    caplog.set_level("INFO", "shardpress")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with activity("training: compiling", "a minute"):
        assert sys.stderr.getvalue().endswith("training: compiling [00:00, usually a minute]")
    assert not sys.stderr.getvalue().rpartition("\r")[2].strip()
    monkeypatch.undo()
    with activity("short", "a second"):
        pass
    assert caplog.records == [], "a log shows only long steps"
