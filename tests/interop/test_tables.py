"""Tests of names and categories of rows in exported tables: pandas and anndata read what `open_features` returns."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as arrow_parquet

from shardpress.interop.export import export
from shardpress.result.features import open_features
from tests.support.cases import case
from tests.support.parts import feature_rows, finished_parts, part_bytes

N = 7
VALID = np.arange(N) != 1
NAMES = np.array([b"r0", b"r1", "ö".encode(), b"a\xff", b"", b"r5", b"r6"], object)
ESCAPED = ["r0", "r1", "ö", "a\\udcff", "", "r5", "r6"]
CODES = np.array([0, 2, -1, 1, 1, 0, 0], np.int8)


def write_part(
    folder: Path,
    extras: Mapping[str, np.ndarray],
    categories: Mapping[str, Sequence[Any]] | None = None,
) -> Path:
    """Write an output directory with a part of `N` rows, one of them bad, and return its path."""
    features = feature_rows(N)
    features[~VALID] = np.nan
    part = part_bytes(features, VALID, extras, categories=categories)
    # After an append, open_features has the numbers of appends, which exported files always have.
    finished_parts(folder / "out", [(N, part)], append_ids=[1])
    return folder / "out"


def parquet_of(output: Path) -> Path:
    """Write the Parquet file of a part, and return its path."""
    shutil.rmtree(output / "parquet", ignore_errors=True)
    export(output, "parquet")
    (path,) = (output / "parquet").iterdir()
    return path


@pytest.mark.parametrize("extras", [{"_index": NAMES, "y": np.arange(N)}, {"index": NAMES, "_index": NAMES}])
def test_names_of_rows_are_the_index_of_pandas(tmp_path: Path, extras: dict[str, np.ndarray]) -> None:
    output = write_part(tmp_path, extras)
    found = pd.read_parquet(parquet_of(output))
    pd.testing.assert_frame_equal(found, open_features(output).to_pandas())
    assert found.index.name is None
    assert set(extras) < set(arrow_parquet.read_table(parquet_of(output)).column_names)


def test_categories_become_values_unless_they_are_distinct_texts(tmp_path: Path) -> None:
    name = 'list.element."x"'
    output = write_part(tmp_path, {name: np.zeros(N, np.int8)}, {name: ["a", "unused"]})
    assert pd.read_parquet(parquet_of(output))[name].dtype == pd.CategoricalDtype(["a", "unused"])
    for categories in ([0.5, 1.5, 2.5], ["a", "a", "b"], [True, False, True]):
        with case(categories):
            output = write_part(tmp_path, {"kind": CODES}, {"kind": categories})
            found = arrow_parquet.read_table(parquet_of(output))["kind"].to_pylist()
            assert found == [None if code < 0 else categories[code] for code in CODES]


def test_numbers_of_16_bits_have_32_in_parquet(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 2 * N).astype(np.float16)
    output = write_part(tmp_path, {"half": values[:N], "place": values.reshape(N, 2)})
    found = arrow_parquet.read_table(parquet_of(output))
    assert found.schema.field("half").type == pa.float32()
    assert found["half"].to_pylist() == values[:N].tolist()
    assert found["place"].to_pylist() == values.reshape(N, 2).tolist()


@pytest.mark.parametrize("form", ["parquet", "anndata"])
def test_extras_that_no_column_can_hold_are_left_out(tmp_path: Path, form: str) -> None:
    left_out = {
        "arrays": np.zeros(N, [("v", "f4", (3,))]),
        "complex": np.ones(N, np.complex64),
        "long": np.ones(N, np.longdouble),
        "opaque": np.array([b"01234567"] * N).view("V8"),
        "records": np.zeros(N, [("a", "i4"), ("b", "f8")]),
    }
    output = write_part(tmp_path, {**left_out, "y": np.arange(N)})
    text = export(output, form)
    assert sorted(text.partition("Left out")[2].partition(": ")[2].partition(".")[0].split(", ")) == [*left_out]
    if form == "parquet":
        names = pd.read_parquet(parquet_of(output)).columns
    else:
        names = anndata.read_h5ad(output / "features.h5ad").obs.columns
    assert [name for name in names if not name.startswith("feature")] == ["valid", "y", "append_id"]


def test_categories_can_be_the_names_of_rows_in_anndata(tmp_path: Path) -> None:
    codes = np.arange(N, dtype=np.int8) - 1
    names = [f"cell {i}" for i in range(N - 1)]
    output = write_part(tmp_path, {"_index": codes}, {"_index": names})
    export(output, "anndata")
    assert anndata.read_h5ad(output / "features.h5ad").obs_names.tolist() == ["", *names]


def test_anndata_reads_features_names_and_columns(tmp_path: Path) -> None:
    extras = {"_index": NAMES, "kind": CODES, "level": CODES, "n": np.arange(N, dtype=">i4"), "text": NAMES[::-1]}
    categories = {"kind": ["T cell", "ß", "c"], "level": [0.5, 1.5, 2.5]}
    output = write_part(tmp_path, {**extras, "place": np.zeros((N, 2))}, categories)
    text = export(output, "anndata")
    assert text.partition("Left out")[2].partition(": ")[2].startswith("place.")
    found = anndata.read_h5ad(output / "features.h5ad")
    np.testing.assert_array_equal(found.obsm["X_shardpress"], open_features(output).features)
    assert (found.shape, list(found.obs_names)) == ((N, 0), ESCAPED)
    assert list(found.obs) == ["valid", "kind", "level", "n", "text", "append_id"]
    assert found.obs["valid"].tolist() == VALID.tolist()
    assert found.obs["text"].tolist() == ESCAPED[::-1]
    assert found.obs["n"].tolist() == list(range(N))
    for name, values in categories.items():
        assert found.obs[name].cat.categories.tolist() == values
        assert found.obs[name].cat.codes.tolist() == CODES.tolist()
    assert len(str(found.uns["shardpress_encoder"])) == 64
