"""Values of attributes: numbers, and texts of fixed or variable length."""

import struct
from typing import Any

import numpy as np

from pipeline.hdf5.plain.datasets import Attribute, attribute_of
from pipeline.hdf5.plain.headers import Kind, Messages
from pipeline.hdf5.plain.metadata import Metadata, Odd, expect

__all__ = ["attributes_of", "value_of"]

_REFERENCE = struct.Struct("<IQI")  # bytes of the text, address of its heap, number of the object in it
_HEAP = struct.Struct("<4sB3xQ")
_OBJECT = struct.Struct("<HH4xQ")
_MOST_OBJECTS = 1000  # looked at in one heap


def attributes_of(header: Messages) -> dict[str, Attribute]:
    """Return the attributes of an object by name; their values are not decoded yet."""
    attributes = [attribute_of(message) for message in header.get(Kind.ATTRIBUTE, [])]
    by_name = {attribute.name.decode(): attribute for attribute in attributes}
    expect(len(by_name) == len(attributes))
    return by_name


def value_of(file: Metadata, attribute: Attribute) -> Any:
    """Return an attribute's value: a str if it is one text, or an array of numbers.

    Raises
    ------
    Odd, ValueError
        When it is of another kind, or damaged.
    """
    code = attribute.dtype[0]
    if code == "|O":
        expect(attribute.shape == ())
        return _variable_text(file, attribute.data).decode()
    data = attribute.data[: attribute.n_bytes]
    if code[1] == "S":
        expect(attribute.shape == ())
        return data.rstrip(b"\0").decode()
    if code == "|b1":
        expect(max(data, default=0) <= 1)
    return np.frombuffer(data, code).reshape(attribute.shape)


def _variable_text(file: Metadata, reference: bytes) -> bytes:
    """Return a text of variable length, which lies in a global heap (III.E)."""
    n_bytes, heap, wanted = _REFERENCE.unpack_from(reference)
    if n_bytes == 0:
        return b""
    signature, version, heap_bytes = _HEAP.unpack(file.at(heap, _HEAP.size))
    expect(signature == b"GCOL", version == 1)
    place = heap + _HEAP.size
    for _ in range(_MOST_OBJECTS):
        number, _, size = _OBJECT.unpack(file.at(place, _OBJECT.size))
        expect(number != 0)  # the free space at the end of the heap
        start = place + _OBJECT.size
        place = start + -(-size // 8) * 8
        expect(place <= heap + heap_bytes)
        if number == wanted:
            expect(size == n_bytes)
            return file.at(start, n_bytes)
    raise Odd
