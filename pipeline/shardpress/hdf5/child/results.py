"""Function of the child that refuses a file with anything that shardpress does not write to an index or a model.

An index and a model come from other users, and their bytes are opened by libhdf5 in the main process afterwards. Values
are not checked: `shardpress.model.modelfile` and `shardpress.result.finished` compare them with the network and the
tables.
"""

import re
from math import prod

import h5py
import numpy as np
from h5py._objects import ObjectID
from h5py.h5d import DatasetID
from h5py.h5f import FileID
from h5py.h5g import GroupID
from h5py.h5p import PropDCID

from shardpress.hdf5.child.find import GROUP, Rejection, attribute, dtype_of, names_in
from shardpress.hdf5.limits import MOST_CHUNK_BYTES, MOST_ITEM
from shardpress.hdf5.names import text

_SOURCE = re.compile(rb"parts/[0-9A-Za-z_][0-9A-Za-z_.-]*\.h5")
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}
_ARRAY_TYPES = [h5py.h5t.py_create(np.dtype(code), logical=True) for code in "?bBhHiIqQfd"]

_MOST_DATASETS = 10_000  # in the root group
_MOST_MAPPINGS = 2_000_000  # in all virtual datasets
_MOST_OBJECTS = 100_000  # in the group `GROUP`
_MOST_DEPTH = 4  # nested groups, including `GROUP`
_MOST_ATTRIBUTES = 1000  # of one object
_MOST_ATTRIBUTE = 2**16  # bytes of an attribute in `GROUP`
_MOST_DESCRIPTION = 2**24  # bytes of an attribute outside; a list of categories can be long


def check_result(root: FileID) -> None:
    """Raise `Rejection` if the file contains anything that an index or a model does not contain.

    The root group has datasets and one group, `GROUP`. A dataset is virtual, or stored in the file. Mappings name
    files in ``parts/``, and the same dataset there. `GROUP` has groups and contiguous arrays of
    numbers. All links are hard links. The total size of all arrays and attributes is at most the size of the file.

    The shapes of virtual and of chunked datasets are not limited, because they need no space in the file. The caller
    compares them with its tables.
    """
    n_bytes_before = root.get_create_plist().get_userblock()
    if n_bytes_before:
        raise Rejection(f"a user block of {n_bytes_before} bytes, expected none")
    check = _ResultCheck(root.get_filesize())
    check.attributes(root, "/", _MOST_DESCRIPTION)
    for name in _names_of_members(root, "/", _MOST_DATASETS + 1):
        item = h5py.h5o.open(root, name)  # one at a time: an open virtual dataset takes 4 kB for each mapping
        if name == GROUP and isinstance(item, h5py.h5g.GroupID):
            check.group(item, f"/{text(name)}", 1)
        else:
            check.dataset_with_rows(item, name)


class _ResultCheck:
    """Check of one file. It counts bytes, objects and mappings, which have limits."""

    def __init__(self, size: int) -> None:
        self._size = size  # bytes of the file
        self._n_bytes = 0  # of arrays and attributes
        self._n_objects = 0  # below `GROUP`
        self._n_mappings = 0

    def dataset_with_rows(self, item: DatasetID, name: bytes) -> None:
        """Check a dataset in the root group."""
        path = f"/{text(name)}"
        if not isinstance(item, h5py.h5d.DatasetID):
            raise Rejection(f"{path} is not a dataset, expected datasets and a group {text(GROUP)}")
        _check_type_of_rows(item, path)
        properties = item.get_create_plist()
        layout = properties.get_layout()
        if layout == h5py.h5d.VIRTUAL:
            self._mappings(properties, name)
        elif layout == h5py.h5d.CHUNKED:
            _check_chunks(item, properties, path)
        else:
            self._array(item, path)
        self.attributes(item, path, _MOST_DESCRIPTION)

    def _mappings(self, properties: PropDCID, name: bytes) -> None:
        path = f"/{text(name)}"
        n_mappings = properties.get_virtual_count()
        self._n_mappings += n_mappings
        if self._n_mappings > _MOST_MAPPINGS:
            raise Rejection(f"{self._n_mappings} mappings of virtual datasets, expected at most {_MOST_MAPPINGS}")
        expected = text(name.replace(b"%", b"%%"))
        for i in range(n_mappings):
            source = properties.get_virtual_filename(i)
            if not _SOURCE.fullmatch(source.encode("utf-8", "surrogateescape")):
                raise Rejection(f"{path} has values in the file {source}, expected parts/NAME.h5")
            own_name = properties.get_virtual_dsetname(i)
            if own_name != expected:
                raise Rejection(f"{path} has values in the dataset {own_name} of {source}, expected {expected}")
            for space in (properties.get_virtual_vspace(i), properties.get_virtual_srcspace(i)):
                # HDF5 needs time and memory for each block of a selection, and a few bytes can declare billions.
                # The selection of a part without rows is empty.
                is_simple = space.get_select_type() in (h5py.h5s.SEL_ALL, h5py.h5s.SEL_NONE)
                if not is_simple and space.get_select_hyper_nblocks() != 1:
                    raise Rejection(f"{path} has a mapping of several blocks, expected one block of rows")

    def group(self, group: GroupID, path: str, depth: int) -> None:
        """Check `GROUP` or a group in it, and everything below."""
        if depth > _MOST_DEPTH:
            raise Rejection(f"{path} is a group at depth {depth}, expected at most {_MOST_DEPTH}")
        self.attributes(group, path, _MOST_ATTRIBUTE)
        names = _names_of_members(group, path, _MOST_OBJECTS - self._n_objects)
        self._n_objects += len(names)
        for name in names:
            item = h5py.h5o.open(group, name)
            own_path = f"{path}/{text(name)}"
            if isinstance(item, h5py.h5g.GroupID):
                self.group(item, own_path, depth + 1)
            elif isinstance(item, h5py.h5d.DatasetID):
                if not any(item.get_type().equal(array_type) for array_type in _ARRAY_TYPES):
                    raise Rejection(f"{own_path} has dtype {dtype_of(item)}, expected bool, integers or floats")
                self._array(item, own_path)
                self.attributes(item, own_path, _MOST_ATTRIBUTE)
            else:
                raise Rejection(f"{own_path} is neither a group nor a dataset")

    def _array(self, item: DatasetID, path: str) -> None:
        """Check that a dataset is contiguous, and completely written to the file."""
        properties = item.get_create_plist()
        if properties.get_external_count():
            raise Rejection(f"{path} has external storage {text(properties.get_external(0)[0])}, expected none")
        if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_nfilters():
            raise Rejection(f"{path} is chunked, compact or virtual, expected a contiguous dataset")
        shape = item.shape or ()  # None for a null dataspace, whose value is never stored
        n_bytes = prod(shape) * item.get_type().get_size()
        self._add(n_bytes, path)
        if not n_bytes:
            return
        offset = item.get_offset()
        n_stored = item.get_storage_size()  # more than `n_bytes` for strings of variable length
        if offset is None or n_stored < n_bytes or offset + n_stored > self._size:
            raise Rejection(f"{path} has shape {shape}, but its {n_bytes} bytes are not in the file")

    def attributes(self, item: ObjectID, path: str, most: int) -> None:
        """Check that each attribute of an object is a number, string or list of these, of at most `most` bytes."""
        h5py.h5o.get_info(item)  # reads all index nodes, as `Group.visit` does; it never returns if they form a cycle
        for name in _names_of_attributes(item, path):
            value = attribute(item, name, lambda shape, dtype: _is_plain_attribute(shape, dtype, most))
            if value is None:
                raise Rejection(f"attribute {text(name)} of {path} is not a number or text of at most {most} bytes")
            n_bytes = sum(map(len, value.flat)) if value.dtype.hasobject else value.nbytes
            if n_bytes > most:
                raise Rejection(f"attribute {text(name)} of {path} has {n_bytes} bytes, expected at most {most}")
            self._add(n_bytes, path)

    def _add(self, n_bytes: int, path: str) -> None:
        self._n_bytes += n_bytes
        if self._n_bytes > self._size:
            raise Rejection(f"{path} and others have {self._n_bytes} bytes of values, but the file has {self._size}")


def _names_of_members(group: GroupID, path: str, most: int) -> list[bytes]:
    """Return the names of the objects in a group. Refuse more than `most` objects, and all links but hard links."""
    names = names_in(group)
    if len(names) > most:
        raise Rejection(f"{path} has {len(names)} objects, expected at most {most}")
    for name in names:
        if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise Rejection(f"{text(name)} in {path} is a soft or external link, expected an object in the file itself")
    return names


def _check_type_of_rows(item: DatasetID, path: str) -> None:
    """Refuse references and arrays of variable length. Extras can have any other dtype of NumPy."""
    dtype = dtype_of(item)
    is_text = dtype is not None and h5py.check_string_dtype(dtype) is not None
    if dtype is None or dtype.itemsize > MOST_ITEM or (dtype.hasobject and not is_text):
        raise Rejection(f"{path} has dtype {dtype}, expected numbers or strings")


def _check_chunks(item: DatasetID, properties: PropDCID, path: str) -> None:
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if filters - _FILTERS:
        raise Rejection(f"{path} has the filters {sorted(filters)}, expected gzip and shuffle at most")
    n_bytes = prod(properties.get_chunk()) * item.get_type().get_size()
    if n_bytes > MOST_CHUNK_BYTES:
        raise Rejection(f"{path} has chunks of {n_bytes} bytes, expected at most {MOST_CHUNK_BYTES}")


def _names_of_attributes(item: ObjectID, path: str) -> list[bytes]:
    names: list[bytes] = []

    def take(name: bytes) -> bool | None:
        names.append(name)
        return len(names) > _MOST_ATTRIBUTES or None  # True ends the iteration

    h5py.h5a.iterate(item, take)
    if len(names) > _MOST_ATTRIBUTES:
        raise Rejection(f"{path} has more than {_MOST_ATTRIBUTES} attributes")
    return names


def _is_plain_attribute(shape: tuple[int, ...], dtype: np.dtype, most: int) -> bool:
    is_text = h5py.check_string_dtype(dtype) is not None
    return len(shape) <= 1 and (dtype.kind in "biuf" or is_text) and prod(shape) * dtype.itemsize <= most
