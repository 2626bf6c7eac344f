"""Parquet files with the rows of parts, for pandas, Polars, DuckDB, Spark and other programs that read tables.

The columns have the names and values of `shardpress.features.Features.to_pandas`. A file is written from a committed
part in small groups of rows, so the memory does not depend on the size of the part. The bytes depend only on the part
and on the version of pyarrow.

This module imports pyarrow, an optional package. Import it only if Parquet files are written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from shardpress import signals
from shardpress.encoding.whole import unreadable
from shardpress.features import FAILURES, FEATURES, VALID, Shape, categories_of, reading, shapes_of
from shardpress.frames import VALID_COLUMN, ColumnNames, name_columns, to_encodable, to_native
from shardpress.output.disk import Pieces

__all__ = ["ENCODER", "parquet_file"]

ENCODER = "shardpress.encoder"
"""Key of the fingerprint of the encoder in the metadata of the schema."""

_GROUP_BYTES = 2**22  # size of a group of rows, which can also be about half as large
_TEXT_ROWS = 2**10  # rows to read at once if there are strings; the memory budget has room for the longest ones
_TEXT_BYTES = 8  # bytes of a string that are counted in advance
_MAX_DICTIONARY_BYTES = 2**30  # more than all allowed categories take; otherwise Parquet would drop unused ones


@dataclass(frozen=True)
class _Part:
    """Contents of a part.

    Attributes
    ----------
    shapes : dict of str to Shape
        Shape and dtype of each dataset that becomes columns. All strings have the dtype object.
    categories : dict of str to ndarray
        Categories of the extras that are stored as codes.
    encoder : str
        Fingerprint of the encoder.
    """

    path: Path
    shapes: dict[str, Shape]
    categories: dict[str, np.ndarray]
    encoder: str

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.shapes[FEATURES][0][0]

    @property
    def rows_at_once(self) -> int:
        """Number of rows to read at once."""
        row_bytes = 0
        has_text = False
        for dims, dtype in self.shapes.values():
            is_text = dtype.hasobject
            has_text = has_text or is_text
            row_bytes += prod(dims[1:]) * (_TEXT_BYTES if is_text else dtype.itemsize)
        n_rows = max(1, _GROUP_BYTES // row_bytes)
        return min(n_rows, _TEXT_ROWS) if has_text else n_rows

    def column_names(self) -> ColumnNames:
        """Return the names of the columns."""
        ndims = {name: len(dims) for name, (dims, _) in self.shapes.items() if name not in (FEATURES, VALID)}
        return name_columns(self.shapes[FEATURES][0][1], [VALID_COLUMN], ndims)


def parquet_file(path: Path, names: Collection[str]) -> Pieces:
    """Return the bytes of a Parquet file with the rows of a part.

    Parameters
    ----------
    path : Path
        File of a committed part.
    names : collection of str
        Datasets that become columns: those that all parts of the run have with the same dtype.

    Returns
    -------
    Pieces
        Content of the file, which is read from the part on demand. Its size is not known in advance.

    Raises
    ------
    ReadFailed
        If the part cannot be read, now or while the pieces are read.
    """
    try:
        with reading(path) as file:
            shapes = {name: shape for name, shape in shapes_of(file).items() if name in names}
            encoder = str(file.attrs.get("model", ""))
        part = _Part(path, shapes, categories_of(path), encoder)
    except FAILURES as error:
        raise unreadable(path, error) from error
    return Pieces(None, _pieces(part))


class _Sink(io.RawIOBase):
    """File that collects the bytes of a writer until they are taken."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._n_bytes = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the number of bytes that were written."""
        return self._n_bytes

    def write(self, data: Any) -> int:
        """Keep a copy of the bytes."""
        piece = bytes(data)
        self._pieces.append(piece)
        self._n_bytes += len(piece)
        return len(piece)

    def take(self) -> bytes:
        """Return the bytes since the last call."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def _pieces(part: _Part) -> Iterator[bytes]:
    """Yield the bytes of the file in order: a piece for each group of rows, and the metadata at the end."""
    sink = _Sink()
    groups = _groups(part)
    first = next(groups)
    dictionaries = [field.name for field in first.schema if pa.types.is_dictionary(field.type)]
    with parquet.ParquetWriter(
        sink, first.schema, use_dictionary=dictionaries, dictionary_pagesize_limit=_MAX_DICTIONARY_BYTES
    ) as writer:
        writer.write_table(first)
        yield sink.take()
        for group in groups:
            writer.write_table(group)
            yield sink.take()
    yield sink.take()


def _groups(part: _Part) -> Iterator[pa.Table]:
    """Yield tables of a few megabytes each. There is at least one, which can have no rows."""
    names = part.column_names()
    tables: list[pa.Table] = []
    n_bytes = 0
    for values in _blocks(part):
        signals.check()
        table = _table(values, part.categories, names)
        metadata = {**(table.schema.metadata or {}), ENCODER: part.encoder}
        table = table.replace_schema_metadata(metadata)
        tables.append(table)
        n_bytes += table.nbytes
        if n_bytes >= _GROUP_BYTES // 2:
            yield pa.concat_tables(tables)
            tables = []
            n_bytes = 0
    if tables:
        yield pa.concat_tables(tables)


def _blocks(part: _Part) -> Iterator[dict[str, np.ndarray]]:
    """Yield the values of a few rows at a time, by the names of their datasets. There is at least one block."""
    step = part.rows_at_once
    try:
        with reading(part.path) as file:
            for start in range(0, max(1, part.n_rows), step):
                yield {name: _read(file[name], start, start + step) for name in part.shapes}
    except FAILURES as error:
        raise unreadable(part.path, error) from error


def _read(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """Return the values of some rows. Strings become objects of type str."""
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return np.asarray(dataset.asstr("utf-8", "surrogateescape")[start:stop])
    return np.asarray(dataset[start:stop])


# -- columns -----------------------------------------------------------------------------------------------------


def _table(values: Mapping[str, np.ndarray], categories: Mapping[str, np.ndarray], names: ColumnNames) -> pa.Table:
    """Return a table with the columns of a data frame, and with metadata that tell pandas which one is the index."""
    columns: dict[str, Any] = {}
    # One contiguous array for each feature; NaN stays NaN and does not become null.
    rows = np.ascontiguousarray(values[FEATURES].T, dtype=np.float32)
    for name, column in zip(names.features, rows, strict=True):
        columns[name] = pa.array(column)
    columns[VALID_COLUMN] = pa.array(values[VALID])
    for name, column_name in names.extras.items():
        columns[column_name] = _column(values[name], categories.get(name))
    table = pa.table(columns)
    if names.index is None:
        return table
    index = _column(values[names.index], categories.get(names.index))
    return table.append_column(names.index, index).replace_schema_metadata(_index_metadata(names.index))


def _index_metadata(name: str) -> dict[str, str]:
    """Return the metadata of pandas that make a column the index, without a name as in `to_pandas`."""
    column = {"name": None, "field_name": name, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    content = {"index_columns": [name], "column_indexes": [], "columns": [column], "pandas_version": "2.0.0"}
    return {"pandas": json.dumps(content)}


def _column(values: np.ndarray, categories: np.ndarray | None) -> Any:
    """Return the values of an extra. Arrays of each row become lists, and codes become their categories."""
    if values.ndim > 1:
        return _lists(_plain(values.reshape(-1)), values.shape[1:])
    if categories is None:
        return _plain(values)
    codes = pa.array(to_native(values), mask=values < 0)
    column = pa.DictionaryArray.from_arrays(codes, _plain(categories))
    # Parquet files of pyarrow have dictionaries of strings only, and those of pandas have distinct categories.
    is_dictionary = pa.types.is_string(column.type.value_type) and _are_distinct(column.dictionary)
    return column if is_dictionary else column.dictionary_decode()


def _are_distinct(categories: pa.Array) -> bool:
    return len(categories.unique()) == len(categories)


def _lists(flat: pa.Array, shape: Sequence[int]) -> pa.Array:
    """Return nested lists of the values, whose sizes are `shape`."""
    for size in reversed(shape):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def _plain(values: np.ndarray) -> pa.Array:
    """Return numbers or strings. Numbers of 16 bits become float32, because few programs read 16 bits."""
    if values.dtype.kind in "OU":
        return pa.array(to_encodable(values).tolist(), pa.string())
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    return pa.array(to_native(values))
