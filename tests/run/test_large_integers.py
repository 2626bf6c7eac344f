"""Tests of integer columns above 2^53, whose differences are lost in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.choices import ROW_SCALES
from shardpress.errors import DataError
from shardpress.features import open_features
from shardpress.hdf5.shard import Block, array_shard
from shardpress.interop.export import export
from shardpress.interop.onnx import encoder_onnx
from shardpress.report.verify import verify
from shardpress.result import load_model
from shardpress.scan import ranges
from shardpress.shards.conversion import Conversion
from tests.support.cases import case
from tests.support.logged import mentions
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow

LARGE = 2**60


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return a data set of int64 columns whose values differ by at most 3."""
    from tests.support.standin import install

    install(monkeypatch)
    folder = tmp_path / "large"
    folder.mkdir()
    workspace = Workspace(folder)
    rng = np.random.default_rng(0)
    for i, n_rows in enumerate((20, 35)):
        workspace.add_shard(f"{i}.h5", LARGE + 1 + rng.integers(0, 4, (n_rows, 4)))
    return workspace


def small_copy(workspace: Workspace) -> Workspace:
    """Return the same rows minus 2^60."""
    folder = workspace.folder.with_name("small")
    folder.mkdir()
    copy = Workspace(folder)
    for path in sorted(workspace.shards.iterdir()):
        with h5py.File(path) as file:
            copy.add_shard(path.name, file["X"][()] - LARGE)
    return copy


def features(output: Path) -> np.ndarray:
    return np.asarray(open_features(output).features)


def test_large_integers_give_the_features_of_their_differences(large: Workspace, tmp_path: Path) -> None:
    small = small_copy(large)
    for flags in ([], ["--threads", "2", "block_rows=5"]):
        with case(flags):
            out = tmp_path / f"large{len(flags)}"
            other = tmp_path / f"small{len(flags)}"
            assert large.run(out, *flags) == 0
            assert small.run(other, *flags) == 0
            np.testing.assert_array_equal(features(out), features(other))
            assert np.ptp(features(out)[~np.isnan(features(out))]) > 0


def test_a_model_of_large_integers_can_be_applied(large: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    again = tmp_path / "again"
    assert large.run(out) == 0
    model = load_model(out)
    assert model.offset is not None
    assert model.offset.tolist() == [float(LARGE)] * 4
    assert large.run(again, "--model", str(out)) == 0
    np.testing.assert_array_equal(features(again), features(out))
    assert not verify(str(out), 100).faults
    export(out, "npz")
    with np.load(out / "encoder.npz") as arrays:
        assert arrays["offset"].tolist() == model.offset.tolist()
    with pytest.raises(DataError, match="above 2"):
        encoder_onnx(model)


def test_a_resumed_run_reads_the_same_differences(large: Workspace, tmp_path: Path) -> None:
    from tests.support.interruptions import STEPS, FullAfter

    out = tmp_path / "out"
    expected = tmp_path / "expected"
    assert large.run(expected, *STEPS) == 0
    for kind in ("scan", "checkpoint", "part"):
        output = out / kind.replace("/", "-")
        with case(kind):
            assert large.run(output, *STEPS, disk=FullAfter(kind, 1)) == 74
            assert large.run(output, *STEPS) == 0
            assert features_of(output) == features_of(expected)


def test_scaling_the_rows_of_large_integers_is_refused(
    large: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """float64 would round them, which changed features by up to 2e-3."""
    for row_scale in ROW_SCALES:
        with case(row_scale):
            caplog.clear()
            assert large.run(tmp_path / row_scale, "--row-scale", row_scale) == 65
            assert mentions(caplog.text, f"file={large.shards / '0.h5'} dataset=X", "row 0, column 0", "--row-scale")


def test_a_plan_accepts_large_integers(large: Workspace, tmp_path: Path) -> None:
    plan = large.plan(tmp_path / "out")
    assert plan.problems == []


def test_differences_are_exact_or_at_the_limit() -> None:
    limits = np.iinfo(np.int64)
    rows: Any
    for dtype, offset in (("int64", LARGE), ("uint64", 2**63), ("int64", -LARGE), ("int32", LARGE), ("uint8", 2**55)):
        info = np.iinfo(dtype)
        values = [
            info.min,
            info.max,
            *(offset + i for i in (-3, -1, 0, 1, 2**50) if info.min <= offset + i <= info.max),
        ]
        rows = np.array([[value] for value in values], dtype=dtype)
        found = Conversion(offset=np.array([float(offset)])).read(Block(array_shard(rows), 0, len(rows)))
        expected = [min(max(value - offset, limits.min), limits.max) for value in values]
        with case(dtype):
            assert found.dtype == np.int64
            assert found[:, 0].tolist() == expected


def test_only_large_integers_of_a_narrow_range_get_an_offset() -> None:
    def offset_of(values: list[int], dtype: str) -> Any:
        rows = np.array([[value, 7] for value in values], dtype=dtype)
        ends = rows.astype(np.float64)
        found = ranges.Scan(len(rows), ends.min(axis=0), ends.max(axis=0), np.empty(0, np.int64), ends[0], ends[:2])
        offset = ranges.offset_for(rows.dtype, found)
        return None if offset is None else offset.tolist()

    assert offset_of([2**53, 1], "int64") is None
    assert offset_of([2**53 + 2, 2**53 + 4], "int64") == [2.0**53 + 2, 0]
    assert offset_of([-LARGE, -LARGE + 1], "int64") == [-float(LARGE), 0]
    assert offset_of([2**64 - 1, 2**64 - 2], "uint64") == [np.nextafter(2.0**64, 0), 0]
    assert offset_of([-(2**62), 2**62], "int64") is None
    assert offset_of([LARGE, LARGE + 1], "float64") is None
