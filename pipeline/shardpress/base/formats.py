"""Serialization of plain values and arrays, and fingerprints.

No format uses pickle, so reading a file cannot run code. A damaged or forged file raises `ValueError`.
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

import msgspec
import numpy as np
from blake3 import blake3

from shardpress.base.errors import OtherVersion

MOST_JSON_BYTES = 2**24  # enough for the history of 100,000 epochs that is stored with a model
_MOST_JSON_VALUES = 2**20  # each value takes up to about 100 bytes of memory
_MAX_DEPTH = 100  # the limit of Python's own JSON parser differs between versions, and is far higher in some

_ABOUT = "about"

_DIRECTORY_ENTRY = b"PK\1\2"  # signature of an entry in the central directory of a ZIP archive
_MOST_MEMBERS = 10_000
_MAX_QUOTED = 500  # maximum number of characters that a message quotes
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base class of facts that a result stores as JSON."""


class PieceDigest:
    """Iterable that yields the pieces of a file, counts their bytes, and computes their BLAKE3 digest.

    SHA-256 takes five times as long. Source: Aumasson, Neves, O'Connor and Wilcox-O'Hearn, "BLAKE3: one function, fast
    everywhere", 2020.
    """

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self.n_bytes = 0
        self._pieces = pieces
        self._hash = blake3()

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self._hash.update(piece)
            self.n_bytes += memoryview(piece).nbytes
            yield piece

    @property
    def blake3(self) -> str:
        """Digest of the pieces so far, in hexadecimal digits."""
        return str(self._hash.hexdigest())


def digest(pieces: Iterable[bytes | memoryview]) -> str:
    """Return the BLAKE3 digest of a file's bytes in hexadecimal digits."""
    content = PieceDigest(pieces)
    deque(content, maxlen=0)  # consumes all pieces
    return content.blake3


def missing_value(dtype: np.dtype) -> Any:
    """Return the value that marks missing entries of a dtype.

    It is NaN for floats, the smallest signed or the largest unsigned integer, an empty string, or False.
    """
    if dtype.kind in "fc":
        return dtype.type(np.nan)
    if dtype.kind == "i":
        return np.iinfo(dtype).min
    if dtype.kind == "u":
        return np.iinfo(dtype).max
    if dtype.hasobject:
        return b""
    return np.zeros((), dtype)[()]


def fingerprint(*content: object) -> str:
    """Return the SHA-256 digest of plain values, which are first converted to canonical JSON."""
    return sha256(_CANONICAL.encode(content).encode()).hexdigest()


def sum_of_digests(values: Iterable[int]) -> str:
    """Return the sum of digests of 128 bits, modulo 2**128, in hexadecimal digits."""
    return f"{sum(values) % 2**128:032x}"


def check_version(form: str, stored: str, advice: str) -> None:
    """Raise `OtherVersion` if the format of a file is another version of the expected format.

    `advice` is a sentence that says what to do with a file of an earlier version.
    """
    name, _, version = form.partition("/")
    match = re.fullmatch(rf"{re.escape(name)}/([0-9]{{1,9}})", stored)
    if match is None:
        return
    what = f"format {stored!r}, expected {form!r}"
    if int(match[1]) > int(version):
        raise OtherVersion(f"{what}: a later version of shardpress wrote it. Upgrade, or choose another --output.")
    if int(match[1]) < int(version):
        raise OtherVersion(f"{what}: an earlier version of shardpress wrote it. {advice}")


def pack(arrays: Mapping[str, np.ndarray], about: object) -> bytes:
    """Return the bytes of an ``.npz`` file with named arrays, and with plain values as JSON."""
    buffer = io.BytesIO()
    # Also store the names: if the central directory is damaged, arrays can disappear without an error.
    text = np.frombuffer(json.dumps([list(arrays), about], allow_nan=False).encode(), dtype=np.uint8)
    members: dict[str, Any] = {_ABOUT: text, **arrays}
    np.savez(buffer, **members)
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], Any]:
    """Return the arrays and plain values that were passed to `pack`.

    Raise `ValueError` if the data do not have the form that `pack` writes. Memory use is bounded by the size of `data`,
    even if the file declares other sizes: members must be stored without compression, and no array can be larger than
    its member.
    """
    try:
        arrays = _members(data)
        names, about = parse_bounded(arrays.pop(_ABOUT).tobytes())
        if list(arrays) != names:
            raise ValueError(f"holds arrays {_few(list(arrays))}, expected {_few(names)}")
        return arrays, about
    except MemoryError:  # not caused by the file, because the memory for the file is bounded
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds of errors for damaged files
        raise ValueError(f"not an array file of shardpress: {error}") from error


def parse_bounded(data: bytes) -> Any:
    """Parse JSON. Raise `ValueError` if it is invalid, nested too deeply, or would take too much memory."""
    # Count the values first: a list of short values takes 50 times as much memory after parsing as its text.
    n_values = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    if len(data) > MOST_JSON_BYTES or n_values > _MOST_JSON_VALUES:
        expected = f"at most {MOST_JSON_BYTES} bytes and {_MOST_JSON_VALUES} values"
        raise ValueError(f"JSON of {len(data)} bytes and about {n_values} values, expected {expected}")
    return _parse(data)


def _parse(data: bytes) -> Any:
    """Parse JSON. Raise `ValueError` if it is nested so deeply that recursive functions could fail."""
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if data.count(b"[") + data.count(b"{") <= _MAX_DEPTH:
        return content
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [child for parent in level for child in _containers(parent)]
        if not level:
            return content
    raise ValueError(f"JSON that is nested more than {_MAX_DEPTH} levels deep")


def _containers(parent: Any) -> Iterator[Any]:
    values = parent.values() if isinstance(parent, dict) else parent
    return (value for value in values if isinstance(value, (dict, list)))


def _members(data: bytes) -> dict[str, np.ndarray]:
    # Count the entries first: the parsed central directory takes much more memory than its bytes in the file.
    if data.count(_DIRECTORY_ENTRY) > _MOST_MEMBERS:
        raise ValueError(f"more than {_MOST_MEMBERS} arrays")
    arrays: dict[str, np.ndarray] = {}
    n_left = len(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            n_left -= member.file_size
            name = member.filename.removesuffix(".npy")
            is_new = name != member.filename and name not in arrays
            is_stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
            if not is_new or not is_stored or n_left < 0:
                raise ValueError(f"member {_few([member.filename])} is not stored as numpy.savez stores it")
            arrays[name] = _array(archive.read(member))
    return arrays


def _array(content: bytes) -> np.ndarray:
    """Return the array of numbers in an ``.npy`` file. The file must have the length that its header implies."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"NPY version {version}, expected 1.0 or 2.0")
    shape, is_fortran, dtype = _HEADERS[version](file)
    start = file.tell()
    n_bytes = len(content) - start
    n_values = math.prod(shape)
    is_plain = dtype.kind in "biuf" and all(n >= 0 for n in shape)
    if not is_plain or n_values * dtype.itemsize != n_bytes:
        raise ValueError(f"{n_bytes} bytes for an array of {dtype} of shape {shape}")
    flat = np.frombuffer(content, dtype, n_values, start)
    return flat.reshape(shape, order="F" if is_fortran else "C").copy(order="K")


def _few(names: object) -> str:
    """Return the names as text for a message, shortened if it is long."""
    text = str(names)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."
