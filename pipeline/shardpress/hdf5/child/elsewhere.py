"""Functions of the child that recognize master files, whose rows are in other files. None of these is opened here."""

import re
from collections import Counter
from collections.abc import Sequence
from math import prod

import h5py
from h5py.h5g import GroupID
from h5py.h5p import PropDCID
from h5py.h5s import SpaceID

from shardpress.hdf5.child.find import Dataset, Item, Rejection, external_links
from shardpress.hdf5.limits import MOST_OBJECTS
from shardpress.hdf5.names import natural_key, text
from shardpress.hdf5.shard import RowsElsewhere

_NUMBER = re.compile(rb"\d+")
_PATTERN = re.compile(r"(?<!%)(?:%%)*%b")  # stands for a number in the name of a source
_TILES = "expected sources that follow each other, each with whole rows. Give the files that hold the rows to --input"


def is_master(item: Item) -> bool:
    """Return whether an object stands for rows in other files: a virtual dataset, or a group with external links."""
    if isinstance(item, h5py.h5g.GroupID):
        return bool(external_links(item, 0))
    return isinstance(item, Dataset) and len(item.virtual_shape) >= 2


def rows_elsewhere(name: str, item: Item, orientation: str | None) -> list[RowsElsewhere]:
    """Return the rows of other files that an object stands for, in order. Empty if its rows are in the file itself."""
    if isinstance(item, h5py.h5g.GroupID):
        return _linked_in(item)
    if not isinstance(item, Dataset) or item.layout != h5py.h5d.VIRTUAL:
        return []
    if orientation == "columns":
        raise Rejection("a virtual dataset, whose rows are along the first axis. Omit --orientation columns.", name)
    return _mapped(name, item)


# -- external links ----------------------------------------------------------------------------------------------


def names_of_links(group: GroupID) -> list[bytes]:
    """Return the names of the external links in a group that stand for rows, in natural order.

    Those whose names differ only in a number belong together. If there are none, all links do.
    """
    names = external_links(group, MOST_OBJECTS)
    if len(names) > MOST_OBJECTS:
        raise Rejection(f"more than {MOST_OBJECTS} external links. Write several master files.")
    series = {stem for stem, n in Counter(map(_stem, names)).items() if n > 1}
    if len(series) == 1:
        names = [name for name in names if _stem(name) in series]
    return sorted(names, key=lambda name: natural_key(text(name)))


def links_like(group: GroupID, name: bytes) -> list[bytes]:
    """Return the names of the external links in a group that differ from a name at most in numbers."""
    return [other for other in external_links(group, MOST_OBJECTS) if _stem(other) == _stem(name)]


def _stem(name: bytes) -> bytes:
    return _NUMBER.sub(b"0", name)


def _linked_in(group: GroupID) -> list[RowsElsewhere]:
    targets = [group.links.get_val(name) for name in names_of_links(group)]
    return [RowsElsewhere(text(file), text(target)) for file, target in targets]


# -- virtual datasets --------------------------------------------------------------------------------------------


def _mapped(name: str, dataset: Dataset) -> list[RowsElsewhere]:
    """Return the sources of a virtual dataset in the order of its rows. Refuse one that does more than list rows."""
    shape = dataset.virtual_shape
    if len(shape) < 2 or not prod(shape):
        raise Rejection(f"a virtual dataset of shape {shape}, expected rows of several numbers", name)
    properties = dataset.properties
    sources = [_source(name, properties, i, shape) for i in range(properties.get_virtual_count())]
    sources.sort(key=lambda pair: pair[0])
    stop = 0
    for start, rows in sources:
        if start != stop:
            what = "no source for" if start > stop else "several sources for"
            raise Rejection(f"a virtual dataset with {what} row {min(start, stop)}, {_TILES}", name)
        stop = start + (rows.n_rows or 0)
    if stop != shape[0]:
        raise Rejection(f"a virtual dataset of {shape[0]} rows with no source for row {stop}, {_TILES}", name)
    return [rows for _, rows in sources]


def _source(name: str, properties: PropDCID, i: int, shape: Sequence[int]) -> tuple[int, RowsElsewhere]:
    """Return the first row of a mapping in the virtual dataset, and its rows in the source."""
    file = properties.get_virtual_filename(i)
    dataset = properties.get_virtual_dsetname(i)
    if _PATTERN.search(file) or _PATTERN.search(dataset):
        raise Rejection(f"a virtual dataset over files that a pattern names ({file}:{dataset}), {_TILES}", name)
    box = _box(properties.get_virtual_vspace(i))
    stored = properties.get_virtual_srcspace(i)
    source = None if stored.get_select_type() == h5py.h5s.SEL_ALL else _box(stored)
    if box is None or (source is None and stored.get_select_type() != h5py.h5s.SEL_ALL):
        raise Rejection(f"a virtual dataset with gaps, strides or an open end ({file}:{dataset}), {_TILES}", name)
    (start, stop), *others = box
    if others != [(0, n) for n in shape[1:]]:
        raise Rejection(
            f"a virtual dataset of tiles, or with columns of several files ({file}:{dataset}), {_TILES}", name
        )
    first = 0
    if source is not None:
        _check_whole_rows(name, f"{file}:{dataset}", source, stop - start, shape)
        first = source[0][0] if len(source) == len(shape) else 0
    row_shape = tuple(shape[1:])
    return start, RowsElsewhere(_unescaped(file), _unescaped(dataset), first, stop - start, row_shape)


def _check_whole_rows(name: str, where: str, box: Sequence[tuple[int, int]], n_rows: int, shape: Sequence[int]) -> None:
    """Refuse a box of a source unless it has `n_rows` rows that begin at the first column."""
    n_axes = len(shape) - 1
    n_selected = prod(stop - start for start, stop in box)
    is_row = n_rows == 1 and len(box) == n_axes and not any(start for start, _ in box)
    are_rows = box[0][1] - box[0][0] == n_rows and not any(start for start, _ in box[1:])
    if n_selected != n_rows * prod(shape[1:]) or not (is_row or are_rows):
        raise Rejection(f"a virtual dataset with parts of the rows of a source ({where}), {_TILES}", name)


def _box(space: SpaceID) -> list[tuple[int, int]] | None:
    """Return start and stop along each axis of a selection, or None if it is no box."""
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return [(0, n) for n in space.shape]
    if kind != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return None
    axes = list(zip(*space.get_regular_hyperslab(), strict=True))
    if any((n > 1 and step != size) or h5py.h5s.UNLIMITED in (n, size) for _, step, n, size in axes):
        return None
    return [(start, start + n * size) for start, _, n, size in axes]


def _unescaped(name: str) -> str:
    return name.replace("%%", "%")
