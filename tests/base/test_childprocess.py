"""Tests of child processes: they import no files that other users can write, and they end with their parent."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from shardpress.base.childprocess import ChildProcess
from shardpress.base.sourceroots import SOURCE_ROOTS
from tests.support.interpreters import search_path

# Module of a child that prints its import path and its environment.
PROBE = """
import json, os, sys
def main():
    print(json.dumps([sys.path, dict(os.environ)]))
"""


@pytest.mark.process
def test_children_import_from_safe_directories_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    safe = tmp_path / "safe"
    for folder in (here, safe):
        folder.mkdir()
    (safe / "probe.py").write_text(PROBE)
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(here)
    unsafe = ["", ".", "relative", str(here), str(tmp_path / "link"), str(here / "dask-scratch-space/worker-1")]
    for entry in [*unsafe, str(safe)]:
        monkeypatch.syspath_prepend(entry)
    inherited = {"PYTHONPATH": "/tmp", "PYTHONSTARTUP": "/tmp/x.py", "HOME": "/h", "MYPYTHON": "1"}
    child = ChildProcess("probe", environment=inherited, stdout=subprocess.PIPE)
    stdout, _, _ = child.answer()
    path, variables = json.loads(stdout)
    assert set(unsafe).isdisjoint(path)
    ours = [path.index(root) for root in SOURCE_ROOTS]
    assert path.index(str(safe)) < min(ours)
    assert path.index(os.path.dirname(os.__file__)) < min(ours)
    assert variables.keys() & {*inherited} == {"HOME", "MYPYTHON"}


# Program that starts a child and prints the process ids of the child and of a process that the child has started.
PARENT = """
import subprocess, sys
from pathlib import Path
from shardpress.base.childprocess import ChildProcess
scratch = Path(sys.argv[2]) if len(sys.argv) > 2 else None
child = ChildProcess(sys.argv[1], stdout=subprocess.PIPE, scratch=scratch)
print(child.pid, child.stdout.readline().decode(), flush=True)
sys.stdin.read()
"""
GRANDCHILD = """
import ctypes, subprocess, time
other = subprocess.Popen(["sleep", "1000"])
print(other.pid, flush=True)
"""


@pytest.mark.process
def test_a_stuck_child_ends_with_its_parent(tmp_path: Path) -> None:
    child = tmp_path / "stuck_child.py"
    child.write_text(f"{GRANDCHILD}ctypes.PyDLL(None).pause()  # holds the interpreter's lock")
    assert _is_ended_with_parent(tmp_path)
    scratch = tmp_path / "scratch"
    (scratch / "worker").mkdir(parents=True)
    child.write_text(f"{GRANDCHILD}time.sleep(1000)")
    assert _is_ended_with_parent(tmp_path, str(scratch))
    assert not scratch.exists()


def _is_ended_with_parent(folder: Path, *arguments: str) -> bool:
    """Kill the parent; return whether its child and the child's process end."""
    variables = {**os.environ, "PYTHONPATH": f"{folder}:{search_path()}"}
    command = [sys.executable, "-c", PARENT, "stuck_child", *arguments]
    parent = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        descriptors = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(descriptors) == 2
        parent.kill()
        return all(select.select([descriptor], [], [], 60)[0] for descriptor in descriptors)
    finally:
        parent.kill()
        parent.communicate()
