"""Export of features to a folder of Parquet files, for pandas, Polars, DuckDB, Spark and programs that read tables.

The folder has a file for each stretch of rows that are consecutive in a part. The columns have the names and values of
`shardpress.result.features.Features.to_pandas`. The name of a file contains its first row and a digest of its content,
so a repeated export writes only new content.

This module imports pyarrow, an optional package. Import it only if Parquet files are written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from shardpress.base.errors import CannotCreate, printable
from shardpress.base.formats import digest, fingerprint
from shardpress.base.progress import Progress
from shardpress.interop.exported_rows import Block, Rows
from shardpress.interop.single_file import SOURCE
from shardpress.output.disk import TEMPORARY, Disk, changing, publish_from, remove, sync_directory
from shardpress.result.features import categories_of
from shardpress.result.finished import FEATURES, VALID
from shardpress.result.frames import VALID_COLUMN, ColumnNames, name_columns, to_encodable, to_native
from shardpress.result.records import Stretch

ENCODER = "shardpress.encoder"
"""Key of the fingerprint of the encoder in the metadata of the schema."""

_SOURCE = f"shardpress.{SOURCE}"
_VERSION = 1  # version of the content of the files; if it changes, an export writes all files again
_GROUP_BYTES = 2**21  # minimum size of a group of rows, except for the last one
_MAX_DICTIONARY_BYTES = 2**30  # more than all allowed categories take; otherwise Parquet would drop unused ones
_FILE = re.compile(r"part-[0-9-]*[0-9a-f]{32}\.parquet")
# Programs that read a folder ignore names that begin with a dot.
_NEW = "."
_UNFINISHED = re.compile(rf"\.{_FILE.pattern}\.[0-9a-f]{{32}}\{TEMPORARY}")


def write_parquet(folder: Path, rows: Rows, source: str, disk: Disk) -> int:
    """Write the rows to the files of a folder, as far as they are new, and return the number of new files.

    New files have hidden names until all of them are written. Until then, the earlier export is complete. Files with
    other rows, or with rows at another place, are removed.
    """
    earlier = _earlier_files(folder, source)
    stretches = _named(rows)
    new = {name: stretch for name, stretch in stretches.items() if name not in earlier}
    to_write = {name: stretch for name, stretch in new.items() if f"{_NEW}{name}" not in earlier}
    with changing(folder, "writing its files"):
        if not folder.exists():
            disk.make_directory(folder)
            sync_directory(disk, folder.parent)
        with Progress("export", sum(stretch.n_rows for stretch in to_write.values()), "rows") as progress:
            for name, stretch in to_write.items():
                _write(folder / f"{_NEW}{name}", stretch, rows, source, progress, disk)
        for name in new:
            disk.replace(folder / f"{_NEW}{name}", folder / name)
        for name in sorted(earlier - stretches.keys() - {f"{_NEW}{name}" for name in new}):
            remove(disk, folder / name)
        sync_directory(disk, folder)
    return len(to_write)


def _named(rows: Rows) -> dict[str, Stretch]:
    """Return all rows by the names of their files, which sort like the rows."""
    digest_of_map = "" if rows.to_other is None else digest([rows.to_other.to_npz()])
    columns = fingerprint(_VERSION, sorted(rows.shapes), rows.encoder, digest_of_map)
    stretches = {}
    row = 0
    for stretch in rows.stretches:
        part, first, n_rows = stretch
        append_ids = [[used.first, rows.result.by_id[used.shard].append_id] for used in stretch.ranges]
        content = fingerprint(columns, part.entry.blake3, first, n_rows, append_ids)
        stretches[f"part-{row:012d}-{content[:32]}.parquet"] = stretch
        row += n_rows
    return stretches


def _earlier_files(folder: Path, source: str) -> set[str]:
    """Return the names of the files of an earlier export. Raise `CannotCreate` for other files."""
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise CannotCreate(f"folder={printable(folder)}: {error.strerror}, expected a folder, or none.") from error
    for name in sorted(names):
        is_export = _UNFINISHED.fullmatch(name) or _source_of(folder / name) == source
        if not is_export:
            raise CannotCreate(
                f"file={printable(folder / name)}: exists, and is not an earlier export of the same results. Choose "
                "another --output, or move the file elsewhere."
            )
    return names


def _source_of(path: Path) -> str | None:
    """Return what a file is exported from; None if it is not an export."""
    if not _FILE.fullmatch(path.name.removeprefix(_NEW)):
        return None
    try:
        metadata = parquet.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    source = metadata.get(_SOURCE.encode())
    return None if source is None else source.decode(errors="replace")


def _write(path: Path, stretch: Stretch, rows: Rows, source: str, progress: Progress, disk: Disk) -> None:
    metadata = {ENCODER: rows.encoder, _SOURCE: source}

    def write(temporary: Path) -> None:
        groups = _groups(stretch, rows, metadata, progress)
        first = next(groups)
        dictionaries = [field.name for field in first.schema if pa.types.is_dictionary(field.type)]
        with parquet.ParquetWriter(
            temporary, first.schema, use_dictionary=dictionaries, dictionary_pagesize_limit=_MAX_DICTIONARY_BYTES
        ) as writer:
            writer.write_table(first)
            for group in groups:
                writer.write_table(group)

    publish_from(disk, path, write)


def _groups(stretch: Stretch, rows: Rows, metadata: Mapping[str, str], progress: Progress) -> Iterator[pa.Table]:
    """Yield tables of a few megabytes each."""
    ndims = {name: len(dims) for name, (dims, _) in rows.extras.items()}
    names = name_columns(rows.n_features, [VALID_COLUMN], ndims)
    categories = categories_of(rows.result.directory / stretch.part.file)
    tables: list[pa.Table] = []
    n_bytes = 0
    for block in rows.blocks([stretch], progress):
        table = _table(block, categories, names)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
        tables.append(table)
        n_bytes += table.nbytes
        if n_bytes >= _GROUP_BYTES:
            yield pa.concat_tables(tables)
            tables = []
            n_bytes = 0
    if tables:
        yield pa.concat_tables(tables)


# -- columns -----------------------------------------------------------------------------------------------------


def _table(values: Block, categories: Mapping[str, np.ndarray], names: ColumnNames) -> pa.Table:
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
    are_distinct = len(column.dictionary.unique()) == len(column.dictionary)
    if pa.types.is_string(column.type.value_type) and are_distinct:
        return column
    return column.dictionary_decode()


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
