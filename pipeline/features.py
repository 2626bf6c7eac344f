"""The feature-shard format, and how downstream opens it.

1. ``parts/part-<shard>-<first row>-<unique>.h5`` holds the features of a row range of one input shard: ``features``
   (n_rows, n_features) float32, C order, little-endian, contiguous and aligned to 4096 bytes, so that it can be mapped
   (or as ``--storage-dtype`` and ``--compression`` have it: float16, or in compressed chunks of rows); ``valid``
   (n_rows,) bool, false where the input row was a bad one and its features are NaN; and the riding datasets under their
   own names, the same ones in every part; in the group ``__categories`` what the codes in some of them stand for. Where
   a shard has none, `missing_value` stands, or the code -1, and ``NAME_present`` tells which rows have one. The
   attribute ``source`` says in JSON which rows of which file it was made from. It is itself a valid input shard.
2. ``index.h5`` is a virtual dataset over all parts, in the order of the input's rows: one file to open. It is a view,
   and says so: without the parts beside it there are no values in it, but what `missing_value` gives. Of more than
   1,000 parts it is a view of views of 1,000 each, ``index-<digest>.h5``.
3. ``manifest.json`` names the parts in that order.

``index.h5``, ``manifest.json`` and the other files beside ``parts/`` are links to those of the last finished run, and
one rename replaces all of them (`pipeline.output.publication`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DataError, shown
from pipeline.hdf5.forms import CATEGORIES
from pipeline.output.records import INDEX, MANIFEST, PUBLISHED, read_manifest

__all__ = [
    "FAILURES",
    "FEATURES",
    "VALID",
    "Features",
    "Shape",
    "categories_of",
    "common",
    "open_features",
    "reading",
]

FEATURES = "features"
VALID = "valid"
_WHOLE = "Copy the whole directory, with published/ and parts/, or the file that --single-file writes."
# HDF5's come as any of the first; the others where a group, or nothing, lies in a dataset's place.
FAILURES = (OSError, RuntimeError, LookupError, ValueError, AttributeError, TypeError)

Shape = tuple[tuple[int, ...], np.dtype]
"""Of a dataset, and its dtype."""


def categories_of(path: Path) -> dict[str, np.ndarray]:
    """What codes in a part, or a single file, stand for, by the datasets' names; as they are stored."""
    with reading(path) as file:
        group = file.get(CATEGORIES)
        return {name: found[()] for name, found in group.items()} if isinstance(group, h5py.Group) else {}


def common(parts: Sequence[Mapping[str, Shape]]) -> dict[str, np.dtype]:
    """Dtypes of the datasets that every part has, of those in which they agree."""
    # NumPy takes enumerations for equal whatever their values are called.
    first, *others = (
        {name: (shape[1:], dtype, h5py.check_enum_dtype(dtype)) for name, (shape, dtype) in part.items()}
        for part in parts
    )
    return {name: parts[0][name][1] for name, kind in first.items() if all(o.get(name) == kind for o in others)}


def reading(path: str | Path) -> h5py.File:
    """Open without HDF5's lock, which would keep out a run that replaces what is read."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # within a process all must agree, and somebody has it open with the lock


@dataclass(frozen=True)
class Features:
    """A finished run's features, lazily.

    ``features[valid].compute_chunk_sizes()`` are those that count; without it, Dask does not know how many they are.

    Attributes
    ----------
    features : dask.array.Array of shape (n_rows, n_features), float32
        In the order of the input's rows; as they are stored, so float16 where a run was told so.
    valid : dask.array.Array of shape (n_rows,), bool
        False where the input row held NaN or Inf.
    riders : dict of str to dask.array.Array of shape (n_rows,)
        Labels, ids and whatever else rode along; texts, of any or of one length, as objects of type str.
    manifest : dict
        What the run says of itself; of a single file, its attributes.
    categories : dict of str to ndarray
        What the codes in a riding dataset stand for: code i for its i-th entry, -1 for none.
    """

    features: Any
    valid: Any
    riders: dict[str, Any]
    manifest: dict[str, Any] = field(repr=False)
    categories: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        kinds = {name: "str" if array.dtype == object else array.dtype for name, array in self.riders.items()}
        riders = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "nothing"
        return (
            f"<Features: {len(self.features)} rows x {self.features.shape[1]} features, "
            f"{self.manifest.get('n_bad', 'unknown how many')} bad rows; riding along: {shown(riders)}>"
        )


def open_features(path: str | Path, block_rows: int = 65536) -> Features:
    """Open an output directory, or the single file that was written there.

    Parameters
    ----------
    path : str or Path
        The directory, or the index in it; or the single file, wherever it lies.
    block_rows : int
        Rows of one Dask chunk, at most.

    Raises
    ------
    NoInput
        When it holds no finished run.
    DataError
        When a part is missing or not as the manifest says, or an index stands without its parts.
    """
    found = Path(path)
    if not found.is_file():
        return _open_directory(found, block_rows)
    if found.name == INDEX and (found.parent / MANIFEST).exists():
        return _open_directory(_output_of(found.parent), block_rows)
    return _open_file(found, block_rows)


def _output_of(directory: Path) -> Path:
    """Return the output directory that an index belongs to, which may have been named by its place in a publication."""
    return directory.parents[1] if directory.parent.name == PUBLISHED else directory


def _open_directory(directory: Path, block_rows: int) -> Features:
    # Never a list of what lies in parts/: an interrupted run leaves files there that count for nothing.
    manifest = read_manifest(directory)
    try:
        parts = [(directory / part["file"], int(part["n_rows"])) for part in manifest["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"features={shown(directory)}: its manifest names no proper parts: {error!r}") from error
    if not parts:
        raise DataError(f"features={shown(directory)}: its manifest names no parts")
    return _opened([(path, _check_part(path, n_rows)) for path, n_rows in parts], manifest, block_rows)


def _open_file(path: Path, block_rows: int) -> Features:
    where = f"file={shown(path)}"
    try:
        with reading(path) as file:
            # Without its parts it would give rows of what stands for a missing value, and no error.
            if file[FEATURES].is_virtual:
                raise DataError(f"{where}: holds no values, since the parts that it is a view of are missing. {_WHOLE}")
            shapes = _shapes(file)
            manifest = {**file.attrs, "n_rows": file[FEATURES].shape[0]}
    except FAILURES as error:
        raise DataError(f"{where}: holds no features that can be read: {error}") from error
    return _opened([(path, shapes)], manifest, block_rows)


def _opened(parts: Sequence[tuple[Path, Mapping[str, Shape]]], manifest: dict[str, Any], block_rows: int) -> Features:
    import dask.array as da  # here, since it takes longer to load than everything else

    for path, shapes in parts:
        if VALID not in shapes:
            where = f"file={shown(path)}"
            raise DataError(f"{where}: no dataset {VALID!r} beside its features, expected what --single-file writes")
    arrays = {
        name: da.concatenate([_lazy(path, name, shapes[name], block_rows) for path, shapes in parts])
        for name in common([shapes for _, shapes in parts])
    }
    return Features(arrays.pop(FEATURES), arrays.pop(VALID), arrays, manifest, _spelled(parts[0][0]))


def _spelled(path: Path) -> dict[str, np.ndarray]:
    """Categories, texts as Python has them."""
    try:
        found = categories_of(path)
    except FAILURES as error:
        raise DataError(f"file={shown(path)}: its categories cannot be read: {error}") from error
    return {
        name: np.char.decode(v, "utf-8", "surrogateescape") if v.dtype.kind == "S" else v for name, v in found.items()
    }


def _check_part(path: Path, n_rows: int) -> dict[str, Shape]:
    """Shape and dtype of each dataset of a part, as they are read."""
    try:
        os.stat(path)  # HDF5 says the same of a file that is not there and of one that it cannot make out
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"file={shown(path)}: the manifest names it, but it is not there. {_WHOLE}") from error
    try:
        with reading(path) as file:
            shapes = _shapes(file)
            n_found = file[FEATURES].shape[0]
    except FAILURES as error:
        raise DataError(f"file={shown(path)}: the manifest names it, but it cannot be read: {error}") from error
    if n_found != n_rows:
        raise DataError(f"file={shown(path)}: {n_found} rows, expected {n_rows} as the manifest says")
    return shapes


def _shapes(file: h5py.File) -> dict[str, Shape]:
    """Of all that has something for each row, as `_read_slice` has it: texts, of whatever length, are objects."""
    n_rows = file[FEATURES].shape[0]
    return {
        name: (item.shape, np.dtype(object) if h5py.check_string_dtype(item.dtype) else item.dtype)
        for name, item in file.items()
        if isinstance(item, h5py.Dataset) and (item.shape or ())[:1] == (n_rows,)
    }


def _lazy(path: Path, name: str, shape: Shape, block_rows: int) -> Any:
    import dask
    import dask.array as da

    (n_rows, *others), dtype = shape
    # Of no rows one piece all the same, since Dask puts no empty list together.
    blocks = [(start, min(start + block_rows, n_rows)) for start in range(0, max(n_rows, 1), block_rows)]
    pieces = [
        da.from_delayed(dask.delayed(_read_slice)(str(path), name, start, stop), (stop - start, *others), dtype=dtype)
        for start, stop in blocks
    ]
    return da.concatenate(pieces)


def _read_slice(path: str, name: str, start: int, stop: int) -> np.ndarray:
    # Opened for each piece: it may be asked for in any thread or process, and an open file goes to no other.
    with reading(path) as file:
        values = file[name]
        if h5py.check_string_dtype(values.dtype):
            values = values.asstr("utf-8", "surrogateescape")
        return np.asarray(values[start:stop])
