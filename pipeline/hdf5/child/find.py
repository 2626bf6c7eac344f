"""Access to the objects of a file for the child: over hard links only, in the file itself, and within bounds.

External links, soft links, virtual datasets and external storage are reported, never followed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

from pipeline.errors import some
from pipeline.hdf5.forms import parts_of, text
from pipeline.hdf5.limits import MOST_DEPTH, MOST_OBJECTS

__all__ = [
    "LISTED",
    "Refused",
    "as_dataset",
    "attribute",
    "dtype_of",
    "elsewhere",
    "first_names",
    "held",
    "identity",
    "is_plain",
    "link_of",
    "listing",
    "locate",
    "most_entries",
    "names_in",
    "objects",
    "reached",
]

_INTERNAL = (b"_i_", b"#refs#", b"#subsystem#")  # beginnings of names: groups of PyTables' indexes and MATLAB's cells
LISTED = 20
"""Number of names that a refusal lists."""
_LEAST_ENTRY_BYTES = 4  # of an index: an address takes 2 at least, a name 1, and something says where each ends
_TOO_MANY_NAMES = "a group lists more names than the file has room for. The file is damaged or forged: do not use it."


class Refused(Exception):
    """A file that is refused, with the reason.

    Attributes
    ----------
    dataset : str or None
        The dataset that causes it.
    """

    def __init__(self, reason: str, dataset: str | None = None) -> None:
        super().__init__(reason)
        self.dataset = dataset


def locate(file: h5py.File, name: str) -> tuple[Any, Any]:
    """Return the group with an object, and the object; refuse the file if there is none."""
    there = reached(file, name, "{path} is {link}, expected a dataset in the file itself")
    if there is None:
        raise Refused(f"not there, the file holds {listing(file)}. Name one with --dataset.", name)
    return there


def reached(file: h5py.File, name: str, if_link: str) -> tuple[Any, Any] | None:
    """Return as `locate`, or None without an object. Refuse links that are not hard in the words of `if_link`."""
    here = file.id
    parent = file.id
    parts = parts_of(name)
    for i, part in enumerate(parts):
        if not isinstance(here, h5py.h5g.GroupID) or not here.links.exists(part):
            return None
        link = link_of(here, part)
        if link:
            raise Refused(if_link.format(path=text(b"/".join(parts[: i + 1])), link=link), name)
        parent = here
        here = h5py.h5o.open(parent, part)
    return parent, here


def held(group: Any, name: bytes) -> h5py.Dataset | None:
    """Return the dataset of a name that a group itself holds; None for links and other objects."""
    if not isinstance(group, h5py.h5g.GroupID) or not group.links.exists(name) or link_of(group, name):
        return None
    return as_dataset(h5py.h5o.open(group, name))


def as_dataset(item: Any) -> h5py.Dataset | None:
    """Return an open object as a dataset; None if it is none."""
    if not isinstance(item, h5py.h5d.DatasetID):
        return None
    return h5py.Dataset(item)


def attribute(item: Any, name: bytes, fits: Callable[[tuple[int, ...], np.dtype], bool]) -> np.ndarray | None:
    """Return the value of an attribute if its shape and dtype fit: others may be of any size, or a pickle."""
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


def elsewhere(dataset: h5py.Dataset) -> str | None:
    """Return how the values of a dataset come from other files; None if they are in the file itself."""
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        return "a virtual dataset (not allowed: its values lie elsewhere)"
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
    """Return whether the bytes in the file are those that NumPy has in memory, so that they need no conversion."""
    return not dtype.hasobject and dataset.id.get_type().equal(h5py.h5t.py_create(dtype, logical=True))


# -- searching ---------------------------------------------------------------------------------------------------


def objects(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield every object below a group once, depth first, with its path; without internal groups of writers."""
    seen = {identity(root)}  # a group may hold itself, or all groups above it
    n_names = 1

    def below(group: Any, prefix: bytes, depth: int) -> Iterator[tuple[str, Any]]:
        nonlocal n_names
        names = names_in(group, n_names)
        n_names += len(names)  # of all groups together: forged ones may share one list of names
        for name in names:
            if link_of(group, name):
                continue
            item = h5py.h5o.open(group, name)
            address = identity(item)
            if address in seen or (name.startswith(_INTERNAL) and isinstance(item, h5py.h5g.GroupID)):
                continue
            seen.add(address)
            yield text(prefix + name), item
            if isinstance(item, h5py.h5g.GroupID):
                if depth == MOST_DEPTH:
                    raise Refused(f"groups more than {MOST_DEPTH} deep. Name the dataset with --dataset.")
                yield from below(item, prefix + name + b"/", depth + 1)

    yield from below(root, b"", 1)


def names_in(group: Any, n_seen: int = 0) -> list[bytes]:
    """Return the names in a group, in their order, after `n_seen` names of other groups."""
    names = first_names(group, MOST_OBJECTS - n_seen)
    if n_seen + len(names) > MOST_OBJECTS:
        raise Refused(
            f"more than {MOST_OBJECTS} objects to look through, expected rows in a file or group of their own"
        )
    # Also of several groups together, since nodes of their trees may be shared.
    if n_seen + len(names) > most_entries(group):
        raise Refused(_TOO_MANY_NAMES)
    return names


def first_names(group: Any, most: int, kind: int | None = None) -> list[bytes]:
    """Return the names in a group, in their order, of all links or those of a kind, and at most `most` + 1 of them.

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
    """Return the file number and the address of an open object, by which it is recognized.

    `h5py.h5o.get_info` would also add up the sizes of all nodes of its indexes: without end if these form a circle.
    """
    found = h5py.h5g.get_objinfo(item, b".")
    return found.fileno, found.objno


def listing(file: h5py.File) -> str:
    """Return the names of the objects in a file, the first of many."""
    names = []
    try:
        for name, _ in objects(file.id):
            names.append(name)
    except Refused:
        return some(names[:LISTED], LISTED) + " and many more"
    return some(names, LISTED)
