"""Object headers: what is said of a group or a dataset, message by message."""

import struct
from collections.abc import Mapping

from pipeline.hdf5.plain.metadata import Metadata, checked, expect

__all__ = ["Kind", "Messages", "bodies_of", "expect_none_elsewhere", "is_group", "messages"]

_MOST_BLOCKS = 64  # of an object's header
_HARMLESS_FLAGS = 0b101  # constant; not to be shared
_OLD_HEADER, _OLD_MESSAGE = struct.Struct("<BxHII4x"), struct.Struct("<HHB3x")
_NEW_MESSAGE, _NEW_MESSAGE_IN_ORDER = struct.Struct("<BHB"), struct.Struct("<BHBH")
_Block = tuple[bytes, int, int]  # bytes, and where in them messages begin and end

Messages = Mapping[int, list[bytes]]


class Kind:
    """Kinds of messages (IV.A.2)."""

    DATASPACE, LINK_INFO, DATATYPE, OLD_FILL, FILL, LINK = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
    LAYOUT, GROUP_INFO, FILTERS, ATTRIBUTE = 0x08, 0x0A, 0x0B, 0x0C
    CONTINUATION, SYMBOL_TABLE, MODIFIED, DRIVER, ATTRIBUTE_INFO, N_LINKS = 0x10, 0x11, 0x12, 0x14, 0x15, 0x16

    ANYWHERE = frozenset({ATTRIBUTE, MODIFIED, ATTRIBUTE_INFO, N_LINKS})
    IN_GROUPS = ANYWHERE | {SYMBOL_TABLE, LINK_INFO, GROUP_INFO, LINK}
    IN_DATASETS = ANYWHERE | {DATASPACE, DATATYPE, OLD_FILL, FILL, LAYOUT, FILTERS}


def messages(file: Metadata, address: int) -> Messages:
    """The messages of an object's header, by kind (IV.A.1)."""
    by_kind = bodies_of(file, address, _HARMLESS_FLAGS)
    # HDF5 takes the first of several; which one that is, two readers must not have to agree on.
    expect(all(len(bodies) == 1 or kind in (Kind.ATTRIBUTE, Kind.LINK) for kind, bodies in by_kind.items()))
    for body in by_kind.get(Kind.MODIFIED, []):
        expect(len(body) >= 8, body[0] == 1)
    for body in by_kind.get(Kind.N_LINKS, []):
        expect(len(body) >= 5, body[0] == 0)
    for body in by_kind.get(Kind.ATTRIBUTE_INFO, []):
        expect_none_elsewhere(body, "<H")
    return by_kind


def bodies_of(file: Metadata, address: int, allowed: int = 0xFF) -> dict[int, list[bytes]]:
    """The bodies of all messages that say something, by kind, none of which may have other flags."""
    bodies: dict[int, list[bytes]] = {}
    blocks, head, n_left = _first_block(file, address)
    is_old = head is _OLD_MESSAGE
    for block, place, stop in blocks:  # to which each continuation adds one
        n_empty = 0
        while place + head.size <= stop:
            kind, size, flags = head.unpack_from(block, place)[:3]
            start, place, n_left = place + head.size, place + head.size + size, n_left - 1
            expect(place <= stop, not flags & ~allowed)
            if kind == Kind.CONTINUATION:
                expect(len(blocks) < _MOST_BLOCKS)  # or they would lead in a circle for ever
                blocks.append(_next_block(file, is_old, *struct.unpack_from("<QQ", block[start:place])))
            elif kind:
                bodies.setdefault(kind, []).append(block[start:place])
            else:
                n_empty += 1
        # What is too short for an empty message may be left, in newer headers without empty ones.
        expect(place == stop or not (is_old or n_empty))
    expect(n_left == 0 or not is_old)
    return bodies


def expect_none_elsewhere(info: bytes, form: str) -> None:
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
    block = checked(file.at(address, first + n_bytes + 4))
    return [(block, first, first + n_bytes)], _NEW_MESSAGE_IN_ORDER if flags & 4 else _NEW_MESSAGE, 0


def _next_block(file: Metadata, is_old: bool, address: int, n_bytes: int) -> _Block:
    block = file.at(address, n_bytes)
    if is_old:
        return block, 0, n_bytes
    expect(block[:4] == b"OCHK")
    return checked(block), 4, n_bytes - 4
