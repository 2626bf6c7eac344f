"""How plain values become bytes and come back: JSON that carries its own digest, and named arrays.

No pickle, and nothing that could run: what comes back from a damaged or forged file is a `ValueError`.
"""

from __future__ import annotations

import io
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from pipeline.errors import NewerFormat

__all__ = ["Digested", "digest", "fingerprint", "missing_value", "pack", "seal", "spelled", "unpack", "unseal"]

_SEAL = "seal"
_ABOUT = "about"


class Digested:
    """Pieces of a file on their way elsewhere, and in ``blake3`` the digest of those that have passed.

    Aumasson, Neves, O'Connor, Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere", 2020. SHA-256 takes five times
    as long.
    """

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        from blake3 import blake3  # here, since who only opens features needs none

        self._pieces, self._hash = pieces, blake3()

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
    """Arrays and plain values that `pack` was given.

    Raises
    ------
    ValueError
        When it is anything else.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        names, about = json.loads(arrays.pop(_ABOUT).tobytes())
        if list(arrays) != names:
            raise ValueError(f"holds arrays {list(arrays)}, expected {names}")
        return arrays, about
    except Exception as error:  # NumPy and zipfile answer damage with errors of many kinds
        raise ValueError(f"no arrays of shardpress: {error}") from error
