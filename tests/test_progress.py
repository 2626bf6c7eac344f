"""Progress: a bar on a terminal, plain lines in a log."""

import io
import re
import sys
from contextlib import suppress

import pytest

from pipeline import progress as module
from pipeline.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def lines(caplog):
    """The lines of the log so far."""
    caplog.set_level("INFO", "pipeline")
    return lambda: [record.getMessage() for record in caplog.records]


def test_in_a_log_lines_come_at_a_steady_pace_and_one_at_the_end(lines, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress("scan", 100, "rows") as progress:
        for _ in range(100):
            now[0] += 1
            progress.advance()
    counts = [re.match(r"scan: (\d+)/100 rows", line)[1] for line in lines()]
    assert counts == [*map(str, range(10, 101, 10))], "the last line is not told twice"
    assert capsys.readouterr().err == ""


def test_the_last_line_tells_rate_and_note(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress("encoding", 4000, "rows", unit_bytes=1000) as progress:
        now[0] = 2.0
        progress.advance(4000, "note")
    assert lines() == ["encoding: 4000/4000 rows, 2.0 s, 2,000 rows/s, 2 MB/s, note"]


@pytest.mark.parametrize(
    ("total", "seconds", "shown"),
    [
        (20, 8.4, "4/20 epochs ["),
        (20, 8.4, ", 2.1 s/epoch, note]"),
        (20, 0.5, ", 8.0 epochs/s, note]"),
        (None, 8.4, "4 epochs ["),
    ],
)
def test_a_bar_says_its_pace_in_the_words_of_its_unit(monkeypatch, caplog, total, seconds, shown):
    caplog.set_level("INFO", "pipeline")
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("training", total, "epochs") as progress:
        now[0] = seconds
        progress.advance(4, "note")
    assert shown in sys.stderr.getvalue()


def test_without_a_total_only_what_is_done_is_counted(lines, monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    with Progress("fit", None, "steps") as progress:
        progress.advance(3)
    assert lines() == ["fit: 3 steps, 0.0 s"]


def test_no_time_at_all_is_no_division_by_zero(lines, monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    with Progress("scan", 0, "rows", unit_bytes=1):
        pass
    assert lines()[-1].startswith("scan: 0/0 rows")


def test_after_an_error_there_is_no_line_that_looks_like_success(lines):
    progress = Progress("scan", 10, "rows")
    with suppress(KeyError), progress:
        progress.advance(3)
        raise KeyError
    assert lines() == []


@pytest.mark.parametrize(("level", "shown"), [("INFO", True), ("WARNING", False)])
def test_on_a_terminal_there_is_a_bar_unless_quiet(caplog, monkeypatch, level, shown):
    caplog.set_level(level, "pipeline")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("scan", 5, "rows") as progress:
        progress.advance(5, "note")
    assert ("scan: 100%" in sys.stderr.getvalue()) == shown
    assert ("note" in sys.stderr.getvalue()) == shown
    assert bool(caplog.records) == shown
