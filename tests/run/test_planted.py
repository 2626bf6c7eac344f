"""Tests of code planted by another user in the current or the temporary directory: none of it is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest

from shardpress.base.childprocess import ChildProcess
from tests.support.helpers import write_shard
from tests.support.interpreters import environment

pytestmark = pytest.mark.process

COMMAND = Path(sys.executable).parent / "shardpress"
OTHER_USER = 12345
# In the order of execution: later commands read the results of the run.
COMMANDS = {
    "run": ["--input", ".", "--output", "out", "--epochs", "1", "--n-features", "2", "--workers", "2"],
    "inspect": ["."],
    "doctor": [],
    "export": ["out", "--to", "onnx"],
}


def plant(folder: Path, canaries: Path) -> None:
    """Write modules of every name that create a file when they are executed, and a library for the linker."""
    # Modules that tests can import, ours included, and modules that Python imports by itself.
    names = {*sys.stdlib_module_names, *packages_distributions(), "sitecustomize", "usercustomize"}
    folder.mkdir()
    canaries.mkdir()
    for name in filter(str.isidentifier, names):
        source = f"open({str(canaries / name)!r}, 'w').close()\nraise ImportError('planted: {name}')\n"
        (folder / f"{name}.py").write_text(source)
    (folder / "libgcc_s.so.1").write_text("INPUT(/planted/not-there.o)\n")


def test_no_command_runs_modules_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes pip. Directories of workers are not made in one that another user has made first."""
    folder = tmp_path / "data"
    canaries = tmp_path / "canaries"
    plant(folder, canaries)
    subprocess.run([sys.executable, "-c", "import json"], cwd=folder, capture_output=True, check=False)
    executed = {path.name for path in canaries.iterdir()}
    assert executed & {"json", "linecache"}, "without protection"  # Python 3.13 imports linecache first
    for path in canaries.iterdir():
        path.unlink()
    scratch = tmp_path / "tmp" / "dask-scratch-space"
    scratch.mkdir(parents=True)
    scratch.parent.chmod(0o1777)
    scratch.chmod(0o777)
    if os.getuid() == 0:
        os.chown(scratch, OTHER_USER, OTHER_USER)
    scratch_time = scratch.stat().st_mtime_ns
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6))).astype(np.float32)
    write_shard(folder / "a.h5", rows, extras={"y": (rows[:, 0] > 0).astype(np.int8)})
    env = environment(PYTHONPATH=None, TMPDIR=scratch.parent)
    for name, arguments in COMMANDS.items():
        command = [COMMAND, name, *arguments]
        result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
        assert (name, result.returncode, list(canaries.iterdir())) == (name, 0, []), result.stderr
    assert scratch.stat().st_mtime_ns == scratch_time
    assert [path for path in scratch.parent.iterdir() if "scratch" in path.name] == [scratch]
    monkeypatch.chdir(folder)
    child = ChildProcess("shardpress.setup.pip", "", "--version", stdout=subprocess.PIPE)
    stdout, _, _ = child.answer()
    assert (child.returncode, stdout[:4], list(canaries.iterdir())) == (0, b"pip ", [])
