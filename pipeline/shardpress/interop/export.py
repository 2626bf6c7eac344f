"""Export of a finished run to the formats of other programs, in files that a later export of the run replaces."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from shardpress.base.errors import CannotCreate, printable
from shardpress.base.progress import Progress
from shardpress.interop.anndata import KEY, write_anndata
from shardpress.interop.exported_rows import Rows, has_plain_values, open_rows
from shardpress.interop.onnx import encoder_onnx, import_onnx, input_dtype
from shardpress.interop.single_file import SOURCE, write_hdf5
from shardpress.output.disk import TEMPORARY, Disk, publish, publish_from, remove
from shardpress.result.asof import find_map
from shardpress.result.features import FAILURES, reading
from shardpress.result.finished import INDEX, file_of, load_model
from shardpress.result.frames import import_pyarrow


@dataclass(frozen=True)
class _Target:
    """Destination of an export."""

    path: Path
    # Path of the exported directory, relative to the parent of `path`: if both are moved together, the export is still
    # recognized.
    source: str
    disk: Disk


def export(
    output: str | Path,
    form: str,
    path: str | Path | None = None,
    as_of: int | str | Path | None = None,
    disk: Disk | None = None,
) -> str:
    """Write the encoder or the features of a finished run for other programs. Return what to print about it.

    `form` is a key of `FORMATS`, and `as_of` is that of `open_features`. The default `path` is in the output directory.
    A model file is enough for the export of an encoder.

    Raises
    ------
    DeviceError
        If an optional package is missing.
    CannotCreate
        If `path` exists, and is not an earlier export of the same run.
    """
    write, name = FORMATS[form]
    file = file_of(output)
    path = Path(path or file.parent / name)
    exported = file.parent if file.name == INDEX else file
    relative = os.path.relpath(exported.resolve(), path.resolve().parent)
    source = relative.encode("utf-8", "backslashreplace").decode()
    return write(output, as_of, _Target(path, source, disk or Disk()))


# -- encoders ----------------------------------------------------------------------------------------------------------


def _export_npz(output: str | Path, as_of: int | str | Path | None, target: _Target) -> str:
    model = load_model(output)
    to_other = None if as_of is None else find_map(output, as_of, model.fingerprint)
    _check_replaced(target, _source_of_npz)
    data = model.to_npz(None if to_other is None else (to_other.W, to_other.b), target.source)
    publish(target.disk, target.path, data)
    return f"Wrote {printable(target.path)} ({len(data)} bytes). The README shows how to use it."


def _export_onnx(output: str | Path, as_of: int | str | Path | None, target: _Target) -> str:
    import_onnx()
    model = load_model(output)
    to_other = None if as_of is None else find_map(output, as_of, model.fingerprint)
    n_features = model.n_features if to_other is None else to_other.W.shape[1]
    _check_replaced(target, _source_of_onnx)
    data = encoder_onnx(model, to_other, target.source)
    publish(target.disk, target.path, data)
    return (
        f"Wrote {printable(target.path)} ({len(data)} bytes). Input: rows (n, {model.n_columns}) {input_dtype(model)}. "
        f"Output: features (n, {n_features}) float32. "
        f'Run it with onnxruntime.InferenceSession("{printable(target.path)}").run(["features"], {{"rows": rows}}).'
    )


# -- features ----------------------------------------------------------------------------------------------------------


def _export_hdf5(output: str | Path, as_of: int | str | Path | None, target: _Target) -> str:
    rows = open_rows(output, as_of)
    _check_replaced(target, _source_of_hdf5)
    with Progress("export", rows.n_rows, "rows") as progress:
        publish_from(target.disk, target.path, lambda path: write_hdf5(path, rows, target.source, progress))
    return (
        f'Wrote {_size(rows, target)}. Read it with h5py, or with shardpress.open_features("{printable(target.path)}").'
    )


def _export_parquet(output: str | Path, as_of: int | str | Path | None, target: _Target) -> str:
    import_pyarrow()
    from shardpress.interop.parquet import write_parquet

    rows = open_rows(output, as_of)
    left_out = [name for name, (_, dtype) in rows.extras.items() if not has_plain_values(dtype)]
    rows = rows.without(left_out)
    n_written = write_parquet(target.path, rows, target.source, target.disk)
    return (
        f"Wrote {n_written} of {len(rows.stretches)} files in {_size(rows, target)}.{_without(left_out)} "
        f'Read them with pandas.read_parquet("{printable(target.path)}").'
    )


def _export_anndata(output: str | Path, as_of: int | str | Path | None, target: _Target) -> str:
    rows = open_rows(output, as_of)
    _check_replaced(target, _source_of_hdf5)
    left_out = [name for name, (dims, dtype) in rows.extras.items() if len(dims) != 1 or not has_plain_values(dtype)]
    rows = rows.without(left_out)
    with Progress("export", rows.n_rows, "rows") as progress:
        publish_from(target.disk, target.path, lambda path: write_anndata(path, rows, target.source, progress))
    return (
        f"Wrote {_size(rows, target)}.{_without(left_out)} Add them to your data with "
        f'adata.obsm["{KEY}"] = anndata.read_h5ad("{printable(target.path)}")[adata.obs_names].obsm["{KEY}"].'
    )


def _without(left_out: list[str]) -> str:
    if not left_out:
        return ""
    return f" Left out, because a column cannot hold their values: {printable(', '.join(left_out))}."


def _size(rows: Rows, target: _Target) -> str:
    return f"{printable(target.path)}: {rows.n_rows} rows x {rows.n_features} features"


FORMATS: dict[str, tuple[Callable[[str | Path, int | str | Path | None, _Target], str], str]] = {
    "npz": (_export_npz, "encoder.npz"),
    "onnx": (_export_onnx, "encoder.onnx"),
    "parquet": (_export_parquet, "parquet"),
    "hdf5": (_export_hdf5, "features.h5"),
    "anndata": (_export_anndata, "features.h5ad"),
}
"""Formats, with the functions that write them, and the default names of their files."""


# -- earlier exports ---------------------------------------------------------------------------------------------------


def _check_replaced(target: _Target, source_of: Callable[[Path], str]) -> None:
    """Raise `CannotCreate` unless the file is new, or an earlier export of the same source.

    Files that an interrupted export has left are removed.
    """
    path = target.path
    if os.path.lexists(path):
        try:
            source = source_of(path)
        except (*FAILURES, EOFError, BadZipFile) as error:
            raise _foreign(path, "is not an export of shardpress") from error
        if source != target.source:
            raise _foreign(path, f"is an export of {printable(path.parent / source)}")
    unfinished = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{32}}\{TEMPORARY}")
    if path.parent.is_dir():
        for name in filter(unfinished.fullmatch, os.listdir(path.parent)):
            remove(target.disk, path.parent / name)


def _foreign(path: Path, what: str) -> CannotCreate:
    return CannotCreate(
        f"file={printable(path)}: exists, and {what}, expected no file, or an earlier export of the same run. Choose "
        "another --output, or move the file elsewhere."
    )


def _source_of_npz(path: Path) -> str:
    # NumPy would leave a file open that is not an archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return str(arrays[SOURCE])


def _source_of_onnx(path: Path) -> str:
    import onnx

    try:
        properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    except Exception as error:  # protobuf has its own errors
        raise ValueError(str(error)) from error
    return str(properties[SOURCE])


def _source_of_hdf5(path: Path) -> str:
    with reading(path) as file:
        return str(file.attrs[SOURCE])
