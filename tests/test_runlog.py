"""Tests of the log of a run: the log is complete, is written to the output directory, and never stops the run."""

import errno
import logging
import os

import pytest
from tqdm import tqdm

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


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_link_in_place_of_the_log_is_not_followed(tmp_path, run_log, make):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    make(victim, tmp_path / "run.log")
    run_log.start(tmp_path)
    run_log.write("line")
    assert victim.read_text() == "precious\n"


def test_a_fifo_in_place_of_the_log_does_not_block(tmp_path, run_log):
    os.mkfifo(tmp_path / "run.log")
    run_log.start(tmp_path)
    run_log.write("line")


def test_a_full_disk_does_not_stop_the_run(tmp_path, run_log):
    os.symlink("/dev/full", tmp_path / "run.log")
    run_log.start(tmp_path)
    run_log.write("line")
    run_log._descriptor = os.open("/dev/full", os.O_WRONLY)
    run_log.write("line")


def test_an_unwritable_directory_disables_the_log(tmp_path, run_log):
    run_log.start(tmp_path / "nowhere")
    for i in range(5000):
        run_log.write(str(i))
    assert len(run_log._waiting) <= 1000


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


def test_a_closed_terminal_does_not_stop_the_run(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # the command line does this

    def remove(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tqdm, "external_write_mode", remove)
    Terminal().handle(record("line"))
