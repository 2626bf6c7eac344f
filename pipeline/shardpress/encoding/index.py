"""Virtual datasets that present all parts as one file. They contain no values, except the numbers of appends.

HDF5 needs 20 kB of memory per part to create a view, and 4 kB per part to open one of its datasets. Therefore the index
of very many parts refers to smaller views, ``index-<digest>.h5``, with `_MOST_PARTS` parts each. HDF5 opens a
smaller view when its rows are read. These files are next to the index and not in ``parts/``, because programs that read
all files in ``parts/`` would find rows twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import h5py
import numpy as np

from shardpress.encoding.template import describe, write_attributes
from shardpress.features import Shape, common_dtypes
from shardpress.formats import digest, missing_value
from shardpress.hdf5.categories import ATTRIBUTE
from shardpress.result import APPEND_ID, USE

_VIEW = "The values are in parts/. Copy the whole directory, or the file that shardpress export --to hdf5 writes."
_MOST_PARTS = 1000  # in one view
_CHUNK_ROWS = 2**20  # rows in a chunk of the numbers of appends

IndexedFile = tuple[str, Mapping[str, Shape]]
"""Path of a file relative to the view, and the shape and dtype of each dataset in the file."""


def in_views(files: Sequence[IndexedFile], write: Callable[[str, bytes], object]) -> Sequence[IndexedFile]:
    """Return the files to which an index refers. If there are very many, these are views, which `write` writes."""
    if len(files) <= _MOST_PARTS:
        return files
    views = []
    for start in range(0, len(files), _MOST_PARTS):
        group = files[start : start + _MOST_PARTS]
        with h5py.File.in_memory() as file:
            _write_datasets(file, group)
            file.flush()  # otherwise the image would lack the content of HDF5's cache
            data = bytes(file.id.get_file_image())
        name = f"index-{digest([data])[:32]}.h5"  # the digest of the content makes the name unique
        write(name, data)
        views.append((name, _joined_shapes(group)))
    return views


def write_index(
    file: h5py.File,
    files: Sequence[IndexedFile],
    categories: Mapping[str, np.ndarray | str],
    use: np.ndarray,
    append_ids: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Write virtual datasets over files to an empty HDF5 file, without opening them.

    The index omits extras that are missing in some files, or that have several dtypes.

    Parameters
    ----------
    files : sequence
        All parts in row order, or the result of `in_views`.
    categories : mapping of str to ndarray or str
        Values of the attribute ``categories`` of datasets, from `attribute_value`.
    use : ndarray of uint8, shape (n_rows,)
        What each row was used for, for the dataset `USE`.
    append_ids : sequence of (int, int), optional
        Number of the append that encoded each part, and the number of its rows, for the dataset `APPEND_ID`. By
        default, there is no such dataset.
    """
    _write_datasets(file, files)
    for name, value in categories.items():
        if name in file:
            write_attributes(file[name], {ATTRIBUTE: value})
    _write_use(file, use)
    if append_ids is not None:
        _write_append_ids(file, append_ids)


def _write_datasets(file: h5py.File, files: Sequence[IndexedFile]) -> None:
    describe(file, {"view": _VIEW})
    for name, shape in _joined_shapes(files).items():
        sources = [(path, shapes[name][0]) for path, shapes in files]
        _write_virtual(file, name, shape, sources)


def _write_use(file: h5py.File, use: np.ndarray) -> None:
    file.create_dataset(
        USE, data=use, chunks=(max(1, min(len(use), _CHUNK_ROWS)),), compression="gzip", track_times=False
    )


def _write_append_ids(file: h5py.File, append_ids: Sequence[tuple[int, int]]) -> None:
    """Write the number of the append of each row.

    Chunks in which all numbers are 0 are not written: 0 is the fill value. The time therefore depends on the number of
    appended rows. Long runs of equal numbers compress to almost nothing.
    """
    n_rows = sum(n for _, n in append_ids)
    dataset = file.create_dataset(
        APPEND_ID,
        (n_rows,),
        np.int32,
        chunks=(max(1, min(n_rows, _CHUNK_ROWS)),),
        compression="gzip",
        shuffle=True,
        track_times=False,
    )
    numbers = np.array([number for number, _ in append_ids], np.int32)
    bounds = np.cumsum([0, *(n for _, n in append_ids)])
    for start in range(0, n_rows, _CHUNK_ROWS):
        stop = min(n_rows, start + _CHUNK_ROWS)
        first = np.searchsorted(bounds, start, side="right") - 1
        end = np.searchsorted(bounds, stop, side="left")
        if numbers[first:end].any():
            lengths = np.diff(np.clip(bounds[first : end + 1], start, stop))
            dataset[start:stop] = np.repeat(numbers[first:end], lengths)


def _joined_shapes(files: Sequence[IndexedFile]) -> dict[str, Shape]:
    """Return the shape and dtype of each dataset that all files have, after concatenation along the rows."""
    parts = [shapes for _, shapes in files]
    joined: dict[str, Shape] = {}
    for name, dtype in common_dtypes(parts).items():
        dims = [part[name][0] for part in parts]
        n_rows = sum(shape[0] for shape in dims)
        joined[name] = ((n_rows, *dims[0][1:]), dtype)
    return joined


def _write_virtual(file: h5py.File, name: str, shape: Shape, sources: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Create a virtual dataset from paths and shapes of `sources`, twice as fast as with `h5py.VirtualLayout`."""
    dims, dtype = shape
    creation = _virtual_layout(dtype)
    space = h5py.h5s.create_simple(dims)
    source_name = name.replace("%", "%%").encode()  # HDF5 interprets %
    source_spaces = {source_dims: h5py.h5s.create_simple(source_dims) for _, source_dims in sources}
    start = 0
    for path, source_dims in sources:
        corner = (start, *(0 for _ in source_dims[1:]))
        space.select_hyperslab(corner, source_dims)
        creation.set_virtual(space, path.encode(), source_name, source_spaces[source_dims])
        start += source_dims[0]
    stored_type = h5py.h5t.py_create(dtype, logical=True)
    dataset = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), stored_type, space, dcpl=creation))
    write_attributes(dataset, {"view": _VIEW})


def _virtual_layout(dtype: np.dtype) -> h5py.h5p.PropDCID:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.VIRTUAL)
    creation.set_obj_track_times(False)  # so that indexes of equal parts have equal bytes
    if dtype.kind in "fciu":  # for other dtypes, the default fill value of HDF5 is our missing value
        creation.set_fill_value(np.array(missing_value(dtype), dtype))
    return creation
