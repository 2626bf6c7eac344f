"""Tests of the export to AnnData: the file has the structure that anndata reads, with the values of the features."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import dask.array as da
import h5py
import numpy as np
import pytest

from shardpress.commands.table import main
from shardpress.errors import ReadFailed
from shardpress.features import Features, open_features
from shardpress.interop import anndata as module
from shardpress.interop.anndata import export_anndata
from shardpress.output.disk import Disk
from tests.support.cases import case
from tests.support.helpers import refused
from tests.support.logged import mentions
from tests.support.parts import feature_rows, finished

N = 5
FEATURES = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
VALID = np.array([True, False, True, True, True])
CELLS = np.array(["c0", "c1", "ö", "a\udcff", ""], object)


def opened(extras: dict[str, np.ndarray], categories: dict[str, np.ndarray] | None = None) -> Features:
    arrays = {name: da.from_array(values, chunks=3) for name, values in extras.items()}
    return Features(da.from_array(FEATURES, chunks=3), da.from_array(VALID), arrays, {}, categories or {})


def texts(dataset: h5py.Dataset) -> list[str]:
    return list(dataset.asstr()[:])


@pytest.mark.parametrize("block_rows", [1, 2, 5, 100])
def test_file_has_the_features_names_and_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK_ROWS", block_rows)
    codes = np.array([1, -1, 0, 1, 0], "i1")
    extras = {
        "_index": CELLS,
        "kind": codes,
        "level": codes,
        "n": np.arange(N, dtype=">i4"),
        "text": CELLS[::-1],
        "place": np.zeros((N, 2)),
    }
    categories = {"kind": np.array(["T cell", "ß"]), "level": np.array([0.5, 1.5])}
    left_out = export_anndata(opened(extras, categories), tmp_path / "x.h5ad")
    assert left_out == ["place"]
    escaped = ["c0", "c1", "ö", "a\\udcff", ""]
    with h5py.File(tmp_path / "x.h5ad") as file:
        np.testing.assert_array_equal(file["obsm/X_shardpress"], FEATURES)
        obs = file["obs"]
        assert obs.attrs["_index"] == "_index"
        assert list(obs.attrs["column-order"]) == ["valid", "kind", "level", "n", "text"]
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
    export_anndata(opened(extras, {"kind": np.array(["a"])}), tmp_path / "x.h5ad")
    found = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found[name] = (item.attrs["encoding-type"], item.attrs["encoding-version"])

    with h5py.File(tmp_path / "x.h5ad") as file:
        file.visititems(note)
        assert (file.attrs["encoding-type"], file.attrs["encoding-version"]) == ("anndata", "0.1.0")
    array = ("array", "0.2.0")
    strings = ("string-array", "0.2.0")
    assert found == {
        **dict.fromkeys(("layers", "obsm", "obsp", "uns", "varm", "varp"), ("dict", "0.1.0")),
        **dict.fromkeys(("obs", "var"), ("dataframe", "0.2.0")),
        **dict.fromkeys(("obs/_index", "obs/name", "obs/kind/categories", "var/_index"), strings),
        **dict.fromkeys(("obs/valid", "obs/n", "obs/kind/codes", "obsm/X_shardpress"), array),
        "obs/kind": ("categorical", "0.2.0"),
    }


def test_rows_without_names_are_numbered(tmp_path: Path) -> None:
    for i, (extras, expected) in enumerate(
        [
            ({}, ["0", "1", "2", "3", "4"]),
            ({"index": np.arange(7, 7 + N)}, ["7", "8", "9", "10", "11"]),
            ({"index": np.zeros((N, 2))}, ["0", "1", "2", "3", "4"]),
        ]
    ):
        with case(list(extras)):
            path = tmp_path / f"{i}.h5ad"
            export_anndata(opened(extras), path)
            with h5py.File(path) as file:
                assert texts(file["obs/_index"]) == expected
                assert "index" not in file["obs"]
    names = {"_index": np.array([1, 0, -1, 0, 0], "i1")}
    export_anndata(opened(names, {"_index": np.array(["a", "b"])}), tmp_path / "codes.h5ad")
    with h5py.File(tmp_path / "codes.h5ad") as file:
        assert texts(file["obs/_index"]) == ["b", "a", "", "a", "a"]


def test_an_existing_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    path.write_bytes(b"data")
    with refused(73, f"file={path}"):
        export_anndata(opened({}), path)
    assert path.read_bytes() == b"data"


def test_a_failed_export_leaves_no_file(tmp_path: Path) -> None:
    class FullDisk(Disk):
        def sync(self, descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: object) -> np.ndarray:
        raise OSError("damaged")

    with refused(74, "x.h5ad", "No space left"):
        export_anndata(opened({}), tmp_path / "x.h5ad", FullDisk())
    unreadable = da.map_blocks(fail, da.from_array(FEATURES), dtype=np.float32, meta=FEATURES[:0])
    with pytest.raises(ReadFailed, match="damaged"):
        export_anndata(Features(unreadable, da.from_array(VALID), {}, {}), tmp_path / "x.h5ad")
    with refused(74, "nowhere"):
        export_anndata(opened({}), tmp_path / "nowhere" / "x.h5ad")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_the_command_exports_an_output_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = finished(tmp_path / "out", 3, 4)
    path = tmp_path / "features.h5ad"
    assert main(["export", str(output), "--obsm", str(path)]) == 0
    assert mentions(capsys.readouterr().out, path, 7, 2)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["obsm/X_shardpress"], feature_rows(7))
        assert file["obs/y"][:].tolist() == list(range(7))
        np.testing.assert_array_equal(file["obs/valid"], open_features(output).valid)
    assert main(["export", str(output), "--obsm", str(path)]) == 73
    assert main(["export", str(tmp_path / "none"), "--obsm", str(tmp_path / "y.h5ad")]) == 66
    assert main(["export", str(output), "--obsm", "a", "--onnx", "b"]) == 64
