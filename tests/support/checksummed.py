"""Find structures of HDF5 files that include a checksum, and correct the checksum after a change.

A structure with a wrong checksum is refused before a parser reads it. If the checksum is corrected, the change reaches
the parser, as in a forged file. Section numbers refer to the HDF5 File Format Specification 3.0.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass

import h5py

_HDF5 = ctypes.CDLL(h5py.h5p.__file__)  # h5py does not provide this function
_HDF5.H5_checksum_metadata.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint32]
_HDF5.H5_checksum_metadata.restype = ctypes.c_uint32
# Signatures of the superblock (II.A), object headers and their continuations (IV.A.1.b), B-trees of version 2
# (III.A.2), fractal heaps (III.G), extensible arrays (VII.D), fixed arrays (VII.C) and shared messages (III.F).
_SIGNATURES = re.compile(
    rb"\x89HDF\r\n\x1a\n[\x02\x03]|OHDR\x02|OCHK|BTHD|BTIN|BTLF|FRHP|FHDB|FHIB|FSHD|FSSE|EAHD|EAIB|EASB|EADB"
    rb"|FAHD|FADB|SMTB|SMLI"
)
_LENGTHS = range(8, 4097)  # of a structure in bytes
_WIDTH = 4  # bytes of a checksum
# The header of a fractal heap's direct block contains its checksum, computed with zeros in that place (III.G.2).
_HEAP_BLOCK = b"FHDB"
_HEAP_BLOCK_SIZES = [512 << i for i in range(8)]
_HEAP_CHECKSUM_PLACES = range(14, 22)  # after the signature, version, address, and an offset of 1 to 8 bytes


@dataclass(frozen=True)
class Structure:
    """A part of a file that a checksum covers."""

    name: str  # signature
    start: int
    stop: int  # end of the bytes, without a checksum that follows them
    place: int  # position of the checksum


def structures_of(content: bytes) -> list[Structure]:
    """Return the structures of a valid file whose checksums are correct."""
    found = []
    for match in _SIGNATURES.finditer(content):
        name = match[0][:4].decode("latin-1").strip("\x89")
        find = _heap_block if match[0] == _HEAP_BLOCK else _ended
        structure = find(content, name, match.start())
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
    return _checksum(bytes(data))


def _checksum(data: bytes) -> bytes:
    """Return HDF5's metadata checksum: lookup3 by Bob Jenkins (2006)."""
    return int(_HDF5.H5_checksum_metadata(data, len(data), 0)).to_bytes(_WIDTH, "little")


def _heap_block(content: bytes, name: str, start: int) -> Structure | None:
    for place in _HEAP_CHECKSUM_PLACES:
        for size in _HEAP_BLOCK_SIZES:
            block = Structure(name, start, start + size, start + place)
            stored = content[block.place : block.place + _WIDTH]
            if block.stop <= len(content) and _checksum_of(content, block) == stored:
                return block
    return None


def _ended(content: bytes, name: str, start: int) -> Structure | None:
    """Return the shortest structure from `start` that is followed by its checksum."""
    for stop in range(start + _LENGTHS[0], min(start + _LENGTHS[-1], len(content) - _WIDTH) + 1):
        if _checksum(content[start:stop]) == content[stop : stop + _WIDTH]:
            return Structure(name, start, stop, stop)
    return None
