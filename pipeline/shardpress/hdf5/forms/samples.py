"""Rows in many datasets, one for each sample. Together, they are read like one dataset whose chunks are the samples."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from shardpress.hdf5.child.find import Rejection
from shardpress.hdf5.fields import Field
from shardpress.hdf5.forms.form import Form, RowDatasets
from shardpress.hdf5.layout import Layout


class Samples(Form):
    """Datasets of one shape and dtype, each of which is a row. `ColumnGroup` recognizes them."""

    name = "samples"
    words = "stored in one dataset for each sample: one dataset with all of them opens faster"

    def fields(self, rows: RowDatasets, layouts: Sequence[Layout]) -> list[Field]:
        return [Field(_joined(rows.name, layouts), rows.dtype, prod(rows.shape[1:]))]


def _joined(name: str, layouts: Sequence[Layout]) -> Layout:
    """Return a layout with the values of all samples along a new first axis."""
    first = layouts[0]
    storage = [(layout.kind, layout.chunks, layout.filters) for layout in layouts]
    odd = next((layout for layout, own in zip(layouts, storage, strict=True) if own != storage[0]), None)
    if odd is not None or first.kind == "asked":
        raise Rejection(
            "a sample that is not stored like the others, or that only libhdf5 can read. Write all samples into one "
            "dataset, rows first.",
            (odd or first).name,
        )
    shape = (len(layouts), *first.shape)
    if first.kind == "inline":
        return replace(first, name=name, shape=shape, data=b"".join(layout.data for layout in layouts))
    if first.kind == "contiguous":
        places = np.array([[layout.offset, layout.n_bytes, 0] for layout in layouts], dtype=np.int64).T
        index = np.ascontiguousarray(places)
        chunks = first.shape
    else:
        index = np.concatenate([layout.index for layout in layouts if layout.index is not None], axis=1)
        chunks = first.chunks
    return replace(first, name=name, shape=shape, kind="chunked", offset=0, chunks=(1, *chunks), index=index)
