"""All parts as one file: ``index.h5``, a view of them that holds no values.

HDF5 takes 20 kB of memory for each part that such a view names, to make it, and 4 kB for each that a dataset of it
names, to open that. So one of very many parts is a view of views, ``index-<digest>.h5``, of `_MOST` parts each, that
HDF5 opens as their rows are read. They stand beside it, and not in ``parts/``, where whoever reads all that lies there
would find rows twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import h5py
import numpy as np

from pipeline.encoding.template import describe, write_attributes
from pipeline.features import Shape, common
from pipeline.formats import digest, missing_value
from pipeline.output.records import INDEX

__all__ = ["index_files"]

_VIEW = "the values stand in parts/: copy the whole directory, or the file that --single-file writes"
_MOST = 1000

_Part = TypeVar("_Part")
_Viewed = tuple[str, Mapping[str, Shape]]
"""A file, by its path from the view, and shape and dtype of each of its datasets."""


def index_files(
    parts: Sequence[_Part],
    viewed: Callable[[_Part], _Viewed],
    categories: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> Iterator[tuple[str, bytes]]:
    """Make files that have to be there in this order, ``index.h5`` last; no part is opened for them.

    Riding datasets that not every part has, or not in one dtype, are left out; the parts keep them.

    Parameters
    ----------
    parts : sequence
        In the order of the rows.
    viewed : callable
        A part's file, by its path from the output directory, and shape and dtype of each of its datasets.
    categories : mapping of str to ndarray
        What codes in them stand for, by the path in the file.
    attributes : mapping
        Of ``index.h5``; nested values as JSON.

    Yields
    ------
    tuple of (str, bytes)
        A name from the output directory, and what stands there.
    """
    if len(parts) <= _MOST:
        views = [viewed(part) for part in parts]
    else:
        views = []
        for start in range(0, len(parts), _MOST):
            some = [viewed(part) for part in parts[start : start + _MOST]]
            data = _view(some, {}, {})
            name = f"index-{digest([data])[:32]}.h5"  # of what it holds: never in the place of another
            yield name, data
            views.append((name, _shapes([shapes for _, shapes in some])))
    yield INDEX, _view(views, categories, attributes)


def _view(files: Sequence[_Viewed], categories: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> bytes:
    with h5py.File.in_memory() as file:
        describe(file, {**attributes, "view": _VIEW})
        for name, whole in _shapes([shapes for _, shapes in files]).items():
            _write_virtual(file, name, whole, [(path, shapes[name][0]) for path, shapes in files])
        for path, found in categories.items():
            file.create_dataset(path, data=found)
        file.flush()  # the image is of what has left HDF5's cache
        return bytes(file.id.get_file_image())


def _shapes(parts: Sequence[Mapping[str, Shape]]) -> dict[str, Shape]:
    """Of what all of them have, one after the other."""
    return {
        name: ((sum(part[name][0][0] for part in parts), *parts[0][name][0][1:]), dtype)
        for name, dtype in common(parts).items()
    }


def _write_virtual(file: h5py.File, name: str, of: Shape, files: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """A dataset over the ones of this name in `files`, as an `h5py.VirtualLayout` would, in half the time."""
    whole = h5py.h5s.create_simple(of[0])
    dtype = of[1]
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.VIRTUAL)
    how.set_obj_track_times(False)  # of equal parts, an equal index
    if dtype.kind in "fciu":  # all others' are HDF5's own
        how.set_fill_value(np.array(missing_value(dtype), dtype))
    there = name.replace("%", "%%").encode()  # HDF5 reads % as the start of a format
    first = 0
    for path, shape in files:
        whole.select_hyperslab((first, *(0 for _ in shape[1:])), shape)
        how.set_virtual(whole, path.encode(), there, h5py.h5s.create_simple(shape))
        first += shape[0]
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), whole, dcpl=how)
    write_attributes(file[name], {"view": _VIEW})
