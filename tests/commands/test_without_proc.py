"""Test of a run on a system without /proc: it ends with an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import numbered, write_shard
from tests.support.interpreters import REPOSITORY, environment

WITHOUT_PROC = 'mount -t tmpfs none /proc && mount -t tmpfs -o ro none /dev/shm && exec "$@"'


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
