"""Functions of the child that find column names and coordinates.

A coordinate has one number for each column. If names or coordinates are unusable, the answer contains the reason, and
the rows are read without them. Links are never followed.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import h5py
import numpy as np
from h5py.h5f import FileID
from h5py.h5g import GroupID

from shardpress.hdf5.child.find import Dataset, Rejection, attribute, member, own_dataset, reason_of, resolve
from shardpress.hdf5.child.find_extras import index_of, is_netcdf_dimension, masked_values, name_of_scale
from shardpress.hdf5.child.layouts import layout_of
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.forms.form import RowDatasets
from shardpress.hdf5.limits import ANSWER_BYTES, LONGEST_COLUMN_NAME, MOST_COLUMN_NAMES
from shardpress.hdf5.names import (
    has_one_for_each_column,
    is_coordinate,
    items_of,
    observations_of,
    parts_of,
    split,
    text,
    under,
    variables_of,
)

_Names = tuple[str, list[str]]
"""Source of the names, and the names."""
_Values = tuple[str, np.ndarray]
"""Source of the coordinate, and the values."""


def find_columns(root: FileID, rows: RowDatasets) -> Columns:
    """Return the names of the columns and the coordinate, or the reason why they are not used."""
    n_inputs = prod(rows.shape[1:])
    notes: list[str] = []
    names = _first_usable([_member_names] if rows.is_mixed else _NAMES, root, rows, n_inputs, notes)
    values = _first_usable([_scale_values, _coordinate_values], root, rows, n_inputs, notes)
    names_from, names = names or ("", [])
    values_from, values = values or ("", None)
    return Columns(tuple(names), names_from, values, values_from, note=notes[0] if notes else "")


def _first_usable(
    sources: Sequence[Callable[[FileID, RowDatasets, int], Any]],
    root: FileID,
    rows: RowDatasets,
    n_inputs: int,
    notes: list[str],
) -> Any:
    """Return the result of the first usable source, and note why earlier sources cannot be used."""
    for source in sources:
        try:
            pair = source(root, rows, n_inputs)
        except Exception as error:
            place = f"{error.dataset}: " if isinstance(error, Rejection) and error.dataset else ""
            notes.append(place + reason_of(error))
            continue
        if pair is not None:
            return pair
    return None


# -- names -------------------------------------------------------------------------------------------------------


def _attribute_names(root: FileID, rows: RowDatasets, n_inputs: int) -> _Names | None:
    """Return the names in the attribute `columns`. Other attributes are not read, because there may be many."""

    def fits(shape: tuple[int, ...], dtype: np.dtype) -> bool:
        if len(shape) != 1 or h5py.check_string_dtype(dtype) is None:
            return False
        _check_sizes(shape[0], shape[0] * dtype.itemsize, n_inputs, "attribute columns")
        return True

    for item in _objects_with_attributes(rows):
        names = attribute(item, b"columns", fits)
        if names is not None:
            return "attribute columns", _checked_names(names.tolist(), "attribute columns")
    return None


def _objects_with_attributes(rows: RowDatasets) -> list[Any]:
    """Return the objects whose attributes may name columns: the rows, or the group and values of a sparse matrix."""
    values = rows.parts[0][1].id
    if rows.form.name != "sparse":
        return [values]
    return [member(rows.parent, parts_of(rows.name)[-1]), values]


def _variable_names(root: FileID, rows: RowDatasets, n_inputs: int) -> _Names | None:
    """Return the names in AnnData's `var`: a table, or a group whose attribute `_index` names the dataset.

    If the matrix is transposed, its columns are named in `obs`.
    """
    path = observations_of(rows.name) if rows.is_transposed else variables_of(rows.name)
    _, item = resolve(root, path)
    if isinstance(item, Dataset):
        return _table_names(item, path, n_inputs)
    index = index_of(item) if isinstance(item, h5py.h5g.GroupID) else None
    if index is None:
        return None
    path = under(path, index)
    _, names = resolve(root, path)
    if names is None:
        return None
    if isinstance(names, h5py.h5g.GroupID):  # strings and a mask, which AnnData writes for pandas 3
        return path, _texts(masked_values(names, path, n_inputs), f"{path}/values", n_inputs)
    return path, _texts(names, path, n_inputs)


def _table_names(table: Dataset, path: str, n_inputs: int) -> _Names | None:
    """Return the names in the field `index` of a table."""
    _check_place(table, path)
    stored = table.dtype
    if stored is None or stored.fields is None or "index" not in stored.fields or len(table.shape or ()) != 1:
        return None
    if h5py.check_string_dtype(stored.fields["index"][0]) is None:
        return None
    _check_sizes(table.size, table.n_bytes, n_inputs, path)
    layout_of(table, path)  # refuses unreadable datasets
    return path, _checked_names(h5py.Dataset(table.id).fields("index")[...].tolist(), path)


def _block_names(root: FileID, rows: RowDatasets, n_inputs: int) -> _Names | None:
    """Return the column names of a block of a pandas frame in fixed format. Integer names are converted to strings."""
    path = items_of(rows.name)
    names = None if path is None else names_at(root, path, n_inputs)
    return None if path is None or names is None else (path, names)


def names_at(root: GroupID, path: str, n: int, where: str = "") -> list[str] | None:
    """Return `n` names in a dataset of strings or integers at a path, or None if it holds something else.

    `where` is the path of the group `root` for messages.
    """
    items = resolve(root, path)[1]
    path = under(where, path) if where else path
    if not isinstance(items, Dataset) or items.place:
        return None
    if items.dtype is not None and items.dtype.kind in "iu":
        return [str(number) for number in _numbers(items, path, n).tolist()]
    return _texts(items, path, n) if items.is_text else None


def _scale_names(root: FileID, rows: RowDatasets, n_inputs: int) -> _Names | None:
    """Return the names in a dimension scale of strings along the columns."""
    scale = _scale_of_columns(rows)
    if scale is None or not scale.is_text:
        return None
    name = _scale_name(scale)
    return f"dimension scale {name}", _texts(scale, name, n_inputs)


def _member_names(root: FileID, rows: RowDatasets, n_inputs: int) -> _Names | None:
    """Return the names of the columns of a table. An array in the records of a matrix does not name them."""
    if not rows.is_mixed and (not rows.members or any(len(member.names) > 1 for member in rows.members)):
        return None
    source = (
        "the names of the datasets" if rows.form.name == "columns" and rows.is_transposed else "the fields of the table"
    )
    return source, _checked_names(rows.names, source)


_NAMES = [_attribute_names, _variable_names, _block_names, _scale_names, _member_names]


# -- numbers -----------------------------------------------------------------------------------------------------


def _scale_values(root: FileID, rows: RowDatasets, n_inputs: int) -> _Values | None:
    """Return the numbers in a dimension scale along the columns. netCDF stores coordinate variables this way."""
    scale = _scale_of_columns(rows)
    if scale is None or not _is_number(scale):
        return None
    name = _scale_name(scale)
    return name, _numbers(scale, name, n_inputs).astype(np.float64)


def _coordinate_values(root: FileID, rows: RowDatasets, n_inputs: int) -> _Values | None:
    """Return the numbers in a dataset next to the rows that has the name of a physical coordinate."""
    for name in rows.names_around:
        if not is_coordinate(text(name)):
            continue
        dataset = own_dataset(rows.parent, name)
        if dataset is None or dataset.place or not _is_number(dataset):
            continue
        if has_one_for_each_column(dataset.shape or (), rows.shape[0], n_inputs):
            path = rows.beside(text(name))
            return text(name), _numbers(dataset, path, n_inputs).astype(np.float64).reshape(-1)
    return None


# -- dimension scales --------------------------------------------------------------------------------------------


def _scale_of_columns(rows: RowDatasets) -> Dataset | None:
    """Return the dimension scale along the columns, if there is one and the rows are a matrix."""
    dataset = rows.parts[0][1]
    if rows.form.name != "dense" or len(dataset.shape or ()) != 2:
        return None
    if not h5py.h5a.exists(dataset.id, b"DIMENSION_LIST"):
        return None
    axis = 0 if rows.is_transposed else 1
    if h5py.h5ds.get_num_scales(dataset.id, axis) < 1:
        return None
    scale = _first_scale(dataset, axis)
    _check_place(scale, "dimension scale")
    if is_netcdf_dimension(scale):
        return None
    return scale


def _first_scale(dataset: Dataset, axis: int) -> Dataset:
    scales: list[Any] = []

    def take(scale: Any) -> bool:
        scales.append(scale)
        return True  # ends the iteration, because a forged file may list any number of scales

    h5py.h5ds.iterate(dataset.id, axis, take, 0)
    return Dataset(scales[0])


def _scale_name(scale: Dataset) -> str:
    path = h5py.h5i.get_name(scale.id) or b""
    return split(name_of_scale(scale))[1] or split(text(path))[1] or "dimension scale"


# -- reading -----------------------------------------------------------------------------------------------------


def _is_number(dataset: Dataset) -> bool:
    stored = dataset.dtype
    return stored is not None and bool(dataset.shape) and stored.kind in "iuf" and stored.itemsize <= 8


def _check_place(dataset: Dataset, path: str) -> None:
    if dataset.place:
        raise Rejection(dataset.place, path)


def _texts(dataset: Dataset, path: str, n_inputs: int) -> list[str]:
    _check_place(dataset, path)
    if len(dataset.shape or ()) != 1 or not dataset.is_text:
        raise Rejection(
            f"dtype {dataset.dtype} and shape {dataset.shape}, expected a one-dimensional dataset of strings", path
        )
    _check_sizes(dataset.size, dataset.n_bytes, n_inputs, path)
    layout_of(dataset, path)  # refuses unreadable datasets: unwritten, unknown filters, large chunks
    return _checked_names(dataset.read().tolist(), path)


def _numbers(dataset: Dataset, path: str, n_inputs: int) -> np.ndarray:
    _check_sizes(dataset.size, dataset.n_bytes, n_inputs, path)
    layout_of(dataset, path)
    return dataset.read().reshape(-1)


def _check_sizes(n: int, n_bytes: int, n_inputs: int, path: str) -> None:
    if n != n_inputs:
        raise Rejection(f"{n} values, expected one for each of {n_inputs} columns", path)
    if n > MOST_COLUMN_NAMES or n_bytes > ANSWER_BYTES:
        raise Rejection(
            f"{n} values of {n_bytes} bytes, expected at most {MOST_COLUMN_NAMES} values and {ANSWER_BYTES} bytes", path
        )


def _checked_names(names: Sequence[object], path: str) -> list[str]:
    texts = [text(name) if isinstance(name, bytes) else str(name) for name in names]
    sizes = [len(name.encode("utf-8", "surrogateescape")) for name in texts]
    longest = max(sizes, default=0)
    if longest > LONGEST_COLUMN_NAME or sum(sizes) > ANSWER_BYTES:
        raise Rejection(f"a name of {longest} bytes, expected at most {LONGEST_COLUMN_NAME}", path)
    return texts
