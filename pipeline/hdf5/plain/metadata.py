"""HDF5's metadata, read by hand: bytes of them, within bounds, their checksums, and trees of names and of chunks.

Every place is checked against the file's end, nothing recurses, and all that is read has a bound: a forged number makes
a wrong answer at worst. What is not as it should be, or merely unusual, is `Odd`.

The numbers in brackets, here and in the files beside this one, are sections of the HDF5 File Format Specification 3.0.
"""

import struct
from typing import Any

import numpy as np

from pipeline.hdf5.files import read_at
from pipeline.hdf5.limits import SMALLEST

__all__ = ["HALVES", "MOST_BYTES", "NOWHERE", "Metadata", "Odd", "checked", "checksum", "expect", "leaves"]

MOST_BYTES = 2**22  # in all, counted as often as they are looked at: places of 100,000 chunks, or a second's checksums
_AT_FIRST, _AT_ONCE = 2**14, 2**12  # bytes of a read

NOWHERE = 2**64 - 1

_NODE = struct.Struct("<4sBBHQQ")
HALVES = {0: 16, 1: 32}  # of what a node of a tree of names, and of one of chunks, can hold


class Odd(Exception):
    """Something that is not plain."""


def expect(*conditions: object) -> None:
    """Go on only if all conditions hold."""
    if not all(conditions):
        raise Odd


class Metadata:
    """The bytes of an open file: the first of them at once, others in a few more reads, and not too many.

    Offsets count from `base`, where its superblock lies, and so does `end`: the file's, until `root` knows the data's.

    Raises
    ------
    OSError
        Here and in all functions that take one, when reading fails.
    """

    def __init__(self, descriptor: int, size: int, base: int = 0, most_bytes: int | None = None) -> None:
        self._descriptor, self._left, self.end, self.base = descriptor, most_bytes or MOST_BYTES, size - base, base
        self.start = self._read(0, min(self.end, _AT_FIRST))
        self._place, self._held = 0, b""

    def at(self, offset: int, n_bytes: int) -> bytes:
        """So many bytes from an offset on, none of them behind the end."""
        stop = offset + n_bytes
        self._left -= n_bytes  # what is looked at again counts again, or a circle would go on for ever
        if offset < SMALLEST or stop > self.end or self._left < 0:
            raise Odd
        if stop <= len(self.start):
            return self.start[offset:stop]
        if offset < self._place or stop > self._place + len(self._held):
            self._place, self._held = offset, self._read(offset, min(max(n_bytes, _AT_ONCE), self.end - offset))
        return self._held[offset - self._place : stop - self._place]

    def _read(self, offset: int, n_bytes: int) -> bytes:
        return read_at(self._descriptor, self.base + offset, n_bytes)


def checked(block: bytes) -> bytes:
    """The block, whose last four bytes are the sum of the others."""
    expect(block[-4:] == checksum(block[:-4]))
    return block


def checksum(data: bytes) -> bytes:
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
    return ((c ^ b) - (b << 24 & m | b >> 8) & m).to_bytes(4, "little")


# -- trees -------------------------------------------------------------------------------------------------------


def leaves(file: Metadata, top: int, kind: int, n_key: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and children of the lowest level of a tree, a B-tree of version 1 (III.A.1).

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
    most = 2 * HALVES[kind]
    block = file.at(address, _NODE.size + 8 * (most * (n_key + 1) + n_key))
    head = _NODE.unpack_from(block)
    expect(0 < head[3] <= most)
    return head, np.frombuffer(block, "<u8", head[3] * (n_key + 1) + n_key, _NODE.size)
