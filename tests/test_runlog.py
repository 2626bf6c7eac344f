"""Tests of the log of a run: the log is complete, is written to the output directory, and never stops the run."""

import logging
import os

import pytest

from shardpress.runlog import SHOWN_BY_BAR, RunLog, Terminal, collect_warnings


@pytest.fixture
def run_log():
    found = RunLog()
    yield found
    found.close()


def lines(folder):
    return (folder / "run.log").read_text().splitlines()


def record(text):
    return logging.LogRecord("shardpress", logging.WARNING, "", 0, text, None, None)


def test_earlier_lines_are_written_when_the_directory_is_known(tmp_path, run_log):
    run_log.emit(record("one"))
    run_log.start(tmp_path)
    run_log.emit(record("two"))
    run_log.write("three")
    assert [line.split(" ", 2)[2] for line in lines(tmp_path)] == ["WARNING one", "WARNING two", "INFO three"]


def test_lines_hidden_by_a_bar_are_only_in_the_file(tmp_path, run_log, capsys):
    run_log.start(tmp_path)
    terminal = Terminal()
    for is_hidden in (True, False):
        line = record(f"hidden by a bar: {is_hidden}")
        setattr(line, SHOWN_BY_BAR, is_hidden)
        for handler in (run_log, terminal):
            handler.handle(line)
    assert [line.split(": ")[1] for line in lines(tmp_path)] == ["True", "False"]
    assert capsys.readouterr().err.endswith("WARNING hidden by a bar: False\n")
    assert "True" not in capsys.readouterr().err


def test_a_file_that_cannot_be_the_log_stops_no_run(tmp_path, run_log):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    log = tmp_path / "run.log"
    for make in (
        lambda: log.symlink_to(victim),
        lambda: log.hardlink_to(victim),
        lambda: os.mkfifo(log),
        lambda: log.symlink_to("/dev/full"),
        log.mkdir,
    ):
        make()
        run_log.start(tmp_path)
        run_log.write("line")
        if log.is_dir():
            log.rmdir()
        else:
            log.unlink()
    assert victim.read_text() == "precious\n"
    run_log.start(tmp_path)
    assert len(lines(tmp_path)) == 5, "the lines of all attempts"


def test_repeated_warnings_are_kept_once_but_counted() -> None:
    log = logging.getLogger("shardpress.some.where")
    with collect_warnings() as warnings:
        log.info("no warning")
        for i in range(70):
            log.warning("warning %d", i)
            log.warning("warning %d", i % 7)
    log.warning("too late")
    assert warnings.first == [f"warning {i}" for i in range(50)]
    assert warnings.n == 70
