"""Messages of the child: a line of JSON, followed by the bytes of arrays, never a pickle.

JSON keeps names that are not UTF-8, whose bytes Python represents by surrogates.
"""

import json
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import h5py
import msgspec
import numpy as np

T = TypeVar("T")

_DTYPES = ("<i8", "<f8", "|u1")  # of arrays


@dataclass(frozen=True)
class Failure:
    """Reply of a child that cannot answer."""

    kind: str  # "refused", "memory" if the limit is exceeded, or "failed"
    words: str
    dataset: str | None = None  # that is refused
    errno: int | None = None  # of a failed system call


def packed(reply: Any) -> list[Any]:
    """Return the pieces of a message: a failure, or an answer of plain values, dataclasses, arrays and dtypes."""
    arrays: list[np.ndarray] = []

    def number_of(value: Any) -> Any:
        if isinstance(value, np.dtype):
            return _code_of(value)
        for number, array in enumerate(arrays):
            if array is value:  # two datasets can share one
                return number
        arrays.append(np.ascontiguousarray(value))
        return len(arrays) - 1

    content = msgspec.to_builtins(reply, enc_hook=number_of)
    key = "failure" if isinstance(reply, Failure) else "answer"
    line = json.dumps({key: content, "arrays": [[array.dtype.str, array.shape] for array in arrays]})
    return [line.encode() + b"\n", *(array.reshape(-1).view(np.uint8).data for array in arrays)]


def unpacked(message: bytearray, kind: type[T]) -> T | Failure:
    """Return a failure, or an answer of the type `kind`. Raise `ValueError`, `TypeError` or `LookupError` otherwise.

    Arrays share the memory of the message.
    """
    offset = message.index(b"\n") + 1
    head = json.loads(message[:offset])
    arrays = []
    for code, shape in head["arrays"]:
        if code not in _DTYPES:
            raise ValueError(f"unexpected dtype {code} of an array")
        arrays.append(np.frombuffer(message, code, prod(shape), offset).reshape(shape))
        offset += arrays[-1].nbytes

    def value_of(wanted: type, value: Any) -> Any:
        if wanted is np.dtype:
            return _dtype_of(value)
        return arrays[value]

    if "failure" in head:
        return msgspec.convert(head["failure"], Failure)
    return msgspec.convert(head["answer"], kind, dec_hook=value_of)


def _code_of(dtype: np.dtype) -> str:
    is_simple = dtype.kind in "iufV" and not (dtype.metadata or dtype.fields or dtype.subdtype)
    if dtype.kind == "O" or is_simple:
        return dtype.str
    return h5py.h5t.py_create(dtype, logical=True).encode().hex()  # with the names of an enumeration's values


def _dtype_of(code: str) -> np.dtype:
    if code[0] in "<>|":
        return np.dtype(code)
    return h5py.h5t.decode(bytes.fromhex(code)).dtype
