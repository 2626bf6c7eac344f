"""``index.h5``: virtual datasets over all parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.encoding.partfile import describe, write_attributes
from pipeline.errors import ReadFailed, shown
from pipeline.features import COMPLAINTS, FEATURES, VALID, categories_of, common, reading
from pipeline.formats import missing_value
from pipeline.hdf5.riders import CATEGORIES

__all__ = ["index_bytes"]

VIEW = "the values stand in parts/: copy the whole directory, or the file that --single-file writes"


def index_bytes(
    directory: Path, files: Sequence[str], about: Mapping[str, Any], alone: Sequence[tuple[int, int]] = ()
) -> bytes:
    """The bytes of ``index.h5``: virtual datasets over parts that stand in `directory`.

    Riding datasets that not every part has, or not in one dtype, are left out; the parts keep them.

    Parameters
    ----------
    directory : Path
    files : sequence of str
        The parts, relative to it, in the order of the rows.
    about : mapping
        What goes into the attributes.
    alone : sequence of (int, int)
        Each part's features' shape, where it is known that nothing rides along. Parts are opened for it otherwise.

    Raises
    ------
    ReadFailed
    """
    if alone:
        shapes = [{FEATURES: (shape, np.dtype("<f4")), VALID: (shape[:1], np.dtype(bool))} for shape in alone]
    else:
        shapes = [_shapes(directory / name) for name in files]
    with h5py.File.in_memory() as file:
        describe(file, {**about, "view": VIEW})
        for key, dtype in common(shapes).items():
            _write_virtual(file, key, files, [part[key][0] for part in shapes], dtype)
        for key, found in {} if alone else categories_of(directory / files[0]).items():
            file.create_dataset(f"{CATEGORIES}/{key}", data=found)
        file.flush()
        return bytes(file.id.get_file_image())


def _write_virtual(
    file: h5py.File, key: str, files: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: np.dtype
) -> None:
    """A dataset over the ones of this name in `files`, as an `h5py.VirtualLayout` would, in half the time."""
    whole = h5py.h5s.create_simple((sum(shape[0] for shape in shapes), *shapes[0][1:]))
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.VIRTUAL)
    if dtype.kind in "fciu":  # all others' are HDF5's own
        how.set_fill_value(np.array(missing_value(dtype), dtype))
    name, first = key.replace("%", "%%").encode(), 0  # HDF5 reads % in it as a format
    for path, shape in zip(files, shapes, strict=True):
        whole.select_hyperslab((first, *(0 for _ in shape[1:])), shape)
        how.set_virtual(whole, path.encode(), name, h5py.h5s.create_simple(shape))
        first += shape[0]
    whole.select_all()
    h5py.h5d.create(file.id, key.encode(), h5py.h5t.py_create(dtype, logical=True), whole, dcpl=how)
    write_attributes(file[key], {"view": VIEW})


def _shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each dataset of a part."""
    try:
        with reading(path) as part:
            return {key: (item.shape, item.dtype) for key, item in part.items() if key != CATEGORIES}
    except COMPLAINTS as error:
        raise ReadFailed(
            f"file={shown(path)}: cannot be read again: {error}. Type the same command again without --verify sizes: "
            "what is damaged is made anew."
        ) from error
