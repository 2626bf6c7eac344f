"""Every dataset of a file, as the child sees it: for people who want to know what is in there.

Only `server` runs this. What it answers is a claim that `shards.inspect` checks; nothing is read by it.
"""

from typing import Any

import h5py
import numpy as np

from pipeline.hdf5.child.find import dtype_of, elsewhere, link_of, names_in, objects
from pipeline.hdf5.child.stacked import virtual_shape
from pipeline.hdf5.forms import text
from pipeline.hdf5.limits import FILTERS, MOST_LEFT_OUT

__all__ = ["listed"]

_LONGEST = 200  # characters of a name or dtype
_LAYOUTS = {h5py.h5d.COMPACT: "compact", h5py.h5d.CONTIGUOUS: "contiguous", h5py.h5d.CHUNKED: "chunked"}


def listed(file: h5py.File) -> tuple[list[dict[str, Any]], list[Any]]:
    """The datasets of a file in their order, and the links in its root; the first of many.

    Returns
    -------
    list of dict
        Each with ``name`` and ``what``, in words, which is empty for a dataset that lies in the file: then with
        ``shape``, ``dtype``, ``layout``, ``chunks``, ``filters`` and the bytes that it takes, ``n_bytes``.
    list
        Empty: no arrays.
    """
    links = ((text(name)[:_LONGEST], link_of(file.id, name)) for name in names_in(file.id))
    found: list[dict[str, Any]] = [{"name": name, "what": link} for name, link in links if link]
    for name, item in objects(file.id):
        if len(found) >= MOST_LEFT_OUT:
            break
        if isinstance(item, h5py.h5d.DatasetID):
            found.append({"name": name[:_LONGEST], **_told(item)})
    return found[:MOST_LEFT_OUT], []


def _told(item: Any) -> dict[str, Any]:
    dataset, properties = h5py.Dataset(item), item.get_create_plist()
    if words := elsewhere(dataset):  # before its shape, for which HDF5 may open the files that it is made of
        return {"what": words, "shape": list(virtual_shape(item) or ())}
    dtype, layout = dtype_of(item), properties.get_layout()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    return {
        "what": "",
        "shape": None if dataset.shape is None else list(dataset.shape),
        "dtype": _words(dtype)[:_LONGEST],
        "layout": _LAYOUTS.get(layout, "other"),
        "chunks": list(properties.get_chunk()) if layout == h5py.h5d.CHUNKED else None,
        "filters": [FILTERS.get(code, f"filter {code}") for code, *_ in filters],
        "n_bytes": item.get_storage_size(),
    }


def _words(dtype: np.dtype | None) -> str:
    if dtype is None:
        return "no dtype of NumPy's"
    if dtype.fields is not None:
        return f"records of {len(dtype.fields)} fields"
    return "text" if h5py.check_string_dtype(dtype) else str(dtype)
