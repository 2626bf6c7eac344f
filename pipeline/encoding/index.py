"""``index.h5``: virtual datasets over all parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from pipeline.encoding.template import describe, write_attributes
from pipeline.features import Shape, common
from pipeline.formats import missing_value

__all__ = ["index_bytes"]

VIEW = "the values stand in parts/: copy the whole directory, or the file that --single-file writes"


def index_bytes(
    files: Sequence[str],
    shapes: Sequence[Mapping[str, Shape]],
    categories: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> bytes:
    """The bytes of ``index.h5``, for which no part is opened.

    Riding datasets that not every part has, or not in one dtype, are left out; the parts keep them.

    Parameters
    ----------
    files : sequence of str
        The parts, relative to the index, in the order of the rows.
    shapes : sequence of mapping
        Shape and dtype of each dataset of each part.
    categories : mapping of str to ndarray
        What codes in them stand for, by the path in the file.
    attributes : mapping
    """
    with h5py.File.in_memory() as file:
        describe(file, {**attributes, "view": VIEW})
        for name, dtype in common(shapes).items():
            _write_virtual(file, name, files, [part[name][0] for part in shapes], dtype)
        for path, found in categories.items():
            file.create_dataset(path, data=found)
        file.flush()  # the image is of what has left HDF5's cache
        return bytes(file.id.get_file_image())


def _write_virtual(
    file: h5py.File, name: str, files: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: np.dtype
) -> None:
    """A dataset over the ones of this name in `files`, as an `h5py.VirtualLayout` would, in half the time."""
    whole = h5py.h5s.create_simple((sum(shape[0] for shape in shapes), *shapes[0][1:]))
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.VIRTUAL)
    how.set_obj_track_times(False)  # of equal parts, an equal index
    if dtype.kind in "fciu":  # all others' are HDF5's own
        how.set_fill_value(np.array(missing_value(dtype), dtype))
    there, first = name.replace("%", "%%").encode(), 0  # HDF5 reads % in it as a format
    for path, shape in zip(files, shapes, strict=True):
        whole.select_hyperslab((first, *(0 for _ in shape[1:])), shape)
        how.set_virtual(whole, path.encode(), there, h5py.h5s.create_simple(shape))
        first += shape[0]
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), whole, dcpl=how)
    write_attributes(file[name], {"view": VIEW})
