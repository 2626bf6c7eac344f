"""Functions of the child that describe a file with libhdf5. Only `server` calls these functions."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import h5py
import numpy as np
from h5py.h5f import FileID

from shardpress.hdf5.child.candidates import choose, find
from shardpress.hdf5.child.elsewhere import links_like, names_of_links, rows_elsewhere
from shardpress.hdf5.child.find import (
    Dataset,
    Item,
    LinkedElsewhere,
    attribute,
    link_of,
    locate,
    names_in,
    objects,
)
from shardpress.hdf5.child.find_columns import find_columns
from shardpress.hdf5.child.find_extras import find_extras, find_members, find_named, find_row_names, place_of
from shardpress.hdf5.child.layouts import layout_of
from shardpress.hdf5.child.places import places_apart
from shardpress.hdf5.columns import NO_COLUMNS
from shardpress.hdf5.filters.codecs import FILTERS
from shardpress.hdf5.forms.dense import Dense, OneRow
from shardpress.hdf5.forms.form import RowDatasets
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.limits import MOST_LEFT_OUT
from shardpress.hdf5.names import normal, text, under
from shardpress.hdf5.seen import Reads
from shardpress.hdf5.shard import Description, Extra, FileContents, LeftOut, MasterContents, RowsElsewhere

_LONGEST = 200  # characters of a name or dtype
_LAYOUTS = {h5py.h5d.COMPACT: "compact", h5py.h5d.CONTIGUOUS: "contiguous", h5py.h5d.CHUNKED: "chunked"}


# -- location of the rows ----------------------------------------------------------------------------------------


def describe(
    root: FileID,
    dataset: str | None,
    orientation: str | None = None,
    include: Sequence[str] = (),
    row_shape: Sequence[int] | None = None,
    has_extras: bool = True,
    reads: Reads | None = None,
) -> FileContents:
    """Return the rows and their extras, or the rows in other files that the file names.

    Parameters
    ----------
    dataset : str, optional
        Path of the rows. The default is ``X``, or the only candidate.
    orientation : str, optional
        ``rows`` if the rows are along the first axis, or ``columns`` if they are along the last one.
    include : sequence of str
        Absolute paths of additional extras, or of groups with extras.
    row_shape : sequence of int, optional
        Shape of a row, if a dataset of this shape is one row.
    has_extras : bool
        False to ignore the extras next to the rows, because they have exceeded the limits of the child.
    reads : Reads, optional
        Record of what libhdf5 has read from the file.
    """
    try:
        name, parent, item = _place(root, dataset, orientation)
    except LinkedElsewhere as link:
        return FileContents([RowsElsewhere(link.file, link.target)])
    elsewhere = rows_elsewhere(name, item, orientation)
    if elsewhere:
        return FileContents(elsewhere)
    if row_shape is not None and isinstance(item, Dataset) and item.shape == tuple(row_shape):
        rows = OneRow().row(name, parent, item)
    else:
        rows = find(name, parent, item, orientation)
    layouts = [_without_members(layout_of(part, path)) for path, part in rows.all_parts()]
    fields = rows.form.fields(rows, layouts)
    extras, left_out = _extras(root, rows, layouts, include, has_extras)
    stored = [extra.stored for extra in extras if extra.stored]
    places = places_apart([field.layout for field in (*fields, *stored)])
    described = Description(
        dataset=rows.name,
        shape=rows.shape,
        stored_dtype=rows.dtype.str,
        chunk_rows=rows.form.chunk_rows(fields, rows.shape),
        extras=tuple(extras),
        columns=find_columns(root, rows),
        fill_value=_fill_value(rows.parts[0][1]),
        form=rows.form.name,
        is_transposed=rows.is_transposed,
        fields=tuple(fields),
        left_out=tuple(left_out),
        is_mixed=rows.is_mixed,
    )
    return FileContents(described, None if reads is None else reads.seen(places))


def describe_master(
    root: FileID,
    dataset: str | None,
    orientation: str | None,
    include: Sequence[str],
    shape: Sequence[int],
) -> MasterContents:
    """Return what a master file has for the rows that it names, which have a shape together.

    The other arguments are those of `describe`.
    """
    own_names: list[bytes] = []
    parts: list[tuple[str, Dataset]] = []
    try:
        name, parent, item = _place(root, dataset, orientation)
        if isinstance(item, Dataset):
            parts = [(name, item)]
        elif isinstance(item, h5py.h5g.GroupID):
            parent = item
            own_names = names_of_links(item)
            name = under(name, text(own_names[0]))
    except LinkedElsewhere as link:
        own_names = links_like(link.parent, link.link)
        name, parent = link.path, link.parent
    number = np.dtype(np.float64)  # the dtype of the rows is known to their own files
    rows = RowDatasets(name, parent, Dense(), parts, tuple(shape), number, own_names=frozenset(own_names))
    extras, left_out = _extras(root, rows, [], include, has_extras=True)
    columns = find_columns(root, rows) if parts else NO_COLUMNS
    return MasterContents(tuple(extras), tuple(left_out), columns)


def _place(root: FileID, dataset: str | None, orientation: str | None) -> tuple[str, h5py.h5g.GroupID, Item]:
    """Return the path, the parent group and the object of the rows."""
    return choose(root, orientation) if dataset is None else (dataset, *locate(root, dataset))


def _without_members(layout: Layout) -> Layout:
    """Return a layout without the members of records, which the fields name."""
    return layout if layout.dtype.fields is None else replace(layout, dtype=np.dtype(f"V{layout.dtype.itemsize}"))


def _extras(
    root: FileID, rows: RowDatasets, layouts: Sequence[Layout], include: Sequence[str], has_extras: bool
) -> tuple[list[Extra], list[LeftOut]]:
    extras: list[Extra] = []
    left_out: list[LeftOut] = []
    if has_extras:
        extras, left_out = find_extras(rows)
    # An extra that is requested by path and is also next to the rows is included only once.
    members = find_members(rows, layouts, include)
    members += rows.extras
    included = {place_of(extra) for extra in extras} | {extra.name for extra in members}
    others = [path for path in include if normal(path) not in included]
    used = {normal(path) for path, _ in rows.parts} | included
    named, missing = find_named(root, others, rows.shape, used)
    row_names = find_row_names(root, rows, used) if has_extras else []
    return extras + named + members + row_names, [*missing, *rows.left_out, *left_out][:MOST_LEFT_OUT]


def _fill_value(rows: Dataset) -> float | None:
    """Return the value of the netCDF attribute `_FillValue`, which marks missing entries."""
    value = attribute(rows.id, b"_FillValue", _is_one_number)
    if value is None:
        return None
    number = value.item()
    return number if isfinite(number) else None


def _is_one_number(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return shape in ((), (1,)) and dtype.kind in "iuf" and dtype.itemsize <= 8


# -- all datasets ------------------------------------------------------------------------------------------------


def listed(root: FileID) -> list[dict[str, Any]]:
    """Describe the first soft and external links in the root group, and then the first datasets in the file.

    Each item has ``name`` and ``what``, a description of a link or of storage in other files. For a dataset in the
    file itself, ``what`` is empty, and ``shape``, ``dtype``, ``layout``, ``chunks``, ``filters`` and ``n_bytes`` (the
    size in the file) follow. If there are more, the last item says so.
    """
    items = _links_in_root(root)
    for name, _, item in objects(root):
        if len(items) > MOST_LEFT_OUT:
            break
        if isinstance(item, Dataset):
            items.append({"name": name[:_LONGEST], **_facts_of(item)})
    if len(items) > MOST_LEFT_OUT:
        items[MOST_LEFT_OUT:] = [{"name": "...", "what": "and others, which are not listed"}]
    return items


def _links_in_root(root: FileID) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for name in names_in(root):
        link = link_of(root, name)
        if link:
            items.append({"name": text(name)[:_LONGEST], "what": link})
    return items


def _facts_of(dataset: Dataset) -> dict[str, Any]:
    if dataset.place:
        return {"what": dataset.place, "shape": list(dataset.virtual_shape)}
    return {
        "what": "",
        "shape": None if dataset.shape is None else list(dataset.shape),
        "dtype": _dtype_in_words(dataset.dtype)[:_LONGEST],
        **_storage_of(dataset),
        "n_bytes": dataset.id.get_storage_size(),
    }


def _storage_of(dataset: Dataset) -> dict[str, Any]:
    properties = dataset.properties
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    return {
        "layout": _LAYOUTS.get(dataset.layout, "other"),
        "chunks": list(dataset.chunks) if dataset.layout == h5py.h5d.CHUNKED else None,
        "filters": [FILTERS[code].name if code in FILTERS else text(label)[:_LONGEST] for code, *_, label in filters],
    }


def _dtype_in_words(dtype: np.dtype | None) -> str:
    if dtype is None:
        return "no NumPy dtype"
    if dtype.fields is not None:
        return f"records of {len(dtype.fields)} fields"
    return "text" if h5py.check_string_dtype(dtype) else str(dtype)
