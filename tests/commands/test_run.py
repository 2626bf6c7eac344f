"""Tests of `shardpress run`: fast messages at its start, and the files that it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import numbered, write_shard
from tests.support.interpreters import environment
from tests.support.logged import mentions

# Modules that are slow to load are blocked: messages that do not need them must come first.
PROGRAM = """
import contextlib, io, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "h5py", "dask", "tqdm", "scipy"):
            raise SystemExit("loads " + name)
sys.meta_path.insert(0, Refuse())
from shardpress.commands.table import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["--help"])
main(sys.argv[1:])
"""


def first_output(folder: Path, *flags: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, "run", *flags], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert result.stdout == ""
    return [line.partition(" INFO ")[2] or line for line in result.stderr.splitlines()]


@pytest.mark.process
def test_the_first_line_needs_no_libraries_and_lists_settings(tmp_path: Path) -> None:
    first, *last = first_output(
        tmp_path, "--input", "a.h5", "b.h5", "c.h5", "d.h5", "--epochs", "3", "--hidden", "none"
    )
    assert first.startswith("shardpress ")
    assert mentions(first, "input a.h5, b.h5, c.h5", 1, "output features", "hidden none", "epochs 3", "--verbose")
    assert last == ["loads h5py"]
    (tmp_path / "quiet.yaml").write_text("quiet: true\n")
    assert first_output(tmp_path, "--config", "quiet.yaml") == ["loads h5py"]


@pytest.mark.process
@pytest.mark.compiler
def test_a_run_writes_only_to_its_output_and_cache(tmp_path: Path) -> None:
    """Files next to the shards, in the working and home directories and among temporary files stay the same."""
    for name in ("here/data", "home", "temporary"):
        (tmp_path / name).mkdir(parents=True)
    write_shard(tmp_path / "here/data/x.h5", numbered(40, 4))
    before = set(tmp_path.rglob("*"))
    command = [Path(sys.executable).parent / "shardpress", "run", "--epochs", "1"]
    env = environment(HOME=tmp_path / "home", TMPDIR=tmp_path / "temporary", PYTHONPATH=None)
    result = subprocess.run(command, cwd=tmp_path / "here", env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert mentions(result.stdout, 40, 4, 2, "features/index.h5")
    output = tmp_path / "here/features"
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(output)} == before
