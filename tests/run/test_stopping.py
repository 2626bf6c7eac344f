"""Tests of stopping real processes: by signals, or because their log or terminal was closed."""

from __future__ import annotations

import fcntl
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
from tests.support.killing import EndedRun, Victim, features_of
from tests.support.logged import mentions, resumed_step
from tests.support.processes import DEADLINE, LAST_LINE, Small
from tests.support.protocol import committed

pytestmark = pytest.mark.process


def with_model(victim: Victim) -> tuple[str, ...]:
    return "--preset", "none", "--model", str(victim.undisturbed)


def stopped_while_encoding(victim: Victim, folder: Path, *numbers: int) -> tuple[EndedRun, Path]:
    """Return a run that received signals after some, but not all, of its parts were committed.

    It encodes with a given model, since training would only delay it.
    """
    for attempt in range(20):
        output = folder / str(attempt)
        process = victim.program.start(output, *with_model(victim))
        deadline = time.monotonic() + DEADLINE
        while not committed(output) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.002)
        output_bytes, _ = process.communicate(timeout=DEADLINE)
        if process.returncode != 0:  # otherwise it had already finished
            return EndedRun(process.returncode, output_bytes.decode().splitlines(), {}), output
    raise AssertionError("no run could be met while it was encoding")


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGINT, signal.SIGINT)], ids=str)
def test_a_signal_while_encoding_ends_a_run_that_can_be_resumed(
    victim: Victim, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    """The run reports its progress, and ends by the signal. A second one ends it at once."""
    ended, output = stopped_while_encoding(victim, tmp_path, *numbers)
    assert ended.code == -numbers[0], ended.lines
    assert not ended.has_line("Traceback")
    if len(numbers) == 1:
        assert ended.has_line(rf" ERROR .*\b{numbers[0].name}\b")
        last = LAST_LINE.search(ended.lines[-1])
        assert last is not None, ended.lines
        assert 0 < int(last[2]) < victim.n_rows
        assert list(output.rglob("*.writing")) == []
    victim.resume(output, *with_model(victim))


def test_sigterm_in_training_saves_a_checkpoint(victim: Victim, tmp_path: Path) -> None:
    # The signal causes the only checkpoint, in the middle of one of many epochs.
    flags = ("--epochs", "12", "--patience", "0", "--verbose")
    reference = tmp_path / "reference"
    output = tmp_path / "out"
    assert victim.usual_program.run(reference, *flags).code == 0
    ended = victim.usual_program.run(output, *flags, at=" DEBUG epoch 3: ", by=signal.SIGTERM)
    assert ended.code == -signal.SIGTERM, ended.lines[-3:]
    step = max(int(key.split("-")[1]) for key in committed(output) if key.startswith("checkpoint"))
    assert step > 3 * 31, "about 31 steps an epoch"
    again = victim.usual_program.run(output, *flags)
    assert again.code == 0
    assert resumed_step("\n".join(again.lines)) == step
    assert features_of(output) == features_of(reference)


def on_terminal(victim: Victim, output: Path, *, ignoring_hangup: bool) -> tuple[subprocess.Popen[bytes], int]:
    """Start a run whose controlling terminal the test can close."""
    ours, terminal = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if ignoring_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = victim.program.start(output, **streams, start_new_session=True, preexec_fn=take_terminal)
    os.close(terminal)
    terminal_output = b""
    while b"training: " not in terminal_output:
        assert select.select([ours], [], [], DEADLINE)[0], terminal_output
        terminal_output += os.read(ours, 2**12)
    return process, ours


@pytest.mark.parametrize("ignoring_hangup", [False, True], ids=["", "nohup"])
def test_a_closed_terminal_stops_the_run_unless_it_ignores_that(
    victim: Victim, tmp_path: Path, ignoring_hangup: bool
) -> None:
    output = tmp_path / "out"
    process, terminal = on_terminal(victim, output, ignoring_hangup=ignoring_hangup)
    os.close(terminal)
    assert process.wait(DEADLINE) == (0 if ignoring_hangup else -signal.SIGHUP)
    if not ignoring_hangup:
        log = (output / "run.log").read_text().splitlines()
        assert any(mentions(line, "SIGHUP") for line in log)
        assert LAST_LINE.search(log[-1]), log
    victim.resume(output)


# -- no reader of the log ---------------------------------------------------------------------------------------------


def test_a_closed_pipe_of_the_log_does_not_stop_the_run(small: Small, tmp_path: Path) -> None:
    process = small.program().start(tmp_path / "out", "--verbose")
    assert process.stdout is not None
    assert b": input " in process.stdout.readline()
    process.stdout.close()
    assert process.wait(DEADLINE) == 0
    assert features_of(tmp_path / "out") == small.features
    log = (tmp_path / "out" / "run.log").read_text()
    assert mentions(log, "Done", 300)
    assert "Traceback" not in log


def test_unusable_standard_streams_do_not_stop_the_run(small: Small, tmp_path: Path) -> None:
    program = small.program()
    output = tmp_path / "out"
    shell = ["/bin/sh", "-c", 'exec "$@" <&- >/dev/full 2>&-', "sh", *program.command, "--output", str(output)]
    result = subprocess.run(shell, cwd=REPOSITORY, env=program.environment, check=False, timeout=DEADLINE)
    assert result.returncode == 0, (output / "run.log").read_text()
    assert features_of(output) == small.features
