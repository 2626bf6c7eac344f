"""Tests of the export to AnnData: anndata reads the values of the features, the names of rows, and the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from shardpress.interop.export import export
from tests.support.cases import case
from tests.support.parts import finished_parts, part_bytes

N = 5
FEATURES = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
VALID = np.array([True, False, True, True, True])
CELLS = np.array([b"c0", b"c1", "ö".encode(), b"a\xff", b""], object)
ESCAPED = ["c0", "c1", "ö", "a\\udcff", ""]


def exported(
    folder: Path, extras: Mapping[str, np.ndarray], categories: Mapping[str, Sequence[Any]] | None = None
) -> tuple[Any, str]:
    """Export a run with these extras; return what anndata reads, and the printed text."""
    output = folder / "out"
    finished_parts(output, [(N, part_bytes(FEATURES, VALID, extras, categories=categories))])
    text = export(output, "anndata")
    return anndata.read_h5ad(output / "features.h5ad"), text


def test_anndata_reads_features_names_and_columns(tmp_path: Path) -> None:
    codes = np.array([1, -1, 0, 1, 0], "i1")
    extras = {
        "_index": CELLS,
        "kind": codes,
        "level": codes,
        "n": np.arange(N, dtype=">i4"),
        "text": CELLS[::-1],
        "place": np.zeros((N, 2)),
    }
    found, text = exported(tmp_path, extras, {"kind": ["T cell", "ß"], "level": [0.5, 1.5]})
    assert text.partition("Left out")[2].partition(": ")[2].startswith("place.")
    np.testing.assert_array_equal(found.obsm["X_shardpress"], FEATURES)
    assert (found.shape, list(found.obs_names)) == ((N, 0), ESCAPED)
    assert list(found.obs) == ["valid", "kind", "level", "n", "text", "append_id"]
    assert found.obs["valid"].tolist() == VALID.tolist()
    assert found.obs["text"].tolist() == ESCAPED[::-1]
    assert found.obs["n"].tolist() == list(range(N))
    for name, categories in (("kind", ["T cell", "ß"]), ("level", [0.5, 1.5])):
        assert found.obs[name].cat.categories.tolist() == categories
        assert found.obs[name].cat.codes.tolist() == codes.tolist()
    assert len(str(found.uns["shardpress_encoder"])) == 64


@pytest.mark.parametrize(
    ("extras", "categories", "expected"),
    [
        ({}, {}, ["0", "1", "2", "3", "4"]),
        ({"index": np.arange(7, 7 + N)}, {}, ["7", "8", "9", "10", "11"]),
        ({"index": np.zeros((N, 2))}, {}, ["0", "1", "2", "3", "4"]),
        ({"_index": np.array([1, 0, -1, 0, 0], "i1")}, {"_index": ["a", "b"]}, ["b", "a", "", "a", "a"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_rows_without_names_are_numbered(
    tmp_path: Path, extras: dict[str, np.ndarray], categories: dict[str, Any], expected: list[str]
) -> None:
    found, _ = exported(tmp_path, extras, categories)
    with case(list(extras)):
        assert list(found.obs_names) == expected
        assert "index" not in found.obs
