"""Tests of the log of a run: the log is complete, is written to the output directory, and never stops the run."""

import logging
import os

import pytest

from shardpress.base.runlog import SHOWN_BY_BAR, RunLog, Terminal


@pytest.fixture
def run_log():
    found = RunLog()
    yield found
    found.close()


def lines(folder):
    return (folder / "run.log").read_text().splitlines()


def record(text):
    return logging.LogRecord("shardpress", logging.WARNING, "", 0, text, None, None)


def test_earlier_lines_and_those_hidden_by_a_bar_are_in_the_file(tmp_path, run_log, capsys):
    run_log.emit(record("one"))
    run_log.start(tmp_path)
    terminal = Terminal()
    for text, is_hidden in (("two", True), ("three", False)):
        line = record(text)
        setattr(line, SHOWN_BY_BAR, is_hidden)
        run_log.handle(line)
        terminal.handle(line)
    assert [line.split(" ", 2)[2] for line in lines(tmp_path)] == ["WARNING one", "WARNING two", "WARNING three"]
    shown = capsys.readouterr().err
    assert shown.endswith("WARNING three\n")
    assert "two" not in shown


def test_a_file_that_cannot_be_the_log_stops_no_run(tmp_path, run_log):
    log = tmp_path / "run.log"
    os.mkfifo(log)
    run_log.start(tmp_path)
    run_log.write("one")
    log.unlink()
    run_log.start(tmp_path)
    assert len(lines(tmp_path)) == 1
    log.unlink()
    log.symlink_to("/dev/full")
    run_log.start(tmp_path)
    run_log.write("two")
