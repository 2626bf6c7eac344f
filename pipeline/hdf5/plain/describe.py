"""Plain files, understood without HDF5: most shards are as simple as HDF5 can write them.

A child that looks at a file costs a fork, which is more than all else that is done to a small shard. Here the same is
found in pure Python. The answer is what `child.describe` would give, and is checked like that; or there is none,
wherever anything is not plain, and the child is asked. Nothing is refused here.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from pipeline.hdf5.forms import (
    A_GROUP,
    CATEGORIES,
    NOT_UTF8,
    PREFERRED,
    beside,
    has_one_for_each_column,
    is_coordinate,
    is_utf8,
    items_beside,
    leave_out,
    misfit,
    parts_of,
    rides,
    text,
    variables_beside,
)
from pipeline.hdf5.plain.datasets import Dataset, dataset_of, layout_claim, name_of
from pipeline.hdf5.plain.groups import links, root
from pipeline.hdf5.plain.headers import Kind, is_group, messages
from pipeline.hdf5.plain.metadata import Metadata, Odd, expect

__all__ = ["describe_plain"]


def describe_plain(
    descriptor: int, size: int, dataset: str | None, orientation: str | None = None, base: int = 0
) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """Where the rows and what rides along with them lie in an open file, whose superblock at `base` has been checked.

    Returns
    -------
    tuple of (dict, list of ndarray), or None
        As of `child.describe.describe`, in lists as JSON has them. None when the child is to be asked.

    Raises
    ------
    OSError
        When reading fails.
    """
    try:
        return _described(Metadata(descriptor, size, base), dataset, orientation)
    except OSError:
        raise
    except Exception:  # whatever it is, the child says what is wrong with the file
        return None


def _described(file: Metadata, dataset: str | None, orientation: str | None) -> tuple[dict[str, Any], list[np.ndarray]]:
    way = [] if dataset is None else parts_of(dataset)
    there = links(file, root(file))
    above = there
    for part in way[:-1]:
        above = there
        there = links(file, messages(file, there[part]))
    objects = {address: _object(file, address) for address in there.values()}
    name = _chosen(there, objects) if dataset is None else way[-1]
    dataset = text(name) if dataset is None else dataset
    rows = objects[there[name]]
    if rows is None or CATEGORIES.encode() in there:
        raise Odd
    across = orientation == "columns"
    shape = (rows.shape[-1], *rows.shape[:-1]) if across else rows.shape
    # Attributes by which the child would answer otherwise, or refuse.
    notable = {b"columns", b"_FillValue"} | (set() if orientation else {b"MATLAB_class"})
    expect(rows.is_candidate, prod(shape[1:]), notable.isdisjoint(map(name_of, rows.header.get(Kind.ATTRIBUTE, []))))
    expect(not _names_columns(dataset, shape, above, there, objects))
    arrays: list[np.ndarray] = []
    answer = {
        "dataset": dataset,
        "columns": {"names": None, "names_from": "", "values_from": None, "note": ""},
        "fill_value": None,
        "form": "columns" if across else "dense",
        "shape": list(shape),
        "rows": [layout_claim(file, rows, dataset, arrays)],
    }
    others = {other: objects[address] for other, address in there.items() if other != name}
    riders, left_out = _riders(file, others, dataset, shape, arrays)
    return {**answer, "riders": riders, "left_out": left_out}, arrays


def _names_columns(
    dataset: str,
    shape: tuple[int, ...],
    above: Mapping[bytes, int],
    there: Mapping[bytes, int],
    objects: Mapping[int, Dataset | None],
) -> bool:
    """Whether names or numbers of the columns may lie where `child.columns` looks for them.

    `there` are the links in the rows' group, `above` those in the group that holds it.
    """
    variables = parts_of(variables_beside(dataset))
    group = there if len(variables) == len(parts_of(dataset)) else above
    items = items_beside(dataset)
    if variables[-1] in group or (items is not None and parts_of(items)[-1] in there):
        return True
    coordinates = [objects[address] for name, address in there.items() if is_coordinate(text(name))]
    n_inputs = prod(shape[1:])
    return any(each and has_one_for_each_column(each.shape, shape[0], n_inputs) for each in coordinates)


def _riders(
    file: Metadata,
    others: Mapping[bytes, Dataset | None],
    rows: str,
    shape: tuple[int, ...],
    arrays: list[np.ndarray],
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """As of `child.riders.find_riders`, of what stands under other names beside the rows."""
    riders: list[dict[str, Any]] = []
    left_out: list[list[Any]] = []
    for name, other in others.items():
        if other is None:
            leave_out(left_out, name, A_GROUP, is_missed=False)
        elif not rides(other.shape, shape[0]):
            if other.shape:
                leave_out(left_out, name, *misfit(other.shape, shape))
        elif not is_utf8(name):
            leave_out(left_out, name, NOT_UTF8)
        else:
            layout = layout_claim(file, other, beside(rows, text(name)), arrays)
            riders.append({"name": text(name), "layout": layout, "categories": None, "is_carried": False})
    return riders, left_out


def _chosen(there: Mapping[bytes, int], objects: Mapping[int, Dataset | None]) -> bytes:
    """``X``, else the only candidate, where there is no group in which there may be more."""
    if PREFERRED.encode() in there:
        return PREFERRED.encode()
    (address,) = (address for address, its in objects.items() if its is None or its.is_candidate)
    return next(name for name, its in there.items() if its == address)


def _object(file: Metadata, address: int) -> Dataset | None:
    """What is known of a dataset; None of a group."""
    header = messages(file, address)
    return None if is_group(header) else dataset_of(header, file.end)
