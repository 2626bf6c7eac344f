"""Tests of runs in another version of Python, with its newest NumPy: the results are equal to those here.

Sample: the newest other version on this machine; with TEST_CASES=all each of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scripts import extract
from shardpress.result.finished import INDEX, load_model
from tests.support.helpers import write_shard
from tests.support.interpreters import OTHER_PYTHONS, REPOSITORY, search_path
from tests.support.killing import features_of

pytestmark = [pytest.mark.process, pytest.mark.compiler, pytest.mark.slow]

FLAGS = ("--epochs", "2", "--include", "y", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with shards, and with the output of a run in this Python."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "shards").mkdir()
    values = np.random.default_rng(0).normal(size=(3, 700, 24))
    for i, rows in enumerate(values.astype(np.float32)):
        write_shard(folder / f"shards/{i}.h5", rows, extras={"y": np.arange(700) % 3})
    assert extract.main(["--input", str(folder / "shards"), "--output", str(folder / "expected"), *FLAGS]) == 0
    return folder


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_another_python_gives_equal_results_and_reuses_them(folder: Path, tmp_path: Path, version: str) -> None:
    python = REPOSITORY / f".venv-readers/{version}-run/bin/python"
    if not python.exists():
        pytest.skip(f"no Python {version} with Theano; scripts/readers.sh can create one")

    def run(output: Path) -> None:
        command = [python, REPOSITORY / "scripts/extract.py", "--input", folder / "shards", "--output", output, *FLAGS]
        environment = {**os.environ, "PYTHONPATH": search_path()}  # not the installed wheel, which can be older
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    expected = folder / "expected"
    output = tmp_path / "out"
    run(output)
    assert features_of(output) == features_of(expected)
    assert load_model(output).fingerprint == load_model(expected).fingerprint
    finished = shutil.copytree(expected, tmp_path / "finished")
    identity = os.stat(finished / INDEX).st_ino
    run(finished)
    assert os.stat(finished / INDEX).st_ino == identity
