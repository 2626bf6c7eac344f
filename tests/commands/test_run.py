"""Tests of `shardpress run`: the files that it writes, and a system without /proc."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import numbered, write_shard
from tests.support.interpreters import REPOSITORY, environment
from tests.support.logged import mentions

WITHOUT_PROC = 'mount -t tmpfs none /proc && mount -t tmpfs -o ro none /dev/shm && exec "$@"'


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


@pytest.mark.process
def test_a_run_without_proc_ends_with_an_error(tmp_path: Path) -> None:
    isolated = ["unshare", "--mount", "sh", "-c", WITHOUT_PROC, "sh"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("missing on this machine: the right to make a mount namespace")
    write_shard(tmp_path / "a.h5", numbered(4))
    program = [*isolated, sys.executable, "-m", "shardpress", "run", "--input", tmp_path / "a.h5"]
    result = subprocess.run(program, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 71
    (line,) = result.stderr.splitlines()
    assert line.startswith("SystemLimit: /proc ")
