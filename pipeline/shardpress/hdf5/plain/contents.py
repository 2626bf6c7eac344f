"""Read groups of plain files: the root group, and links. Soft and external links are rejected."""

import struct
from collections.abc import Iterator

from shardpress.hdf5.plain.metadata import (
    HALVES,
    NOWHERE,
    Kind,
    Messages,
    Metadata,
    NotPlain,
    checksum,
    expect,
    expect_none_elsewhere,
    is_group,
    leaves,
    messages,
)
from shardpress.hdf5.superblock import SIGNATURE, Superblock

_MOST_NAMES = 1000  # in a group
_LONGEST_NAME = 2**10  # bytes
_MOST_GAPS = 1000  # gaps in the heap with the names of a group

_NEWER = (b"\2\x08\x08\0", b"\3\x08\x08\0")  # versions 2 and 3, with addresses and lengths of 8 bytes
_OLDEST = SIGNATURE + b"\0\0\0\0\0\x08\x08\0"
_GROUP_SIZES = struct.Struct("<HHI")
_ROOT_ENTRY = struct.Struct("<QI4x16s")
_NAMES = struct.Struct("<4sBxH")
_NAME = struct.Struct("<QQI20x")
_HEAP = struct.Struct("<4s4xQQQ")
_MOST_IN_LEAF = 8


def root(file: Metadata) -> Messages:
    """Return the messages of the root group (II.A), and set `file.end` to the end of the data."""
    start = file.start
    block = Superblock.of(start)
    expect(block.width == 8, block.second == NOWHERE, block.base in (0, file.base))
    expect(block.base <= block.end <= block.base + file.end)
    file.end = block.end - block.base
    if block.version == 0:
        expect(block.fourth == NOWHERE)
        return _oldest_root(file)
    expect(start[:8] == SIGNATURE, start[8:12] in _NEWER, start[44:48] == checksum(start[:44]))
    return messages(file, block.fourth)


def _oldest_root(file: Metadata) -> Messages:
    """Return the messages of the root group for a superblock of version 0, which has a symbol table entry (III.C)."""
    start = file.start
    expect(start[:16] == _OLDEST)
    expect(_GROUP_SIZES.unpack_from(start, 16) == (_MOST_IN_LEAF // 2, HALVES[0], 0))
    address, cached, table = _ROOT_ENTRY.unpack_from(start, 64)
    group = messages(file, address)
    expect(cached == 0 or (cached == 1 and group[Kind.SYMBOL_TABLE][0][:16] == table))
    return group


def links(file: Metadata, group: Messages) -> dict[bytes, int]:
    """Map the names in a group to the addresses of the objects, in name order. Only hard links are allowed."""
    pairs = _links_in_order(file, group)
    links = dict(pairs)
    expect(len(links) == len(pairs) <= _MOST_NAMES)
    expect(not any(name in (b"", b".") or b"/" in name for name in links))
    return links


def _links_in_order(file: Metadata, group: Messages) -> list[tuple[bytes, int]]:
    expect(is_group(group))
    if Kind.SYMBOL_TABLE in group:
        tree, heap = struct.unpack_from("<QQ", group[Kind.SYMBOL_TABLE][0])
        return list(_old_links(file, tree, heap))
    expect_none_elsewhere(group[Kind.LINK_INFO][0], "<q")
    return sorted(map(_new_link, group.get(Kind.LINK, [])))


def _new_link(body: bytes) -> tuple[bytes, int]:
    """Return the name and the address of a link message (IV.A.2.g)."""
    version, flags = body[:2]
    has_type = bool(flags & 8)
    has_order = bool(flags & 4)
    has_encoding = bool(flags & 16)
    expect(version == 1, flags < 32, not has_type or body[2] == 0)  # 0 means a hard link
    place = 2 + has_type + 8 * has_order + has_encoding
    start = place + (1 << (flags & 3))
    stop = start + int.from_bytes(body[place:start], "little")
    name = body[start:stop]
    expect(len(body) == stop + 8, not has_encoding or body[place - 1] < 2, b"\0" not in name)
    return name, int.from_bytes(body[stop:], "little")


def _old_links(file: Metadata, tree: int, heap: int) -> Iterator[tuple[bytes, int]]:
    """Yield the entries of a symbol table (III.B). The entries are in nodes below a B-tree, and the names in a heap."""
    names = _names(file, heap)
    keys, nodes = leaves(file, tree, 0, 1)
    expect(len(nodes) <= _MOST_NAMES)
    bounds = keys[:, 0].tolist()
    last = b""
    for bound, node in zip(bounds[:-1], nodes.tolist(), strict=True):
        low = _name_at(names, bound)
        expect(last <= low)
        last = low
        for name, address in _entries(file, node, names):
            expect(last < name)
            yield name, address
            last = name
    expect(last <= _name_at(names, bounds[-1]))


def _entries(file: Metadata, node: int, names: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the entries of one symbol table node (III.C)."""
    block = file.at(node, _NAMES.size + _MOST_IN_LEAF * _NAME.size)
    signature, version, n = _NAMES.unpack_from(block)
    expect(signature == b"SNOD", version == 1, 0 < n <= _MOST_IN_LEAF)
    for i in range(n):
        offset, address, cached = _NAME.unpack_from(block, _NAMES.size + i * _NAME.size)
        expect(cached in (0, 1))  # 2 is a soft link
        yield _name_at(names, offset), address


def _names(file: Metadata, heap: int) -> bytes:
    """Return the data of a local heap (III.D)."""
    signature, n_bytes, free, place = _HEAP.unpack(file.at(heap, _HEAP.size))
    expect(signature == b"HEAP", file.at(heap + 4, 1) == b"\0")
    data = file.at(place, n_bytes)
    for _ in range(_MOST_GAPS):
        if free == 1:  # end of the free list; libhdf5 checks the gaps, although they contain no names
            return data
        next_free, n_free = struct.unpack_from("<QQ", data, free)
        expect(next_free, free + n_free <= n_bytes)
        free = next_free
    raise NotPlain


def _name_at(names: bytes, offset: int) -> bytes:
    end = names.index(0, offset, offset + _LONGEST_NAME)  # limited, because many entries could share a long name
    return names[offset:end]
