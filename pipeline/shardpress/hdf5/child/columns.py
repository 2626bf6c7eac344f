"""Functions of the child that find column names and coordinates.

A coordinate has one number for each column. If names or coordinates are unusable, the answer contains the reason, and
the rows are read without them. Links are never followed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import h5py
import numpy as np

from shardpress.hdf5.child.candidates import Rows
from shardpress.hdf5.child.extras import index_of, is_netcdf_dimension, masked_values, name_of_scale
from shardpress.hdf5.child.find import (
    Refused,
    as_dataset,
    attribute,
    dtype_of,
    names_in,
    outside_storage,
    own_dataset,
    reason_of,
    resolve,
)
from shardpress.hdf5.child.layouts import layout_claim
from shardpress.hdf5.forms import (
    has_one_for_each_column,
    is_coordinate,
    items_of,
    parts_of,
    sibling,
    split,
    text,
    under,
    variables_of,
)
from shardpress.hdf5.layout import bytes_of
from shardpress.hdf5.limits import ANSWER_BYTES, LONGEST_COLUMN_NAME, MOST_COLUMN_NAMES

_Names = tuple[str, list[str]]
"""Source of the names, and the names."""
_Values = tuple[str, np.ndarray]
"""Source of the coordinate, and the values."""


def find_columns(file: h5py.File, rows: Rows, arrays: list[np.ndarray]) -> dict[str, Any]:
    """Find the column names and the coordinate, and append the bytes of the float64 coordinate to `arrays`.

    The answer has ``names`` (list of str, or None), ``names_from`` and ``values_from`` (the sources of the names and of
    the coordinate), and ``note`` (the reason why names or a coordinate are not used).
    """
    n_inputs = int(np.prod(rows.shape[1:]))
    notes: list[str] = []
    answer: dict[str, Any] = {"names": None, "names_from": "", "values_from": None, "note": ""}
    names = _first_usable([_attribute_names, _variable_names, _block_names, _scale_names], file, rows, n_inputs, notes)
    if names is not None:
        answer["names_from"], answer["names"] = names
    values = _first_usable([_scale_values, _coordinate_values], file, rows, n_inputs, notes)
    if values is not None:
        answer["values_from"], numbers = values
        arrays.append(bytes_of(numbers))
    if notes:
        answer["note"] = notes[0]
    return answer


def _first_usable(
    sources: Sequence[Callable[[h5py.File, Rows, int], Any]],
    file: h5py.File,
    rows: Rows,
    n_inputs: int,
    notes: list[str],
) -> Any:
    """Return the result of the first usable source, and note why earlier sources cannot be used."""
    for source in sources:
        try:
            found = source(file, rows, n_inputs)
        except Exception as error:
            place = f"{error.dataset}: " if isinstance(error, Refused) and error.dataset else ""
            notes.append(place + reason_of(error))
            continue
        if found is not None:
            return found
    return None


# -- names -------------------------------------------------------------------------------------------------------


def _attribute_names(file: h5py.File, rows: Rows, n_inputs: int) -> _Names | None:
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


def _objects_with_attributes(rows: Rows) -> list[Any]:
    """Return the objects whose attributes may name columns: the rows, or the group and values of a sparse matrix."""
    values = rows.parts[0][1].id
    if rows.form != "sparse":
        return [values]
    return [h5py.h5o.open(rows.parent, parts_of(rows.name)[-1]), values]


def _variable_names(file: h5py.File, rows: Rows, n_inputs: int) -> _Names | None:
    """Return the names in AnnData's `var`: a table, or a group whose attribute `_index` names the dataset."""
    path = variables_of(rows.name)
    _, item = resolve(file, path)
    if isinstance(item, h5py.h5d.DatasetID):
        return _table_names(h5py.Dataset(item), path, n_inputs)
    index = index_of(item) if isinstance(item, h5py.h5g.GroupID) else None
    if index is None:
        return None
    path = under(path, index)
    _, names = resolve(file, path)
    if names is None:
        return None
    if isinstance(names, h5py.h5g.GroupID):  # strings and a mask, which AnnData writes for pandas 3
        return path, _texts(masked_values(names, path, n_inputs), f"{path}/values", n_inputs)
    return path, _texts(h5py.Dataset(names), path, n_inputs)


def _table_names(table: h5py.Dataset, path: str, n_inputs: int) -> _Names | None:
    """Return the names in the field `index` of a table."""
    _check_place(table, path)
    stored = dtype_of(table)
    if stored is None or stored.fields is None or "index" not in stored.fields or table.ndim != 1:
        return None
    if h5py.check_string_dtype(stored.fields["index"][0]) is None:
        return None
    _check_sizes(len(table), len(table) * stored.itemsize, n_inputs, path)
    layout_claim(table, path, [])  # refuses unreadable datasets
    return path, _checked_names(table.fields("index")[...].tolist(), path)


def _block_names(file: h5py.File, rows: Rows, n_inputs: int) -> _Names | None:
    """Return the column names of a block of a pandas frame in fixed format. Integer names are converted to strings."""
    path = items_of(rows.name)
    if path is None:
        return None
    items = as_dataset(resolve(file, path)[1])
    if items is None:
        return None
    stored = dtype_of(items)
    if stored is not None and stored.kind in "iu" and not outside_storage(items):
        return path, [str(number) for number in _numbers(items, path, n_inputs).tolist()]
    if _is_text(items):
        return path, _texts(items, path, n_inputs)
    return None


def _scale_names(file: h5py.File, rows: Rows, n_inputs: int) -> _Names | None:
    """Return the names in a dimension scale of strings along the columns."""
    scale = _scale_of_columns(rows)
    if scale is None or not _is_text(scale):
        return None
    name = _scale_name(scale)
    return f"dimension scale {name}", _texts(scale, name, n_inputs)


# -- numbers -----------------------------------------------------------------------------------------------------


def _scale_values(file: h5py.File, rows: Rows, n_inputs: int) -> _Values | None:
    """Return the numbers in a dimension scale along the columns. netCDF stores coordinate variables this way."""
    scale = _scale_of_columns(rows)
    if scale is None or not _is_number(scale):
        return None
    name = _scale_name(scale)
    return name, _numbers(scale, name, n_inputs).astype(np.float64)


def _coordinate_values(file: h5py.File, rows: Rows, n_inputs: int) -> _Values | None:
    """Return the numbers in a dataset next to the rows that has the name of a physical coordinate."""
    for name in names_in(rows.parent):
        if not is_coordinate(text(name)):
            continue
        dataset = own_dataset(rows.parent, name)
        if dataset is None or outside_storage(dataset) or not _is_number(dataset):
            continue
        if has_one_for_each_column(dataset.shape, rows.shape[0], n_inputs):
            path = sibling(rows.name, text(name))
            return text(name), _numbers(dataset, path, n_inputs).astype(np.float64).reshape(-1)
    return None


# -- dimension scales --------------------------------------------------------------------------------------------


def _scale_of_columns(rows: Rows) -> h5py.Dataset | None:
    """Return the dimension scale along the columns, if there is one and the rows are a matrix."""
    dataset = rows.parts[0][1]
    if rows.form not in ("dense", "columns") or dataset.ndim != 2:
        return None
    if not h5py.h5a.exists(dataset.id, b"DIMENSION_LIST"):
        return None
    axis = 0 if rows.form == "columns" else 1
    if h5py.h5ds.get_num_scales(dataset.id, axis) < 1:
        return None
    scale = _first_scale(dataset, axis)
    _check_place(scale, "dimension scale")
    if is_netcdf_dimension(scale):
        return None
    return scale


def _first_scale(dataset: h5py.Dataset, axis: int) -> h5py.Dataset:
    found: list[Any] = []

    def take(scale: Any) -> bool:
        found.append(scale)
        return True  # ends the iteration, because a forged file may list any number of scales

    h5py.h5ds.iterate(dataset.id, axis, take, 0)
    return h5py.Dataset(found[0])


def _scale_name(scale: h5py.Dataset) -> str:
    return split(text(name_of_scale(scale)))[1] or split(scale.name or "")[1] or "dimension scale"


# -- reading -----------------------------------------------------------------------------------------------------


def _is_text(dataset: h5py.Dataset) -> bool:
    if outside_storage(dataset):
        return False
    stored = dtype_of(dataset)
    return stored is not None and h5py.check_string_dtype(stored) is not None


def _is_number(dataset: h5py.Dataset) -> bool:
    stored = dtype_of(dataset)
    return stored is not None and bool(dataset.shape) and stored.kind in "iuf" and stored.itemsize <= 8


def _check_place(dataset: h5py.Dataset, path: str) -> None:
    place = outside_storage(dataset)
    if place:
        raise Refused(place, path)


def _texts(dataset: h5py.Dataset, path: str, n_inputs: int) -> list[str]:
    _check_place(dataset, path)
    stored = dtype_of(dataset)
    if stored is None or dataset.ndim != 1 or h5py.check_string_dtype(stored) is None:
        raise Refused(f"dtype {stored} and shape {dataset.shape}, expected a one-dimensional dataset of strings", path)
    _check_sizes(len(dataset), len(dataset) * stored.itemsize, n_inputs, path)
    layout_claim(dataset, path, [])  # refuses unreadable datasets: unwritten, unknown filters, large chunks
    return _checked_names(dataset[...].tolist(), path)


def _numbers(dataset: h5py.Dataset, path: str, n_inputs: int) -> np.ndarray:
    _check_sizes(dataset.size, dataset.nbytes, n_inputs, path)
    layout_claim(dataset, path, [])
    values: np.ndarray = dataset[...]
    return values.reshape(-1)


def _check_sizes(n: int, n_bytes: int, n_inputs: int, path: str) -> None:
    if n != n_inputs:
        raise Refused(f"{n} values, expected one for each of {n_inputs} columns", path)
    if n > MOST_COLUMN_NAMES or n_bytes > ANSWER_BYTES:
        raise Refused(
            f"{n} values of {n_bytes} bytes, expected at most {MOST_COLUMN_NAMES} values and {ANSWER_BYTES} bytes", path
        )


def _checked_names(names: Sequence[Any], path: str) -> list[str]:
    found = [text(name) if isinstance(name, bytes) else str(name) for name in names]
    sizes = [len(name.encode("utf-8", "surrogateescape")) for name in found]
    longest = max(sizes, default=0)
    if longest > LONGEST_COLUMN_NAME or sum(sizes) > ANSWER_BYTES:
        raise Refused(f"a name of {longest} bytes, expected at most {LONGEST_COLUMN_NAME}", path)
    return found
