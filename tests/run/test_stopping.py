"""Real processes: told to stop, or left alone by whoever read their log.

Test names begin with the row of the project's list of faults that they hold.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.support.interpreters import REPOSITORY
from tests.support.killing import Ended, Victim, committed, features_of
from tests.support.processes import DEADLINE, LAST_LINE, Small

pytestmark = pytest.mark.process

# -- told to stop ------------------------------------------------------------------------------------------------


def told_while_encoding(victim: Victim, folder: Path, *numbers: int) -> tuple[Ended, Path]:
    """A run to which signals were sent when some, and not yet all, of its parts were committed."""
    for attempt in range(20):
        output = folder / str(attempt)
        process = victim.program.start(output)
        deadline = time.monotonic() + DEADLINE
        while not list(output.glob("commits/part-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.002)
        said, _ = process.communicate(timeout=DEADLINE)
        if process.returncode != 0:  # else it was already over
            return Ended(process.returncode, said.decode().splitlines(), {}, 0.0), output
    raise AssertionError("no run could be met while it was encoding")


def stopped_well(victim: Victim, folder: Path, number: signal.Signals) -> None:
    """It says how far it came, ends by the signal, and goes on from there."""
    ended, output = told_while_encoding(victim, folder, number)
    assert ended.code == -number, ended.lines
    assert ended.says(f" ERROR stopped by {number.name}: no half-written file is left behind")
    last = LAST_LINE.search(ended.lines[-1])
    assert last is not None, ended.lines
    assert 0 < int(last[2]) < victim.n_rows
    assert not ended.says("Traceback")
    assert list(output.rglob("*.writing")) == []
    victim.go_on(output)


def test_p3_sigterm_while_encoding(victim: Victim, tmp_path: Path) -> None:
    stopped_well(victim, tmp_path, signal.SIGTERM)


def test_p4_sigint_once(victim: Victim, tmp_path: Path) -> None:
    stopped_well(victim, tmp_path, signal.SIGINT)


def test_p4_sigint_twice_ends_at_once_and_can_go_on(victim: Victim, tmp_path: Path) -> None:
    ended, output = told_while_encoding(victim, tmp_path, signal.SIGINT, signal.SIGINT)
    assert ended.code == -signal.SIGINT
    assert not ended.says("Traceback")
    victim.go_on(output)


def test_p5_sigterm_in_training_saves_the_step_and_the_rest_is_the_same(victim: Victim, tmp_path: Path) -> None:
    # No other checkpoint than the signal's, in the middle of one of many epochs.
    flags = ("--epochs", "30", "--patience", "0", "--checkpoint-minutes", "60", "--verbose")
    reference, output = tmp_path / "reference", tmp_path / "out"
    assert victim.program.run(reference, *flags).code == 0
    ended = victim.program.run(output, *flags, at=" DEBUG epoch 7: ", by=signal.SIGTERM)
    assert ended.code == -signal.SIGTERM, ended.lines[-3:]
    assert ended.seconds - ended.sent < 20
    last = LAST_LINE.search(ended.lines[-1])
    assert last is not None, ended.lines
    assert last[2] == "0"
    step = max(int(key.split("-")[1]) for key in committed(output) if key.startswith("checkpoint"))
    assert step > 7 * 31, "about 31 steps an epoch"
    again = victim.program.run(output, *flags)
    assert again.code == 0
    assert again.says(f"training: going on behind step {step} of an earlier run")
    assert features_of(output) == features_of(reference)
    assert costs(output) == costs(reference)


def costs(output: Path) -> list[tuple[float, float]]:
    """The whole history of a training, but for the time it took."""
    history = json.loads((output / "report.json").read_text())["training"]["history"]
    return [(epoch["cost"], epoch["validation_cost"]) for epoch in history]


def on_terminal(victim: Victim, output: Path, *, ignoring_hangup: bool) -> tuple[subprocess.Popen[bytes], int]:
    """A run whose controlling terminal is ours to close."""
    ours, terminal = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if ignoring_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = victim.program.start(output, **streams, start_new_session=True, preexec_fn=take_terminal)
    os.close(terminal)
    shown = b""
    while b"training: " not in shown:
        assert select.select([ours], [], [], DEADLINE)[0], shown
        shown += os.read(ours, 2**12)
    return process, ours


def test_p6_when_its_terminal_is_closed_a_run_stops_and_can_go_on(victim: Victim, tmp_path: Path) -> None:
    process, ours = on_terminal(victim, tmp_path / "out", ignoring_hangup=False)
    os.close(ours)
    assert process.wait(DEADLINE) == -signal.SIGHUP
    log = (tmp_path / "out" / "run.log").read_text().splitlines()
    assert any("stopped by SIGHUP" in line for line in log)
    assert LAST_LINE.search(log[-1]), log
    victim.go_on(tmp_path / "out")


def test_p6_started_with_nohup_a_run_outlives_its_terminal(victim: Victim, tmp_path: Path) -> None:
    process, ours = on_terminal(victim, tmp_path / "out", ignoring_hangup=True)
    os.close(ours)
    assert process.wait(DEADLINE) == 0
    victim.check(tmp_path / "out")


# -- nobody reads the log ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["--quiet", "--no-quiet", "--verbose"])
def test_p7_whoever_read_the_log_has_gone(small: Small, tmp_path: Path, mode: str) -> None:
    process = small.program().start(tmp_path / "out", mode)
    assert process.stdout is not None
    if mode != "--quiet":
        assert b": input " in process.stdout.readline()
    process.stdout.close()
    assert process.wait(DEADLINE) == 0
    assert features_of(tmp_path / "out") == small.features
    log = (tmp_path / "out" / "run.log").read_text()
    assert "Done: 300 rows" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("streams", [">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_p7_streams_that_were_never_open_or_take_nothing(small: Small, tmp_path: Path, streams: str) -> None:
    program, output = small.program(), tmp_path / "out"
    shell = ["/bin/sh", "-c", f'exec "$@" {streams}', "sh", *program.command, "--output", str(output)]
    done = subprocess.run(shell, cwd=REPOSITORY, env=program.environment, check=False, timeout=DEADLINE)
    assert done.returncode == 0, (output / "run.log").read_text()
    assert features_of(output) == small.features
