"""Functions of the child that describe a file or read values with libhdf5.

Only `server` calls these functions, in a process that has limits and exits after one answer. The answers are untrusted:
`shards.vet` and `shards.inspect` check them.
"""

from collections.abc import Sequence
from math import isfinite, prod
from typing import Any

import h5py
import numpy as np

from shardpress.hdf5.child.candidates import Rows, choose, find
from shardpress.hdf5.child.columns import find_columns
from shardpress.hdf5.child.extras import find_extras, find_named, find_row_names
from shardpress.hdf5.child.find import (
    Refused,
    attribute,
    dtype_of,
    link_of,
    locate,
    names_in,
    objects,
    outside_storage,
    virtual_shape,
)
from shardpress.hdf5.child.layouts import filters_of, layout_claim
from shardpress.hdf5.filters.codecs import FILTERS
from shardpress.hdf5.forms import normal, sibling, text
from shardpress.hdf5.layout import bytes_of
from shardpress.hdf5.limits import ANSWER_BYTES, MOST_ANSWER_BYTES, MOST_LEFT_OUT

_LONGEST = 200  # characters of a name or dtype
_LAYOUTS = {h5py.h5d.COMPACT: "compact", h5py.h5d.CONTIGUOUS: "contiguous", h5py.h5d.CHUNKED: "chunked"}


# -- location of the rows ----------------------------------------------------------------------------------------


def describe(
    file: h5py.File,
    dataset: str | None,
    orientation: str | None = None,
    include: Sequence[str] = (),
    has_extras: bool = True,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Find the rows and their extras.

    Parameters
    ----------
    dataset : str, optional
        Path of the rows. The default is ``X``, or the only candidate.
    orientation : str, optional
        ``rows`` if the rows are along the first axis, or ``columns`` if they are along the last one.
    include : sequence of str
        Absolute paths of additional extras, or of groups with extras.
    has_extras : bool
        False to ignore the extras next to the rows, because they have exceeded the limits of the child.

    Returns
    -------
    dict
        ``dataset`` (path of the rows), ``columns`` (see `find_columns`), ``fill_value``, ``form`` (see
        `shardpress.hdf5.forms`), ``shape``, ``rows`` (layouts of the datasets with the rows), ``extras`` (each with
        ``name``, ``layout``, ``categories`` and ``is_named``), and ``left_out`` (see `forms.leave_out`).
    list of ndarray
        Arrays of the layouts of the rows, and then of the extras (see `layout_claim`). The last array has the bytes of
        the coordinate of the columns, if there is one.
    """
    if dataset is None:
        dataset = choose(file, orientation)
    rows = find(file, dataset, orientation)
    arrays: list[np.ndarray] = []
    layouts = [layout_claim(part, path, arrays) for path, part in rows.parts]
    extras, left_out = _extras(file, rows, include, has_extras, arrays)
    answer = {
        "dataset": rows.name,
        "columns": find_columns(file, rows, arrays),
        "fill_value": _fill_value(rows.parts[0][1]),
        "form": rows.form,
        "shape": rows.shape,
        "rows": layouts,
        "extras": extras,
        "left_out": left_out,
    }
    return answer, arrays


def _extras(
    file: h5py.File, rows: Rows, include: Sequence[str], has_extras: bool, arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    extras: list[dict[str, Any]] = []
    left_out: list[list[Any]] = []
    if has_extras:
        extras, left_out = find_extras(rows.parent, rows.name, rows.shape, arrays)
    # An extra that is requested by path and is also next to the rows is included only once.
    included = {sibling(normal(rows.name), extra["name"]) for extra in extras}
    others = [path for path in include if path not in included]
    used = {normal(path) for path, _ in rows.parts} | {normal(each["layout"]["name"]) for each in extras}
    named, missing = find_named(file, others, rows.shape, arrays, used)
    row_names = find_row_names(file, rows.name, rows.shape, arrays, used) if has_extras else []
    return extras + named + row_names, [*missing, *left_out][:MOST_LEFT_OUT]


def _fill_value(rows: h5py.Dataset) -> float | None:
    """Return the value of the netCDF attribute `_FillValue`, which marks missing entries."""
    value = attribute(rows.id, b"_FillValue", _is_one_number)
    if value is None:
        return None
    number = value.item()
    return number if isfinite(number) else None


def _is_one_number(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return shape in ((), (1,)) and dtype.kind in "iuf" and dtype.itemsize <= 8


# -- values ------------------------------------------------------------------------------------------------------


def values(
    file: h5py.File, name: str, start: int, stop: int, axis: int, n_texts: int
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read values along the first or last axis of a dataset: the values that fit into one answer, but at least one.

    Strings are read `n_texts` at a time, because their lengths are unknown before reading. The answer is ``n``, the
    number of values, and their bytes (uint8). For strings, an array of lengths (int64) precedes the bytes.
    """
    dataset = h5py.Dataset(locate(file, name)[1])
    if outside_storage(dataset):
        raise Refused("the values are in other files, expected values in the file itself", name)
    filters_of(dataset.id.get_create_plist(), name)
    if dataset.dtype.hasobject:
        texts = _texts(dataset, name, start, stop, axis, n_texts)
        lengths = np.array([len(each) for each in texts], dtype=np.int64)
        return {"n": len(texts)}, [lengths, np.frombuffer(b"".join(texts), dtype=np.uint8)]
    row_bytes = max(1, prod(dataset.shape) // dataset.shape[axis] * dataset.dtype.itemsize)
    n_rows = max(1, ANSWER_BYTES // row_bytes)
    rows = _read(dataset, start, min(stop, start + n_rows), axis)
    return {"n": len(rows)}, [bytes_of(np.ascontiguousarray(rows))]


def _texts(dataset: h5py.Dataset, name: str, start: int, stop: int, axis: int, n_texts: int) -> list[bytes]:
    texts: list[bytes] = []
    n_bytes = 0
    while start + len(texts) < stop and n_bytes < ANSWER_BYTES:
        first = start + len(texts)
        more = _read(dataset, first, min(stop, first + n_texts), axis).reshape(-1)
        texts.extend(more)
        n_bytes += sum(map(len, more))
    if n_bytes > MOST_ANSWER_BYTES:
        raise Refused(f"strings of {n_bytes} bytes, expected at most {MOST_ANSWER_BYTES}. Write shorter strings.", name)
    return texts


def _read(dataset: h5py.Dataset, start: int, stop: int, axis: int) -> np.ndarray:
    if axis == 0:
        return dataset[start:stop]
    return np.moveaxis(dataset[..., start:stop], axis, 0)


# -- all datasets ------------------------------------------------------------------------------------------------


def listed(file: h5py.File) -> tuple[list[dict[str, Any]], list[Any]]:
    """Describe the first soft and external links in the root group, and then the first datasets in the file.

    Each item has ``name`` and ``what``, a description of a link or of storage in other files. For a dataset in the
    file itself, ``what`` is empty, and ``shape``, ``dtype``, ``layout``, ``chunks``, ``filters`` and ``n_bytes`` (the
    size in the file) follow. There are no arrays.
    """
    found = _links_in_root(file)
    for name, item in objects(file.id):
        if len(found) >= MOST_LEFT_OUT:
            break
        if isinstance(item, h5py.h5d.DatasetID):
            found.append({"name": name[:_LONGEST], **_facts_of(item)})
    return found[:MOST_LEFT_OUT], []


def _links_in_root(file: h5py.File) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in names_in(file.id):
        link = link_of(file.id, name)
        if link:
            found.append({"name": text(name)[:_LONGEST], "what": link})
    return found


def _facts_of(item: Any) -> dict[str, Any]:
    dataset = h5py.Dataset(item)
    place = outside_storage(dataset)  # checked before the shape, because HDF5 may open source files to determine it
    if place:
        return {"what": place, "shape": list(virtual_shape(item) or ())}
    return {
        "what": "",
        "shape": None if dataset.shape is None else list(dataset.shape),
        "dtype": _dtype_in_words(dtype_of(item))[:_LONGEST],
        **_storage_of(item),
        "n_bytes": item.get_storage_size(),
    }


def _storage_of(item: Any) -> dict[str, Any]:
    properties = item.get_create_plist()
    layout = properties.get_layout()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    return {
        "layout": _LAYOUTS.get(layout, "other"),
        "chunks": list(properties.get_chunk()) if layout == h5py.h5d.CHUNKED else None,
        "filters": [FILTERS[code].name if code in FILTERS else f"filter {code}" for code, *_ in filters],
    }


def _dtype_in_words(dtype: np.dtype | None) -> str:
    if dtype is None:
        return "no NumPy dtype"
    if dtype.fields is not None:
        return f"records of {len(dtype.fields)} fields"
    return "text" if h5py.check_string_dtype(dtype) else str(dtype)
