"""How plain values become bytes and come back: JSON that carries its own digest, and named arrays.

No pickle, and nothing that could run: what comes back from a damaged or forged file is a `ValueError`.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from pipeline.errors import NewerFormat

__all__ = [
    "MOST_JSON_BYTES",
    "Digested",
    "digest",
    "fingerprint",
    "missing_value",
    "pack",
    "parse_bounded",
    "seal",
    "spelled",
    "unpack",
    "unseal",
]

MOST_JSON_BYTES = 2**24
"""Largest length of a description stored with arrays, such as the history of 100,000 epochs."""
MOST_JSON_VALUES = 2**20
"""Largest number of values in it; each takes up to about 100 bytes of memory."""

_SEAL = "seal"
_ABOUT = "about"

_DIRECTORY_ENTRY = b"PK\1\2"  # how each entry of a ZIP archive's directory begins
_MOST_MEMBERS = 10_000
_LONGEST = 500  # characters of names in a message
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Digested:
    """Pieces of a file on their way elsewhere, and in ``blake3`` the digest of those that have passed.

    Aumasson, Neves, O'Connor, Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere", 2020. SHA-256 takes five times
    as long.
    """

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        from blake3 import blake3  # here, since who only opens features needs none

        self._pieces = pieces
        self._hash = blake3()

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self._hash.update(piece)
            yield piece

    @property
    def blake3(self) -> str:
        """In hexadecimal digits."""
        return str(self._hash.hexdigest())


def digest(pieces: Iterable[bytes | memoryview]) -> str:
    """BLAKE3 of a file's bytes, as `Digested` spells it."""
    passing = Digested(pieces)
    deque(passing, maxlen=0)  # keeps none of them
    return passing.blake3


def missing_value(dtype: np.dtype) -> Any:
    """What stands where a value of this dtype is missing, and can hardly be taken for one.

    NaN, the lowest signed integer, the highest unsigned one, the empty text; and False, since bool has no more.
    """
    if dtype.kind in "fc":
        return dtype.type(np.nan)
    if dtype.kind in "iu":
        return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max
    return b"" if dtype.hasobject else np.zeros((), dtype)[()]


def fingerprint(*content: object) -> str:
    """SHA-256 of values that JSON can hold, in one canonical spelling."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode()).hexdigest()


def seal(form: str, content: Mapping[str, Any]) -> bytes:
    """JSON for people and programs, with its format, like ``shardpress-output/1``, and a digest over all of it."""
    # Through JSON and back, so that the digest is of what a reader will find.
    body = json.loads(json.dumps({"format": form, **content}))
    return (spelled({**body, _SEAL: fingerprint(body)}) + "\n").encode()


def spelled(value: Any, margin: str = "\n") -> str:
    """JSON with a line for each flat value. `json.dumps` with an indent takes five times as long."""
    inner = margin + " "
    if isinstance(value, dict) and any(isinstance(each, (dict, list)) for each in value.values()):
        lines = [f"{inner}{json.dumps(key)}: {spelled(each, inner)}" for key, each in value.items()]
        return "{" + ",".join(lines) + margin + "}"
    if isinstance(value, list) and any(isinstance(each, (dict, list)) for each in value):
        return "[" + ",".join(inner + spelled(each, inner) for each in value) + margin + "]"
    return json.dumps(value)


def unseal(form: str, data: bytes) -> dict[str, Any]:
    """What `seal` was given.

    Raises
    ------
    ValueError
        When it is not JSON, of another format, or differs from what was sealed.
    NewerFormat
        When a later version of shardpress wrote it.
    """
    try:
        return _unsealed(form, data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unsealed(form: str, data: bytes) -> dict[str, Any]:
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, expected format {form!r}")
    name, _, version = form.partition("/")
    found = re.fullmatch(rf"{re.escape(name)}/([0-9]{{1,9}})", str(content.get("format")))
    if found and int(found[1]) > int(version):
        raise NewerFormat(
            f"format {content['format']!r}, expected {form!r}: a later version of shardpress wrote it. Upgrade, or "
            "choose another --output."
        )
    if content.get("format") != form:
        raise ValueError(f"format {content.get('format')!r}, expected format {form!r}")
    if content.pop(_SEAL, None) != fingerprint(content):
        raise ValueError("its digest does not fit its content")
    content.pop("format")
    # What JSON lets pass: other spaces, a key twice.
    if seal(form, content) != data:
        raise ValueError("not written as it was sealed")
    return content


def pack(arrays: Mapping[str, np.ndarray], about: object) -> bytes:
    """The bytes of an ``.npz`` file with named arrays, and plain values as JSON."""
    buffer = io.BytesIO()
    # An archive whose directory is damaged may lose arrays without a word, so their names are told beside them.
    text = np.frombuffer(json.dumps([list(arrays), about], allow_nan=False).encode(), dtype=np.uint8)
    np.savez(buffer, **{_ABOUT: text}, **arrays)
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], Any]:
    """Return the arrays and plain values that `pack` was given.

    The memory that this takes is bounded by the size of `data`, whatever the file claims: members are stored without
    compression, and no array is larger than its member.

    Raises
    ------
    ValueError
        When it is anything else.
    """
    try:
        arrays = _members(data)
        names, about = parse_bounded(arrays.pop(_ABOUT).tobytes())
        if list(arrays) != names:
            raise ValueError(f"holds arrays {_few(list(arrays))}, expected {_few(names)}")
        return arrays, about
    except MemoryError:  # which is no fault of the file, since what it takes is bounded
        raise
    except Exception as error:  # NumPy and zipfile answer damage with errors of many kinds
        raise ValueError(f"no arrays of shardpress: {error}") from error


def parse_bounded(text: bytes | str) -> Any:
    """Parse JSON, and refuse texts that would take much memory.

    Raises
    ------
    ValueError
        When it is longer, nested too deeply, or no JSON.
    """
    data = text.encode() if isinstance(text, str) else text
    # A list of one byte takes 50 times as much memory once it is parsed, so its values are counted before.
    n_values = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    if len(data) > MOST_JSON_BYTES or n_values > MOST_JSON_VALUES:
        expected = f"{MOST_JSON_BYTES} bytes and {MOST_JSON_VALUES} values at most"
        raise ValueError(f"JSON of {len(data)} bytes and about {n_values} values, expected {expected}")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def _members(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file as `numpy.savez` writes it."""
    # The archive's directory takes much more memory than its bytes, so its entries are counted before it is read.
    if data.count(_DIRECTORY_ENTRY) > _MOST_MEMBERS:
        raise ValueError(f"more than {_MOST_MEMBERS} arrays")
    arrays: dict[str, np.ndarray] = {}
    n_left = len(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            is_stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
            n_left -= member.file_size
            if name == member.filename or name in arrays or not is_stored or n_left < 0:
                raise ValueError(f"member {_few([member.filename])} is not stored as numpy.savez stores it")
            arrays[name] = _array(archive.read(member))
    return arrays


def _array(content: bytes) -> np.ndarray:
    """Return the array of numbers in an ``.npy`` file, which must be as long as its header says."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"NPY version {version}, expected 1.0 or 2.0")
    shape, is_fortran, dtype = _HEADERS[version](file)
    n_bytes = len(content) - file.tell()
    is_plain = dtype.kind in "biuf" and all(n >= 0 for n in shape)
    if not is_plain or math.prod(shape) * dtype.itemsize != n_bytes:
        raise ValueError(f"{n_bytes} bytes for an array of {dtype} of shape {shape}")
    flat = np.frombuffer(content, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C").copy(order="K")


def _few(names: object) -> str:
    """Return names for a message, cut off where they are many."""
    text = str(names)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
