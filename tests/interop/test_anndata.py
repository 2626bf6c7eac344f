"""Tests of the export to AnnData: the file has the structure that anndata reads, with the values of the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shardpress.interop.export import export
from tests.support.cases import case
from tests.support.parts import finished_parts, part_bytes

N = 5
FEATURES = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
VALID = np.array([True, False, True, True, True])
CELLS = np.array([b"c0", b"c1", "ö".encode(), b"a\xff", b""], object)


def exported(
    folder: Path, extras: Mapping[str, np.ndarray], categories: Mapping[str, Sequence[Any]] | None = None
) -> tuple[Path, str]:
    """Export a run with these extras; return the path of the file and the printed text."""
    output = folder / "out"
    finished_parts(output, [(N, part_bytes(FEATURES, VALID, extras, categories=categories))])
    text = export(output, "anndata")
    return output / "features.h5ad", text


def texts(dataset: h5py.Dataset) -> list[str]:
    return list(dataset.asstr()[:])


def test_file_has_the_features_names_and_columns(tmp_path: Path) -> None:
    codes = np.array([1, -1, 0, 1, 0], "i1")
    extras = {
        "_index": CELLS,
        "kind": codes,
        "level": codes,
        "n": np.arange(N, dtype=">i4"),
        "text": CELLS[::-1],
        "place": np.zeros((N, 2)),
    }
    path, text = exported(tmp_path, extras, {"kind": ["T cell", "ß"], "level": [0.5, 1.5]})
    assert text.partition("Left out")[2].partition(": ")[2].startswith("place.")
    escaped = ["c0", "c1", "ö", "a\\udcff", ""]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["obsm/X_shardpress"], FEATURES)
        obs = file["obs"]
        assert obs.attrs["_index"] == "_index"
        assert list(obs.attrs["column-order"]) == ["valid", "kind", "level", "n", "text", "append_id"]
        assert set(obs) == {"_index", *obs.attrs["column-order"]}
        assert texts(obs["_index"]) == escaped
        assert texts(obs["text"]) == escaped[::-1]
        assert obs["valid"][:].tolist() == VALID.tolist()
        assert obs["kind/codes"][:].tolist() == obs["level/codes"][:].tolist() == codes.tolist()
        assert texts(obs["kind/categories"]) == ["T cell", "ß"]
        assert obs["level/categories"][:].tolist() == [0.5, 1.5]
        assert obs["n"].dtype.isnative
        assert obs["n"][:].tolist() == list(range(N))
        assert len(file["var/_index"]) == 0


def test_every_element_has_an_encoding(tmp_path: Path) -> None:
    """The kinds and versions are those of AnnData's specification of files."""
    extras = {"kind": np.zeros(N, "i1"), "name": CELLS, "n": np.arange(N)}
    path, _ = exported(tmp_path, extras, {"kind": ["a"]})
    found = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found[name] = (item.attrs["encoding-type"], item.attrs["encoding-version"])

    with h5py.File(path) as file:
        file.visititems(note)
        assert (file.attrs["encoding-type"], file.attrs["encoding-version"]) == ("anndata", "0.1.0")
    array = ("array", "0.2.0")
    strings = ("string-array", "0.2.0")
    assert found == {
        **dict.fromkeys(("layers", "obsm", "obsp", "uns", "varm", "varp"), ("dict", "0.1.0")),
        **dict.fromkeys(("obs", "var"), ("dataframe", "0.2.0")),
        **dict.fromkeys(("obs/_index", "obs/name", "obs/kind/categories", "var/_index"), strings),
        **dict.fromkeys(("obs/valid", "obs/n", "obs/append_id", "obs/kind/codes", "obsm/X_shardpress"), array),
        "uns/shardpress_encoder": ("string", "0.2.0"),
        "obs/kind": ("categorical", "0.2.0"),
    }


def test_rows_without_names_are_numbered(tmp_path: Path) -> None:
    for extras, expected in [
        ({}, ["0", "1", "2", "3", "4"]),
        ({"index": np.arange(7, 7 + N)}, ["7", "8", "9", "10", "11"]),
        ({"index": np.zeros((N, 2))}, ["0", "1", "2", "3", "4"]),
    ]:
        with case(list(extras)):
            path, _ = exported(tmp_path, extras)
            with h5py.File(path) as file:
                assert texts(file["obs/_index"]) == expected
                assert "index" not in file["obs"]
    names = {"_index": np.array([1, 0, -1, 0, 0], "i1")}
    path, _ = exported(tmp_path, names, {"_index": ["a", "b"]})
    with h5py.File(path) as file:
        assert texts(file["obs/_index"]) == ["b", "a", "", "a", "a"]
