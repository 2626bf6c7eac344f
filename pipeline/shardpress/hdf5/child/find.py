"""Functions of the child that find objects in a file.

All searches have limits, and follow hard links only. A soft link is followed if its path is given, or if it is next to
the rows. No other file is opened: external links and virtual datasets say which files the caller has to open.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from math import prod
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py._objects import ObjectID
from h5py.h5f import FileID
from h5py.h5g import GroupID
from h5py.h5p import PropDCID
from h5py.h5s import SpaceID
from h5py.h5t import TypeArrayID, TypeCompoundID, TypeID, TypeVlenID

from shardpress.base.errors import short_list
from shardpress.hdf5.limits import MOST_DEPTH, MOST_OBJECTS
from shardpress.hdf5.names import parts_of, text

INTERNAL = (b"_i_", b"#refs#", b"#subsystem#")
"""Prefixes of groups: PyTables' indexes, MATLAB's cells."""
LISTED = 20
"""Number of names that a refusal lists."""
_COMPARED = 1000  # names that are compared with a wrong one
GROUP = b"shardpress"
"""Group in our results and models with everything except the rows."""
_LEAST_ENTRY_BYTES = 4  # minimum bytes of an entry: 2 for an address, 1 for a name, and 1 to mark the end
_STORAGE_FAILED = re.compile(r"errno = \d")  # in HDF5's message if the storage fails
_UNKNOWN = np.dtype("V1")
_SHORT = 1024  # bytes of an attribute that names a dataset or a scale
_UNREADABLE = (OSError, RuntimeError, LookupError, ValueError, TypeError)
_MOST_SOFT = 16  # soft links that lead to each other
_TOO_MANY_NAMES = "a group lists more names than fit into the file. The file is damaged or forged: do not use it."


class Rejection(Exception):
    """Raised to refuse a file or a dataset. The message is the reason."""

    def __init__(self, reason: str, dataset: str | None = None) -> None:
        super().__init__(reason)
        self.dataset = dataset  # path of the dataset that is the cause


class LinkedElsewhere(Rejection):
    """Raised if a path leads to another file. Such a path can be that of rows, but of nothing else."""

    def __init__(self, name: str, path: str, parent: GroupID, link: bytes, file: str, target: str) -> None:
        super().__init__(f"{path} is an external link to {file}:{target}, expected an object in the file itself", name)
        self.path = path  # of the link
        self.parent = parent  # group with the link
        self.link = link  # name of the link
        self.file = file  # as the link names it
        self.target = target  # path in this file


def reason_of(error: Exception) -> str:
    """Return why an object cannot be used. Raise the error if it is a storage failure or a bug."""
    if isinstance(error, Rejection):
        return str(error)
    if isinstance(error, MemoryError):
        return "takes more memory than allowed for an input file"
    if isinstance(error, _UNREADABLE) and not _STORAGE_FAILED.search(str(error)):
        return f"cannot be read: {error}"
    raise error


class Dataset:
    """Facts about a dataset. Each is read once, because a question to libhdf5 takes some microseconds."""

    def __init__(self, item: h5py.h5d.DatasetID) -> None:
        self.id = item

    @cached_property
    def properties(self) -> PropDCID:
        """Properties with which the dataset was created."""
        return self.id.get_create_plist()

    @cached_property
    def layout(self) -> int:
        return int(self.properties.get_layout())

    @cached_property
    def place(self) -> str | None:
        """Description of storage in other files. None if the values are in the file itself.

        Check this before the shape, because HDF5 may open other files to determine the shape.
        """
        if self.layout == h5py.h5d.VIRTUAL:
            return "a virtual dataset, whose values are in other files"
        if self.properties.get_external_count():
            return f"external storage ({text(self.properties.get_external(0)[0])})"
        return None

    @property
    def virtual_shape(self) -> tuple[int, ...]:
        """Shape of a virtual dataset, without opening other files. Empty for other datasets."""
        if self.layout != h5py.h5d.VIRTUAL or not self.properties.get_virtual_count():
            return ()
        return tuple(self.properties.get_virtual_vspace(0).shape)

    @cached_property
    def _space(self) -> SpaceID:
        return self.id.get_space()

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """Shape, or None for a null dataspace."""
        is_null = self._space.get_simple_extent_type() == h5py.h5s.NULL
        return None if is_null else tuple(self._space.get_simple_extent_dims())

    @property
    def has_usual_order(self) -> bool:
        """Whether HDF5 lists correct positions of the chunks.

        They are wrong if the only unlimited axis is not the first one. HDF5 1.10 to 2.0 then numbers the chunks along
        that axis first, but lists positions as if the numbers were in C order.
        """
        most_shape = self._space.get_simple_extent_dims(True)
        unlimited = [axis for axis, most in enumerate(most_shape) if most == h5py.h5s.UNLIMITED]
        return len(unlimited) != 1 or unlimited[0] == 0

    @cached_property
    def dtype(self) -> np.dtype | None:
        """Dtype in which h5py reads the values, or None if NumPy has no such type."""
        return dtype_of(self.id)

    @cached_property
    def stored_dtype(self) -> np.dtype | None:
        """The same, but records with values of variable length have references to these, which NumPy sees as bytes."""
        if self.dtype is None or self.dtype.fields is None or not self.dtype.hasobject:
            return self.dtype
        return _stored_record(self.id.get_type(), self._reference_bytes) or self.dtype

    @property
    def stored_size(self) -> int:
        """Bytes of a value in the file, which are fewer than in memory for types that NumPy lacks, such as bfloat16."""
        if self.stored_dtype is not None and self.stored_dtype is not self.dtype:
            return self.stored_dtype.itemsize
        if self.dtype is not None and self.dtype.hasobject:
            return self._reference_bytes
        return int(self.id.get_type().get_size())

    @property
    def _reference_bytes(self) -> int:
        """Bytes of a reference to a value of variable length: an address, and a length and an index of 4 bytes each."""
        n_address, _ = h5py.h5i.get_file_id(self.id).get_create_plist().get_sizes()
        return 8 + int(n_address)

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        return tuple(self.properties.get_chunk())

    @property
    def size(self) -> int:
        return prod(self.shape or ())

    @property
    def n_bytes(self) -> int:
        return self.size * (self.dtype or _UNKNOWN).itemsize

    @cached_property
    def is_plain(self) -> bool:
        """True if NumPy can use the bytes in the file without conversion."""
        if self.stored_dtype is None or self.stored_dtype.hasobject:
            return False
        return self.stored_dtype is not self.dtype or _is_plain(self.id.get_type(), self.stored_dtype)

    @property
    def is_text(self) -> bool:
        return self.dtype is not None and h5py.check_string_dtype(self.dtype) is not None

    def read(self) -> np.ndarray:
        return h5py.Dataset(self.id)[...]

    def stored_bytes(self) -> bytes:
        """Return the bytes of a small dataset, with 0 for references to values of variable length."""
        if self.stored_dtype is self.dtype or self.dtype is None:
            return self.read().tobytes()
        stored = np.zeros(self.shape or (), self.stored_dtype)
        for name in self.dtype.names or ():
            if not self.dtype[name].hasobject:
                stored[name] = h5py.Dataset(self.id).fields(name)[()]
        return stored.tobytes()


def _stored_record(record: TypeCompoundID, reference_bytes: int) -> np.dtype | None:
    """Return the dtype of records in the file: values of variable length are references, which NumPy sees as bytes.

    Return None if there are others that NumPy cannot use without conversion.
    """
    names: list[str] = []
    formats: list[np.dtype] = []
    offsets: list[int] = []
    n_more = 0  # bytes; libhdf5 gives sizes and offsets in memory, where a string is a pointer
    for i in sorted(range(record.get_nmembers()), key=record.get_member_offset):
        stored = record.get_member_type(i)
        dtype = stored.dtype
        offsets.append(record.get_member_offset(i) + n_more)
        if isinstance(stored, TypeVlenID) or (dtype.hasobject and h5py.check_string_dtype(dtype)):
            n_more += reference_bytes - stored.get_size()
            dtype = np.dtype(f"V{reference_bytes}")
        elif dtype.hasobject or not _is_plain_member(stored, dtype):
            return None
        names.append(text(record.get_member_name(i)))
        formats.append(dtype)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": record.get_size() + n_more})


def _is_plain(stored: TypeID, dtype: np.dtype) -> bool:
    """Return whether bytes of a stored type are values of a dtype. PyTables writes other types of text and bool."""
    if stored.equal(h5py.h5t.py_create(dtype, logical=True)):
        return True
    if not isinstance(stored, TypeCompoundID) or dtype.names is None:
        return False
    members = [stored.get_member_type(i) for i in range(stored.get_nmembers())]
    offsets = [stored.get_member_offset(i) for i in range(len(members))]
    expected = [(dtype[name], dtype.fields[name][1]) for name in dtype.names] if dtype.fields else []
    return [offset for _, offset in expected] == offsets and all(
        _is_plain_member(member, own) for member, (own, _) in zip(members, expected, strict=True)
    )


def _is_plain_member(stored: TypeID, dtype: np.dtype) -> bool:
    if isinstance(stored, TypeArrayID):
        return stored.get_array_dims() == dtype.shape and _is_plain_member(stored.get_super(), dtype.base)
    is_padded = isinstance(stored, h5py.h5t.TypeStringID) and stored.get_strpad() != h5py.h5t.STR_SPACEPAD
    is_bits = isinstance(stored, h5py.h5t.TypeBitfieldID)
    return _is_plain(stored, dtype) or ((is_padded or is_bits) and stored.get_size() == dtype.itemsize)


Item: TypeAlias = Dataset | GroupID | TypeID
"""An object in a file: a dataset, a group, or a named type."""


def locate(root: FileID, name: str) -> tuple[GroupID, Item]:
    """Return the parent group of an object, and the object. Raise `Rejection` if the object does not exist."""
    parent, item = resolve(root, name)
    if item is None:
        holds = f"the file holds {listing(root)}.{_question(root, name)}"
        raise Rejection(f"does not exist; {holds} Choose one with --dataset.", name)
    return parent, item


def _question(root: FileID, name: str) -> str:
    """Return a question about the object whose path is like a wrong one; empty if there is none."""
    paths: dict[str, str] = {}
    with suppress(Rejection):
        for path, _, _ in islice(objects(root), _COMPARED):
            paths.setdefault(path.lower(), path)
    near = get_close_matches(name.strip("/").lower(), paths, n=1, cutoff=0.7)
    return f" Did you mean {paths[near[0]]}?" if near else ""


def resolve(root: GroupID, name: str, n_soft: int = 0) -> tuple[GroupID, Item | None]:
    """Return the parent group of an object, and the object. The object is None if it does not exist.

    Soft links are followed; `n_soft` have been followed before. Raise `LinkedElsewhere` for a path into another file.
    """
    item = root
    parent = root
    parts = parts_of(name)
    for i, part in enumerate(parts):
        if not isinstance(item, h5py.h5g.GroupID) or not item.links.exists(part):
            return parent, None
        parent = item
        kind = parent.links.get_info(part).type
        if kind == h5py.h5l.TYPE_EXTERNAL:
            file, target = parent.links.get_val(part)
            target = text(b"/".join([target.rstrip(b"/"), *parts[i + 1 :]]))
            raise LinkedElsewhere(name, text(b"/".join(parts[: i + 1])), parent, part, text(file), target)
        item = reached(parent, part, n_soft)
    return parent, item


def reached(group: GroupID, name: bytes, n_soft: int = 0) -> Item | None:
    """Return the object that a name in a group leads to, through soft links. None if it leads nowhere."""
    kind = group.links.get_info(name).type
    if kind == h5py.h5l.TYPE_HARD:
        return member(group, name)
    if kind != h5py.h5l.TYPE_SOFT:
        raise Rejection(f"{link_of(group, name)}, expected an object in the file itself")
    if n_soft == _MOST_SOFT:
        raise Rejection(f"{link_of(group, name)}, after {n_soft} other soft links, expected a dataset")
    target = group.links.get_val(name)
    start = h5py.h5g.open(group, b"/") if target.startswith(b"/") else group
    return resolve(start, text(target), n_soft + 1)[1]


def member(group: GroupID, name: bytes) -> Item:
    """Return the object that a hard link of a group refers to: a `Dataset`, a GroupID or a TypeID."""
    item = h5py.h5o.open(group, name)
    return Dataset(item) if isinstance(item, h5py.h5d.DatasetID) else item


def own_dataset(group: GroupID, name: bytes) -> Dataset | None:
    """Return the dataset with a name in a group. Return None for soft and external links, and for other objects."""
    if not isinstance(group, h5py.h5g.GroupID) or not group.links.exists(name) or link_of(group, name):
        return None
    item = member(group, name)
    return item if isinstance(item, Dataset) else None


def attribute(item: ObjectID, name: bytes, fits: Callable[[tuple[int, ...], np.dtype], bool]) -> np.ndarray | None:
    """Return the value of an attribute, or None unless its shape and dtype fit: other ones may be pickles."""
    if not h5py.h5a.exists(item, name):
        return None
    attached = h5py.h5a.open(item, name)
    dtype = dtype_of(attached)
    if attached.shape is None or dtype is None or not fits(attached.shape, dtype):
        return None
    value = np.empty(attached.shape, dtype)
    attached.read(value)
    return value


def short_text(item: ObjectID, name: bytes) -> str:
    """Return the text in an attribute, or an empty one if it is not a single, short text."""
    value = attribute(item, name, _is_short_text)
    return "" if value is None else text(value.item())


def _is_short_text(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return shape == () and h5py.check_string_dtype(dtype) is not None and dtype.itemsize <= _SHORT


def link_of(group: GroupID, part: bytes) -> str | None:
    """Describe a soft or external link by kind and target. Return None for hard links."""
    kind = group.links.get_info(part).type
    if kind == h5py.h5l.TYPE_HARD:
        return None
    if kind == h5py.h5l.TYPE_EXTERNAL:
        return f"an external link to {':'.join(map(text, group.links.get_val(part)))}"
    if kind == h5py.h5l.TYPE_SOFT:
        return f"a soft link to {text(group.links.get_val(part))}"
    return f"a link of kind {kind}"


def dtype_of(item: ObjectID) -> np.dtype | None:
    """Return the dtype of a dataset or an attribute, or None if NumPy has no such type."""
    try:
        return item.dtype
    except (TypeError, ValueError):  # ValueError: a floating-point type wider than any of NumPy
        return None


def external_links(group: GroupID, most: int) -> list[bytes]:
    """Return the names of the first `most` + 1 external links in a group."""
    return _first_names(group, most, most_entries(file_bytes(group)), h5py.h5l.TYPE_EXTERNAL)


# -- searching ---------------------------------------------------------------------------------------------------


def objects(root: GroupID) -> Iterator[tuple[str, GroupID, Item]]:
    """Yield the path, the parent group and the object of each object below a group, depth first.

    Internal groups and repetitions are skipped.
    """
    seen = {_identity(root)}  # a group may contain itself or its parents
    n_names = 1

    def below(group: GroupID, prefix: bytes, depth: int) -> Iterator[tuple[str, GroupID, Item]]:
        nonlocal n_names
        names = names_in(group, n_names)
        n_names += len(names)  # total over all groups, because forged groups may share one list of names
        for name in names:
            if link_of(group, name):
                continue
            item = member(group, name)
            address = _identity(item)
            is_group = isinstance(item, h5py.h5g.GroupID)
            if address in seen or (is_group and _is_internal(name, item)):
                continue
            seen.add(address)
            yield text(prefix + name), group, item
            if is_group:
                if depth == MOST_DEPTH:
                    raise Rejection(f"groups are nested more than {MOST_DEPTH} deep. Choose a dataset with --dataset.")
                yield from below(item, prefix + name + b"/", depth + 1)

    return below(root, b"", 1)


def _is_internal(name: bytes, group: GroupID) -> bool:
    """Return whether a group contains no rows: one of PyTables, or that of a result or a model."""
    return name.startswith(INTERNAL) or (name == GROUP and h5py.h5a.exists(group, b"format"))


def names_in(group: GroupID, n_seen: int = 0) -> list[bytes]:
    """Return the names in a group, in order. The limits include `n_seen` names of other groups."""
    most_links = most_entries(file_bytes(group))
    names = _first_names(group, MOST_OBJECTS - n_seen, most_links)
    if n_seen + len(names) > MOST_OBJECTS:
        raise Rejection(f"more than {MOST_OBJECTS} objects to search. Write the rows to a separate file or group.")
    # The limit applies to the total over all groups, because forged trees may share nodes.
    if n_seen + len(names) > most_links:
        raise Rejection(_TOO_MANY_NAMES)
    return names


def _first_names(group: GroupID, most: int, most_links: int, kind: int | None = None) -> list[bytes]:
    """Return the first `most` + 1 names of links in a group, in order. `kind` selects one kind of links."""
    names: list[bytes] = []
    n_links = 0

    def take(name: bytes, info: Any) -> bool | None:
        nonlocal n_links
        n_links += 1
        if n_links > most_links:
            return True
        if kind in (None, info.type):
            names.append(name)
        return len(names) > most or None  # True ends the iteration

    group.links.iterate(take, info=True)
    if n_links > most_links:  # nodes of its tree form a cycle
        raise Rejection(_TOO_MANY_NAMES)
    return names


def file_bytes(item: ObjectID) -> int:
    """Return the size of the file with an object."""
    file = item if isinstance(item, FileID) else h5py.h5i.get_file_id(item)
    return int(file.get_filesize())


def most_entries(n_bytes: int) -> int:
    """Return how many links or chunks fit into a file of `n_bytes`. A longer index must list the same bytes twice."""
    return n_bytes // _LEAST_ENTRY_BYTES


def _identity(item: Item) -> tuple[object, object]:
    """Return the file number and the address of an open object, which together identify it."""
    # h5py.h5o.get_info also adds up the sizes of all index nodes, and never returns if the nodes form a cycle.
    info = h5py.h5g.get_objinfo(item.id if isinstance(item, Dataset) else item, b".")
    return info.fileno, info.objno


def listing(root: FileID) -> str:
    names = []
    try:
        for name, _, _ in objects(root):
            names.append(name)
    except Rejection:
        return short_list(names[:LISTED], LISTED) + " and others"
    return short_list(names, LISTED)
