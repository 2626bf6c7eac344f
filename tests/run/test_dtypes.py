"""Tests of dtypes: of files with different ones, and of integers above 2^53, which float64 rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.base.errors import DataError
from shardpress.hdf5.shard import Block, array_shard
from shardpress.interop.onnx import encoder_onnx
from shardpress.model.scaler import Scaler
from shardpress.result.features import open_features
from shardpress.result.finished import load_model
from shardpress.scan import ranges
from shardpress.shards.conversion import Conversion
from tests.support.cases import cross, each
from tests.support.interruptions import FullAfter
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow

ROWS = 100 * np.random.default_rng(3).normal(size=(60, 4)) + 1000
LARGE = 2**62
FLAGS: list[tuple[str, ...]] = [(), ("--row-scale", "norm"), ("--transform", "log1p"), ()]


@pytest.mark.process  # a given model is checked in a child
@pytest.mark.parametrize(
    ("first", "second", "flags"),
    cross(["f4", "f8", ">u2", "f2"], ["f8", "f4", "i4", "f4"], FLAGS),
    ids=str,
)
def test_an_append_equals_a_run_over_all_files(
    empty: Workspace, out: Path, first: str, second: str, flags: tuple[str, ...]
) -> None:
    empty.add_shard("a.h5", ROWS[:40].astype(first))
    assert empty.run(out, *flags) == 0
    empty.add_shard("b.h5", ROWS[40:].astype(second))
    assert empty.run(out, "--append") == 0
    other = empty.folder / "other"
    assert empty.run(other, "--model", str(out)) == 0
    assert features_of(out) == features_of(other)


# -- large integers -------------------------------------------------------------------------------------------------


def test_large_integers_give_the_features_of_their_differences(empty: Workspace, out: Path) -> None:
    """Also in a dry run, in an append, and if the first run was interrupted after the scan."""
    rows = ROWS.astype(np.int64)
    empty.add_shard("a.h5", rows[:40] + LARGE)
    assert not empty.plan(out).problems, "in float64, all columns would be constant"
    assert empty.run(out, disk=FullAfter("scan", 1)) == 74
    assert empty.run(out) == 0
    empty.add_shard("b.h5", rows[40:] + LARGE)
    assert empty.run(out, "--append") == 0
    model = load_model(out)
    assert model.offset is not None
    differences = rows - (model.offset.astype(np.int64) - LARGE)
    np.testing.assert_allclose(open_features(out).features.compute(), model.encode(differences), atol=1e-5)
    with pytest.raises(DataError, match="above 2"):
        encoder_onnx(model)


@each("dtype, offset", [("int64", LARGE), ("uint64", 2**63), ("int64", -LARGE), ("uint8", 2**55)])
def test_differences_are_exact_or_at_the_limit(dtype: str, offset: int) -> None:
    limits = np.iinfo(np.int64)
    info = np.iinfo(dtype)
    near = [offset + i for i in (-3, -1, 0, 1, 2**50)]
    values = [info.min, info.max, *(value for value in near if info.min <= value <= info.max)]
    rows = np.array([[value] for value in values], dtype=dtype)
    found = Conversion(offset=np.array([float(offset)])).read(Block(array_shard(rows), 0, len(rows)))
    assert found.dtype == np.int64
    assert found[:, 0].tolist() == [min(max(value - offset, limits.min), limits.max) for value in values]


def test_the_offset_of_large_integers_is_also_subtracted_from_floats() -> None:
    rows = np.array([[2.0**53 + 4], [0.5]])
    found = Conversion(offset=np.array([2.0**53 + 2])).read(Block(array_shard(rows), 0, 2))
    np.testing.assert_array_equal(found, rows - (2.0**53 + 2))


def test_only_large_integers_of_a_narrow_range_get_an_offset() -> None:
    def offset_of(values: list[int], dtype: str) -> Any:
        rows = np.array([[value, 7] for value in values], dtype=dtype)
        ends = rows.astype(np.float64)
        found = ranges.Scan(len(rows), Scaler(ends.min(axis=0), ends.max(axis=0)), np.empty(0, np.int64))
        offset = ranges.offset_for(rows.dtype, found)
        return None if offset is None else offset.tolist()

    assert offset_of([2**53, 1], "int64") is None
    assert offset_of([2**53 + 2, 2**53 + 4], "int64") == [2.0**53 + 2, 0]
    assert offset_of([-LARGE, -LARGE + 1], "int64") == [-float(LARGE), 0]
    assert offset_of([2**64 - 1, 2**64 - 2], "uint64") == [np.nextafter(2.0**64, 0), 0]
    assert offset_of([-(2**62), 2**62], "int64") is None
    assert offset_of([LARGE, LARGE + 1], "float64") is None
