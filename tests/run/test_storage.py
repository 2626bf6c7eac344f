"""Tests of runs that store features in fewer bytes: errors are limited, and runs are resumed, replaced and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.report.page.build import page_of, text_of
from shardpress.report.verify import verify
from shardpress.result import Result
from tests.support.interruptions import FullAfter
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow


def features(output: Path) -> np.ndarray:
    return np.asarray(open_features(output).features)


def test_stored_features_differ_by_the_reported_error(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(tmp_path / "plain") == 0
    expected = features(tmp_path / "plain")
    assert Result.open(tmp_path / "plain").facts.storage["max_error"] == 0
    for flags in (["--storage-dtype", "float16"], ["--compression", "lzf"]):
        output = tmp_path / flags[1]
        assert workspace.run(output, *flags) == 0
        storage = Result.open(output).facts.storage
        found = features(output)
        assert np.abs(found.astype(float) - expected).max() == storage["max_error"]
        assert found.dtype == storage["dtype"] == ("float32" if "lzf" in flags else "float16")
        with h5py.File(output / "index.h5") as file:
            np.testing.assert_array_equal(file["features"], found)
        assert not verify(str(output), 1000).faults
        assert f" as {storage['dtype']}" in text_of(page_of(Result.open(output).report()))


def test_an_interrupted_run_resumes_with_the_same_bits(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    flags = ["--storage-dtype", "float16"]
    assert workspace.run(tmp_path / "undisturbed", *flags) == 0
    for n_named in (1, 3):
        output = tmp_path / str(n_named)
        assert workspace.run(output, *flags, disk=FullAfter("part", n_named)) == 74
        assert workspace.run(output, *flags) == 0
        assert features_of(output) == features_of(tmp_path / "undisturbed")


def test_another_storage_keeps_the_model(workspace: Workspace, out: Path, caplog: Any) -> None:
    assert workspace.run(out) == 0
    flags = ["--storage-dtype", "float16"]
    assert workspace.run(out, *flags) == 78
    assert "storage_dtype float32 -> float16" in caplog.text
    caplog.clear()
    assert workspace.run(out, *flags, "--overwrite") == 0
    assert "training:" not in caplog.text
    assert features(out).dtype == np.float16
