"""Export of features to an AnnData file, the format of scanpy, as the array ``obsm/X_shardpress``.

The file is written with h5py, so the package anndata is not needed. The elements have the encodings of AnnData's file
format, which anndata 0.8 and later reads.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from shardpress.base.progress import Progress
from shardpress.interop.exported_rows import Block, Rows
from shardpress.interop.single_file import SOURCE, write_rows
from shardpress.result.features import Shape
from shardpress.result.finished import FEATURES, VALID
from shardpress.result.frames import INDEXES, to_encodable

KEY = "X_shardpress"
"""Name of the features in ``obsm``."""

ENCODER = "shardpress_encoder"
"""Name of the fingerprint of the encoder in ``uns``."""

_INDEX = "_index"
_GROUPS = ("layers", "obsm", "obsp", "uns", "varm", "varp")
_TEXTS = h5py.string_dtype()


def write_anndata(path: Path, rows: Rows, source: str, progress: Progress) -> None:
    """Write all rows, whose extras can be columns, to a file.

    The file has no matrix ``X``. ``obs`` contains the column ``valid`` and the extras: text, numbers, and categoricals
    for extras that are stored as codes. The names of the rows are an extra that is named like an index, or row numbers.
    """
    index = next((name for name in INDEXES if name in rows.extras), None)
    columns = [VALID, *(name for name in rows.extras if name != index)]
    with h5py.File(path, "w") as file:
        _encode(file, "anndata", "0.1.0")
        for name in _GROUPS:
            _encode(file.create_group(name), "dict", "0.1.0")
        file.attrs[SOURCE] = source
        _encode(file["uns"].create_dataset(ENCODER, data=rows.encoder, dtype=_TEXTS), "string", "0.2.0")
        _create_array(file["obsm"], KEY, rows.shapes[FEATURES])
        _create_texts(_create_frame(file, "var", []), _INDEX, 0)
        obs = _create_frame(file, "obs", columns)
        _create_texts(obs, _INDEX, rows.n_rows)
        for name in columns:
            _create_column(obs, name, rows)
        start = 0
        for block in rows.blocks(rows.stretches, progress):
            stop = start + len(block[VALID])
            _write(file["obsm"][KEY], start, stop, block[FEATURES])
            _write(obs[_INDEX], start, stop, _names(block, start, index, rows))
            for name in columns:
                target = obs[name]["codes"] if name in rows.categories else obs[name]
                _write(target, start, stop, block[name])
            start = stop


def _create_frame(file: h5py.File, name: str, columns: list[str]) -> h5py.Group:
    group = file.create_group(name)
    _encode(group, "dataframe", "0.2.0")
    group.attrs["_index"] = _INDEX
    group.attrs.create("column-order", np.array(columns, dtype=object), dtype=_TEXTS)
    return group


def _create_column(obs: h5py.Group, name: str, rows: Rows) -> None:
    shape = rows.shapes[name]
    if name in rows.categories:
        group = obs.create_group(name)
        _encode(group, "categorical", "0.2.0")
        group.attrs["ordered"] = False
        _create_array(group, "codes", shape)
        _write_categories(group, rows.categories[name])
    elif shape[1].hasobject:
        _create_texts(obs, name, rows.n_rows)
    else:
        _create_array(obs, name, shape)


def _write_categories(group: h5py.Group, categories: np.ndarray) -> None:
    if categories.dtype.kind == "U":
        _create_texts(group, "categories", len(categories))
        _write(group["categories"], 0, len(categories), categories.astype(object))
    else:
        _encode(group.create_dataset("categories", data=categories), "array", "0.2.0")


def _create_array(group: h5py.Group, name: str, shape: Shape) -> None:
    dims, dtype = shape
    # Without h5py's names of enumerations, and in the byte order of the processor, which pandas requires.
    native = np.dtype(dtype.str).newbyteorder("=")
    _encode(group.create_dataset(name, dims, native), "array", "0.2.0")


def _create_texts(group: h5py.Group, name: str, n: int) -> None:
    _encode(group.create_dataset(name, (n,), _TEXTS), "string-array", "0.2.0")


def _names(block: Block, start: int, index: str | None, rows: Rows) -> np.ndarray:
    """Return the names of some rows, which must be strings."""
    names: list[object]
    if index is None:
        names = list(range(start, start + len(block[VALID])))
    elif index in rows.categories:
        categories = rows.categories[index].tolist()
        names = ["" if code < 0 else categories[code] for code in block[index].tolist()]
    else:
        names = block[index].tolist()
    return np.array(list(map(str, names)), object)


def _write(dataset: h5py.Dataset, start: int, stop: int, values: np.ndarray) -> None:
    """Write the values of some rows. Bytes that are not UTF-8 are escaped, because anndata cannot read them."""
    if values.dtype.hasobject:
        values = to_encodable(values)
    else:
        values = values.astype(dataset.dtype, copy=False)
    write_rows(dataset, start, stop, values)


def _encode(item: h5py.Group | h5py.Dataset, kind: str, version: str) -> None:
    """Write the attributes that tell AnnData how to read an element."""
    item.attrs["encoding-type"] = kind
    item.attrs["encoding-version"] = version
