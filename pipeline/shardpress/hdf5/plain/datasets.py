"""Parse headers of datasets and attributes in plain files: shapes, types, filters, and the location of the bytes."""

import struct
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np

from shardpress.hdf5.filters.codecs import ASKED, FILTERS, objection
from shardpress.hdf5.layout import grid_of
from shardpress.hdf5.limits import MOST_CHUNK_BYTES, MOST_ITEM, SMALLEST
from shardpress.hdf5.plain.metadata import MOST_BYTES, NOWHERE, Kind, Messages, Metadata, expect, leaves

_UNLIMITED = 2**64 - 1


class _Type(NamedTuple):
    code: str  # of NumPy; ``|O`` and ``|V`` are strings that NumPy stores in a different way
    notes: dict[str, str]  # metadata that h5py attaches to the dtype
    itemsize: int


class Dataset(NamedTuple):
    """Contents of the header of a dataset."""

    header: Messages
    shape: tuple[int, ...]
    maxshape: tuple[int, ...]
    dtype: _Type
    filters: list[Any]  # of [int, list of int]: codes and parameters
    kind: str  # ``contiguous``, ``chunked`` or ``inline``
    place: int = 0  # address of the bytes, or of the B-tree of the chunks
    chunks: tuple[int, ...] = ()
    data: bytes = b""  # values of an ``inline`` dataset

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def is_candidate(self) -> bool:
        """True if the dataset could hold the rows."""
        return len(self.shape) >= 2 and self.dtype.code[1] in "uifb"


# -- datasets ----------------------------------------------------------------------------------------------------


def dataset_of(header: Messages, end: int) -> Dataset:
    """Parse the header of a dataset. Every message must be known. `end` is the end of the data in the file."""
    expect(header.keys() <= Kind.IN_DATASETS)
    shape, maxshape = _shape_and_maxshape(header[Kind.DATASPACE][0])
    dtype = _dtype(header[Kind.DATATYPE][0])
    _check_fill_values(header, dtype.itemsize)
    filters = [each for body in header.get(Kind.FILTERS, []) for each in _filters(body)]
    dataset = Dataset(header, shape, maxshape, dtype, filters, kind="")
    dataset = _with_storage(header[Kind.LAYOUT][0], dataset, end)
    expect(dataset.chunks or not filters, len(dict(filters)) == len(filters))
    return dataset


def _shape_and_maxshape(body: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape and the maximum shape from a dataspace message (IV.A.2.b)."""
    version, rank, flags = body[:3]
    expect(version in (1, 2), rank <= 32, flags in (0, 1), version == 1 or body[3] == bool(rank))
    start = 8 if version == 1 else 4
    lengths = struct.unpack_from(f"<{rank << flags}Q", body, start)
    shape = lengths[:rank]
    maxshape = lengths[len(lengths) - rank :]
    expect(all(n <= limit and n < 2**63 for n, limit in zip(shape, maxshape, strict=True)))
    return shape, maxshape


def _filters(body: bytes) -> Iterator[list[Any]]:
    """Yield the code and the parameters of each filter (IV.A.2.l)."""
    version, n = body[:2]
    expect(version in (1, 2), n <= len(FILTERS))
    place = 8 if version == 1 else 2
    for _ in range(n):
        code, flags, n_values, start = _filter_head(body, place, version)
        values = list(struct.unpack_from(f"<{n_values}I", body, start))
        expect(code not in ASKED, flags in (0, 1))
        expect(objection(code, values, "") is None)
        yield [code, values]
        n_padded = n_values + n_values % 2 if version == 1 else n_values
        place = start + 4 * n_padded


def _filter_head(body: bytes, place: int, version: int) -> tuple[int, int, int, int]:
    (code,) = struct.unpack_from("<H", body, place)
    if version == 2 and code < 256:  # standard filters have no name
        flags, n_values = struct.unpack_from("<HH", body, place + 2)
        return code, flags, n_values, place + 6
    n_name, flags, n_values = struct.unpack_from("<HHH", body, place + 2)
    expect(version == 2 or n_name % 8 == 0)
    return code, flags, n_values, place + 8 + n_name


def _check_fill_values(header: Messages, itemsize: int) -> None:
    """Check that libhdf5 could read the fill values, which are not used."""
    for body in header.get(Kind.FILL, []):
        _check_fill(body, itemsize)
    for body in header.get(Kind.OLD_FILL, []):
        expect(int.from_bytes(body[:4], "little") in (0, itemsize), len(body) >= 4)


def _check_fill(body: bytes, itemsize: int) -> None:
    is_defined, place = _fill_place(body)
    if is_defined:
        n_bytes = int.from_bytes(body[place : place + 4], "little")
        expect(n_bytes in (0, itemsize), len(body) >= place + 4 + n_bytes)


def _fill_place(body: bytes) -> tuple[bool, int]:
    """Return whether a fill value is defined, and the offset of the size field."""
    version = body[0]
    if version == 2:
        expect(body[1] in (1, 2, 3), body[2] < 3, body[3] < 2)
        return body[3] != 0, 4
    flags = body[1]
    expect(version == 3, flags & 3, flags & 12 != 12, flags < 64, flags & 48 != 48)
    return flags & 32 != 0, 2


def _with_storage(body: bytes, dataset: Dataset, end: int) -> Dataset:
    """Add the storage to a dataset, as described by the layout message (IV.A.2.i)."""
    version, kind = body[:2]
    expect(version == 3)  # later versions index chunks in other ways
    if kind == 0:
        return _inline(body, dataset)
    if kind == 1:
        place, n_bytes = struct.unpack_from("<QQ", body, 2)
        expect(n_bytes == dataset.n_bytes, place == NOWHERE or place <= end - n_bytes)
        return dataset._replace(kind="contiguous", place=place)
    expect(kind == 2)
    return _chunked(body, dataset)


def _inline(body: bytes, dataset: Dataset) -> Dataset:
    n_bytes = int.from_bytes(body[2:4], "little")
    expect(n_bytes == dataset.n_bytes, len(body) >= 4 + n_bytes)
    return dataset._replace(kind="inline", data=body[4 : 4 + n_bytes])


def _chunked(body: bytes, dataset: Dataset) -> Dataset:
    rank = body[2] - 1  # the last length is the size of an element
    expect(rank == len(dataset.shape))
    place, *chunks, itemsize = struct.unpack_from(f"<Q{rank + 1}I", body, 3)
    expect(itemsize == dataset.dtype.itemsize, chunks, 0 not in chunks, prod(chunks) * itemsize <= MOST_CHUNK_BYTES)
    return dataset._replace(kind="chunked", place=place, chunks=tuple(chunks))


def layout_claim(file: Metadata, dataset: Dataset, name: str, arrays: list[np.ndarray]) -> dict[str, Any]:
    """Return the location of a dataset's bytes in the format of `child.layouts.layout_claim`. Append to `arrays`."""
    code, notes, itemsize = dataset.dtype
    expect(code[1] in "uifbS", itemsize <= MOST_ITEM)  # the child explains why it skips other datasets
    claim = {"name": name, "shape": list(dataset.shape), "dtype": {"code": code, "notes": notes}, "kind": dataset.kind}
    if dataset.kind == "chunked":
        arrays.append(_index(file, dataset))
        return {**claim, "chunks": list(dataset.chunks), "filters": dataset.filters}
    if dataset.kind == "inline" or not dataset.n_bytes:
        arrays.append(np.frombuffer(dataset.data, dtype=np.uint8))
        return {**claim, "kind": "inline"}
    expect(SMALLEST <= dataset.place < NOWHERE)
    return {**claim, "offset": file.base + dataset.place}


def _index(file: Metadata, dataset: Dataset) -> np.ndarray:
    """Return the offsets, sizes and filter masks of all chunks: shape (3, n_chunks), in C order of the chunk grid."""
    rank = len(dataset.shape)
    grid = grid_of(dataset.shape, dataset.chunks)
    n_chunks = prod(grid)
    expect(_has_usual_order(dataset), n_chunks * 8 * (rank + 3) <= MOST_BYTES)
    index = np.empty((3, n_chunks), dtype=np.int64)
    if n_chunks:
        keys, addresses = leaves(file, dataset.place, 1, rank + 2)
        expect(len(addresses) == n_chunks, int(addresses.max()) < file.end)
        _check_keys(keys, grid, dataset)
        index[0] = addresses + np.uint64(file.base)
        index[1] = keys[:-1, 0] & 0xFFFFFFFF
        index[2] = keys[:-1, 0] >> 32
    return index


def _has_usual_order(dataset: Dataset) -> bool:
    """Return whether HDF5 lists correct chunk positions, like `child.layouts._has_usual_order`."""
    unlimited = [axis for axis, limit in enumerate(dataset.maxshape) if limit == _UNLIMITED]
    return len(unlimited) != 1 or unlimited == [0]


def _check_keys(keys: np.ndarray, grid: tuple[int, ...], dataset: Dataset) -> None:
    """Check that the keys of a chunk B-tree list every chunk once, in order."""
    # A key has the size and the filter mask in one word, the position of the first element, and 0. The last key only
    # has to be the position of a chunk.
    rank = len(grid)
    cells = np.indices(grid, dtype=np.uint64).reshape(rank, -1).T
    firsts = cells * np.array(dataset.chunks, dtype=np.uint64)
    expect((keys[:-1, 1:-1] == firsts).all(), not keys[:-1, -1].any())
    sizes = (*dataset.chunks, dataset.dtype.itemsize)
    last = keys[-1, 1:].tolist()
    expect(not any(n % size for n, size in zip(last, sizes, strict=True)))


# -- types -------------------------------------------------------------------------------------------------------

_INT8 = b"\x10\x08\0\0\1\0\0\0\0\0\x08\0"
_UINT8 = b"\x10\0\0\0\1\0\0\0\0\0\x08\0"
_BOOL = {
    1: b"\x08\2\0\0\1\0\0\0" + _INT8 + b"FALSE\0\0\0TRUE\0\0\0\0\0\1",
    3: b"\x08\2\0\0\1\0\0\0" + _INT8 + b"FALSE\0TRUE\0\0\1",
}
_ENCODINGS = {0: "ascii", 1: "utf-8"}
_FIXED_POINT = 0  # datatype classes
_FLOATING_POINT = 1
_STRING = 3
_ENUMERATION = 8
_VARIABLE_LENGTH = 9
_INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")
_FLOATS = ((2, 5, 10), (4, 8, 23), (8, 11, 52))  # bytes, exponent bits, mantissa bits


def _numbers() -> dict[bytes, _Type]:
    """Map datatype messages without the version to the numeric types that HDF5 and NumPy have in common."""
    table = {}
    for order in "<>":
        for code in _INTEGERS:
            table[_integer_message(order, code)] = _Type(np.dtype(order + code).str, {}, int(code[1]))
        for size, exponent, mantissa in _FLOATS:
            table[_float_message(order, size, exponent, mantissa)] = _Type(f"{order}f{size}", {}, size)
    return table


def _integer_message(order: str, code: str) -> bytes:
    """Return the message of an integer type (IV.A.2.d). Types of one byte count as little-endian."""
    size = int(code[1])
    is_big = order == ">" and size > 1
    is_signed = code[0] == "i"
    return struct.pack("<4BIHH", _FIXED_POINT, is_big | is_signed << 3, 0, 0, size, 0, 8 * size)


def _float_message(order: str, size: int, exponent: int, mantissa: int) -> bytes:
    """Return the message of an IEEE 754 floating-point type (IV.A.2.d)."""
    head = struct.pack("<4B", _FLOATING_POINT, 0x20 | (order == ">"), 8 * size - 1, 0)
    bias = 2 ** (exponent - 1) - 1
    return head + struct.pack("<IHH4BI", size, 0, 8 * size, mantissa, exponent, 0, mantissa, bias)


_NUMBERS = _numbers()


def _dtype(body: bytes) -> _Type:
    """Parse a datatype message. Raise `KeyError` or `NotPlain` for unknown types."""
    version = body[0] >> 4
    kind = body[0] & 15
    expect(1 <= version <= 5)
    if kind == _FIXED_POINT:
        return _NUMBERS[bytes([kind]) + body[1:12]]
    if kind == _FLOATING_POINT:
        return _NUMBERS[bytes([kind]) + body[1:20]]
    if kind == _ENUMERATION:
        return _bool_type(body, version)
    if kind == _STRING:
        return _text_type(body)
    expect(kind == _VARIABLE_LENGTH)
    return _variable_text_type(body)


def _bool_type(body: bytes, version: int) -> _Type:
    """Return the type of h5py's bool, which is the only known enumeration."""
    message = bytes([_ENUMERATION]) + body[1:]
    expect(message.startswith(_BOOL[1 if version < 3 else 3]))
    return _Type("|b1", {}, 1)


def _text_type(body: bytes) -> _Type:
    size = int.from_bytes(body[4:8], "little")
    padding = body[1] & 15
    expect(padding < 3, body[2:4] == b"\0\0", 0 < size <= MOST_CHUNK_BYTES)
    encoding = _ENCODINGS[body[1] >> 4]
    if padding != 1:  # not padded with zeros
        return _Type("|V", {}, size)
    return _Type(f"|S{size}", {"h5py_encoding": encoding}, size)


def _variable_text_type(body: bytes) -> _Type:
    size = int.from_bytes(body[4:8], "little")
    expect(body[1] == 1, body[2] in _ENCODINGS, body[3] == 0, size == 16)
    expect(body[8:].startswith(_UINT8))
    return _Type("|O", {}, size)


# -- attributes --------------------------------------------------------------------------------------------------


def attribute_name(message: bytes) -> bytes:
    """Return the name in an attribute message, whatever the type of its value."""
    version, _, size = struct.unpack_from("<BBH", message)
    place = 8 if version == 1 else 9
    return message[place : place + size].rstrip(b"\0")


def checked_attribute_name(message: bytes) -> bytes:
    """Return the name in an attribute message (IV.A.2.m). The message must be complete and of a known type."""
    version, flags, *sizes = struct.unpack_from("<BBHHH", message)
    expect(version in (1, 3), flags == 0)
    place = 8 if version == 1 else 9  # version 3 has an additional byte with the encoding of the name
    pieces = []
    for size in sizes:
        pieces.append(message[place : place + size])
        place += _padded(size) if version == 1 else size
    name, dtype, space = pieces
    shape, _ = _shape_and_maxshape(space)
    n_bytes = prod(shape) * _dtype(dtype).itemsize
    expect(name.find(0) == len(name) - 1, place + n_bytes <= len(message))
    return name[:-1]


def _padded(size: int) -> int:
    return -(-size // 8) * 8
