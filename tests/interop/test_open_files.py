"""Test of a low limit of open files: all commands work on more input files and parts than a process can open."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shardpress.commands.registry import main
from shardpress.interop.export import FORMATS, export
from shardpress.report.compare import compare
from shardpress.report.verify import verify
from shardpress.result.features import open_features
from shardpress.result.finished import Result
from shardpress.run import encoding_stage
from tests.support import standin
from tests.support.interpreters import REPOSITORY
from tests.support.standin import Workspace

LIMIT = 64
N_FILES = 80


@pytest.mark.process
@pytest.mark.slow
def test_more_files_than_a_process_can_open(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"from {__name__} import use_many_files; use_many_files({str(tmp_path)!r})"]
    found = subprocess.run(command, cwd=REPOSITORY, timeout=600, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def use_many_files(folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    with pytest.MonkeyPatch.context() as patch:
        standin.install(patch)
        patch.setattr(encoding_stage, "_LEAST_FILES", 1)
        patch.setattr(encoding_stage, "_MANY_PARTS", N_FILES)
        workspace = Workspace(Path(folder), *[5] * N_FILES)
        output = Path(folder) / "out"
        assert workspace.run(output) == 0
        workspace.add_shard("0.h5", np.ones((5, 4), np.float32))
        (workspace.shards / "1.h5").unlink()
        assert workspace.run(output, "--append", "--drop-missing") == 0
        check_readers(output)
        assert workspace.run_on([output], Path(folder) / "second", "--n-features", "1") == 0


def check_readers(output: Path) -> None:
    result = Result.open(output)
    n_rows = 5 * (N_FILES - 1)
    assert len(result.parts) > LIMIT
    found = verify(str(output), n_rows)
    assert (found.faults, found.unchecked, found.rows.n_rows) == ([], [], n_rows)
    features = open_features(output).features.compute()
    assert np.isfinite(features).all()
    for form in FORMATS:
        export(output, form)
    np.testing.assert_array_equal(open_features(output / "features.h5").features, features)
    table = pd.read_parquet(output / "parquet")
    np.testing.assert_array_equal(table[["feature0", "feature1"]], features)
    assert compare(str(output), str(output)).n_common == n_rows
    (output / "report.html").unlink()
    assert main(["report", str(output)]) == 0
