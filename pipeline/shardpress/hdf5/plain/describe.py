"""Describe plain files without libhdf5. Most shards are simple enough for this.

The child process, which runs `child.describe`, is forked for each file. This takes longer than all other work on a
small shard. This module finds the same facts in pure Python. Its answer has the same form, and the caller checks it in
the same way. If a file is not plain, the child must be asked instead. This module never reports a file as invalid; that
is left to the child.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from shardpress.hdf5.forms import (
    A_GROUP,
    CATEGORIES,
    NOT_UTF8,
    OBSERVATIONS,
    PREFERRED,
    has_one_for_each_column,
    has_one_for_each_row,
    is_coordinate,
    is_utf8,
    items_of,
    leave_out,
    misfit,
    parts_of,
    rows_first,
    sibling,
    text,
    variables_of,
)
from shardpress.hdf5.plain.contents import links, root
from shardpress.hdf5.plain.datasets import Dataset, attribute_name, checked_attribute_name, dataset_of, layout_claim
from shardpress.hdf5.plain.metadata import Kind, Metadata, NotPlain, expect, is_group, messages


class _Group(NamedTuple):
    links: Mapping[bytes, int]  # addresses of the objects in the group, by name
    parent_links: Mapping[bytes, int]  # the same for the parent group
    objects: Mapping[int, Dataset | None]  # objects in the group, by address; None for a group


def describe_plain(
    descriptor: int, size: int, dataset: str | None, orientation: str | None = None, base: int = 0
) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """Locate the rows and their extras in an open file. Return None if the child must be asked instead.

    The superblock at `base` must have been checked. The answer has the format of `child.describe.describe`, with lists
    instead of tuples. Raise `OSError` if reading fails.
    """
    try:
        return _description(Metadata(descriptor, size, base), dataset, orientation)
    except OSError:
        raise
    except Exception:  # the child reports the problem with the file
        return None


def _description(
    file: Metadata, dataset: str | None, orientation: str | None
) -> tuple[dict[str, Any], list[np.ndarray]]:
    group, name = _locate(file, dataset)
    if dataset is None:
        dataset = text(name)
    rows = _rows_in(group, name, orientation)
    shape = rows_first(rows.shape, orientation)
    expect(prod(shape[1:]), CATEGORIES.encode() not in group.links, not _may_have_names(group, dataset, shape))
    arrays: list[np.ndarray] = []
    layout = layout_claim(file, rows, dataset, arrays)
    extras, left_out = _find_extras(file, group, dataset, name, shape, arrays)
    answer = {
        "dataset": dataset,
        "columns": {"names": None, "names_from": "", "values_from": None, "note": ""},
        "fill_value": None,
        "form": "columns" if orientation == "columns" else "dense",
        "shape": list(shape),
        "rows": [layout],
        "extras": extras,
        "left_out": left_out,
    }
    return answer, arrays


def _rows_in(group: _Group, name: bytes, orientation: str | None) -> Dataset:
    rows = group.objects[group.links[name]]
    if rows is None:
        raise NotPlain
    expect(rows.is_candidate, not _has_notable_attributes(rows, orientation))
    return rows


def _locate(file: Metadata, dataset: str | None) -> tuple[_Group, bytes]:
    """Return the group with the rows, and the name of the rows in the group."""
    path = [] if dataset is None else parts_of(dataset)
    found = links(file, root(file))
    parent_links = found
    for name in path[:-1]:
        parent_links = found
        found = links(file, messages(file, found[name]))
    group = _Group(found, parent_links, {address: _object(file, address) for address in found.values()})
    if dataset is None:
        return group, _choose_rows(group)
    return group, path[-1]


def _object(file: Metadata, address: int) -> Dataset | None:
    header = messages(file, address)
    if is_group(header):
        return None
    return dataset_of(header, file.end)


def _choose_rows(group: _Group) -> bytes:
    """Return ``X``, or the only candidate. Groups count as candidates, because they may contain candidates."""
    preferred = PREFERRED.encode()
    if preferred in group.links:
        return preferred
    (chosen,) = (address for address, item in group.objects.items() if item is None or item.is_candidate)
    return next(name for name, address in group.links.items() if address == chosen)


def _has_notable_attributes(rows: Dataset, orientation: str | None) -> bool:
    """Return whether the rows have attributes that affect the answer of the child."""
    notable = {b"columns", b"_FillValue"}
    if not orientation:
        notable.add(b"MATLAB_class")
    names = {checked_attribute_name(message) for message in rows.header.get(Kind.ATTRIBUTE, [])}
    return not notable.isdisjoint(names)


def _may_have_names(group: _Group, dataset: str, shape: tuple[int, ...]) -> bool:
    """Return whether the file may have names of columns or rows, or a coordinate, where the child searches them."""
    variables = parts_of(variables_of(dataset))
    is_in_group = len(variables) == len(parts_of(dataset))
    names = group.links if is_in_group else group.parent_links
    if variables[-1] in names or OBSERVATIONS.encode() in {*group.links, *group.parent_links}:
        return True
    items = items_of(dataset)
    if items is not None and parts_of(items)[-1] in group.links:
        return True
    return _has_coordinate(group, shape[0], prod(shape[1:]))


def _has_coordinate(group: _Group, n_rows: int, n_inputs: int) -> bool:
    for name, address in group.links.items():
        item = group.objects[address]
        if item is not None and is_coordinate(text(name)) and has_one_for_each_column(item.shape, n_rows, n_inputs):
            return True
    return False


def _find_extras(
    file: Metadata, group: _Group, rows: str, rows_name: bytes, shape: tuple[int, ...], arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return the extras in the group, and the skipped objects, in the format of `child.extras.find_extras`."""
    extras: list[dict[str, Any]] = []
    left_out: list[list[Any]] = []
    for name, address in group.links.items():
        other = group.objects[address]
        if name == rows_name:
            continue
        if other is not None and has_one_for_each_row(other.shape, shape[0]) and is_utf8(name):
            expect(not _may_have_categories(other))
            layout = layout_claim(file, other, sibling(rows, text(name)), arrays)
            extras.append({"name": text(name), "layout": layout, "categories": None, "is_named": False})
        else:
            _leave_out(left_out, name, other, shape)
    return extras, left_out


def _may_have_categories(dataset: Dataset) -> bool:
    return any(attribute_name(message) == b"categories" for message in dataset.header.get(Kind.ATTRIBUTE, []))


def _leave_out(left_out: list[list[Any]], name: bytes, other: Dataset | None, shape: tuple[int, ...]) -> None:
    if other is None:
        leave_out(left_out, name, A_GROUP, is_missed=False)
    elif has_one_for_each_row(other.shape, shape[0]):
        leave_out(left_out, name, NOT_UTF8)
    elif other.shape:
        reason, is_missed = misfit(other.shape, shape)
        leave_out(left_out, name, reason, is_missed)
