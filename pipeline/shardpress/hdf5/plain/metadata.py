"""Read HDF5 metadata without libhdf5: checked addresses, checksums, B-trees, and the messages of object headers.

Every address is checked against the end of the file, no function is recursive, and every read is limited. A forged
number leads to a wrong answer at worst. Files that are damaged or merely unusual raise `NotPlain`.

Numbers in parentheses, here and in the other modules of `plain`, are sections of the HDF5 File Format Specification
3.0.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from shardpress.hdf5.files import read_at
from shardpress.hdf5.limits import SMALLEST

MOST_BYTES = 2**22
"""Maximum bytes of metadata to read, including repeated reads: an index of 100,000 chunks, or 1 s of checksums."""
NOWHERE = 2**64 - 1
"""Undefined address, which marks an object that does not exist."""
HALVES = {0: 16, 1: 32}
"""Half the capacity of a B-tree node by kind of tree: 0 for names, 1 for chunks."""

_FIRST_READ = 2**14  # bytes
_LATER_READ = 2**12


class NotPlain(Exception):
    """Raised if a file is damaged or not plain."""


def expect(*conditions: object) -> None:
    """Raise `NotPlain` unless all conditions hold."""
    if not all(conditions):
        raise NotPlain


class Metadata:
    """Bytes of an open file. The start is read once, and later bytes are read in windows.

    All functions with an argument of this class may raise `OSError`.
    """

    def __init__(self, descriptor: int, size: int, base: int = 0) -> None:
        self.base = base  # offset of the superblock; all other offsets are relative to it
        self.end = size - base  # `contents.root` replaces the end of the file by the end of the data
        self._descriptor = descriptor
        self._n_left = MOST_BYTES
        self.start = self._read(0, min(self.end, _FIRST_READ))
        self._window_offset = 0
        self._window = b""

    def at(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes from an offset. Raise `NotPlain` if they extend beyond the end, or too much has been read."""
        stop = offset + n_bytes
        self._n_left -= n_bytes  # repeated reads count as well, so that cycles of addresses end
        if offset < SMALLEST or stop > self.end or self._n_left < 0:
            raise NotPlain
        if stop <= len(self.start):
            return self.start[offset:stop]
        first = offset - self._window_offset
        if first < 0 or first + n_bytes > len(self._window):
            self._window_offset = offset
            self._window = self._read(offset, min(max(n_bytes, _LATER_READ), self.end - offset))
            first = 0
        return self._window[first : first + n_bytes]

    def _read(self, offset: int, n_bytes: int) -> bytes:
        return read_at(self._descriptor, self.base + offset, n_bytes)


# -- checksums ---------------------------------------------------------------------------------------------------

_MASK = 0xFFFFFFFF


def _verified(block: bytes) -> bytes:
    expect(block[-4:] == checksum(block[:-4]))
    return block


def checksum(data: bytes) -> bytes:
    """Return HDF5's metadata checksum: lookup3 by Bob Jenkins (2006). `data` must not be empty."""
    n_whole = (len(data) - 1) // 12
    words = struct.unpack(f"<{3 * n_whole + 3}I", data.ljust(12 * n_whole + 12, b"\0"))
    a, b, c = _mix_words(words[:-3], 0xDEADBEEF + len(data) & _MASK)
    a = a + words[-3] & _MASK
    b = b + words[-2] & _MASK
    c = c + words[-1] & _MASK
    return _final_mix(a, b, c).to_bytes(4, "little")


def _mix_words(words: tuple[int, ...], start: int) -> tuple[int, int, int]:
    """Mix words into the state, three at a time. Most of the time for reading metadata is spent here."""
    m = _MASK
    a = b = c = start
    for i in range(0, len(words), 3):
        a = a + words[i]
        b = b + words[i + 1]
        c = c + words[i + 2] & m
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
    return a, b, c


def _final_mix(a: int, b: int, c: int) -> int:
    for first, second, third in ((14, 11, 25), (16, 4, 14)):
        c = (c ^ b) - _rotated(b, first) & _MASK
        a = (a ^ c) - _rotated(c, second) & _MASK
        b = (b ^ a) - _rotated(a, third) & _MASK
    return (c ^ b) - _rotated(b, 24) & _MASK


def _rotated(word: int, n_bits: int) -> int:
    return word << n_bits & _MASK | word >> 32 - n_bits


# -- B-trees of version 1 ----------------------------------------------------------------------------------------

_NODE = struct.Struct("<4sBBHQQ")


class _Node(NamedTuple):
    signature: bytes
    kind: int
    level: int
    left: int
    right: int
    first_key: np.ndarray
    last_key: np.ndarray
    entries: np.ndarray  # keys and children: shape (n_children, n_key + 1)


def leaves(file: Metadata, top: int, kind: int, n_key: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys (n + 1, n_key) and the children (n,) at the lowest level of a version 1 B-tree (III.A.1).

    Both arrays are uint64. `top` is the address of the root node, and `kind` is 0 for names and 1 for chunks. A key has
    `n_key` words of 8 bytes.
    """
    children = np.array([top], dtype=np.uint64)
    keys = np.empty(0, dtype=np.uint64)
    level = -1  # unknown
    while level:
        nodes = _nodes_of_level(file, children.tolist(), kind, n_key, level)
        bounds = np.stack([node.first_key for node in nodes] + [nodes[-1].last_key])
        expect(level < 0 or (keys[:, kind:] == bounds[:, kind:]).all())  # the chunk size, in the first word, may differ
        entries = np.concatenate([node.entries for node in nodes])
        keys = np.concatenate([entries[:, :n_key], bounds[-1:]])
        children = entries[:, n_key]
        level = nodes[0].level
    return keys, children


def _nodes_of_level(file: Metadata, addresses: list[int], kind: int, n_key: int, level: int) -> list[_Node]:
    """Read the nodes at these addresses, the children of all nodes at `level`. Check that none occurs twice."""
    nodes = [_node(file, address, kind, n_key) for address in addresses]
    lefts = [NOWHERE, *addresses[:-1]]
    rights = [*addresses[1:], NOWHERE]
    for node, left, right in zip(nodes, lefts, rights, strict=True):
        expect(node.signature == b"TREE", node.kind == kind, level in (-1, node.level + 1))
        expect(node.left == left, node.right == right)
    return nodes


def _node(file: Metadata, address: int, kind: int, n_key: int) -> _Node:
    most = 2 * HALVES[kind]
    block = file.at(address, _NODE.size + 8 * (most * (n_key + 1) + n_key))
    signature, node_kind, level, n_children, left, right = _NODE.unpack_from(block)
    expect(0 < n_children <= most)
    words = np.frombuffer(block, "<u8", n_children * (n_key + 1) + n_key, _NODE.size)  # one more key than children
    entries = words[:-n_key].reshape(n_children, n_key + 1)
    return _Node(signature, node_kind, level, left, right, words[:n_key], words[-n_key:], entries)


# -- object headers ----------------------------------------------------------------------------------------------

_MOST_BLOCKS = 64  # blocks of an object header
_HARMLESS_FLAGS = 0b101  # bits for a constant message, and for a message that should not be shared
_OLD_HEADER = struct.Struct("<BxHII4x")
_OLD_MESSAGE = struct.Struct("<HHB3x")
_NEW_MESSAGE = struct.Struct("<BHB")
_NEW_MESSAGE_IN_ORDER = struct.Struct("<BHBH")

Messages = Mapping[int, list[bytes]]
"""Messages of an object header by kind."""


class _Block(NamedTuple):
    """Block of messages, which are between `start` and `stop` in the data."""

    data: bytes
    start: int
    stop: int


class _Header(NamedTuple):
    first: _Block
    head: struct.Struct  # format of a message head
    is_old: bool  # version 1, which stores the number of messages
    n_messages: int = 0


class Kind:
    """Message types of object headers (IV.A.2)."""

    DATASPACE = 0x01
    LINK_INFO = 0x02
    DATATYPE = 0x03
    OLD_FILL = 0x04
    FILL = 0x05
    LINK = 0x06
    LAYOUT = 0x08
    GROUP_INFO = 0x0A
    FILTERS = 0x0B
    ATTRIBUTE = 0x0C
    CONTINUATION = 0x10
    SYMBOL_TABLE = 0x11
    MODIFIED = 0x12
    DRIVER = 0x14
    ATTRIBUTE_INFO = 0x15
    N_LINKS = 0x16

    ANYWHERE = frozenset({ATTRIBUTE, MODIFIED, ATTRIBUTE_INFO, N_LINKS})
    IN_GROUPS = ANYWHERE | {SYMBOL_TABLE, LINK_INFO, GROUP_INFO, LINK}
    IN_DATASETS = ANYWHERE | {DATASPACE, DATATYPE, OLD_FILL, FILL, LAYOUT, FILTERS}


def messages(file: Metadata, address: int) -> Messages:
    """Return the messages of an object header by kind (IV.A.1)."""
    by_kind = bodies_of(file, address, _HARMLESS_FLAGS)
    for kind, bodies in by_kind.items():
        # HDF5 uses the first message of a kind, but other readers may use a different one.
        expect(len(bodies) == 1 or kind in (Kind.ATTRIBUTE, Kind.LINK))
    for body in by_kind.get(Kind.MODIFIED, []):
        expect(len(body) >= 8, body[0] == 1)
    for body in by_kind.get(Kind.N_LINKS, []):
        expect(len(body) >= 5, body[0] == 0)
    for body in by_kind.get(Kind.ATTRIBUTE_INFO, []):
        expect_none_elsewhere(body, "<H")
    return by_kind


def is_group(header: Messages) -> bool:
    return header.keys() <= Kind.IN_GROUPS and (Kind.SYMBOL_TABLE in header) != (Kind.LINK_INFO in header)


def expect_none_elsewhere(info: bytes, form: str) -> None:
    """Check that links or attributes are stored in the header, not in a separate heap (IV.A.2.c, IV.A.2.v)."""
    version, flags = info[:2]
    has_next_number = flags & 1
    start = 2 + struct.calcsize(form) * has_next_number
    nowhere = b"\xff" * 8 * (2 + (flags >> 1))
    expect(version == 0, flags < 4, info[start : start + len(nowhere)] == nowhere)
    expect(not has_next_number or struct.unpack_from(form, info, 2)[0] >= 0)


def bodies_of(file: Metadata, address: int, allowed: int = 0xFF) -> dict[int, list[bytes]]:
    """Return the bodies of all non-empty messages by kind. Raise `NotPlain` if a message has flags not in `allowed`."""
    bodies: dict[int, list[bytes]] = {}
    header = _header(file, address)
    n_seen = 0
    blocks = [header.first]
    for block in blocks:  # each continuation appends a block during this loop
        found = _messages_in(block, header, allowed)
        n_seen += len(found)
        for kind, body in found:
            if kind == Kind.CONTINUATION:
                expect(len(blocks) < _MOST_BLOCKS)  # otherwise a cycle of blocks would never end
                blocks.append(_next_block(file, header.is_old, *struct.unpack_from("<QQ", body)))
            elif kind:
                bodies.setdefault(kind, []).append(body)
    expect(n_seen == header.n_messages or not header.is_old)
    return bodies


def _messages_in(block: _Block, header: _Header, allowed: int) -> list[tuple[int, bytes]]:
    """Return the kind and body of each message in a block. Kind 0 is an empty message."""
    found = []
    head = header.head
    place = block.start
    while place + head.size <= block.stop:
        kind, size, flags = head.unpack_from(block.data, place)[:3]
        start = place + head.size
        place = start + size
        expect(place <= block.stop, not flags & ~allowed)
        found.append((kind, block.data[start:place]))
    # Newer headers without empty messages may end with a gap that is too short for a message.
    expect(place == block.stop or not (header.is_old or any(kind == 0 for kind, _ in found)))
    return found


def _header(file: Metadata, address: int) -> _Header:
    prefix = file.at(address, _OLD_HEADER.size)
    if prefix[:4] != b"OHDR":
        version, n_messages, n_links, n_bytes = _OLD_HEADER.unpack(prefix)
        expect(version == 1, n_links)
        first = _next_block(file, True, address + _OLD_HEADER.size, n_bytes)
        return _Header(first, _OLD_MESSAGE, True, n_messages)
    version, flags = prefix[4:6]
    expect(version == 2, flags < 64)
    head = _NEW_MESSAGE_IN_ORDER if flags & 4 else _NEW_MESSAGE
    return _Header(_first_new_block(file, address, flags), head, False)


def _first_new_block(file: Metadata, address: int, flags: int) -> _Block:
    has_times = bool(flags & 32)
    has_limits = bool(flags & 16)
    start = 6 + 16 * has_times + 4 * has_limits
    first = start + (1 << (flags & 3))
    n_bytes = int.from_bytes(file.at(address + start, first - start), "little")
    block = _verified(file.at(address, first + n_bytes + 4))
    return _Block(block, first, first + n_bytes)


def _next_block(file: Metadata, is_old: bool, address: int, n_bytes: int) -> _Block:
    block = file.at(address, n_bytes)
    if is_old:
        return _Block(block, 0, n_bytes)
    expect(block[:4] == b"OCHK")
    return _Block(_verified(block), 4, n_bytes - 4)
