"""Change structures of HDF5 files that include a checksum, and correct the checksum.

A structure with a wrong checksum is refused before a parser reads it. If the checksum is corrected, the change reaches
the parser, as in a forged file. Section numbers refer to the HDF5 File Format Specification 3.0.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Signatures of the superblock (II.A), object headers and their continuations (IV.A.1.b), B-trees of version 2
# (III.A.2), fractal heaps (III.G), extensible arrays (VII.D), fixed arrays (VII.C) and shared messages (III.F).
_SIGNATURES = re.compile(
    rb"\x89HDF\r\n\x1a\n[\x02\x03]|OHDR\x02|OCHK|BTHD|BTIN|BTLF|FRHP|FHDB|FHIB|FSHD|FSSE|EAHD|EAIB|EASB|EADB"
    rb"|FAHD|FADB|SMTB|SMLI"
)
_LONGEST = (256, 1024, 4096)  # lengths of structures to try, in bytes; the short ones first, since most are short
_SHORTEST = 8
_MASK = 0xFFFFFFFF
_WIDTH = 4  # bytes of a checksum
# The header of a fractal heap's direct block contains its checksum, computed with zeros in that place (III.G.2).
_HEAP_BLOCK = b"FHDB"
_HEAP_BLOCK_SIZES = [512 << i for i in range(8)]
_HEAP_CHECKSUM_PLACES = range(14, 22)  # after the signature, version, address, and an offset of 1 to 8 bytes


@dataclass(frozen=True)
class Structure:
    """A part of a file that a checksum covers.

    Attributes
    ----------
    name : str
        Signature of the structure.
    start, stop : int
        Start and end of the bytes, without a checksum that follows them.
    place : int
        Position of the checksum.
    """

    name: str
    start: int
    stop: int
    place: int


def structures_of(content: bytes) -> list[Structure]:
    """Return the structures of a valid file whose checksums are correct."""
    found = []
    for match in _SIGNATURES.finditer(content):
        name = match[0][:4].decode("latin-1").strip("\x89")
        start = match.start()
        if match[0] == _HEAP_BLOCK:
            structure = _heap_block(content, start)
        else:
            structure = next(filter(None, (_ended(content, name, start, max_length) for max_length in _LONGEST)), None)
        if structure is not None:
            found.append(structure)
    return found


def repair(content: bytearray, structures: Sequence[Structure]) -> None:
    """Recompute the checksums of structures from their current content."""
    for each in structures:
        if each.place + _WIDTH <= len(content) and each.stop <= len(content):
            content[each.place : each.place + _WIDTH] = _checksum_of(bytes(content), each)


def _checksum_of(content: bytes, structure: Structure) -> bytes:
    data = bytearray(content[structure.start : structure.stop])
    if structure.place < structure.stop:
        inside = structure.place - structure.start
        data[inside : inside + _WIDTH] = bytes(_WIDTH)
    return checksum(bytes(data))


def _heap_block(content: bytes, start: int) -> Structure | None:
    for place in _HEAP_CHECKSUM_PLACES:
        for size in _HEAP_BLOCK_SIZES:
            block = Structure("FHDB", start, start + size, start + place)
            stored = content[block.place : block.place + _WIDTH]
            if block.stop <= len(content) and _checksum_of(content, block) == stored:
                return block
    return None


def _ended(content: bytes, name: str, start: int, max_length: int) -> Structure | None:
    """Return the shortest structure of at most `max_length` bytes from `start` that is followed by its checksum."""
    data = np.frombuffer(content, np.uint8, min(max_length, len(content) - start), start)
    if len(data) < _SHORTEST + _WIDTH:
        return None
    lengths = np.arange(_SHORTEST, len(data) - _WIDTH + 1)
    stored = np.lib.stride_tricks.sliding_window_view(data, _WIDTH)[lengths].copy().view("<u4")[:, 0]
    right = np.flatnonzero(_checksums(data, lengths) == stored)
    if not len(right):
        return None
    stop = start + int(lengths[right[0]])
    return Structure(name, start, stop, stop)


def _checksums(data: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return Bob Jenkins's lookup3 hash of the first ``lengths`` bytes, for all lengths (n,) at once: uint32, (n,)."""
    padded = np.concatenate([data, np.zeros(12, np.uint8)])
    words = padded[: len(padded) // 12 * 12].view("<u4").reshape(-1, 3)
    n_whole = (lengths - 1) // 12
    initial = (0xDEADBEEF + lengths).astype(np.uint32)
    state = np.stack([initial, initial, initial])
    for i in range(int(n_whole.max())):
        longer = n_whole > i
        state[:, longer] = _mixed(state[:, longer] + words[i][:, None])
    places = 12 * n_whole[:, None] + np.arange(12)
    tail = np.where(places < lengths[:, None], padded[np.minimum(places, len(padded) - 1)], 0).astype(np.uint8)
    return _final(state + tail.view("<u4").T)


def _rotated(values: np.ndarray, by: int) -> np.ndarray:
    return (values << np.uint32(by)) | (values >> np.uint32(32 - by))


def _mixed(state: np.ndarray) -> np.ndarray:
    a, b, c = state.copy()
    a = (a - c) ^ _rotated(c, 4)
    c = c + b
    b = (b - a) ^ _rotated(a, 6)
    a = a + c
    c = (c - b) ^ _rotated(b, 8)
    b = b + a
    a = (a - c) ^ _rotated(c, 16)
    c = c + b
    b = (b - a) ^ _rotated(a, 19)
    a = a + c
    c = (c - b) ^ _rotated(b, 4)
    b = b + a
    return np.stack([a, b, c])


def _final(state: np.ndarray) -> np.ndarray:
    a, b, c = state.copy()
    c = (c ^ b) - _rotated(b, 14)
    a = (a ^ c) - _rotated(c, 11)
    b = (b ^ a) - _rotated(a, 25)
    c = (c ^ b) - _rotated(b, 16)
    a = (a ^ c) - _rotated(c, 4)
    b = (b ^ a) - _rotated(a, 14)
    return (c ^ b) - _rotated(b, 24)


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
        c = (c ^ b) - _rotated_number(b, first) & _MASK
        a = (a ^ c) - _rotated_number(c, second) & _MASK
        b = (b ^ a) - _rotated_number(a, third) & _MASK
    return (c ^ b) - _rotated_number(b, 24) & _MASK


def _rotated_number(x: int, n: int) -> int:
    """Rotate a 32-bit number left by n bits."""
    return x << n & _MASK | x >> 32 - n
