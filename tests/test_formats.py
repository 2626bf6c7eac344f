"""Tests of file formats: values are restored exactly; damaged, forged and newer files are refused."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.errors import OtherVersion
from shardpress.formats import check_version, fingerprint, pack, parse_bounded, unpack
from tests.support.cases import each
from tests.support.helpers import refused

FORM = "shardpress-thing/2"


VALUES: dict[str, Any] = {
    "numbers": [None, True, False, 0, -1, 2**63, -(2**200), 0.1, -0.0, 5e-324, 1.7e308, 1.0],
    "texts": ["", "äß\u2028\U0001f600\udc80\x00\\", {"a": {}, "": [[]]}],
}


# -- JSON --------------------------------------------------------------------------------------------------------


@each(
    "data",
    [
        b"",
        b"\xff",
        b"{",
        b"1" * 5000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        *(b"[" * depth + b"]" * depth for depth in (101, 1000)),
        b"[" + b"[]," * 2**20 + b"0]",
        b'"' + b"x" * 2**24 + b'"',
    ],
)
def test_hostile_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_bounded(data)
    text = b"[" * 100 + b"]" * 100
    assert json.dumps(parse_bounded(text)).encode() == text, "the depth that is allowed"


def test_only_other_versions_of_the_format_are_refused() -> None:
    for version in ("3", "10", "999999999"):
        with refused(76, f"'shardpress-thing/{version}'"):
            check_version(FORM, f"shardpress-thing/{version}", "")
    for version in ("0", "1"):
        with pytest.raises(OtherVersion, match="Discard it"):
            check_version(FORM, f"shardpress-thing/{version}", "Discard it.")
    for other in (FORM, "shardpress-other/3", "shardpress-thing/", "shardpress-thing/3x", "thing/3", ""):
        check_version(FORM, other, "")


def test_a_fingerprint_depends_on_values_but_not_on_key_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    different = [{"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": [1]}, {"b": 1}, [["a", 1]], [1, 2], [2, 1], None]
    assert len({fingerprint(value) for value in different}) == len(different)
    assert fingerprint("a", "b") != fingerprint("ab") != fingerprint(["a", "b"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))


# -- arrays ------------------------------------------------------------------------------------------------------


@each("seed", range(30))
def test_packed_arrays_are_restored_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {}
    for i, dtype in enumerate(("<f4", "<f8", "<i8", "|u1", "|b1")):
        shape = tuple(rng.integers(0, 4, size=rng.integers(0, 4)))
        data = rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        data = bytes(byte & 1 for byte in data) if dtype == "|b1" else data
        array = np.frombuffer(data, dtype=dtype).reshape(shape)
        arrays[f"group/{i}"] = np.asfortranarray(array) if seed % 2 else array
    found, metadata = unpack(pack(arrays, VALUES))
    assert json.dumps(metadata) == json.dumps(VALUES), "1, 1.0 and True differ"
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.f_contiguous == array.flags.f_contiguous
        assert found[name].flags.writeable


class Canary:
    """An object that creates a file when its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_a_pickle_never_runs(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "ran")
    about = np.frombuffer(b'[["W"], {}]', dtype=np.uint8)
    pickled = pickle.dumps(canary)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    forged = [
        npz(about=about, W=np.array([canary], dtype=object)),
        npz(about=np.array([canary], dtype=object)),
        npz(about=about, W=np.array([(1, canary)], dtype=[("a", "i4"), ("b", "O")])),
        zipped(about=pickled, W=pickled),
        pickled,
        zipped(about=header.ljust(127) + b"\n" + pickled),
    ]
    for data in forged:
        with pytest.raises(ValueError, match=r"\bshardpress\b"):
            unpack(data)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled)
    assert (tmp_path / "ran").exists(), "unpickling creates the file, so the test works"


def compressed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def header_of(shape: str, descr: str = "<f8") -> bytes:
    text = b"{'descr': '%s', 'fortran_order': False, 'shape': %s, }" % (descr.encode(), shape.encode())
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117) + b"\n"


ABOUT = npz(about=np.frombuffer(b"[[], {}]", dtype=np.uint8))
HOSTILE: dict[str, Callable[[], bytes]] = {
    "zeros compressed a thousandfold": lambda: compressed(about=np.zeros(2**27, np.uint8)),
    "an array larger than its member": lambda: zipped(about=header_of(f"({2**40},)")),
    "many arrays": lambda: zipped(**{f"a{i}": b"" for i in range(12_000)}),
    "many values": lambda: npz(about=np.frombuffer(b"[[], [" + b"[]," * 2**21 + b"0]]", dtype=np.uint8)),
    "a member of another name": lambda: (
        ABOUT[: ABOUT.index(b"PK\1\2")] + ABOUT[ABOUT.index(b"PK\1\2") :].replace(b"about", b"other")
    ),
}


@each("name", HOSTILE)
def test_hostile_archives_take_little_memory(name: str) -> None:
    data = HOSTILE[name]()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"\bshardpress\b") as caught:
            unpack(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(data) + 2**20  # Python 3.14 needs 4.6 times the data
    assert len(str(caught.value)) < 2000
