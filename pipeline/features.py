"""The format of feature shards, and `open_features`, which reads them.

1. ``parts/part-<shard>-<first row>-<unique>.h5`` holds the features of a row range of one input shard: ``features``
   (n_rows, n_features) float32, C order, little-endian, contiguous and aligned to 4096 bytes, so that it can be mapped
   (other forms with ``--storage-dtype`` and ``--compression``: float16, compressed chunks of rows); ``valid``
   (n_rows,) bool, false for bad rows, whose features are NaN; extras under their own names, the same ones in every
   part; and in the group ``__categories`` the categories of extras that are stored as codes. For extras that a shard
   does not have, a part holds `missing_value` or the code -1, and ``NAME_present`` is false for these rows. The
   attribute ``source`` holds the source file and rows as JSON. A part is itself a valid input shard.
2. ``index.h5`` is a virtual dataset over all parts, in the order of the input's rows. It is a view and has an attribute
   that says so: without the parts, HDF5 returns only missing values (`missing_value`). With more than 1,000 parts it
   is a view of views of 1,000 parts each, ``index-<digest>.h5``.
3. ``manifest.json`` lists the parts in that order.

``index.h5``, ``manifest.json`` and other files next to ``parts/`` are links to those of the last finished run, and one
rename replaces all of them (`pipeline.output.publication`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DataError, printable
from pipeline.hdf5.forms import CATEGORIES
from pipeline.output.records import INDEX, MANIFEST, PUBLISHED, read_manifest

__all__ = [
    "FAILURES",
    "FEATURES",
    "VALID",
    "Features",
    "Shape",
    "categories_of",
    "common_dtypes",
    "open_features",
    "reading",
]

FEATURES = "features"
VALID = "valid"
_WHOLE = "Copy the whole directory, with published/ and parts/, or the file that --single-file writes."
_REPEAT = "Run the command of that run again, which recomputes damaged files."
# h5py raises OSError and RuntimeError. The others occur if a group or nothing is found instead of a dataset.
FAILURES = (OSError, RuntimeError, LookupError, ValueError, AttributeError, TypeError)

Shape = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype of a dataset."""


def categories_of(path: Path) -> dict[str, np.ndarray]:
    """Return the stored categories of extras in a part or a single file, by the name of the extra."""
    with reading(path) as file:
        group = file.get(CATEGORIES)
        if not isinstance(group, h5py.Group):
            return {}
        return {name: dataset[()] for name, dataset in group.items()}


def common_dtypes(parts: Sequence[Mapping[str, Shape]]) -> dict[str, np.dtype]:
    """Return the dtypes of the datasets that all parts have, with equal dtypes and row shapes."""
    first, *others = [{name: _kind(shape) for name, shape in part.items()} for part in parts]
    dtypes = {}
    for name, kind in first.items():
        if all(other.get(name) == kind for other in others):
            _, dtype = parts[0][name]
            dtypes[name] = dtype
    return dtypes


def _kind(shape: Shape) -> object:
    """Return what must be equal in all parts. NumPy ignores the names of the values of an enumeration."""
    dims, dtype = shape
    return dims[1:], dtype, h5py.check_enum_dtype(dtype)


def reading(path: str | Path) -> h5py.File:
    """Open a file without HDF5's lock, so that a run can replace it meanwhile."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # this process already has it open with the lock, and both must agree


@dataclass(frozen=True)
class Features:
    """Features of a finished run as lazy Dask arrays.

    ``features[valid].compute_chunk_sizes()`` are the features of good rows; Dask does not know their number before.

    Attributes
    ----------
    features : dask.array.Array of shape (n_rows, n_features), float32
        Features in the order of the input's rows; float16 if they are stored so.
    valid : dask.array.Array of shape (n_rows,), bool
        False for bad rows, such as those with NaN or Inf.
    extras : dict of str to dask.array.Array of shape (n_rows,)
        Extras such as labels and ids. Strings are objects of type str.
    manifest : dict
        The manifest of the run, or the attributes of a single file.
    categories : dict of str to ndarray
        Categories of the extras that are stored as codes: code i means entry i, and -1 a missing value.
    """

    features: Any
    valid: Any
    extras: dict[str, Any]
    manifest: dict[str, Any] = field(repr=False)
    categories: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        kinds = {name: "str" if array.dtype == object else array.dtype for name, array in self.extras.items()}
        extras = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "nothing"
        n_bad = self.manifest.get("n_bad", "an unknown number of")
        return (
            f"<Features: {len(self.features)} rows x {self.features.shape[1]} features, "
            f"{n_bad} bad rows; extras: {printable(extras)}>"
        )


def open_features(path: str | Path, block_rows: int = 65536) -> Features:
    """Open the features in an output directory, or in a single file.

    Parameters
    ----------
    path : str or Path
        The directory or its ``index.h5``, or a ``single.h5`` in any directory.
    block_rows : int
        Largest number of rows of a Dask chunk.

    Returns
    -------
    Features

    Raises
    ------
    NoInput
        If there is no finished run.
    DataError
        If a part is missing or differs from the manifest, or an index has lost its parts.
    """
    found = Path(path)
    if not found.is_file():
        return _open_directory(found, block_rows)
    if found.name == INDEX and (found.parent / MANIFEST).exists():
        return _open_directory(_output_of(found.parent), block_rows)
    return _open_file(found, block_rows)


def _output_of(directory: Path) -> Path:
    """Return the output directory that an index belongs to, which may have been given by its path in a publication."""
    return directory.parents[1] if directory.parent.name == PUBLISHED else directory


def _open_directory(directory: Path, block_rows: int) -> Features:
    # Not all files in parts/ are read: an interrupted run may have left others there.
    manifest = read_manifest(directory)
    try:
        files = [(directory / part["file"], int(part["n_rows"])) for part in manifest["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"features={printable(directory)}: its manifest has an invalid list of parts: {error!r}. {_REPEAT}"
        ) from error
    if not files:
        raise DataError(
            f"features={printable(directory)}: its manifest lists no parts, expected at least one. {_REPEAT}"
        )
    parts = [(path, _check_part(path, n_rows)) for path, n_rows in files]
    return _opened(parts, manifest, block_rows)


def _open_file(path: Path, block_rows: int) -> Features:
    where = f"file={printable(path)}"
    try:
        with reading(path) as file:
            # Without its parts HDF5 would return missing values, and no error.
            if file[FEATURES].is_virtual:
                raise DataError(f"{where}: has no values, because the parts that it refers to are missing. {_WHOLE}")
            shapes = _shapes(file)
            manifest = {**file.attrs, "n_rows": file[FEATURES].shape[0]}
    except FAILURES as error:
        raise DataError(f"{where}: contains no readable features: {error}. {_WHOLE}") from error
    return _opened([(path, shapes)], manifest, block_rows)


def _opened(parts: Sequence[tuple[Path, Mapping[str, Shape]]], manifest: dict[str, Any], block_rows: int) -> Features:
    import dask.array as da  # imported here, since it takes longer to load than everything else

    for path, shapes in parts:
        if VALID not in shapes:
            where = f"file={printable(path)}"
            raise DataError(f"{where}: contains no dataset {VALID!r}, expected a file that --single-file writes")
    names = common_dtypes([shapes for _, shapes in parts])
    arrays = {}
    for name in names:
        pieces = [_lazy(path, name, shapes[name], block_rows) for path, shapes in parts]
        arrays[name] = da.concatenate(pieces)
    features = arrays.pop(FEATURES)
    valid = arrays.pop(VALID)
    first_path, _ = parts[0]
    return Features(features, valid, arrays, manifest, _decoded_categories(first_path))


def _decoded_categories(path: Path) -> dict[str, np.ndarray]:
    """Return categories with strings as str."""
    try:
        categories = categories_of(path)
    except FAILURES as error:
        raise DataError(f"file={printable(path)}: its categories cannot be read: {error}. {_REPEAT}") from error
    for name, values in categories.items():
        if values.dtype.kind == "S":
            categories[name] = np.char.decode(values, "utf-8", "surrogateescape")
    return categories


def _check_part(path: Path, n_rows: int) -> dict[str, Shape]:
    """Return shape and dtype of each dataset of a part, as `_shapes` does."""
    try:
        os.stat(path)  # HDF5 does not distinguish a missing file from a damaged one
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"file={printable(path)}: the manifest lists this file, but it does not exist. {_WHOLE}"
        ) from error
    try:
        with reading(path) as file:
            shapes = _shapes(file)
            n_found = file[FEATURES].shape[0]
    except FAILURES as error:
        raise DataError(
            f"file={printable(path)}: the manifest lists this file, but it cannot be read: {error}. {_REPEAT}"
        ) from error
    if n_found != n_rows:
        raise DataError(
            f"file={printable(path)}: has {n_found} rows, expected {n_rows} according to the manifest. {_REPEAT}"
        )
    return shapes


def _shapes(file: h5py.File) -> dict[str, Shape]:
    """Return shape and dtype of all datasets with a value for each row. Strings of any kind are objects."""
    n_rows = file[FEATURES].shape[0]
    shapes: dict[str, Shape] = {}
    for name, item in file.items():
        if isinstance(item, h5py.Dataset) and (item.shape or ())[:1] == (n_rows,):
            is_text = h5py.check_string_dtype(item.dtype) is not None
            shapes[name] = (item.shape, np.dtype(object) if is_text else item.dtype)
    return shapes


def _lazy(path: Path, name: str, shape: Shape, block_rows: int) -> Any:
    """Return a dataset as a Dask array."""
    import dask
    import dask.array as da

    (n_rows, *row_shape), dtype = shape
    pieces = []
    for start in range(0, max(n_rows, 1), block_rows):  # one piece without rows, because Dask needs at least one
        stop = min(start + block_rows, n_rows)
        values = dask.delayed(_read_slice)(str(path), name, start, stop)
        pieces.append(da.from_delayed(values, (stop - start, *row_shape), dtype=dtype))
    return da.concatenate(pieces)


def _read_slice(path: str, name: str, start: int, stop: int) -> np.ndarray:
    # Each piece opens the file: it may be read in any thread or process, and these cannot share an open file.
    with reading(path) as file:
        values = file[name]
        if h5py.check_string_dtype(values.dtype):
            values = values.asstr("utf-8", "surrogateescape")
        return np.asarray(values[start:stop])
