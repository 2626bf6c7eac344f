"""Tests of progress: a bar on a terminal, plain lines in a log."""

import io
import re
import sys

import pytest

from shardpress.base.progress import Progress, activity
from tests.support.logged import mentions


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


def test_a_log_shows_progress_and_remaining_time_at_a_steady_pace(lines, capsys):
    run_pass(1000, 1000.0)
    found = [re.fullmatch(r"scan: (\d+)/1000 rows \((\d+) %\), .*, ([\w ]+) left", line) for line in lines()[:-1]]
    assert [each[2] for each in found] == ["1", "2", "5", *map(str, range(10, 100, 10))]
    assert [found[i][3] for i in (0, 1, 2, 3, -1)] == ["16 min", "16 min", "16 min", "15 min", "100 s"]
    assert capsys.readouterr().err == ""
    n_lines = len(lines())
    run_pass(1000, 4.0)
    assert [mentions(line, "1000/1000", "4.0 s") for line in lines()[n_lines:]] == [True], "only the end"
    n_lines = len(lines())
    run_pass(1000, 100_000.0)
    assert len(lines()) >= n_lines + 100_000 / 600 / 2, "no line for ten minutes"


def test_earlier_work_does_not_count_for_rate_and_remaining_time(lines):
    run_pass(1000, 1000.0, done=900, unit_bytes=10**6)
    assert mentions(lines()[-1], "1000/1000 rows", "100.0 s", "1 rows/s", "1 MB/s")
    run_pass(1000, 10_000.0, done=500)
    assert mentions(lines()[2], "600/1000 rows", 60, "17 min", "67 min")


def test_a_terminal_shows_a_bar_and_steps_of_unknown_length(monkeypatch, lines):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    run_pass(20, 40.0)
    assert "20/20 rows [" in terminal.getvalue()
    with activity("training: compiling", "a minute"):
        assert "training: compiling" in terminal.getvalue().rpartition("\r")[2]
    assert not terminal.getvalue().rpartition("\r")[2].strip()
