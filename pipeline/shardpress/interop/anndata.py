"""Export of features to an AnnData file, the format of scanpy, as the array ``obsm/X_shardpress``.

The file is written with h5py, block by block, so neither the package anndata nor memory for all rows is needed. The
elements have the encodings of AnnData's file format, which anndata 0.8 and later reads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shardpress.errors import CannotCreate, ReadFailed, printable
from shardpress.features import FAILURES, Features
from shardpress.frames import INDEXES
from shardpress.output.disk import Disk, publish_from

__all__ = ["ENCODER", "KEY", "export_anndata"]

KEY = "X_shardpress"
"""Name of the features in ``obsm``."""

ENCODER = "shardpress_encoder"
"""Name of the fingerprint of the encoder in ``uns``."""

_VALID = "valid"
_INDEX = "_index"
_GROUPS = ("layers", "obsm", "obsp", "uns", "varm", "varp")
_BLOCK_ROWS = 65536
_TEXTS = h5py.string_dtype()


def export_anndata(features: Features, path: Path, disk: Disk | None = None) -> list[str]:
    """Write the features, the names of the rows and the extras to a new AnnData file.

    The file has no matrix ``X``. ``obs`` contains the column ``valid`` and the extras: text, numbers, and categoricals
    for extras that are stored as codes. The names of the rows are an extra that is named like an index, or row numbers.
    ``uns`` contains the fingerprint of the encoder, as `ENCODER`.

    Returns
    -------
    list of str
        Names of the extras that are left out, because they have no values that a column can hold.

    Raises
    ------
    CannotCreate
        If the file exists.
    ReadFailed
        If the features cannot be read.
    WriteFailed, SystemLimit, NotPermitted
        If the file cannot be written.
    """
    if path.exists():
        raise CannotCreate(f"file={printable(path)}: exists, expected a new file. Choose another name, or remove it.")
    left_out: list[str] = []

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            left_out.extend(_write(file, features))

    publish_from(disk or Disk(), path, write)
    return left_out


def _write(file: h5py.File, features: Features) -> list[str]:
    """Write all elements, and return the names of the extras that are left out."""
    _encode(file, "anndata", "0.1.0")
    for name in _GROUPS:
        _encode(file.create_group(name), "dict", "0.1.0")
    _write_array(file["obsm"], KEY, features.features)
    _write_encoder(file["uns"], features)
    variables = _create_frame(file, "var", [])
    _encode(variables.create_dataset(_INDEX, (0,), _TEXTS), "string-array", "0.2.0")

    index = next((name for name in INDEXES if name in features.extras and _is_column(features.extras[name])), None)
    columns = {name: array for name, array in features.extras.items() if name != index and _is_column(array)}
    observations = _create_frame(file, "obs", [_VALID, *columns])
    _write_names(observations, features, index)
    _write_array(observations, _VALID, features.valid)
    for name, array in columns.items():
        _write_column(observations, name, array, features.categories.get(name))
    return [name for name in features.extras if name != index and name not in columns]


def _write_encoder(group: h5py.Group, features: Features) -> None:
    """Write the fingerprint of the encoder, so that features of several files are not mixed by mistake."""
    manifests = features.manifest.get("runs", [features.manifest])
    encoder = features.manifest.get("model", manifests[0].get("model"))
    if encoder is not None:
        dataset = group.create_dataset(ENCODER, data=str(encoder), dtype=_TEXTS)
        _encode(dataset, "string", "0.2.0")


def _is_column(array: Any) -> bool:
    """Return whether a column can hold the values of an extra."""
    return array.ndim == 1 and array.dtype.kind in "biufO"


def _create_frame(file: h5py.File, name: str, columns: list[str]) -> h5py.Group:
    group = file.create_group(name)
    _encode(group, "dataframe", "0.2.0")
    group.attrs["_index"] = _INDEX
    group.attrs.create("column-order", np.array(columns, dtype=object), dtype=_TEXTS)
    return group


def _write_names(observations: h5py.Group, features: Features, index: str | None) -> None:
    """Write the names of the rows, which must be strings."""
    if index is None:
        _write_texts(observations, _INDEX, len(features.features), lambda start, stop: range(start, stop))
        return
    array = features.extras[index]
    categories = features.categories.get(index)

    def names(start: int, stop: int) -> Any:
        values = _read(array, start, stop)
        if categories is None:
            return values
        return ["" if code < 0 else categories[code] for code in values]

    _write_texts(observations, _INDEX, len(array), names)


def _write_column(observations: h5py.Group, name: str, array: Any, categories: np.ndarray | None) -> None:
    if categories is not None:
        group = observations.create_group(name)
        _encode(group, "categorical", "0.2.0")
        group.attrs["ordered"] = False
        _write_array(group, "codes", array)
        _write_categories(group, categories)
    elif array.dtype.kind == "O":
        _write_texts(observations, name, len(array), lambda start, stop: _read(array, start, stop))
    else:
        _write_array(observations, name, array)


def _write_categories(group: h5py.Group, categories: np.ndarray) -> None:
    if categories.dtype.kind == "U":
        _write_texts(group, "categories", len(categories), lambda start, stop: categories[start:stop])
    else:
        _encode(group.create_dataset("categories", data=categories), "array", "0.2.0")


def _write_array(group: h5py.Group, name: str, array: Any) -> None:
    # Without h5py's names of enumerations, and in the byte order of the processor, which pandas requires.
    dtype = np.dtype(array.dtype.str).newbyteorder("=")
    dataset = group.create_dataset(name, array.shape, dtype)
    _encode(dataset, "array", "0.2.0")
    for start in range(0, len(array), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(array))
        dataset[start:stop] = _read(array, start, stop).astype(dtype, copy=False)


def _write_texts(group: h5py.Group, name: str, n: int, values: Callable[[int, int], Any]) -> None:
    """Write `n` strings. `values` returns those from a start to a stop."""
    dataset = group.create_dataset(name, (n,), _TEXTS)
    _encode(dataset, "string-array", "0.2.0")
    for start in range(0, n, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, n)
        texts = [str(each).encode("utf-8", "backslashreplace") for each in values(start, stop)]
        dataset[start:stop] = np.array(texts, dtype=object)


def _encode(item: h5py.Group | h5py.Dataset, kind: str, version: str) -> None:
    """Write the attributes that tell AnnData how to read an element."""
    item.attrs["encoding-type"] = kind
    item.attrs["encoding-version"] = version


def _read(array: Any, start: int, stop: int) -> np.ndarray:
    try:
        return np.asarray(array[start:stop].compute())
    except FAILURES as error:
        raise ReadFailed(
            f"rows={start}:{stop}: the features cannot be read: {error}. Check them with shardpress verify."
        ) from error
