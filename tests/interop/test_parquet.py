"""Tests of the values in exported Parquet files: pandas reads from them what `to_pandas` returns."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as arrow_parquet

from shardpress.encoding.storage import PLAIN, Storage
from shardpress.features import open_features
from shardpress.interop import parquet as module
from shardpress.interop.export import export
from tests.support.cases import case
from tests.support.parts import feature_rows, finished_parts, part_bytes

N = 7
NAMES = np.array([f"r{i}".encode() for i in range(N)], object)
EXTRAS = {
    "bool": np.arange(N) % 3 == 0,
    "big": np.linspace(-1, 1, N).astype(">f8"),
    "negative": np.arange(N, dtype=np.int64) - 3,
    "unsigned": np.array([2**64 - 1, *range(N - 1)], np.uint64),
    "text": np.array([b"one", "zwölf".encode(), b"", b"\xff", b"a\\", b"b", b"c"], object),
    "fixed": np.array([b"a", b"bc", b"", b"d", b"\xfe", b"f", b"g"], "S2"),
    "pair": np.arange(2 * N, dtype=np.int16).reshape(N, 2),
    "kind": np.array([0, 2, -1, 1, 1, 0, 0], np.int8),
    "feature0": np.arange(N),
    "valid": np.arange(N),
}
CATEGORIES = {"kind": ("T cell", "b", "\udcff", "unused")}


def write_part(
    folder: Path,
    extras: Mapping[str, np.ndarray],
    categories: Mapping[str, Sequence[Any]] | None = None,
    storage: Storage = PLAIN,
) -> Path:
    """Write an output directory with a part of `N` rows, one of them bad, and return its path."""
    valid = np.arange(N) != 1
    features = feature_rows(N)
    features[~valid] = np.nan
    part = part_bytes(features, valid, extras, storage=storage, categories=categories)
    # After an append, open_features has the numbers of appends, which Parquet files always have.
    finished_parts(folder / "out", [(N, part)], append_ids=[1])
    return folder / "out"


def copied(output: Path) -> Path:
    """Write the Parquet file of a part, and return its path."""
    shutil.rmtree(output / "parquet", ignore_errors=True)
    export(output, "parquet")
    (path,) = (output / "parquet").iterdir()
    return path


@pytest.mark.parametrize("group_bytes", [2**21, 1])
def test_pandas_reads_the_frame_of_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int) -> None:
    monkeypatch.setattr(module, "_GROUP_BYTES", group_bytes)
    part = write_part(tmp_path, EXTRAS, CATEGORIES)
    expected = open_features(part).to_pandas()
    path = copied(part)
    data = path.read_bytes()
    assert copied(part).read_bytes() == data
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected)
    assert expected["kind"].dtype == pd.CategoricalDtype(["T cell", "b", "\\udcff", "unused"])
    assert list(expected)[:3] == ["feature0", "feature1", "valid"]


def test_each_feature_is_a_column_of_float32(tmp_path: Path) -> None:
    for storage in (PLAIN, Storage("float16"), Storage("float32", "gzip")):
        with case(storage):
            part = write_part(tmp_path, {}, storage=storage)
            table = arrow_parquet.read_table(copied(part))
            assert [field.type for field in table.schema] == [pa.float32(), pa.float32(), pa.bool_(), pa.int32()]
            found = np.stack([table[name] for name in ("feature0", "feature1")], 1)
            np.testing.assert_array_equal(found, open_features(part).features)
            assert table["feature0"].null_count == 0, "NaN is not null"


def test_names_of_rows_are_the_index_of_pandas(tmp_path: Path) -> None:
    for extras in (
        {"_index": NAMES, "y": np.arange(N)},
        {"index": np.arange(N)[::-1]},
        {"index": NAMES, "_index": NAMES},
    ):
        with case(list(extras)):
            part = write_part(tmp_path, extras)
            found = pd.read_parquet(copied(part))
            pd.testing.assert_frame_equal(found, open_features(part).to_pandas())
            assert found.index.name is None
            assert set(extras) < set(arrow_parquet.read_table(copied(part)).column_names)


def test_categories_are_kept_or_become_values(tmp_path: Path) -> None:
    """Categoricals have distinct texts, of which some can be unused."""
    for name in ("cell.type", "a b", 'list.element."x"'):
        with case(name):
            part = write_part(tmp_path, {name: np.zeros(N, np.int8)}, {name: ["a", "unused"]})
            assert pd.read_parquet(copied(part))[name].dtype == pd.CategoricalDtype(["a", "unused"])
    codes = np.array([1, -1, 0, 0, 0, 1, 1], np.int8)
    for categories in ([3, 5], [0.5, 1.5], ["a", "a"], [True, False]):
        with case(categories):
            part = write_part(tmp_path, {"kind": codes}, {"kind": categories})
            found = arrow_parquet.read_table(copied(part))["kind"].to_pylist()
            assert found == [None if code < 0 else categories[code] for code in codes]


def test_arrays_become_nested_lists_and_half_precision_float32(tmp_path: Path) -> None:
    values = np.arange(6 * N).reshape(N, 2, 3)
    words = np.array([[b"a", b"b"]] * N, "S1")
    part = write_part(tmp_path, {"place": values, "words": words, "half": np.arange(N, dtype=np.float16)})
    table = arrow_parquet.read_table(copied(part))
    assert table["place"].to_pylist() == values.tolist()
    assert table["words"].to_pylist() == [["a", "b"]] * N
    assert (table["half"].type, table["half"].to_pylist()) == (pa.float32(), list(range(N)))
