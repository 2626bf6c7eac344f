"""Export of features to one HDF5 file, which is easy to move, and which `open_features` and runs read."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from shardpress.base.progress import Progress
from shardpress.hdf5.categories import ATTRIBUTE, FORMAT, attribute_value
from shardpress.interop.exported_rows import Rows
from shardpress.output.disk import PAGE

SOURCE = "exported_from"
"""Name of the attribute that says what a file is exported from."""

_ATTRIBUTES = ("command", "config", "versions", "target", "nested", "n_bad")  # from the facts about the run
_ALIGNED_BYTES = 2**16  # larger datasets are aligned to pages, so that they can be memory-mapped


def write_hdf5(path: Path, rows: Rows, source: str, progress: Progress) -> None:
    """Write all rows to a file: features, valid, and the extras under their own names."""
    with h5py.File(path, "w", alignment_threshold=_ALIGNED_BYTES, alignment_interval=PAGE) as file:
        file.attrs["format"] = FORMAT
        file.attrs[SOURCE] = source
        file.attrs["model"] = rows.encoder
        manifest = rows.result.manifest()
        for name in _ATTRIBUTES:
            if name in manifest:
                value = manifest[name]  # an attribute can hold a number or a string
                file.attrs[name] = value if isinstance(value, (int, float, str)) else json.dumps(value)
        for name, (dims, dtype) in rows.shapes.items():
            file.create_dataset(name, dims, h5py.string_dtype() if dtype.hasobject else dtype)
            if name in rows.categories:
                file[name].attrs[ATTRIBUTE] = attribute_value(rows.categories[name].tolist())
        start = 0
        for block in rows.blocks(rows.stretches, progress):
            stop = start + len(block["valid"])
            for name, values in block.items():
                write_rows(file[name], start, stop, values)
            start = stop


def write_rows(dataset: h5py.Dataset, start: int, stop: int, values: np.ndarray) -> None:
    """Write the values of some rows. Strings keep bytes that are not UTF-8."""
    if start == stop:
        return
    if values.dtype.hasobject:
        flat = [text.encode("utf-8", "surrogateescape") for text in values.ravel()]
        values = np.array(flat, object).reshape(values.shape)
    dataset[start:stop] = values
