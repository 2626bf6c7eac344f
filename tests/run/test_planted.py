"""Tests of code planted by another user in the current or the temporary directory: none of it is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest

from shardpress.childprocess import ChildProcess
from tests.support.helpers import write_shard
from tests.support.interpreters import environment

pytestmark = pytest.mark.process

COMMAND = Path(sys.executable).parent / "shardpress"
OTHER_USER = 12345
# Modules that tests can import, ours included, and modules that Python imports by itself.
NAMES = {*sys.stdlib_module_names, *packages_distributions(), "sitecustomize", "usercustomize"}
# In the order of execution: later commands read the results of the run.
COMMANDS = {
    "run": ["--input", ".", "--output", "out", "--epochs", "1", "--n-features", "2", "--workers", "2"],
    "plan": ["--input", ".", "--output", "planned"],
    "inspect": ["."],
    "doctor": [],
    "verify": ["out"],
    "report": ["out"],
    "compare": ["out", "out"],
    "export": ["out", "--to", "onnx"],
    "setup-gpu": ["--help"],
}


@dataclass
class Trap:
    """A folder of data with planted modules, and traces of their execution.

    Attributes
    ----------
    folder : Path
    canaries : Path
        Directory in which each planted module creates a file when it is executed.
    scratch : Path
        The directory that Dask would use in the temporary directory, made by another user first.
    """

    folder: Path
    canaries: Path
    scratch: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        env = environment(PYTHONPATH=None, TMPDIR=self.scratch.parent)
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False, timeout=900
        )

    def executed(self) -> list[str]:
        return sorted(path.name for path in self.canaries.iterdir())


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Trap:
    base = tmp_path_factory.mktemp("planted")
    result = Trap(base / "data", base / "canaries", base / "tmp" / "dask-scratch-space")
    for folder in (result.folder, result.canaries, result.scratch.parent, result.scratch):
        folder.mkdir()
    plant(result.folder, result.canaries)
    result.scratch.parent.chmod(0o1777)
    result.scratch.chmod(0o777)
    if os.getuid() == 0:
        os.chown(result.scratch, OTHER_USER, OTHER_USER)
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6))).astype(np.float32)
    write_shard(result.folder / "a.h5", rows, extras={"y": (rows[:, 0] > 0).astype(np.int8)})
    return result


def plant(folder: Path, canaries: Path) -> None:
    """Write modules of every name that record their execution, and a library that the linker looks for."""
    for name in filter(str.isidentifier, NAMES):
        source = f"open({str(canaries / name)!r}, 'w').close()\nraise ImportError('planted: {name}')\n"
        (folder / f"{name}.py").write_text(source)
    (folder / "libgcc_s.so.1").write_text("INPUT(/planted/not-there.o)\n")


def test_planted_modules_are_executed_without_protection(tmp_path: Path) -> None:
    plant(tmp_path, tmp_path)
    subprocess.run([sys.executable, "-c", "import json"], cwd=tmp_path, capture_output=True, check=False)
    # Python 3.13 imports linecache before the program runs.
    assert (tmp_path / "json").exists() or (tmp_path / "linecache").exists()


def test_no_command_runs_modules_of_the_current_directory(trap: Trap) -> None:
    scratch_time = trap.scratch.stat().st_mtime_ns
    found = {}
    for name, arguments in COMMANDS.items():
        result = trap.run(COMMAND, name, *arguments)
        found[name] = (result.returncode, trap.executed())
        assert found[name] == (0, []), result.stderr
    # Its owner could put modules into the directories of workers, which import from there.
    assert trap.scratch.stat().st_mtime_ns == scratch_time, "a run of this user has used the directory of another user"
    assert [path for path in trap.scratch.parent.iterdir() if "scratch" in path.name] == [trap.scratch]


def test_pip_is_not_taken_from_the_current_directory(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trap.folder)
    child = ChildProcess("shardpress.pip", "", "--version", stdout=subprocess.PIPE)
    stdout, _, _ = child.answer()
    assert (child.returncode, stdout[:4], trap.executed()) == (0, b"pip ", [])
