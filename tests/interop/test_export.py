"""Tests of exports in all formats: values, repeated and interrupted exports, and files that are not replaced."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import anndata
import h5py
import numpy as np
import onnx
import pandas as pd
import pytest
from pyarrow import parquet as arrow_parquet

from shardpress.interop import exported_rows as rows_module
from shardpress.interop import parquet as parquet_module
from shardpress.interop.export import FORMATS, export
from shardpress.result.alignment import LinearMap
from shardpress.result.features import Features, open_features
from shardpress.result.finished import Result
from shardpress.result.records import stretches_of
from shardpress.run import encoding_stage
from shardpress_kernels.network import Network
from tests.support.cases import case
from tests.support.faulty import BrokenDisk
from tests.support.helpers import refused
from tests.support.hostilemodels import model_of
from tests.support.interruptions import FullDisk
from tests.support.parts import feature_rows, finished_parts, part_bytes
from tests.support.standin import Workspace, install

SIZES = (3, 3, 4, 2)
CATEGORIES = ("T cell", "ö", "\udcff", "unused")
MODEL = model_of(Network((4, 3, 2)))
FEATURE_FORMATS = ("hdf5", "parquet", "anndata")


def part(n_rows: int, first: int) -> tuple[int, bytes]:
    """Return the number of rows and the bytes of a part; every fifth row is bad."""
    rows = np.arange(first, first + n_rows)
    valid = rows % 5 != 1
    features = feature_rows(n_rows, first)
    features[~valid] = np.nan
    extras = {
        "big": rows.astype(">f8"),
        "bool": rows % 3 == 0,
        "feature0": rows,
        "fixed": np.array([f"{row:03d}".encode() + b"\xfe" for row in rows], "S4"),
        "kind": (rows % 4 - 1).astype(np.int8),
        "name": np.array([("ö" * row).encode() + b"\xff" for row in rows], object),
        "pair": np.stack([rows, -rows], axis=1).astype(np.int16),
        "unsigned": np.uint64(2**64 - 1) - rows.astype(np.uint64),
        "valid": rows,
        "y": rows,
    }
    return n_rows, part_bytes(features, valid, extras, categories={"kind": CATEGORIES})


PARTS = [part(size, sum(SIZES[:i])) for i, size in enumerate(SIZES)]


def result(directory: Path, n_parts: int = 3, first: int = 0) -> Path:
    """Write a finished output directory with a model; the third part is of the first append."""
    parts = PARTS[first:n_parts]
    return finished_parts(directory, parts, model=MODEL, append_ids=[0, 0, 1, 2][first:n_parts])


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return result(tmp_path / "features")


def target(output: Path, form: str) -> Path:
    """Return the default path of an export."""
    return output / FORMATS[form][1]


def content(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of the visible files of a folder, by name."""
    files = [path] if path.is_file() else [each for each in path.iterdir() if not each.name.startswith(".")]
    return {each.name: each.read_bytes() for each in files}


def check_hdf5(path: Path, expected: Features) -> None:
    found = open_features(path)
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), check_like=True)
    assert {name: values.dtype for name, values in found.extras.items()} == {
        name: values.dtype for name, values in expected.extras.items()
    }
    assert found.manifest["model"] == expected.manifest["model"]
    with h5py.File(path) as file:
        assert not file["features"].is_virtual


def check_parquet(path: Path, expected: Features) -> None:
    # The extras of the parts are sorted by name, and the number of the append is the last column.
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected.to_pandas())
    for each in path.iterdir():
        assert arrow_parquet.read_schema(each).metadata[b"shardpress.encoder"].decode() == expected.manifest["model"]


def check_anndata(path: Path, expected: Features) -> None:
    found = anndata.read_h5ad(path)
    np.testing.assert_array_equal(found.obsm["X_shardpress"], expected.features)
    for name in ("big", "bool", "feature0", "unsigned", "y"):
        np.testing.assert_array_equal(found.obs[name], expected.extras[name])
    np.testing.assert_array_equal(found.obs["valid"], expected.valid)
    np.testing.assert_array_equal(found.obs["kind"].cat.codes, expected.extras["kind"])
    assert found.uns["shardpress_encoder"] == expected.manifest["model"]


CHECKS: Mapping[str, Callable[[Path, Features], None]] = {
    "hdf5": check_hdf5,
    "parquet": check_parquet,
    "anndata": check_anndata,
}


@pytest.mark.process
@pytest.mark.parametrize("form", FEATURE_FORMATS)
def test_an_export_has_the_rows_of_open_features(form: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n_bytes, text_rows in ((2**22, 2**10), (1, 1), (100, 2)):
        monkeypatch.setattr(rows_module, "_BLOCK_BYTES", n_bytes)
        monkeypatch.setattr(rows_module, "_TEXT_ROWS", text_rows)
        monkeypatch.setattr(parquet_module, "_GROUP_BYTES", n_bytes)
        with case(n_bytes):
            shutil.rmtree(target(output, form), ignore_errors=True)
            text = export(output, form)
            assert str(target(output, form)) in text
            CHECKS[form](target(output, form), open_features(output))
    result(output, 4)  # an append
    export(output, form)
    expected = open_features(output)
    assert len(expected.features) == sum(SIZES)
    CHECKS[form](target(output, form), expected)


@pytest.mark.process
@pytest.mark.parametrize("form", FEATURE_FORMATS)
def test_features_are_mapped_to_those_of_another_encoder(form: str, output: Path, tmp_path: Path) -> None:
    for factor in (1, 2):
        W = np.array([[1.0, 2, 0], [0, 1, 1]]) * factor
        (tmp_path / "map.npz").write_bytes(LinearMap(W, np.arange(3.0), MODEL.fingerprint, "f" * 64).to_npz())
        text = export(output, form, as_of=tmp_path / "map.npz")
        assert form != "parquet" or "3 of 3 files" in text
        expected = open_features(output, as_of=tmp_path / "map.npz")
        assert expected.manifest["model"] == "f" * 64
        CHECKS[form](target(output, form), expected)


def test_only_changed_parquet_files_are_written(output: Path) -> None:
    folder = output / "parquet"
    export(output, "parquet")
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert len(before) == 3
    assert "0 of 3 files" in export(output, "parquet")
    result(output, 4)
    assert "1 of 4 files" in export(output, "parquet")
    after = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert after.items() > before.items()
    # Parts move, and the rows of the third one now belong to the first run.
    for other, n_new in ((PARTS[0], 2), (part(1, first=20), 1)):
        finished_parts(output, [PARTS[2], other], model=MODEL)
        assert f"{n_new} of 2 files" in export(output, "parquet")
        found = pd.read_parquet(folder)
        assert not found.pop("append_id").any(), "exports number the appends even before the first one"
        pd.testing.assert_frame_equal(found, open_features(output).to_pandas())


@pytest.mark.process
def test_rows_in_parts_with_dead_rows_are_exported_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(encoding_stage, "_LEAST_FILES", 9)
    workspace = Workspace(tmp_path, 20, 3, 3, 3, 35)
    output = tmp_path / "features"
    assert workspace.run(output) == 0
    workspace.add_shard("2.h5", np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32))
    (workspace.shards / "1.h5").unlink()
    assert workspace.run(output, "--append", "--drop-missing") == 0
    expected = open_features(output)
    files = [part.file for part, _, _ in stretches_of(Result.open(output).ranges)]
    assert len(set(files)) < len(files), "a part has new rows between its rows"
    for form in ("parquet", "hdf5"):
        export(output, form)
        CHECKS[form](target(output, form), expected)


@pytest.mark.process
@pytest.mark.parametrize("form", FORMATS)
def test_an_export_replaces_an_earlier_one_of_the_same_run_only(form: str, output: Path, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere"
    export(output, form, path)
    export(os.path.relpath(output), form, path)
    before = content(path)
    with refused(73, str(path), "Choose another --output"):
        export(result(tmp_path / "other"), form, path)
    assert content(path) == before
    export(output, form)
    moved = output.rename(tmp_path / "moved")
    export(moved, form)  # the run was moved with its export
    assert str(tmp_path) not in str(content(target(moved, form)))


@pytest.mark.process
@pytest.mark.parametrize("form", FORMATS)
def test_other_files_are_never_replaced(form: str, output: Path, tmp_path: Path) -> None:
    for name, data in (("text", b"data"), ("nothing", b""), ("zip", b"PK\3\4damaged"), ("array", b"\x93NUMPY\1\0")):
        (tmp_path / name).write_bytes(data)
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["X"] = np.zeros(3)
    np.savez(tmp_path / "own.npz", a=np.zeros(3))
    (tmp_path / "own.onnx").write_bytes(onnx.ModelProto().SerializeToString())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").write_bytes(b"precious")
    for path in sorted(set(tmp_path.iterdir()) - {output}):
        before = content(path)
        with case(path.name), refused(73, str(path)):
            export(output, form, path)
        assert content(path) == before
    if form == "parquet":  # a table of the user in the folder of an export, also under one of our names
        export(output, form)
        for name in ("mine.parquet", f"part-0-{'0' * 32}.parquet", f".part-0-{'0' * 32}.parquet"):
            path = output / "parquet" / name
            pd.DataFrame({"a": [1]}).to_parquet(path)
            with case(name), refused(73, str(path)):
                export(output, form)
            path.unlink()


@pytest.mark.process
@pytest.mark.parametrize("form", FORMATS)
def test_a_failed_export_leaves_the_earlier_one(form: str, output: Path) -> None:
    path = target(output, form)
    other = output / "other.writing"
    other.write_bytes(b"of another program")
    if form != "parquet":  # whose folder an interrupted export keeps
        path.with_name(f"{path.name}.{'0' * 32}.writing").write_bytes(b"of a killed export")
    export(output, form)
    before = content(path)
    shutil.rmtree(output / "parts")
    result(output, 4, first=1)
    with refused(74, "No space left"):
        export(output, form, disk=BrokenDisk(errno.ENOSPC, "sync"))
    if form in FEATURE_FORMATS:
        part_path = output / Result.open(output).parts[2].file
        os.truncate(part_path, part_path.stat().st_size // 2)
        with refused(65, f"file={part_path}: "):
            export(output, form)
    assert content(path) == before
    assert [left for left in output.rglob("*.writing") if "parts" not in left.parts] == [other]


def test_an_interrupted_parquet_export_is_resumed(output: Path) -> None:
    with refused(74, "No space left"):
        export(output, "parquet", disk=FullDisk(".part-", 2))
    assert content(output / "parquet") == {}, "programs that read the folder ignore hidden files"
    unfinished = next((output / "parquet").iterdir()).name + f".{'0' * 32}.writing"
    (output / "parquet" / unfinished).write_bytes(b"cut")
    assert "1 of 3 files" in export(output, "parquet")
    check_parquet(output / "parquet", open_features(output))
