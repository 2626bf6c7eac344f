"""Virtual datasets that present the rows of all parts as one file, and datasets with facts about each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from shardpress.base.formats import missing_value
from shardpress.hdf5.categories import ATTRIBUTE, FORMAT
from shardpress.result.features import Shape
from shardpress.result.finished import APPEND_ID, USE
from shardpress.result.records import Stretch

_VIEW = "The values are in parts/. Copy the whole directory, or the file that shardpress export --to hdf5 writes."
_CHUNK_ROWS = 2**20  # rows in a chunk of the numbers of appends


def write_index(
    file: h5py.File,
    stretches: Sequence[Stretch],
    shapes: Mapping[str, Shape],
    categories: Mapping[str, np.ndarray | str],
    use: np.ndarray,
    append_ids: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Write virtual datasets over parts to an empty HDF5 file, without opening the parts.

    Parameters
    ----------
    stretches : sequence of Stretch
        All rows, in their order.
    shapes : mapping of str to (tuple, dtype)
        The shape of a row and the dtype of each dataset, which are the same in all parts.
    categories : mapping of str to ndarray or str
        Values of the attribute ``categories`` of datasets, from `attribute_value`.
    use : ndarray of uint8, shape (n_rows,)
        What each row was used for, for the dataset `USE`.
    append_ids : sequence of (int, int), optional
        Number of the append that encoded each range of rows, and the number of its rows, for the dataset `APPEND_ID`.
        By default, there is no such dataset.
    """
    file.attrs["format"] = FORMAT
    file.attrs["view"] = _VIEW
    for name, shape in shapes.items():
        _write_virtual(file, name, shape, stretches)
    for name, value in categories.items():
        file[name].attrs[ATTRIBUTE] = value
    file.create_dataset(USE, data=use, chunks=_chunks(len(use)), compression="gzip", track_times=False)
    if append_ids is not None:
        _write_append_ids(file, append_ids)


def _chunks(n_rows: int) -> tuple[int]:
    return (max(1, min(n_rows, _CHUNK_ROWS)),)


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
        chunks=_chunks(n_rows),
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


def _write_virtual(file: h5py.File, name: str, shape: Shape, stretches: Sequence[Stretch]) -> None:
    """Create a virtual dataset, twice as fast as with `h5py.VirtualLayout`."""
    row_shape, dtype = shape
    corner = (0,) * len(row_shape)
    creation = _virtual_layout(dtype)
    space = h5py.h5s.create_simple((sum(stretch.n_rows for stretch in stretches), *row_shape))
    source_name = name.replace("%", "%%").encode()  # HDF5 interprets %
    start = 0
    for part, first, n_rows in stretches:
        source = h5py.h5s.create_simple((part.n_rows, *row_shape))
        source.select_hyperslab((first, *corner), (n_rows, *row_shape))
        space.select_hyperslab((start, *corner), (n_rows, *row_shape))
        creation.set_virtual(space, part.file.encode(), source_name, source)
        start += n_rows
    stored_type = h5py.h5t.py_create(dtype, logical=True)
    dataset = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), stored_type, space, dcpl=creation))
    dataset.attrs["view"] = _VIEW


def _virtual_layout(dtype: np.dtype) -> h5py.h5p.PropDCID:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.VIRTUAL)
    creation.set_obj_track_times(False)  # so that indexes of equal parts have equal bytes
    if dtype.kind in "fciu":  # for other dtypes, the default fill value of HDF5 is our missing value
        creation.set_fill_value(np.array(missing_value(dtype), dtype))
    return creation
