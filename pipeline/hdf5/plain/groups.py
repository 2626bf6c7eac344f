"""Groups: the root, and which object stands under which name."""

import struct
from collections.abc import Iterator

from pipeline.hdf5.plain.headers import Kind, Messages, expect_none_elsewhere, is_group, messages
from pipeline.hdf5.plain.metadata import HALVES, NOWHERE, Metadata, Odd, checksum, expect, leaves
from pipeline.hdf5.superblock import SIGNATURE, Superblock

__all__ = ["MOST_NAMES", "links", "root"]

MOST_NAMES, _LONGEST_NAME = 1000, 2**10  # in a group
_MOST_GAPS = 1000  # in what holds a group's names

_NEWER, _OLDEST = (b"\2\x08\x08\0", b"\3\x08\x08\0"), SIGNATURE + b"\0\0\0\0\0\x08\x08\0"
_GROUP_SIZES, _ROOT_ENTRY = struct.Struct("<HHI"), struct.Struct("<QI4x16s")
_NAMES, _NAME, _HEAP = struct.Struct("<4sBxH"), struct.Struct("<QQI20x"), struct.Struct("<4s4xQQQ")
_MOST_IN_LEAF = 8


def root(file: Metadata) -> Messages:
    """The root group, which the superblock names (II.A; in version 0 by an entry as of III.C)."""
    start, block = file.start, Superblock.of(file.start)
    expect(block.width == 8, block.second == NOWHERE, block.base in (0, file.base))
    expect(block.base <= block.end <= block.base + file.end)
    file.end = block.end - block.base  # which is told as the file's, unlike all addresses
    if block.version:
        expect(start[:8] == SIGNATURE, start[8:12] in _NEWER, start[44:48] == checksum(start[:44]))
        return messages(file, block.fourth)
    expect(start[:16] == _OLDEST, block.fourth == NOWHERE)
    expect(_GROUP_SIZES.unpack_from(start, 16) == (_MOST_IN_LEAF // 2, HALVES[0], 0))
    address, cached, table = _ROOT_ENTRY.unpack_from(start, 64)
    group = messages(file, address)
    expect(cached == 0 or (cached == 1 and group[Kind.SYMBOL_TABLE][0][:16] == table))
    return group


def links(file: Metadata, group: Messages) -> dict[bytes, int]:
    """Which object stands under which name, in the names' order; hard links only."""
    expect(is_group(group))
    if Kind.SYMBOL_TABLE in group:
        pairs = list(_old_links(file, *struct.unpack_from("<QQ", group[Kind.SYMBOL_TABLE][0])))
    else:
        expect_none_elsewhere(group[Kind.LINK_INFO][0], "<q")
        pairs = sorted(map(_new_link, group.get(Kind.LINK, [])))
    links = dict(pairs)
    expect(len(links) == len(pairs) <= MOST_NAMES, not any(name in (b"", b".") or b"/" in name for name in links))
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
