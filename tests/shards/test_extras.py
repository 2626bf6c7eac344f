"""Tests of extras over several shards: every shard gets the same extras, even if some shards lack them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.hdf5.shard import Block, Shard
from shardpress.shards.extras import common_dtype, why_left_out
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support.cases import case, each
from tests.support.helpers import names, numbered, write_shard

pytestmark = pytest.mark.process

LOWEST = np.iinfo(np.int64).min


def opened(folder: Path, *extras: dict[str, Any], include: tuple[str, ...] = ()) -> tuple[Shard, ...]:
    """Write a shard of 3 rows for each set of extras, and open them."""
    paths = [write_shard(folder / f"{i}.h5", numbered(3), extras=own) for i, own in enumerate(extras)]
    return open_shards(paths, include=include)


def values(shards: tuple[Shard, ...]) -> dict[str, list[Any]]:
    """Return the extras of all rows by name."""
    found = [read_extras(Block(shard, 0, shard.n_rows)) for shard in shards]
    return {name: np.concatenate([each[name] for each in found]).tolist() for name in found[0]}


def test_extra_missing_in_some_shards_is_read_from_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = opened(tmp_path, {"y": range(3), "y_present": range(3)}, {}, {"y": range(2), "y_present": range(3)})
    assert {names(shard) for shard in shards} == {("y", "y_present_", "y_present", "y_present_present")}
    found = values(shards)
    assert found["y"] == [0, 1, 2] + [LOWEST] * 6
    assert found["y_present_"] == [True] * 3 + [False] * 6
    assert found["y_present"] == [0, 1, 2] + [LOWEST] * 3 + [0, 1, 2]
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


@each(
    "present, missing",
    [
        (np.zeros(3, "f4"), np.nan),
        (np.zeros(3, "i1"), -128),
        (np.zeros(3, bool), False),
        (np.array(["text"] * 3, object), b""),
        (np.zeros(3, [("a", "i4"), ("b", "f8")]), (0, 0.0)),
    ],
)
def test_fill_values_of_missing_extras_are_unlikely_values(tmp_path: Path, present: np.ndarray, missing: Any) -> None:
    found = read_extras(Block(opened(tmp_path, {"y": present}, {})[1], 0, 3))
    np.testing.assert_array_equal(np.array(found["y"].tolist()), np.array([missing] * 3))
    assert found["y_present"].tolist() == [False] * 3


@each("y", [np.arange(2), np.array([b"a", b"b"], object)])
@each("first", [0, 2])
def test_shard_without_rows_affects_no_extra(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, y: np.ndarray, first: int
) -> None:
    filled = {"y": y, "kind/codes": np.array([1, 0], "i1"), "kind/categories": np.array([b"a", b"b"])}
    empty = {"y": np.array([]), "kind/codes": np.array([], "i1"), "kind/categories": [1.5]}
    paths = []
    for i, n in enumerate((first, 2 - first)):
        paths.append(write_shard(tmp_path / f"{i}.h5", numbered(n), extras=filled if n else empty))
    caplog.clear()
    shards = open_shards(paths, include=["kind"])
    assert values(shards) == {"y": y.tolist(), "kind": [1, 0]}
    assert {extra.categories for shard in shards for extra in shard.extras} == {None, ("a", "b")}
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "without rows" in warning


# -- dtypes --------------------------------------------------------------------------------------------------------


def test_common_dtype_holds_every_value_of_both() -> None:
    for dtypes, common in [
        ("u1 i1", "i2"),
        (">i4 <i4", "i4"),
        ("i2 f4", "f4"),
        ("i4 f4", "f8"),
        ("i8 f8", None),
        ("u8 i8", None),
        ("S3 S5", "S5"),
        ("S3 O", "O"),
        ("S3 i4", None),
    ]:
        with case(dtypes, common):
            found = common_dtype([np.dtype(name) for name in dtypes.split()])
            # Compare names, because NumPy takes None for float64.
            assert (None if found is None else found.newbyteorder("=").str[1:]) == common


def test_extras_of_two_dtypes_are_read_in_a_common_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Extras without a common dtype are left out."""
    pets = [h5py.enum_dtype({"cat": i, "dog": 1 - i}, "i1") for i in range(2)]
    texts = [np.array([b"a"] * 3), np.array([b"long", b"", b"er"])]
    one = {"y": np.array([[1, 2, 3]], "i4"), "t": texts[0], "pet": np.zeros(3, pets[0]), "mixed": range(3)}
    other = {"y": np.array([2**40, -1, 0]), "t": texts[1], "pet": np.zeros(3, pets[1]), "mixed": texts[0]}
    shards = opened(tmp_path, one, other)
    assert values(shards) == {"t": [b"a", b"a", b"a", b"long", b"", b"er"], "y": [1, 2, 3, 2**40, -1, 0]}
    assert set(why_left_out(shards)) == {"pet", "mixed"}
    assert f"int64 from file={shards[0].path} and |S1 from file={shards[1].path}" in caplog.text
