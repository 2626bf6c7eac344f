"""Files of one layout: HDF5 is asked once where everything stands, and values of other files are put there.

It takes HDF5 two milliseconds to write a file with a few attributes, in which it holds its own lock and Python's. The
bytes around the values depend on names, shapes, dtypes and the lengths of texts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["MARK_BYTES", "Skeleton", "mark", "put", "skeleton_of"]

MARK_BYTES = 8  # which are found again among some thousand bytes of HDF5's


@dataclass(frozen=True)
class Skeleton:
    """What stands around the values of files of one layout.

    Attributes
    ----------
    n_bytes : int
        Of a whole file.
    around : tuple of (int, ndarray of uint8)
        Where bytes begin that are no array's values, and those bytes.
    arrays, attributes : mapping of str to int
        The byte at which the values of each of them begin.
    """

    n_bytes: int
    around: tuple[tuple[int, np.ndarray], ...]
    arrays: Mapping[str, int]
    attributes: Mapping[str, int]

    def fill(self, memory: np.ndarray, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, bytes]) -> None:
        """Make a file.

        Parameters
        ----------
        memory : ndarray of uint8
            At least ``n_bytes`` of them; the file is made at their begin.
        arrays : mapping
            Values in the shapes and dtypes of the layout. Of those that are not given, what is there stays.
        attributes : mapping of str to bytes
            All of them, each in its length.
        """
        for start, content in self.around:
            memory[start : start + len(content)] = content
        for name in arrays.keys() & self.arrays.keys():  # what has no bytes has no place
            put(memory, self.arrays[name], arrays[name])
        for name, place in self.attributes.items():
            put(memory, place, attributes[name])


def mark(number: int, n_bytes: int) -> bytes:
    """Text of `n_bytes`, at least `MARK_BYTES`, that is like no other number's and like nothing that HDF5 writes."""
    return (b"\x01%06d\x02" % number * (n_bytes // MARK_BYTES + 1))[:n_bytes]


def skeleton_of(
    content: np.ndarray, arrays: Mapping[str, tuple[int, int]], marks: Mapping[str, bytes]
) -> Skeleton | None:
    """What a file leaves when its values are taken out.

    Parameters
    ----------
    content : ndarray of shape (n_bytes,), uint8
        The file, with marks in the place of attributes.
    arrays : mapping of str to (int, int)
        The byte at which the values of each array begin, and how many bytes they take.
    marks : mapping of str to bytes
        What stands in the place of each attribute.

    Returns
    -------
    Skeleton or None
        None when a mark does not stand there exactly once.
    """
    around, end = [], 0
    for start, n_bytes in sorted(arrays.values()):
        around.append((end, content[end:start].copy()))
        end = start + n_bytes
    around.append((end, content[end:].copy()))
    pieces = [(start, piece.tobytes()) for start, piece in around]
    attributes = {}
    for name, text in marks.items():
        found = [(start + piece.find(text), piece.count(text)) for start, piece in pieces if text in piece]
        if [n for _, n in found] != [1]:
            return None
        attributes[name] = found[0][0]
    places = {name: start for name, (start, _) in arrays.items()}
    return Skeleton(len(content), tuple(around), places, attributes)


def put(memory: np.ndarray, place: int, value: np.ndarray | bytes) -> None:
    """Copy a value's bytes into an array of uint8, from the byte `place` on."""
    flat = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.ascontiguousarray(value).reshape(-1)
    if flat.size:
        memory[place : place + flat.nbytes] = flat.view(np.uint8)
