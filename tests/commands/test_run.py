"""Test of `shardpress run`: the files that it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import numbered, write_shard
from tests.support.interpreters import environment
from tests.support.logged import mentions


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
