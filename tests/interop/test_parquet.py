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
from shardpress.interop import rows as rows_module
from shardpress.interop.export import export
from tests.support.cases import case
from tests.support.parts import feature_rows, finished_parts, part_bytes

N = 7
Categories = Mapping[str, Sequence[Any]]
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
    folder: Path, extras: Mapping[str, np.ndarray], categories: Categories | None = None, storage: Storage = PLAIN
) -> Path:
    """Write an output directory with a part of `N` rows, one of them bad, and return its path."""
    n_rows = len(next(iter(extras.values()), np.empty(N)))
    valid = np.arange(n_rows) != 1
    features = feature_rows(n_rows)
    features[~valid] = np.nan
    part = part_bytes(features, valid, extras, storage=storage, categories=categories)
    # After an append, open_features has the numbers of appends, which Parquet files always have.
    finished_parts(folder / "out", [(n_rows, part)], append_ids=[1])
    return folder / "out"


def copied(output: Path) -> Path:
    """Write the Parquet file of a part, and return its path."""
    shutil.rmtree(output / "parquet", ignore_errors=True)
    export(output, "parquet")
    (path,) = (output / "parquet").iterdir()
    return path


def test_pandas_reads_the_frame_of_the_part(tmp_path: Path) -> None:
    part = write_part(tmp_path, EXTRAS, CATEGORIES)
    expected = open_features(part).to_pandas()
    pd.testing.assert_frame_equal(pd.read_parquet(copied(part)), expected)
    assert expected["kind"].dtype == pd.CategoricalDtype(["T cell", "b", "\\udcff", "unused"])
    assert list(expected)[:3] == ["feature0", "feature1", "valid"]


def test_each_feature_is_a_column_of_float32(tmp_path: Path) -> None:
    for storage in (PLAIN, Storage("float16"), Storage("float32", "gzip")):
        with case(storage):
            part = write_part(tmp_path, {}, storage=storage)
            table = arrow_parquet.read_table(copied(part))
            assert [field.type for field in table.schema] == [pa.float32(), pa.float32(), pa.bool_(), pa.int32()]
            np.testing.assert_array_equal(
                np.stack([table[name] for name in ("feature0", "feature1")], 1), open_features(part).features
            )
            assert table["feature0"].null_count == 0, "NaN is not null"


def test_names_of_rows_are_the_index_of_pandas(tmp_path: Path) -> None:
    names = np.array([f"r{i}".encode() for i in range(N)], object)
    for i, extras in enumerate(
        [{"_index": names, "y": np.arange(N)}, {"index": np.arange(N)[::-1]}, {"index": names, "_index": names}]
    ):
        with case(i):
            part = write_part(tmp_path, extras)
            found = pd.read_parquet(copied(part))
            pd.testing.assert_frame_equal(found, open_features(part).to_pandas())
            assert found.index.name is None
            assert set(extras) < set(arrow_parquet.read_table(copied(part)).column_names)


def test_any_name_of_a_categorical_keeps_unused_categories(tmp_path: Path) -> None:
    for name in ("cell.type", "obs/kind", "a b", "ö", 'list.element."x"'):
        with case(name):
            extras = {name.replace("/", "|"): np.zeros(N, np.int8)}
            (stored,) = extras
            part = write_part(tmp_path, extras, {stored: ["a", "unused"]})
            assert pd.read_parquet(copied(part))[stored].dtype == pd.CategoricalDtype(["a", "unused"])


def test_numeric_or_equal_categories_are_values(tmp_path: Path) -> None:
    codes = np.array([1, -1, 0, 0, 0, 1, 1], np.int8)
    for categories in ([3, 5], [0.5, 1.5], ["a", "a"], [True, False]):
        with case(categories):
            part = write_part(tmp_path, {"kind": codes}, {"kind": categories})
            found = arrow_parquet.read_table(copied(part))["kind"].to_pylist()
            assert found == [None if code < 0 else categories[code] for code in codes]


def test_arrays_of_several_dimensions_are_nested_lists(tmp_path: Path) -> None:
    values = np.arange(6 * N).reshape(N, 2, 3)
    part = write_part(tmp_path, {"place": values, "words": np.array([[b"a", b"b"]] * N, "S1")})
    table = arrow_parquet.read_table(copied(part))
    assert table["place"].to_pylist() == values.tolist()
    assert table["words"].to_pylist() == [["a", "b"]] * N


def test_numbers_of_16_bits_become_float32(tmp_path: Path) -> None:
    part = write_part(tmp_path, {"half": np.arange(N, dtype=np.float16)})
    column = arrow_parquet.read_table(copied(part))["half"]
    assert (column.type, column.to_pylist()) == (pa.float32(), list(range(N)))


@pytest.mark.parametrize("n_rows", [1, 2, 3, 100])
def test_groups_of_rows_do_not_change_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_rows: int) -> None:
    rows = np.arange(n_rows)
    texts = np.array([b"x" * (i % 5) for i in range(n_rows)], object)
    codes = (rows % 3 - 1).astype(np.int8)
    part = write_part(tmp_path, {"y": rows, "text": texts, "kind": codes}, {"kind": ["a", "b", "c"]})
    expected = open_features(part).to_pandas()
    for n_bytes, text_rows in ((2**22, 2**10), (1, 1), (100, 2), (1000, 3)):
        monkeypatch.setattr(module, "_GROUP_BYTES", n_bytes)
        monkeypatch.setattr(rows_module, "_BLOCK_BYTES", n_bytes)
        monkeypatch.setattr(rows_module, "_TEXT_ROWS", text_rows)
        with case(n_bytes):
            path = copied(part)
            data = path.read_bytes()
            assert copied(part).read_bytes() == data
            pd.testing.assert_frame_equal(pd.read_parquet(path), expected)
            n_groups = arrow_parquet.ParquetFile(path).num_row_groups
            assert n_groups == (max(1, n_rows) if n_bytes == 1 else n_groups)
