"""Tests of what a small run with a given model starts and loads, and of the line that says what a run is doing."""

from __future__ import annotations

import os
import pty
import re
import select
import termios
from pathlib import Path

import pytest

from tests.support.processes import Small, patch_program

pytestmark = pytest.mark.process

LISTED = """
import sys
sys.path.insert(0, "scripts")
started = []
def listen(event, values):
    if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "socket.bind", "socket.connect"):
        started.append(f"{event} {values[1:2]}")
sys.addaudithook(listen)
import extract
code = extract.main()
print("modules:", *sorted({name.partition(".")[0] for name in sys.modules}))
print(*(f"started: {text}" for text in started), sep="\\n")
extract.leave(code)
"""
# Packages that only the training, clusters, exports or rare filters need.
UNNEEDED = {"cryptography", "distributed", "hdf5plugin", "matplotlib", "onnx", "pandas", "pyarrow", "scipy", "sklearn"}


def test_a_run_loads_and_starts_only_what_it_needs(small: Small, tmp_path: Path) -> None:
    """It starts one Python to read files, forks nothing, opens no socket, and compiles nothing."""
    ended = patch_program(small, LISTED).run(tmp_path / "out", *small.with_model)
    assert ended.code == 0, ended.lines
    (modules,) = [line for line in ended.lines if line.startswith("modules: ")]
    assert UNNEEDED & set(modules.split()) == set()
    started = [line for line in ended.lines if line.startswith("started: ")]
    by_subprocess = [line for line in started if "subprocess.Popen" in line]
    # Since Python 3.13, subprocess starts some programs by os.posix_spawn, and both report them.
    assert {line.replace("os.posix_spawn", "subprocess.Popen") for line in started} == set(by_subprocess)
    assert sum("shardpress.hdf5.child.server" in line for line in by_subprocess) == 1
    assert not any("-march=native" in line or "-shared" in line for line in started)


@pytest.mark.slow
def test_a_terminal_always_shows_what_a_run_is_doing(small: Small, tmp_path: Path) -> None:
    """Every second, the last line says what is happening. The kernels are compiled, which takes seconds."""
    program = small.program(TERM="xterm", XDG_CACHE_HOME=tmp_path / "cache")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    text = ""
    silent: list[str] = []
    with program.start(tmp_path / "out", stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        n_silent = 0
        while (data := _arrived(ours)) is not None:
            text += data
            n_silent = 0 if data or not text or _last_line(text) else n_silent + 1
            if n_silent == 2:  # one second can end in the moment between two steps
                silent.append(text[-200:])
    os.close(ours)
    assert process.returncode == 0, text
    assert silent == []
    assert re.search(r"\rinput: .* \d/\d files", text)
    for step in ("start", "device", "training", "encoding", "verification", "report", "result"):
        assert re.search(rf"\r{step}: [a-zA-Z ]+ \[\d\d:\d\d, usually [a-z0-9, ]+\]", text), step


def _arrived(terminal: int) -> str | None:
    """Return what a terminal receives within a second, or None if no process writes to it any more."""
    readable, _, _ = select.select([terminal], [], [], 1.0)
    if not readable:
        return ""
    try:
        return os.read(terminal, 2**16).decode(errors="replace")
    except OSError:
        return None


def _last_line(text: str) -> str:
    """Return the line of the cursor: empty after a newline, and if a bar has been removed."""
    return text.rpartition("\n")[2].rpartition("\r")[2].strip()
