"""Access to the objects of a file for the child: over hard links only, in the file itself, and within bounds.

External links, soft links, virtual datasets and external storage are reported, never followed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

from pipeline.errors import short_list
from pipeline.hdf5.forms import parts_of, text
from pipeline.hdf5.limits import MOST_DEPTH, MOST_OBJECTS

__all__ = [
    "LISTED",
    "Refused",
    "as_dataset",
    "attribute",
    "dtype_of",
    "first_names",
    "identity",
    "is_plain",
    "link_of",
    "listing",
    "locate",
    "most_entries",
    "names_in",
    "objects",
    "outside_storage",
    "own_dataset",
    "resolve",
]

_INTERNAL = (b"_i_", b"#refs#", b"#subsystem#")  # prefixes of groups: PyTables' indexes, MATLAB's cells
LISTED = 20
"""Number of names that a refusal lists."""
_LEAST_ENTRY_BYTES = 4  # bytes of an entry: at least 2 for an address, 1 for a name, and something to mark the end
_TOO_MANY_NAMES = "a group lists more names than fit into the file. The file is damaged or forged: do not use it."


class Refused(Exception):
    """Refusal of a file, with the reason.

    Attributes
    ----------
    dataset : str or None
        The dataset that causes it.
    """

    def __init__(self, reason: str, dataset: str | None = None) -> None:
        super().__init__(reason)
        self.dataset = dataset


def locate(file: h5py.File, name: str) -> tuple[Any, Any]:
    """Return the group with an object, and the object; refuse the file if it does not exist."""
    found = resolve(file, name, "{path} is {link}, expected a dataset in the file itself")
    if found is None:
        raise Refused(f"does not exist; the file holds {listing(file)}. Choose one with --dataset.", name)
    return found


def resolve(file: h5py.File, name: str, if_link: str) -> tuple[Any, Any] | None:
    """Return the group with an object, and the object; None if it does not exist.

    Soft and external links are refused with the message `if_link`.
    """
    item = file.id
    parent = file.id
    parts = parts_of(name)
    for i, part in enumerate(parts):
        if not isinstance(item, h5py.h5g.GroupID) or not item.links.exists(part):
            return None
        link = link_of(item, part)
        if link:
            path = text(b"/".join(parts[: i + 1]))
            raise Refused(if_link.format(path=path, link=link), name)
        parent = item
        item = h5py.h5o.open(parent, part)
    return parent, item


def own_dataset(group: Any, name: bytes) -> h5py.Dataset | None:
    """Return the dataset of a name that a group itself holds; None for links and other objects."""
    if not isinstance(group, h5py.h5g.GroupID) or not group.links.exists(name) or link_of(group, name):
        return None
    return as_dataset(h5py.h5o.open(group, name))


def as_dataset(item: Any) -> h5py.Dataset | None:
    """Return an open object as a dataset; None if it is not a dataset."""
    if not isinstance(item, h5py.h5d.DatasetID):
        return None
    return h5py.Dataset(item)


def attribute(item: Any, name: bytes, fits: Callable[[tuple[int, ...], np.dtype], bool]) -> np.ndarray | None:
    """Return the value of an attribute if its shape and dtype fit; others are not read, and may be pickles."""
    if not h5py.h5a.exists(item, name):
        return None
    attached = h5py.h5a.open(item, name)
    dtype = dtype_of(attached)
    if attached.shape is None or dtype is None or not fits(attached.shape, dtype):
        return None
    value = np.empty(attached.shape, dtype)
    attached.read(value)
    return value


def link_of(group: Any, part: bytes) -> str | None:
    """Return the kind and target of a link; None if it is a hard link."""
    kind = group.links.get_info(part).type
    if kind == h5py.h5l.TYPE_HARD:
        return None
    if kind == h5py.h5l.TYPE_EXTERNAL:
        return f"an external link (not allowed: {':'.join(map(text, group.links.get_val(part)))})"
    if kind == h5py.h5l.TYPE_SOFT:
        return f"a soft link (not allowed: {text(group.links.get_val(part))})"
    return f"a link of kind {kind} (not allowed)"


def outside_storage(dataset: h5py.Dataset) -> str | None:
    """Return how the values of a dataset are stored in other files; None if they are in the file itself."""
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        return "a virtual dataset (not allowed: its values are in other files)"
    if properties.get_external_count():
        return f"external storage (not allowed: {text(properties.get_external(0)[0])})"
    return None


def dtype_of(item: Any) -> np.dtype | None:
    """Return the dtype of a dataset or an attribute; None if NumPy has no such type."""
    try:
        return item.dtype
    except (TypeError, ValueError):  # ValueError: a floating-point type with more bits than NumPy's
        return None


def is_plain(dataset: h5py.Dataset, dtype: np.dtype) -> bool:
    """Return whether the bytes in the file equal NumPy's bytes in memory, so that they need no conversion."""
    return not dtype.hasobject and dataset.id.get_type().equal(h5py.h5t.py_create(dtype, logical=True))


# -- searching ---------------------------------------------------------------------------------------------------


def objects(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield every object below a group once, depth first, with its path; except for internal groups."""
    yield from _Walk(root).below(root, b"", 1)


class _Walk:
    """A walk through all objects below a group."""

    def __init__(self, root: Any) -> None:
        self._seen = {identity(root)}  # a group may hold itself, or all groups above it
        self._n_names = 1

    def below(self, group: Any, prefix: bytes, depth: int) -> Iterator[tuple[str, Any]]:
        """Yield the objects in and below a group, whose path is the prefix."""
        names = names_in(group, self._n_names)
        self._n_names += len(names)  # over all groups, since forged ones may share one list of names
        for name in names:
            item = None if link_of(group, name) else h5py.h5o.open(group, name)
            if item is None or not self._is_new(item, name):
                continue
            yield text(prefix + name), item
            if isinstance(item, h5py.h5g.GroupID):
                if depth == MOST_DEPTH:
                    raise Refused(f"groups nested more than {MOST_DEPTH} deep. Choose a dataset with --dataset.")
                yield from self.below(item, prefix + name + b"/", depth + 1)

    def _is_new(self, item: Any, name: bytes) -> bool:
        """Return whether an object is seen for the first time and is not an internal group."""
        address = identity(item)
        if address in self._seen or (name.startswith(_INTERNAL) and isinstance(item, h5py.h5g.GroupID)):
            return False
        self._seen.add(address)
        return True


def names_in(group: Any, n_seen: int = 0) -> list[bytes]:
    """Return the names in a group, in order; `n_seen` names in other groups count towards the limits."""
    names = first_names(group, MOST_OBJECTS - n_seen)
    if n_seen + len(names) > MOST_OBJECTS:
        raise Refused(f"more than {MOST_OBJECTS} objects to search. Give the rows a file or a group of their own.")
    # The names of all groups count together, since their trees may share nodes.
    if n_seen + len(names) > most_entries(group):
        raise Refused(_TOO_MANY_NAMES)
    return names


def first_names(group: Any, most: int, kind: int | None = None) -> list[bytes]:
    """Return the first `most` + 1 names in a group, in order: of all links, or of links of one kind.

    Raises
    ------
    Refused
        If the group lists more links than the file has room for: the nodes of its tree point to each other.
    """
    names: list[bytes] = []
    n_links = 0
    most_links = most_entries(group)

    def take(name: bytes, info: Any) -> bool | None:
        nonlocal n_links
        n_links += 1
        if n_links > most_links:
            return True
        if kind in (None, info.type):
            names.append(name)
        return len(names) > most or None  # True ends the iteration

    group.links.iterate(take, info=True)
    if n_links > most_links:
        raise Refused(_TOO_MANY_NAMES)
    return names


def most_entries(item: Any) -> int:
    """Return how many entries (links, chunks) the file of an object has room for.

    A link or a chunk takes at least an address and a few more bytes in the file. An index that lists more of them
    lists the same bytes again and again.
    """
    return int(h5py.h5i.get_file_id(item).get_filesize()) // _LEAST_ENTRY_BYTES


def identity(item: Any) -> tuple[Any, Any]:
    """Return the file number and the address of an open object, which identify it.

    `h5py.h5o.get_info` would also add up the sizes of all nodes of its indexes, and never end if these form a circle.
    """
    found = h5py.h5g.get_objinfo(item, b".")
    return found.fileno, found.objno


def listing(file: h5py.File) -> str:
    """Return the names of the first objects in a file."""
    names = []
    try:
        for name, _ in objects(file.id):
            names.append(name)
    except Refused:
        return short_list(names[:LISTED], LISTED) + " and others"
    return short_list(names, LISTED)
