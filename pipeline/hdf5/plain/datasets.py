"""What a dataset's header says: its shape, type, filters and where its bytes lie; and an attribute's name."""

import struct
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np

from pipeline.hdf5.filters.codecs import objection
from pipeline.hdf5.layout import grid_of
from pipeline.hdf5.limits import ASKED, FILTERS, MOST_CHUNK_BYTES, MOST_ITEM, SMALLEST
from pipeline.hdf5.plain.headers import Kind, Messages
from pipeline.hdf5.plain.metadata import MOST_BYTES, NOWHERE, Metadata, expect, leaves

__all__ = ["Attribute", "Dataset", "attribute_of", "dataset_of", "layout_claim", "name_of"]

_UNLIMITED = 2**64 - 1

Type = tuple[str, dict[str, str], int]  # NumPy's code, h5py's notes, bytes


class Dataset(NamedTuple):
    """What a dataset's header says: of any in the rows' group."""

    header: Messages
    shape: tuple[int, ...]
    most: tuple[int, ...]
    dtype: Type
    filters: list[Any]
    kind: str
    place: int = 0  # of its bytes, or of the tree of its chunks
    chunks: tuple[int, ...] = ()
    data: bytes = b""

    @property
    def n_bytes(self) -> int:
        """Bytes of all values."""
        return prod(self.shape) * self.dtype[2]

    @property
    def is_candidate(self) -> bool:
        """Whether it may hold the rows."""
        return len(self.shape) >= 2 and self.dtype[0][1] in "uifb"


class Attribute(NamedTuple):
    """An attribute of a group or a dataset."""

    name: bytes
    dtype: Type
    shape: tuple[int, ...]
    data: bytes  # its values as stored, and what pads them

    @property
    def n_bytes(self) -> int:
        """Number of bytes of all values."""
        return prod(self.shape) * self.dtype[2]


def dataset_of(header: Messages, end: int) -> Dataset:
    """A dataset whose header holds what is known here and nothing else; `end` is where the file's data end."""
    expect(header.keys() <= Kind.IN_DATASETS)
    shape, most = _shape(header[Kind.DATASPACE][0])
    dtype = _dtype(header[Kind.DATATYPE][0])
    for body in header.get(Kind.FILL, []):
        _check_fill(body, dtype[2])
    for body in header.get(Kind.OLD_FILL, []):
        expect(int.from_bytes(body[:4], "little") in (0, dtype[2]), len(body) >= 4)
    filters = [each for body in header.get(Kind.FILTERS, []) for each in _filters(body)]
    dataset = _stored(header[Kind.LAYOUT][0], Dataset(header, shape, most, dtype, filters, ""), end)
    expect(dataset.chunks or not filters, len(dict(filters)) == len(filters))
    return dataset


def _shape(body: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and greatest lengths (IV.A.2.b)."""
    version, rank, flags = body[:3]
    expect(version in (1, 2), rank <= 32, flags in (0, 1), version == 1 or body[3] == bool(rank))
    lengths = struct.unpack_from(f"<{rank << flags}Q", body, {1: 8, 2: 4}[version])
    shape, most = lengths[:rank], lengths[-rank:] if rank else ()
    expect(all(n <= most_n and n < 2**63 for n, most_n in zip(shape, most, strict=True)))
    return shape, most


def _filters(body: bytes) -> Iterator[list[Any]]:
    """Codes and values (IV.A.2.l)."""
    version, n = body[:2]
    expect(version in (1, 2), n <= len(FILTERS))
    place = {1: 8, 2: 2}[version]
    for _ in range(n):
        (code,) = struct.unpack_from("<H", body, place)
        if version == 1 or code >= 256:
            n_name, flags, n_values = struct.unpack_from("<HHH", body, place + 2)
            place += 8
        else:
            n_name, (flags, n_values) = 0, struct.unpack_from("<HH", body, place + 2)
            place += 6
        place += n_name
        values = list(struct.unpack_from(f"<{n_values}I", body, place))
        expect(code not in ASKED, flags in (0, 1), version == 2 or n_name % 8 == 0)
        expect(objection(code, values, "") is None)
        yield [code, values]
        place += 4 * (n_values + (n_values % 2 if version == 1 else 0))


def _check_fill(body: bytes, itemsize: int) -> None:
    """Of a fill value (IV.A.2.f), which nobody needs, only that HDF5 can read it."""
    if body[0] == 2:
        expect(body[1] in (1, 2, 3), body[2] < 3, body[3] < 2)
        defined, place = body[3], 4
    else:
        expect(body[0] == 3, body[1] & 3, body[1] & 12 != 12, body[1] < 64, body[1] & 48 != 48)
        defined, place = body[1] & 32, 2
    expect(not defined or int.from_bytes(body[place : place + 4], "little") in (0, itemsize))
    expect(not defined or len(body) >= place + 4 + int.from_bytes(body[place : place + 4], "little"))


def _stored(body: bytes, dataset: Dataset, end: int) -> Dataset:
    """With what its layout says (IV.A.2.i)."""
    version, kind = body[:2]
    expect(version == 3)  # later ones index chunks in other ways
    if kind == 0:
        n = int.from_bytes(body[2:4], "little")
        expect(n == dataset.n_bytes, len(body) >= 4 + n)
        return dataset._replace(kind="inline", data=body[4 : 4 + n])
    if kind == 1:
        place, n = struct.unpack_from("<QQ", body, 2)
        expect(n == dataset.n_bytes, place == NOWHERE or place <= end - n)
        return dataset._replace(kind="contiguous", place=place)
    expect(kind == 2, body[2] == len(dataset.shape) + 1)  # after the chunks' lengths, an element's
    place, *chunks, itemsize = struct.unpack_from(f"<Q{body[2]}I", body, 3)
    expect(itemsize == dataset.dtype[2], chunks, 0 not in chunks, prod(chunks) * itemsize <= MOST_CHUNK_BYTES)
    return dataset._replace(kind="chunked", place=place, chunks=tuple(chunks))


def layout_claim(file: Metadata, dataset: Dataset, name: str, arrays: list[np.ndarray]) -> dict[str, Any]:
    """Where its bytes lie, in plain values but for what goes into `arrays`."""
    code, notes, itemsize = dataset.dtype
    expect(code[1] in "uifbS", itemsize <= MOST_ITEM)  # or the child says why it does not ride along
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
    """Offset, size and filter mask of every chunk; all are there, in C order of their grid and nothing else is."""
    rank = len(dataset.shape)
    grid = grid_of(dataset.shape, dataset.chunks)
    n_chunks = prod(grid)
    unlimited = [axis for axis, most in enumerate(dataset.most) if most == _UNLIMITED]
    expect(len(unlimited) != 1 or unlimited == [0])  # the child answers differently then
    expect(n_chunks * 8 * (rank + 3) <= MOST_BYTES)
    index = np.empty((3, n_chunks), dtype=np.int64)
    if not n_chunks:
        return index
    keys, places = leaves(file, dataset.place, 1, rank + 2)
    expect(len(places) == n_chunks, int(places.max()) < file.end)
    firsts = np.indices(grid, dtype=np.uint64).reshape(rank, -1).T * np.array(dataset.chunks, dtype=np.uint64)
    expect((keys[:-1, 1:-1] == firsts).all(), not keys[:-1, -1].any())  # each key: size and mask, place, and 0
    sizes = (*dataset.chunks, dataset.dtype[2])
    expect(not any(n % size for n, size in zip(keys[-1, 1:].tolist(), sizes, strict=True)))
    index[0], index[1], index[2] = places + np.uint64(file.base), keys[:-1, 0] & 0xFFFFFFFF, keys[:-1, 0] >> 32
    return index


def _numbers() -> dict[bytes, Type]:
    """The types of numbers that HDF5 and NumPy have in common (IV.A.2.d), but for their version."""
    table: dict[bytes, Type] = {}
    for order in "<>":
        for code in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"):
            size = int(code[1])
            if size > 1 or order == "<":
                flags = (order == ">") | (code[0] == "i") << 3
                message = struct.pack("<4BIHH", 0, flags, 0, 0, size, 0, 8 * size)
                table[message] = (np.dtype(order + code).str, {}, size)
        for size, exponent, mantissa in ((2, 5, 10), (4, 8, 23), (8, 11, 52)):
            message = struct.pack("<4BIHH", 1, 0x20 | (order == ">"), 8 * size - 1, 0, size, 0, 8 * size)
            message += struct.pack("<4BI", mantissa, exponent, 0, mantissa, 2 ** (exponent - 1) - 1)
            table[message] = (f"{order}f{size}", {}, size)
    return table


_NUMBERS = _numbers()
_INT8 = b"\x10\x08\0\0\1\0\0\0\0\0\x08\0"
_BOOL = {
    1: b"\x08\2\0\0\1\0\0\0" + _INT8 + b"FALSE\0\0\0TRUE\0\0\0\0\0\1",
    3: b"\x08\2\0\0\1\0\0\0" + _INT8 + b"FALSE\0TRUE\0\0\1",
}
_UINT8 = b"\x10\0\0\0\1\0\0\0\0\0\x08\0"
_ENCODINGS = {0: "ascii", 1: "utf-8"}


def _dtype(body: bytes) -> Type:
    """A type that is known here; texts that are not as NumPy has them are ``|O`` and ``|V``."""
    version, kind = body[0] >> 4, body[0] & 15
    expect(1 <= version <= 5)
    if kind in (0, 1):
        return _NUMBERS[bytes([kind]) + body[1 : 20 if kind else 12]]
    if kind == 8:
        expect((bytes([kind]) + body[1:]).startswith(_BOOL[1 if version < 3 else 3]))
        return "|b1", {}, 1
    size = int.from_bytes(body[4:8], "little")
    if kind == 3:
        expect(body[1] & 15 < 3, body[2:4] == b"\0\0", 0 < size <= MOST_CHUNK_BYTES)
        encoding = _ENCODINGS[body[1] >> 4]
        return (f"|S{size}", {"h5py_encoding": encoding}, size) if body[1] & 15 == 1 else ("|V", {}, size)
    expect(kind == 9, body[1] == 1, body[2] in _ENCODINGS, body[3] == 0, size == 16, body[8:].startswith(_UINT8))
    return "|O", {}, size


def attribute_of(message: bytes) -> Attribute:
    """Return the attribute that an attribute message describes (IV.A.2.m)."""
    version, flags, *sizes = struct.unpack_from("<BBHHH", message)
    expect(version in (1, 3), flags == 0)
    place = 8 if version == 1 else 9  # what is between says how the name is encoded
    pieces = []
    for size in sizes:
        pieces.append(message[place : place + size])
        place += -(-size // 8) * 8 if version == 1 else size
    name, dtype, space = pieces
    attribute = Attribute(name[:-1], _dtype(dtype), _shape(space)[0], message[place:])
    expect(name.find(0) == len(name) - 1, attribute.n_bytes <= len(attribute.data))
    return attribute


def name_of(message: bytes) -> bytes:
    """Return the name of an attribute that can be read."""
    return attribute_of(message).name
