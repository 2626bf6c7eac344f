"""Tests of array files: values are restored exactly, and hostile files run no code and take little memory."""

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

from shardpress.base.formats import pack, unpack
from tests.support.cases import each

VALUES: dict[str, Any] = {
    "numbers": [None, True, False, 0, -1, 2**63, -(2**200), 0.1, -0.0, 5e-324, 1.7e308, 1.0],
    "texts": ["", "äß\u2028\U0001f600\udc80\x00\\", {"a": {}, "": [[]]}],
}


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


def npz(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def test_a_pickle_never_runs(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "ran")
    about = np.frombuffer(b'[["W"], {}]', dtype=np.uint8)
    pickled = pickle.dumps(canary)
    forged = [
        npz(about=about, W=np.array([canary], dtype=object)),
        npz(about=np.array([canary], dtype=object)),
        npz(about=about, W=np.array([(1, canary)], dtype=[("a", "i4"), ("b", "O")])),
        zipped(about=pickled, W=pickled),
    ]
    for data in forged:
        with pytest.raises(ValueError, match=r"\bshardpress\b"):
            unpack(data)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled)
    assert (tmp_path / "ran").exists(), "unpickling creates the file, so the test works"


def header_of(n_values: int) -> bytes:
    """Return the beginning of an ``.npy`` file."""
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (n_values,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "zeros compressed a thousandfold": lambda: npz(np.savez_compressed, about=np.zeros(2**27, np.uint8)),
    "an array larger than its member": lambda: zipped(about=header_of(2**40)),
    "many arrays": lambda: zipped(**{f"a{i}": b"" for i in range(12_000)}),
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
