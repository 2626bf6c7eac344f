"""Describe plain files without HDF5: most shards are as simple as HDF5 can write them.

A child that looks at a file costs a fork, which is more than everything else that is done to a small shard. Here the
same is found in pure Python. The answer is the one of `child.describe`, and is checked like that. For files that are
not plain there is no answer, and the child is asked. Nothing is refused here.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

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
from pipeline.hdf5.plain.contents import links, root
from pipeline.hdf5.plain.datasets import Dataset, attribute_of, dataset_of, layout_claim
from pipeline.hdf5.plain.metadata import Kind, Metadata, Odd, expect, is_group, messages

__all__ = ["describe_plain"]


class _Place(NamedTuple):
    """The group with the rows."""

    links: Mapping[bytes, int]  # addresses by name
    above: Mapping[bytes, int]  # those of the group that contains it
    objects: Mapping[int, Dataset | None]  # by address; None for a group


def describe_plain(
    descriptor: int, size: int, dataset: str | None, orientation: str | None = None, base: int = 0
) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """Return where the rows and their extras lie in an open file, whose superblock at `base` has been checked.

    Returns
    -------
    tuple of (dict, list of ndarray), or None
        As of `child.describe.describe`, with lists as JSON has them. None if the child must be asked.

    Raises
    ------
    OSError
        If reading fails.
    """
    try:
        return _described(Metadata(descriptor, size, base), dataset, orientation)
    except OSError:
        raise
    except Exception:  # whatever it is, the child finds out what is wrong with the file
        return None


def _described(file: Metadata, dataset: str | None, orientation: str | None) -> tuple[dict[str, Any], list[np.ndarray]]:
    place, name = _located(file, dataset)
    if dataset is None:
        dataset = text(name)
    rows = place.objects[place.links[name]]
    if rows is None:
        raise Odd
    expect(rows.is_candidate, not _has_notable_attributes(rows, orientation))
    form = "dense"
    shape = rows.shape
    if orientation == "columns":
        form = "columns"
        shape = (rows.shape[-1], *rows.shape[:-1])
    expect(prod(shape[1:]), CATEGORIES.encode() not in place.links, not _names_columns(place, dataset, shape))
    arrays: list[np.ndarray] = []
    layout = layout_claim(file, rows, dataset, arrays)
    riders, left_out = _riders(file, place, name, dataset, shape, arrays)
    answer = {
        "dataset": dataset,
        "columns": {"names": None, "names_from": "", "values_from": None, "note": ""},
        "fill_value": None,
        "form": form,
        "shape": list(shape),
        "rows": [layout],
        "riders": riders,
        "left_out": left_out,
    }
    return answer, arrays


def _located(file: Metadata, dataset: str | None) -> tuple[_Place, bytes]:
    """Return the group with the rows, and their name in it."""
    path = [] if dataset is None else parts_of(dataset)
    found = links(file, root(file))
    above = found
    for name in path[:-1]:
        above = found
        found = links(file, messages(file, found[name]))
    place = _Place(found, above, {address: _object(file, address) for address in found.values()})
    if dataset is None:
        return place, _chosen(place)
    return place, path[-1]


def _object(file: Metadata, address: int) -> Dataset | None:
    """Return what is known of a dataset; None for a group."""
    header = messages(file, address)
    if is_group(header):
        return None
    return dataset_of(header, file.end)


def _chosen(place: _Place) -> bytes:
    """Return ``X``, else the only candidate, if there is no group, in which there may be more."""
    preferred = PREFERRED.encode()
    if preferred in place.links:
        return preferred
    (chosen,) = (address for address, item in place.objects.items() if item is None or item.is_candidate)
    return next(name for name, address in place.links.items() if address == chosen)


def _has_notable_attributes(rows: Dataset, orientation: str | None) -> bool:
    """Return whether the rows have attributes that change the answer of the child."""
    notable = {b"columns", b"_FillValue"}
    if not orientation:
        notable.add(b"MATLAB_class")
    names = {attribute_of(message).name for message in rows.header.get(Kind.ATTRIBUTE, [])}
    return not notable.isdisjoint(names)


def _names_columns(place: _Place, dataset: str, shape: tuple[int, ...]) -> bool:
    """Return whether names or numbers of the columns may lie where `child.columns` looks for them."""
    variables = parts_of(variables_beside(dataset))
    is_in_group = len(variables) == len(parts_of(dataset))
    if variables[-1] in (place.links if is_in_group else place.above):
        return True
    items = items_beside(dataset)
    if items is not None and parts_of(items)[-1] in place.links:
        return True
    n_inputs = prod(shape[1:])
    for name, address in place.links.items():
        item = place.objects[address]
        if item is not None and is_coordinate(text(name)) and has_one_for_each_column(item.shape, shape[0], n_inputs):
            return True
    return False


def _riders(
    file: Metadata, place: _Place, rows_name: bytes, rows: str, shape: tuple[int, ...], arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return extras and what is left out of the other objects in the group, as `child.riders.find_riders` does."""
    riders: list[dict[str, Any]] = []
    left_out: list[list[Any]] = []
    for name, address in place.links.items():
        if name == rows_name:
            continue
        other = place.objects[address]
        if other is None:
            leave_out(left_out, name, A_GROUP, is_missed=False)
        elif not rides(other.shape, shape[0]):
            if other.shape:
                reason, is_missed = misfit(other.shape, shape)
                leave_out(left_out, name, reason, is_missed)
        elif not is_utf8(name):
            leave_out(left_out, name, NOT_UTF8)
        else:
            layout = layout_claim(file, other, beside(rows, text(name)), arrays)
            riders.append({"name": text(name), "layout": layout, "categories": None, "is_carried": False})
    return riders, left_out
