"""HDF5's metadata, read by hand: object headers, groups and trees, as far as they are plain.

Every place is checked against the file's end, nothing recurses, and all that is read has a bound: a forged number makes
a wrong answer at worst. What is not as it should be, or merely unusual, is `Odd`.

The numbers in brackets are sections of the HDF5 File Format Specification 3.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.hdf5.files import read_into
from pipeline.hdf5.superblock import SIGNATURE, SMALLEST

__all__ = [
    "MOST_BYTES",
    "NOWHERE",
    "Kind",
    "Messages",
    "Metadata",
    "Odd",
    "expect",
    "is_group",
    "leaves",
    "links",
    "messages",
    "root",
]

MOST_BYTES = 2**22  # in all, counted as often as they are looked at: places of 100,000 chunks, or a second's checksums
MOST_NAMES, _LONGEST_NAME = 1000, 2**10  # in a group
_MOST_BLOCKS = 64  # of an object's header
_MOST_GAPS = 1000  # in what holds a group's names
_AT_FIRST, _AT_ONCE = 2**14, 2**12  # bytes of a read

NOWHERE = 2**64 - 1
Messages = Mapping[int, list[bytes]]


class Kind:
    """Kinds of messages (IV.A.2)."""

    DATASPACE, LINK_INFO, DATATYPE, OLD_FILL, FILL, LINK = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
    LAYOUT, GROUP_INFO, FILTERS, ATTRIBUTE = 0x08, 0x0A, 0x0B, 0x0C
    CONTINUATION, SYMBOL_TABLE, MODIFIED, ATTRIBUTE_INFO, N_LINKS = 0x10, 0x11, 0x12, 0x15, 0x16

    ANYWHERE = frozenset({ATTRIBUTE, MODIFIED, ATTRIBUTE_INFO, N_LINKS})
    IN_GROUPS = ANYWHERE | {SYMBOL_TABLE, LINK_INFO, GROUP_INFO, LINK}
    IN_DATASETS = ANYWHERE | {DATASPACE, DATATYPE, OLD_FILL, FILL, LAYOUT, FILTERS}


class Odd(Exception):
    """Something that is not plain."""


def expect(*conditions: object) -> None:
    """Go on only if all conditions hold."""
    if not all(conditions):
        raise Odd


# -- bytes -------------------------------------------------------------------------------------------------------

_SUPERBLOCK_0, _OLDEST = struct.Struct("<16s2HI4Q8xQI4x16s"), SIGNATURE + b"\0\0\0\0\0\x08\x08\0"
_SUPERBLOCK_2, _NEWER = struct.Struct("<12s4QI"), [SIGNATURE + bytes([version, 8, 8, 0]) for version in (2, 3)]


class Metadata:
    """The bytes of a file: the first of them at once, others in a few more reads, and not too many.

    Parameters
    ----------
    descriptor : int
    size : int
        Of the file, in bytes.
    base : int
        Where its superblock lies. Offsets count from there, and so does `end`, where the data end, as soon as that is
        known.

    Raises
    ------
    OSError
        Here and in all functions below that take one, when reading fails.
    """

    def __init__(self, descriptor: int, size: int, base: int = 0) -> None:
        self._descriptor, self._left, self.end, self.base = descriptor, MOST_BYTES, size - base, base
        self.start = self._read(0, min(self.end, _AT_FIRST))
        self._place, self._held = 0, b""

    def at(self, offset: int, n_bytes: int) -> bytes:
        """So many bytes from an offset on, none of them behind the end."""
        stop = offset + n_bytes
        self._left -= n_bytes
        if offset < SMALLEST or stop > self.end or self._left < 0:
            raise Odd
        if stop <= len(self.start):
            return self.start[offset:stop]
        if offset < self._place or stop > self._place + len(self._held):
            self._place, self._held = offset, self._read(offset, min(max(n_bytes, _AT_ONCE), self.end - offset))
        return self._held[offset - self._place : stop - self._place]

    def _read(self, offset: int, n_bytes: int) -> bytes:
        buffer = bytearray(n_bytes)
        read_into(self._descriptor, memoryview(buffer), self.base + offset)
        return bytes(buffer)


def root(file: Metadata) -> Messages:
    """The root group, which the superblock names (II.A; in version 0 by an entry as of III.C)."""
    start, size = file.start, file.end
    if start[8] == 0:
        numbers = _SUPERBLOCK_0.unpack_from(start)
        plain, leaf, half, flags, base, free, end, driver, address, cached, table = numbers
        expect(plain == _OLDEST, 2 * leaf == _MOST_IN_LEAF, half == _HALVES[0], flags == 0)
        expect(free == driver == NOWHERE)
    else:
        plain, base, extension, end, address, checksum = _SUPERBLOCK_2.unpack_from(start)
        expect(plain in _NEWER, extension == NOWHERE, checksum == _checksum(start[:44]))
        cached, table = 0, b""
    expect(base in (0, file.base), base <= end <= base + size)
    file.end = end - base  # which is told as the file's, unlike all addresses
    group = messages(file, address)
    expect(cached == 0 or (cached == 1 and group[Kind.SYMBOL_TABLE][0][:16] == table))
    return group


# -- headers -----------------------------------------------------------------------------------------------------

_HARMLESS_FLAGS = 0b101  # constant; not to be shared
_OLD_HEADER, _OLD_MESSAGE = struct.Struct("<BxHII4x"), struct.Struct("<HHB3x")
_NEW_MESSAGE, _NEW_MESSAGE_IN_ORDER = struct.Struct("<BHB"), struct.Struct("<BHBH")
_Block = tuple[bytes, int, int]  # bytes, and where in them messages begin and end


def messages(file: Metadata, address: int) -> Messages:
    """The messages of an object's header, by kind (IV.A.1)."""
    found: dict[int, list[bytes]] = {}
    blocks, head, n = _first_block(file, address)
    is_old = head is _OLD_MESSAGE
    for block, place, stop in blocks:
        n_empty = 0
        while place + head.size <= stop:
            kind, size, flags = head.unpack_from(block, place)[:3]
            place += head.size + size
            body = block[place - size : place]
            n -= 1
            expect(place <= stop, not flags & ~_HARMLESS_FLAGS, len(blocks) <= _MOST_BLOCKS)
            if kind == Kind.CONTINUATION:
                blocks.append(_next_block(file, is_old, *struct.unpack_from("<QQ", body)))
            elif kind:
                found.setdefault(kind, []).append(body)
            else:
                n_empty += 1
        expect(place == stop or not (is_old or n_empty))  # what is left is too short for an empty message
    expect(n == 0 or not is_old)
    expect(all(len(bodies) == 1 or kind in (Kind.ATTRIBUTE, Kind.LINK) for kind, bodies in found.items()))
    for body in found.get(Kind.MODIFIED, []):
        expect(len(body) >= 8, body[0] == 1)
    for body in found.get(Kind.N_LINKS, []):
        expect(len(body) >= 5, body[0] == 0)
    for body in found.get(Kind.ATTRIBUTE_INFO, []):
        _expect_none_elsewhere(body, "<H")
    return found


def _expect_none_elsewhere(info: bytes, form: str) -> None:
    """That links, or attributes, are not so many that they lie in a heap of their own (IV.A.2.c, IV.A.2.v)."""
    version, flags = info[:2]
    place = 2 + struct.calcsize(form) * (flags & 1)
    addresses = info[place : place + 8 * (2 + (flags >> 1))]
    expect(version == 0, flags < 4, addresses == b"\xff" * 8 * (2 + (flags >> 1)))
    expect(not flags & 1 or struct.unpack_from(form, info, 2)[0] >= 0)  # the next one's number


def is_group(header: Messages) -> bool:
    """Whether these are a group's."""
    return header.keys() <= Kind.IN_GROUPS and (Kind.SYMBOL_TABLE in header) != (Kind.LINK_INFO in header)


def _first_block(file: Metadata, address: int) -> tuple[list[_Block], struct.Struct, int]:
    """Where a header's messages begin, in what form each, and how many there are, where that is said."""
    prefix = file.at(address, _OLD_HEADER.size)
    if prefix[:4] != b"OHDR":
        version, n, n_links, n_bytes = _OLD_HEADER.unpack(prefix)
        expect(version == 1, n_links)
        return [_next_block(file, True, address + _OLD_HEADER.size, n_bytes)], _OLD_MESSAGE, n
    version, flags = prefix[4:6]
    expect(version == 2, flags < 64)
    start = 6 + 16 * bool(flags & 32) + 4 * bool(flags & 16)
    first = start + (1 << (flags & 3))
    n_bytes = int.from_bytes(file.at(address + start, first - start), "little")
    block = _checked(file.at(address, first + n_bytes + 4))
    return [(block, first, first + n_bytes)], _NEW_MESSAGE_IN_ORDER if flags & 4 else _NEW_MESSAGE, 0


def _next_block(file: Metadata, is_old: bool, address: int, n_bytes: int) -> _Block:
    block = file.at(address, n_bytes)
    if is_old:
        return block, 0, n_bytes
    expect(block[:4] == b"OCHK")
    return _checked(block), 4, n_bytes - 4


def _checked(block: bytes) -> bytes:
    expect(int.from_bytes(block[-4:], "little") == _checksum(block[:-4]))
    return block


def _checksum(data: bytes) -> int:
    """Bob Jenkins's lookup3 (2006), as HDF5 has it for metadata; `data` is not empty."""
    n_whole = (len(data) - 1) // 12
    words = struct.unpack(f"<{3 * n_whole + 3}I", data.ljust(12 * n_whole + 12, b"\0"))
    m = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & m
    for i in range(0, 3 * n_whole, 3):
        a, b, c = a + words[i], b + words[i + 1], c + words[i + 2] & m
        a = (a - c & m) ^ (c << 4 & m | c >> 28)
        c = c + b & m
        b = (b - a & m) ^ (a << 6 & m | a >> 26)
        a = a + c & m
        c = (c - b & m) ^ (b << 8 & m | b >> 24)
        b = b + a & m
        a = (a - c & m) ^ (c << 16 & m | c >> 16)
        c = c + b & m
        b = (b - a & m) ^ (a << 19 & m | a >> 13)
        a = a + c & m
        c = (c - b & m) ^ (b << 4 & m | b >> 28)
        b = b + a & m
    a, b, c = a + words[-3] & m, b + words[-2] & m, c + words[-1] & m
    c = (c ^ b) - (b << 14 & m | b >> 18) & m
    a = (a ^ c) - (c << 11 & m | c >> 21) & m
    b = (b ^ a) - (a << 25 & m | a >> 7) & m
    c = (c ^ b) - (b << 16 & m | b >> 16) & m
    a = (a ^ c) - (c << 4 & m | c >> 28) & m
    b = (b ^ a) - (a << 14 & m | a >> 18) & m
    return (c ^ b) - (b << 24 & m | b >> 8) & m


# -- groups ------------------------------------------------------------------------------------------------------

_NAMES, _NAME, _HEAP = struct.Struct("<4sBxH"), struct.Struct("<QQI20x"), struct.Struct("<4s4xQQQ")
_MOST_IN_LEAF = 8


def links(file: Metadata, group: Messages) -> dict[bytes, int]:
    """Which object stands under which name, in the names' order; hard links only."""
    expect(is_group(group))
    if Kind.SYMBOL_TABLE in group:
        found = list(_old_links(file, *struct.unpack_from("<QQ", group[Kind.SYMBOL_TABLE][0])))
    else:
        _expect_none_elsewhere(group[Kind.LINK_INFO][0], "<q")
        found = sorted(map(_new_link, group.get(Kind.LINK, [])))
    links = dict(found)
    expect(len(links) == len(found) <= MOST_NAMES, not any(name in (b"", b".") or b"/" in name for name in links))
    return links


def _new_link(body: bytes) -> tuple[bytes, int]:
    """A link message (IV.A.2.g)."""
    version, flags = body[:2]
    expect(version == 1, flags < 32, not flags & 8 or body[2] == 0)  # any other type is not a hard link
    place = 2 + bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
    start = place + (1 << (flags & 3))
    stop = start + int.from_bytes(body[place:start], "little")
    expect(len(body) == stop + 8, not flags & 16 or body[place - 1] < 2, b"\0" not in body[start:stop])
    return body[start:stop], int.from_bytes(body[stop:], "little")


def _old_links(file: Metadata, tree: int, heap: int) -> Iterator[tuple[bytes, int]]:
    """The entries of a symbol table (III.B, III.C): in nodes below a tree, their names in a heap."""
    names = _names(file, heap)
    keys, nodes = leaves(file, tree, 0, 1)
    expect(len(nodes) <= MOST_NAMES)
    bounds, last = keys[:, 0].tolist(), b""
    for bound, node in zip(bounds, nodes.tolist(), strict=False):
        block = file.at(node, _NAMES.size + _MOST_IN_LEAF * _NAME.size)
        signature, version, n = _NAMES.unpack_from(block)
        low = _name_at(names, bound)
        expect(signature == b"SNOD", version == 1, 0 < n <= _MOST_IN_LEAF, last <= low)
        last = low
        for i in range(n):
            offset, address, cached = _NAME.unpack_from(block, _NAMES.size + i * _NAME.size)
            name = _name_at(names, offset)
            expect(last < name, cached in (0, 1))  # 2 is a soft link
            yield name, address
            last = name
    expect(last <= _name_at(names, bounds[-1]))


def _names(file: Metadata, heap: int) -> bytes:
    """What a local heap holds (III.D)."""
    signature, n_bytes, free, place = _HEAP.unpack(file.at(heap, _HEAP.size))
    expect(signature == b"HEAP", file.at(heap + 4, 1) == b"\0")
    data = file.at(place, n_bytes)
    for _ in range(_MOST_GAPS):
        if free == 1:  # the end of their list; in gaps there are no names, but HDF5 looks at them
            return data
        after, n_free = struct.unpack_from("<QQ", data, free)
        expect(after, free + n_free <= n_bytes)
        free = after
    raise Odd


def _name_at(names: bytes, offset: int) -> bytes:
    return names[offset : names.index(0, offset, offset + _LONGEST_NAME)]  # or many would share one that is endless


# -- trees -------------------------------------------------------------------------------------------------------

_NODE = struct.Struct("<4sBBHQQ")
_HALVES = {0: 16, 1: 32}  # of what a node of a tree of names, and of one of chunks, can hold


def leaves(file: Metadata, top: int, kind: int, n_key: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and children of a tree's lowest level (III.A.1).

    Parameters
    ----------
    file : Metadata
    top : int
        Address of its one node at the highest level.
    kind : int
        0 of names, 1 of chunks.
    n_key : int
        Words of 8 bytes in a key.

    Returns
    -------
    keys : ndarray of shape (n + 1, n_key), uint64
    children : ndarray of shape (n,), uint64
    """
    children, level = np.array([top], dtype=np.uint64), -1
    keys = np.empty(0, dtype=np.uint64)
    while level:
        addresses = children.tolist()
        nodes = [_node(file, address, kind, n_key) for address in addresses]
        for i, (signature, its_kind, its_level, _, left, right) in enumerate(head for head, _ in nodes):
            expect(signature == b"TREE", its_kind == kind, level in (-1, its_level + 1))
            # With their neighbours as they must be, no node is there twice, and nothing is left out.
            expect(left == (addresses[i - 1] if i else NOWHERE))
            expect(right == (addresses[i + 1] if i + 1 < len(addresses) else NOWHERE))
        words = [words for _, words in nodes]
        entries = np.concatenate([each[:-n_key].reshape(-1, n_key + 1) for each in words])
        bounds = np.stack([each[:n_key] for each in words] + [words[-1][-n_key:]])
        expect(level < 0 or (keys[:, kind:] == bounds[:, kind:]).all())  # a chunk's size may differ
        keys = np.concatenate([entries[:, :n_key], bounds[-1:]])
        children, level = entries[:, n_key], nodes[0][0][2]
    return keys, children


def _node(file: Metadata, address: int, kind: int, n_key: int) -> tuple[tuple[Any, ...], np.ndarray]:
    """A node's head, and keys and children in turn."""
    most = 2 * _HALVES[kind]
    block = file.at(address, _NODE.size + 8 * (most * (n_key + 1) + n_key))
    head = _NODE.unpack_from(block)
    expect(0 < head[3] <= most)
    return head, np.frombuffer(block, "<u8", head[3] * (n_key + 1) + n_key, _NODE.size)
